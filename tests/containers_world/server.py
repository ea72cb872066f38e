"""A live server that serves containers."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from clawbox_client import SyncClient

from tests.live import LiveServer, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SETTINGS = """
[containers]
docker_url = "{engine}"
workspace_root = "{home}/workspaces"
pull_policy = "never"
{containers}

[images]
allowed = ["clawbox-test/", "clawbox/"]
{more}
"""


def settings(home: Path, engine_url: str, containers: str = "", more: str = "") -> str:
    """TOML: ``containers`` are keys of that section besides, ``more`` goes on in [images] or others."""
    return SETTINGS.format(engine=engine_url, home=home, containers=containers, more=more)


@contextlib.contextmanager
def containers_server(
    home: Path,
    engine_url: str,
    containers: str = "",
    more: str = "",
    *,
    wrapper: Sequence[str] = (),
    **environment: str,
) -> Iterator[LiveServer]:
    """A server in a process of its own whose Containers say SERVING; ``home`` may be an earlier one's.

    ``wrapper`` is a command that ends by executing its arguments.
    """
    text = "" if (home / "config.toml").exists() else settings(home, engine_url, containers, more)
    with running(home, text, wrapper=wrapper, tls=None, **environment) as server:
        wait_for_containers(server)
        yield server


def wait_for_containers(server: LiveServer, seconds: float = 30, *, serving: bool = True) -> None:
    """Wait until Containers are served, or are not. Raises RuntimeError with the server's log."""
    deadline = time.monotonic() + seconds
    with SyncClient(server.address) as client:
        while time.monotonic() < deadline:
            if client.is_serving("clawbox.v1.Containers") is serving:
                return
            time.sleep(0.02)
    raise RuntimeError(f"Containers did not become serving={serving}:\n{server.log.read_text()}")
