"""Fixtures for every test that needs a whole server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.live import LiveServer, running

if TYPE_CHECKING:
    from collections.abc import Iterator


pytest_plugins = ["tests.engine.fixtures"]


@pytest.fixture(scope="session")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server with default settings for all tests that leave it as they found it."""
    with running(tmp_path_factory.mktemp("live") / "clawbox") as server:
        yield server
