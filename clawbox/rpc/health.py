"""``grpc.health.v1.Health``: Check, Watch and List (gRFC A83, and the health checking protocol of gRPC).

grpcio's own asyncio servicer has no ``List``, and leaves ``Watch`` open until a stopping server's grace is
over; this one ends it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2

from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

_Status = health_pb2.HealthCheckResponse


class HealthServicer:
    """Which services serve. The empty name stands for the server, and follows the service ``overall``."""

    def __init__(self, overall: str = "clawbox.v1.Sandbox") -> None:
        self._overall = overall
        self._serving: dict[str, bool] = {"": False}
        self._watchers: set[asyncio.Event] = set()
        self._ended = False

    def set(self, service: str, serving: bool) -> None:  # noqa: FBT001 - the state is the value
        """Say whether ``service`` (its full name) serves. After :meth:`end` nothing does."""
        self._serving[service] = serving and not self._ended
        self._serving[""] = self._serving.get(self._overall, False)
        self._tell()

    def end(self) -> None:
        """Nothing serves any more, for good; whoever watches is told and then let go."""
        self._ended = True
        self._serving = dict.fromkeys(self._serving, False)
        self._tell()

    def _tell(self) -> None:
        for changed in self._watchers:
            changed.set()

    async def Check(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, _context: object
    ) -> health_pb2.HealthCheckResponse:
        """The state of one service; NOT_FOUND when there is none of that name."""
        serving = self._serving.get(request.service)
        if serving is None:
            raise ClawboxError(
                Reason.SERVICE_NOT_FOUND,
                "there is no service {service}",
                resource=("service", request.service),
                service=request.service,
            )
        return _response(serving)

    async def List(  # noqa: N802 - gRPC's name
        self, _request: Message, _context: object
    ) -> Message:
        """The state of every service."""
        statuses = {name: _response(serving) for name, serving in self._serving.items()}
        response: Message = health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]
        return response

    async def Watch(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, _context: object
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state of one service now, and whenever it changes; SERVICE_UNKNOWN while there is none."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        told: object = ""
        try:
            while True:
                changed.clear()
                serving = self._serving.get(request.service)
                if serving is not told:
                    told = serving
                    yield _response(serving)
                    continue  # to what came while that was sent: the end, too, is told before it is the end
                if self._ended:
                    return
                await changed.wait()
        finally:
            self._watchers.discard(changed)


def _response(serving: bool | None) -> health_pb2.HealthCheckResponse:  # noqa: FBT001
    if serving is None:
        return _Status(status=_Status.SERVICE_UNKNOWN)
    return _Status(status=_Status.SERVING if serving else _Status.NOT_SERVING)
