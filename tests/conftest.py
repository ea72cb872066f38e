"""Fixtures for every test that needs a whole server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live import LiveServer, running


@pytest.fixture(scope="session")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server with default settings for all tests that leave it as they found it."""
    with running(tmp_path_factory.mktemp("live") / "clawbox") as server:
        yield server
