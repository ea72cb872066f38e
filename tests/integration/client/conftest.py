"""Both clients against one server: each test runs once with each of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from clawbox_client import Client, SyncClient

from tests.integration.client.fakes import TOKEN, FakeServer, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with serving() as fake:
        yield fake


class Caller:
    """Calls methods of either client from asyncio."""

    def __init__(self, kind: str, address: str, **options: Any) -> None:
        self.client: Any = Client(address, **options) if kind == "aio" else SyncClient(address, **options)
        self._aio = kind == "aio"

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        function = getattr(self.client, method)
        if self._aio:
            return await function(*args, **kwargs)
        return await asyncio.to_thread(function, *args, **kwargs)

    async def collect(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        return [event async for event in self.iterate(method, *args, **kwargs)]

    async def iterate(self, method: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        stream = getattr(self.client, method)(*args, **kwargs)
        if self._aio:
            async for event in stream:
                yield event
            return
        end = object()
        while (event := await asyncio.to_thread(next, stream, end)) is not end:
            yield event

    async def close(self) -> None:
        if self._aio:
            await self.client.close()
        else:
            await asyncio.to_thread(self.client.close)


@pytest.fixture(params=["aio", "blocking"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def caller(kind: str, server: FakeServer) -> AsyncIterator[Caller]:
    made = Caller(kind, server.address, token=TOKEN)
    yield made
    await made.close()
