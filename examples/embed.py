"""clawbox inside a program of yours: the server in this event loop, and a call to it.

Run it after ``make setup``: ``.venv/bin/python examples/embed.py``. Settings come from a file and the
environment, as for ``clawbox serve``; ``Config.load`` raises ``ConfigError`` with everything that is wrong.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from pathlib import Path

from clawbox_client import Client

from clawbox.app import build_server
from clawbox.config import Config
from clawbox.telemetry import configure_logging

SETTINGS = """
[server]
port = 0                 # any free port
auth_token = "{token}"

[metrics]
port = 0

[logging]
level = "warning"
audit_dir = "audit"      # relative to this file, like every path in it

[containers]
enabled = false          # true, with a workspace_root, where there is Docker and the program is root
"""


async def embedded(folder: Path) -> None:
    """Serve for one call. Leaving the context drains the server and ends its processes."""
    token = secrets.token_hex(32)
    file = folder / "config.toml"
    file.touch(mode=0o600)
    file.write_text(SETTINGS.format(token=token))

    config = Config.load(file)
    configure_logging(config.logging)  # JSON to stderr; leave it out where your program sets structlog up
    async with (
        build_server(config) as server,
        Client(f"127.0.0.1:{server.port}", token=token) as client,
    ):
        answer = await client.run_python("result = sum(input)", input=[1, 2, 3])
        print(f"{answer.outcome.name} {answer.result}")


def main() -> None:
    """Run it in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(embedded(Path(folder)))


if __name__ == "__main__":
    main()
