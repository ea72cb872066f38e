"""Repositories over HTTP: git's own ``git http-backend`` behind an upstream (git-http-backend(1))."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import TYPE_CHECKING

from tests.programs.world import SECRET

if TYPE_CHECKING:
    from pathlib import Path

    from tests.egress_world import Exchange, Handler

_AUTHORIZATION = "Basic " + base64.b64encode(f"robot:{SECRET}".encode()).decode()


def git_server(root: Path) -> Handler:
    """Serves the bare repositories in ``root``, to the user ``robot`` alone."""

    async def handler(exchange: Exchange) -> None:
        seen = exchange.request
        if seen.header("authorization") != _AUTHORIZATION:
            await exchange.answer(b"who are you?", [("WWW-Authenticate", 'Basic realm="git"')], 401)
            return
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": seen.method,
            "PATH_INFO": seen.path,
            "QUERY_STRING": seen.target.partition("?")[2],
            "CONTENT_TYPE": seen.header("content-type") or "",
            "CONTENT_LENGTH": str(len(seen.body)),
            "HTTP_CONTENT_ENCODING": seen.header("content-encoding") or "",
            "GIT_PROTOCOL": seen.header("git-protocol") or "",
            "REMOTE_USER": "robot",
        }
        process = await asyncio.create_subprocess_exec(
            *("git", "http-backend"),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate(seen.body)
        head, _, body = out.partition(b"\r\n\r\n")
        headers = [
            (name, value) for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n"))
        ]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        await exchange.answer(body, [pair for pair in headers if pair[0] != "Status"], status)

    return handler
