"""What a container's program writes and uses: Logs and Stats."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

from clawbox.containers.usage import watch_usage
from clawbox.errors import ClawboxError, Reason
from clawbox.rpc import convert_output
from clawbox.rpc.call import current
from clawbox.rpc.container_methods import ContainerMethods

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from clawbox_client.v1 import containers_pb2

    from clawbox.containers.backend import ContainerBackend, Stream
    from clawbox.containers.output.capture import Tail
    from clawbox.containers.output.reading import Begin, Chunk, Gap
    from clawbox.rpc.call import Context


class Output(Protocol):
    """What is kept of output: :class:`clawbox.containers.output.capture.OutputCapture`."""

    async def begun(self, container_id: str) -> None:
        """Return once a reader that follows is told all that the container writes."""

    def read(
        self, container_id: str, streams: frozenset[Stream], begin: Begin, *, follow: bool
    ) -> AsyncGenerator[Chunk | Gap]:
        """It, in pieces of at most 64 KiB; with ``follow`` until the container has finished."""

    async def tail(self, container_id: str, max_bytes: int) -> Tail:
        """The end of stdout and of stderr."""


class OutputMethods(ContainerMethods):
    """Methods that read what containers leave behind or use."""

    _output: Output
    _backend: ContainerBackend

    async def Logs(  # noqa: N802
        self, request: containers_pb2.ContainersLogsRequest, _context: Context
    ) -> AsyncGenerator[containers_pb2.ContainersLogsResponse]:
        """Stream what a container's program wrote."""
        streams = convert_output.streams(request.streams)
        begin = convert_output.begin(request)
        found = self._find(request.container_id)
        if request.follow and found.active:
            await self._begun(found.container_id)
        pieces = self._output.read(found.container_id, streams, begin, follow=request.follow)
        async with aclosing(pieces):
            async for piece in pieces:
                yield convert_output.log_event(piece)

    async def _begun(self, container_id: str) -> None:
        """Return once it can be followed, or has finished. Raises CONTAINER_NOT_FOUND: it is forgotten.

        One that is being made, or that this server has not taken over yet, cannot: to a reader it would end
        at once, as if it had finished.
        """
        begun = asyncio.ensure_future(self._output.begun(container_id))
        finished = asyncio.ensure_future(self._manager.wait(container_id, current().principal))
        both = {begun, finished}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():
                finished.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def Stats(  # noqa: N802
        self, request: containers_pb2.ContainersStatsRequest, _context: Context
    ) -> AsyncGenerator[containers_pb2.ContainersStatsResponse]:
        """Stream what a container uses."""
        found = self._find(request.container_id)
        if not found.active:
            raise ClawboxError(
                Reason.WRONG_STATE,
                "the container {container_id} is {state}, and uses nothing any more",
                precondition=("STATE", found.container_id),
                container_id=found.container_id,
                state=found.status.state.name,
            )
        quarters = self._manager.quarters(found.container_id)
        usages = watch_usage(self._backend, quarters, interval_ms=request.interval_ms, once=request.once)
        async with aclosing(usages):
            async for usage in usages:
                yield convert_output.stats(usage)
