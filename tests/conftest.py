"""For every test: how hypothesis runs, and fixtures of those that need a whole server or an engine."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.live import LiveServer, running

if TYPE_CHECKING:
    from collections.abc import Iterator


pytest_plugins = ["tests.engine.fixtures"]

# How long an example takes, or takes to be made up, says how busy the machine is, and nothing of the program.
settings.register_profile(
    "clawbox", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("clawbox")

# A shell that runs the tests in the background has them ignore Ctrl-C; what they start would ignore it, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server with default settings for all tests that leave it as they found it."""
    with running(tmp_path_factory.mktemp("live") / "clawbox") as server:
        yield server
