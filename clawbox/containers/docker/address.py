"""Where the engine listens."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping

USUAL: Final = "unix:///var/run/docker.sock"
_MAX_SOCKET_PATH: Final = 107
"""Bytes: what sockaddr_un has room for, unix(7)."""


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """A socket of this host. Made by :meth:`parse`."""

    path: str = ""
    """Of a unix socket; empty: TCP."""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, setting: str, environment: Mapping[str, str]) -> EngineAddress:
        """Read ``containers.docker_url``; where that is empty ``DOCKER_HOST``, else the usual socket.

        Over TCP there is neither a key nor a certificate here, so it has to be a loopback address: whoever
        can speak to an engine is root on its host. A container's way out needs the engine's processes to be
        this host's in any case. Raises ValueError that names the setting.
        """
        name, text = "containers.docker_url", setting
        if not text:
            name, text = "DOCKER_HOST", environment.get("DOCKER_HOST", "")
        try:
            return _parse(text or USUAL)
        except ValueError as error:
            raise ValueError(f"{name} {text!a} {error}") from None

    def connector(self) -> aiohttp.BaseConnector:
        """For HTTP. Without a limit: streams last for as long as containers, and no call may wait for one."""
        if self.path:
            return aiohttp.UnixConnector(self.path, limit=0)
        return aiohttp.TCPConnector(limit=0)

    @property
    def url(self) -> str:
        """What requests begin with."""
        if self.path:
            return "http://docker"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def connect(self, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection that holds back at most about twice ``limit`` bytes. Raises OSError."""
        if self.path:
            return await asyncio.open_unix_connection(self.path, limit=limit)
        return await asyncio.open_connection(self.host, self.port, limit=limit)


def _parse(text: str) -> EngineAddress:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in {"unix", "tcp"}:
        raise ValueError("does not begin with unix:// or tcp://")
    if scheme == "unix":
        if not rest.startswith("/") or "\0" in rest:
            raise ValueError("is no absolute path of a socket")
        if len(rest.encode()) > _MAX_SOCKET_PATH:
            raise ValueError("is longer than a socket's path can be")
        return EngineAddress(path=rest)
    parts = urlsplit(text)
    host, port = parts.hostname, parts.port
    if not host or not port or parts.username is not None or parts.path not in {"", "/"} or parts.query:
        raise ValueError("is not tcp://HOST:PORT")
    if host != "localhost" and not _is_loopback(host):
        raise ValueError("is not on this host: only a loopback address is used without TLS")
    return EngineAddress(host=host, port=port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
