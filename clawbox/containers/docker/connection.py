"""Asking the engine: how long an answer may take, which API is spoken, what a failure is called.

aiodocker asks where one answer is all there is. Streams are read here, by its HTTP session: its own reader of
progress and events takes a connection that broke for the end of the stream, and its reader of logs makes
text of bytes.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import aiodocker
import aiohttp

from clawbox.containers.backend import ConflictError, EngineError, NotThereError
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from clawbox.containers.docker.address import EngineAddress

OLDEST_API: Final = (1, 41)
"""Docker 20.10: the first that knows cgroup v2 and one-shot statistics."""
NEWEST_API: Final = (1, 44)
"""Docker 25, and the oldest that Docker 29 still speaks. A newer engine is asked in this version's words."""

RETRY_SECONDS: Final = 1.0
MAX_ANSWER_BYTES: Final = 16 << 20
_NOT_UNDERSTOOD: Final = 502
_READ_BYTES: Final = 1 << 16
_CONFLICT: Final = re.compile(r"is not (?:paused|running)\b")
"""What some versions call an error of their own (500) is a conflict."""
_API: Final = re.compile(r"([0-9]+)\.([0-9]+)")


def unavailable() -> ClawboxError:
    """The engine does not answer. Its address is not for callers."""
    return ClawboxError(
        Reason.DOCKER_UNAVAILABLE, "the container engine does not answer", retry_after=RETRY_SECONDS
    )


def refusal(status: int, words: str) -> EngineError | ClawboxError:
    """The error for an answer that is none."""
    if status in {503, 900}:  # the second is aiodocker's for a connection that failed
        return unavailable()
    if status == 404:
        return NotThereError(status, words)
    if status == 409 or (status == 500 and _CONFLICT.search(words)):
        return ConflictError(status, words)
    return EngineError(status, words)


def not_understood(what: str) -> EngineError:
    """The error for an answer that is not what the API promises."""
    return EngineError(_NOT_UNDERSTOOD, what)


def negotiate(newest: str, oldest: str) -> str:
    """The version of the API to speak with an engine that speaks from ``oldest`` to ``newest``.

    Raises :class:`EngineError` for one that is too old.
    """
    engine = _numbers(newest)
    if engine < OLDEST_API:
        raise EngineError(400, f"the engine speaks API {newest}, which is older than what containers need")
    major, minor = max(min(engine, NEWEST_API), _numbers(oldest or "0.0"))
    return f"{major}.{minor}"


def _numbers(version: str) -> tuple[int, int]:
    matched = _API.fullmatch(version)
    if matched is None:
        raise not_understood(f"{version!r} is no version of an API")
    return int(matched[1]), int(matched[2])


@contextmanager
def translated() -> Iterator[None]:
    """Errors of the libraries become those of :mod:`clawbox.containers.backend`."""
    try:
        yield
    except aiodocker.DockerError as error:
        raise refusal(error.status, error.message) from error
    except (aiohttp.ClientError, OSError, EOFError) as error:  # a time limit's is an OSError, too
        raise unavailable() from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise not_understood(f"{type(error).__name__}: {error}") from error


@asynccontextmanager
async def answered(seconds: float | None) -> AsyncIterator[None]:
    """As :func:`translated`, for what has to be done within ``seconds``."""
    with translated():
        async with asyncio.timeout(seconds):
            yield


class EngineStream:
    """An answer that comes in pieces, for as long as it takes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def read(self, seconds: float | None = None) -> bytes:
        """The next bytes; empty at the end. A connection that breaks is DOCKER_UNAVAILABLE."""
        with translated():
            async with asyncio.timeout(seconds):
                return await self._response.content.read(_READ_BYTES)

    async def lines(self, most: int, seconds: float | None = None) -> AsyncIterator[bytes]:
        """Line after line; raises :class:`EngineError` for one of more than ``most`` bytes."""
        rest = bytearray()
        while data := await self.read(seconds):
            rest += data
            *whole, last = rest.split(b"\n")
            for line in whole:
                if line.strip():
                    yield bytes(line)
            rest = last
            if len(rest) > most:
                raise not_understood("a line without an end")
        if rest.strip():
            yield bytes(rest)


class EngineConnection:
    """All HTTP with one engine. An async context manager; nothing is asked of the engine by opening it."""

    def __init__(self, address: EngineAddress) -> None:
        self.address = address
        self._docker: aiodocker.Docker | None = None
        self._session: aiohttp.ClientSession | None = None
        self._api = ""

    def open(self) -> None:
        """Make ready to ask. Needs the event loop."""
        self._session = aiohttp.ClientSession(
            connector=self.address.connector(),
            # Each call has a limit of its own.
            timeout=aiohttp.ClientTimeout(),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
        )
        self._docker = aiodocker.Docker(
            url=self.address.url, session=self._session, connector=self._session.connector
        )

    async def close(self) -> None:
        """Let go of every connection; streams that are read end with DOCKER_UNAVAILABLE."""
        if self._docker is not None and self._session is not None:
            docker, session = self._docker, self._session
            self._docker = self._session = None
            try:
                await docker.close()
            finally:
                await session.close()

    async def api(self) -> str:
        """The version of the API that is spoken: ``1.41``."""
        self._open()
        if not self._api:
            await self.version()
        return self._api

    async def version(self) -> Mapping[str, Any]:
        """What the engine says of its version, asked anew: it may be another one since it was last there."""
        docker, session = self._open()
        async with session.get(f"{self.address.url}/version") as response:
            raw = await _body(response)
        if response.status != 200:
            raise refusal(response.status, words_of(raw))
        said: Mapping[str, Any] = json.loads(raw)
        self._api = negotiate(said["ApiVersion"], said.get("MinAPIVersion", ""))
        docker.api_version = f"v{self._api}"
        return said

    async def docker(self) -> aiodocker.Docker:
        """What asks, in the version of the API that was agreed on."""
        await self.api()
        docker, _ = self._open()
        return docker

    async def json(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, body: Any = None
    ) -> Any:
        """One question and its answer, for what aiodocker has no call for."""
        api = await self.api()
        _, session = self._open()
        url = f"{self.address.url}/v{api}/{path}"
        async with session.request(method, url, params=params, json=body) as response:
            raw = await _body(response)
        if response.status >= 400:
            raise refusal(response.status, words_of(raw))
        return json.loads(raw) if raw else None

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, params: Mapping[str, str], *, seconds: float
    ) -> AsyncIterator[EngineStream]:
        """An answer in pieces, which begins within ``seconds``; its connection ends with the block."""
        async with answered(seconds):
            api = await self.api()
            _, session = self._open()
            response = await session.request(method, f"{self.address.url}/v{api}/{path}", params=params)
        try:
            if response.status >= 400:
                async with answered(seconds):
                    raw = await _body(response)
                raise refusal(response.status, words_of(raw))
            yield EngineStream(response)
        finally:
            # Not released: what a stream still holds would have to be read first.
            response.close()

    def _open(self) -> tuple[aiodocker.Docker, aiohttp.ClientSession]:
        if self._docker is None or self._session is None:
            raise unavailable()
        return self._docker, self._session


async def _body(response: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    while piece := await response.content.read(_READ_BYTES):
        raw += piece
        if len(raw) > MAX_ANSWER_BYTES:
            raise not_understood("an answer without an end")
    return bytes(raw)


def words_of(raw: bytes) -> str:
    """What an answer that is an error says."""
    text = raw.decode(errors="replace")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, TypeError, LookupError):
        return text
