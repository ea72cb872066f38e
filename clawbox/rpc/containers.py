"""The Containers service: messages in, messages out, and nothing decided here.

This module has the methods of containers' lifecycle; what goes on inside has modules of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import structlog
from clawbox_client.v1 import capabilities_pb2, containers_pb2, containers_pb2_grpc

from clawbox.containers.calls import (
    Changed,
    ContainerFilter,
    Forgotten,
    Snapshot,
    SpawnCall,
    WatchEvent,
)
from clawbox.errors import ClawboxError, Reason
from clawbox.network_rules import ANY_HOST
from clawbox.rpc import convert_containers, convert_output
from clawbox.rpc.call import Call, current
from clawbox.rpc.container_execs import ExecMethods
from clawbox.rpc.container_files import FileMethods
from clawbox.rpc.container_methods import command_summary, names_of
from clawbox.rpc.container_output import OutputMethods
from clawbox.rpc.limits import StreamLimit
from clawbox.rpc.paging import page_size, page_start, page_token

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from clawbox.audit import Audit
    from clawbox.auth import Principal
    from clawbox.containers.backend import ContainerBackend
    from clawbox.containers.files import ContainerFiles
    from clawbox.containers.narrowing import ContainerCeiling
    from clawbox.containers.record import Container
    from clawbox.rpc.call import Context
    from clawbox.rpc.container_execs import Execs
    from clawbox.rpc.container_methods import Manager
    from clawbox.rpc.container_output import Output
    from clawbox.store import RequestIds
    from clawbox.telemetry import Metrics

_BESIDE_OUTPUT: Final = 1 << 20
"""Bytes of a reply that its stdout and stderr leave for everything else."""
UNDO_SECONDS: Final = 10.0
"""How long a container of which nobody is told may take to be gone, while its caller waits for the error."""
_log = structlog.stdlib.get_logger("clawbox.rpc")


class ContainersServicer(ExecMethods, OutputMethods, FileMethods, containers_pb2_grpc.ContainersServicer):
    """Runs containers."""

    def __init__(
        self,
        manager: Manager,
        *,
        execs: Execs,
        output: Output,
        backend: ContainerBackend,
        files: ContainerFiles,
        request_ids: RequestIds,
        ceiling: ContainerCeiling,
        audit: Audit,
        metrics: Metrics,
        max_message_bytes: int,
    ) -> None:
        """``max_message_bytes``: the most that a reply may have, so what collected output is cut to."""
        self._manager = manager
        self._execs = execs
        self._output = output
        self._backend = backend
        self._files = files
        self._file_calls = StreamLimit()
        self._request_ids = request_ids
        self._any_host = any(rule.host == ANY_HOST for rule in ceiling.network)
        self._audit = audit
        self._metrics = metrics
        self._reply_bytes = max(max_message_bytes - _BESIDE_OUTPUT, _BESIDE_OUTPUT) // 2

    async def Spawn(  # noqa: N802
        self, request: containers_pb2.SpawnRequest, _context: Context
    ) -> containers_pb2.Container:
        """Create a container and start its program; once, where the request has an id of its own."""
        call = current()
        call.adopt_request_id(request.request_id)
        with self._recorded("container_spawn", **_asked(request)) as record:
            wanted = convert_containers.spawn_call(request, call.request_id, any_host=self._any_host)
            if request.request_id:
                made = await self._spawn_once(wanted, _body_digest(request), call)
            else:
                made = await self._spawn(wanted, call)
            record.fields |= _made(made)
        return convert_containers.container(made)

    async def Get(  # noqa: N802
        self, request: containers_pb2.ContainersGetRequest, _context: Context
    ) -> containers_pb2.Container:
        """Return one container."""
        return convert_containers.container(self._find(request.container_id))

    async def List(  # noqa: N802
        self, request: containers_pb2.ContainersListRequest, _context: Context
    ) -> containers_pb2.ContainersListResponse:
        """List containers, newest first."""
        size = page_size(request.page_size)
        principal = current().principal
        wanted = _seen_by(principal, convert_containers.container_filter(request.filter))
        query = hashlib.sha256(request.filter.SerializeToString(deterministic=True)).hexdigest()
        after = page_start(request.page_token, "List", query)
        found = self._manager.list(principal, wanted, after, size + 1)
        response = containers_pb2.ContainersListResponse()
        left = convert_containers.PART_BYTES
        for record in found[:size]:
            message = convert_containers.container(record)
            left -= message.ByteSize()
            if left < 0 and response.containers:
                break
            response.containers.append(message)
            await asyncio.sleep(0)  # a page of long commands must not hold up others
        shown = len(response.containers)
        if shown < len(found):
            response.next_page_token = page_token("List", query, self._manager.position(found[shown - 1]))
        return response

    async def Watch(  # noqa: N802
        self, request: containers_pb2.ContainersWatchRequest, _context: Context
    ) -> AsyncGenerator[containers_pb2.ContainersWatchResponse]:
        """Stream containers as they change."""
        principal = current().principal
        wanted = _seen_by(principal, convert_containers.container_filter(request.filter))
        events = self._manager.watch(principal, wanted, request.after_revision)
        async with aclosing(events):
            async for event in events:
                for message in _watch_messages(event):
                    yield message

    async def Wait(  # noqa: N802
        self, request: containers_pb2.ContainersWaitRequest, _context: Context
    ) -> containers_pb2.Container:
        """Return when a container's program has ended."""
        wanted = convert_containers.container_id(request.container_id)
        return convert_containers.container(await self._manager.wait(wanted, current().principal))

    async def Stop(  # noqa: N802
        self, request: containers_pb2.ContainersStopRequest, _context: Context
    ) -> containers_pb2.Container:
        """End a container's program."""
        with self._recorded("container_stop", container_id=request.container_id):
            wanted = convert_containers.container_id(request.container_id)
            grace_ms = convert_containers.grace_ms(request)
            stopped = await self._manager.stop(wanted, current().principal, grace_ms)
        return convert_containers.container(stopped)

    async def Kill(  # noqa: N802
        self, request: containers_pb2.ContainersKillRequest, _context: Context
    ) -> containers_pb2.ContainersKillResponse:
        """Kill everything in a container and return what it wrote."""
        with self._recorded("container_kill", container_id=request.container_id):
            found = self._find(request.container_id)
            killed = await self._manager.kill(found.container_id, current().principal)
            if found.active:
                self._metrics.container_killed()
        response = containers_pb2.ContainersKillResponse(container=convert_containers.container(killed))
        most = min(killed.identity.grant.limits.max_output_bytes, self._reply_bytes)
        convert_output.set_tail(response, await self._output.tail(killed.container_id, most))
        return response

    async def Remove(  # noqa: N802
        self, request: containers_pb2.ContainersRemoveRequest, _context: Context
    ) -> containers_pb2.ContainersRemoveResponse:
        """Forget a finished container."""
        delete_workspace = request.delete_workspace if request.HasField("delete_workspace") else None
        with self._recorded(
            "container_remove",
            container_id=request.container_id,
            force=request.force,
            delete_workspace=delete_workspace,
        ):
            await self._manager.remove(
                convert_containers.container_id(request.container_id),
                current().principal,
                force=request.force,
                delete_workspace=delete_workspace,
            )
        return containers_pb2.ContainersRemoveResponse()

    async def Pause(  # noqa: N802
        self, request: containers_pb2.ContainersPauseRequest, _context: Context
    ) -> containers_pb2.Container:
        """Freeze a container."""
        with self._recorded("container_pause", container_id=request.container_id):
            wanted = convert_containers.container_id(request.container_id)
            paused = await self._manager.pause(wanted, current().principal)
        return convert_containers.container(paused)

    async def Resume(  # noqa: N802
        self, request: containers_pb2.ContainersResumeRequest, _context: Context
    ) -> containers_pb2.Container:
        """Let a frozen container go on."""
        with self._recorded("container_resume", container_id=request.container_id):
            wanted = convert_containers.container_id(request.container_id)
            resumed = await self._manager.resume(wanted, current().principal)
        return convert_containers.container(resumed)

    async def ListTemplates(  # noqa: N802
        self, request: containers_pb2.ListTemplatesRequest, _context: Context
    ) -> containers_pb2.ListTemplatesResponse:
        """List the operator's templates, by name."""
        size = page_size(request.page_size)
        after = page_start(request.page_token, "ListTemplates", "")
        names = sorted(name for name in self._manager.templates if name > after)
        response = containers_pb2.ListTemplatesResponse(
            templates=[
                convert_containers.template(name, self._manager.templates[name]) for name in names[:size]
            ]
        )
        if len(names) > size:
            response.next_page_token = page_token("ListTemplates", "", names[size - 1])
        return response

    async def _spawn(self, wanted: SpawnCall, call: Call) -> Container:
        began = time.monotonic()
        made = await self._manager.spawn(wanted, call.principal)
        self._metrics.container_spawned(time.monotonic() - began)
        return made

    async def _spawn_once(self, wanted: SpawnCall, body: bytes, call: Call) -> Container:
        """The container of this request id: made now, or by an earlier call, then as it is now."""
        principal = call.principal
        async with self._request_ids.once(principal.name, "Spawn", wanted.request_id, body) as slot:
            if slot.result is not None:
                return self._manager.find(slot.result.decode(), principal)
            made = await self._spawn(wanted, call)
            try:
                await slot.finish(made.container_id.encode())
            except BaseException:
                if not slot.finished:
                    # The caller is told that it failed, and may send it again: there must not be two.
                    await self._undo(made, principal)
                raise
            return made

    async def _undo(self, made: Container, principal: Principal) -> None:
        try:
            async with asyncio.timeout(UNDO_SECONDS):
                await self._manager.remove(made.container_id, principal, force=True, delete_workspace=None)
        except (ClawboxError, TimeoutError) as error:
            _log.warning(
                "a container that nobody was told of is left", container=made.container_id, problem=str(error)
            )


def _seen_by(principal: Principal, wanted: ContainerFilter) -> ContainerFilter:
    """The filter, if ``principal`` may ask it. Raises SCOPE_MISSING."""
    if wanted.owner in {"", principal.name} or principal.is_admin:
        return wanted
    raise ClawboxError(
        Reason.SCOPE_MISSING,
        "the token of {principal} lacks the scope {scope}, which {field} needs to name somebody else",
        principal=principal.name,
        scope="*",
        field="filter.owner",
    )


def _watch_messages(event: WatchEvent) -> Iterator[containers_pb2.ContainersWatchResponse]:
    match event:
        case Snapshot():
            parts = list(convert_containers.parts(event.containers)) or [[]]
            for index, part in enumerate(parts):
                last = index == len(parts) - 1
                yield containers_pb2.ContainersWatchResponse(
                    revision=event.revision if last else "",
                    snapshot=containers_pb2.ContainersSnapshot(
                        containers=part, complete=event.complete and last
                    ),
                )
        case Changed():
            yield containers_pb2.ContainersWatchResponse(
                revision=event.revision, changed=convert_containers.container(event.container)
            )
        case Forgotten():
            yield containers_pb2.ContainersWatchResponse(
                revision=event.revision,
                removed=containers_pb2.ContainerRemoved(container_id=event.container_id),
            )


def _body_digest(request: containers_pb2.SpawnRequest) -> bytes:
    """SHA-256 of a request without its id."""
    body = containers_pb2.SpawnRequest()
    body.CopyFrom(request)
    body.ClearField("request_id")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()


def _asked(request: containers_pb2.SpawnRequest) -> dict[str, Any]:
    """What an audit row says of a request. Values of variables are nobody's business, nor are arguments."""
    asked: dict[str, Any] = {
        "task": request.task,
        "policy": capabilities_pb2.ExecutionPolicy.Name(request.policy)
        .removeprefix("EXECUTION_POLICY_")
        .lower()
        if request.policy in capabilities_pb2.ExecutionPolicy.values()
        else request.policy,
        "env_names": names_of(request.env),
        **command_summary(request.command),
    }
    source = request.WhichOneof("source")
    if source is not None:
        asked[source] = getattr(request, source)
    return asked


def _made(made: Container) -> dict[str, Any]:
    identity = made.identity
    grant = identity.grant
    return {
        "container_id": made.container_id,
        "image": identity.image,
        "image_id": identity.image_id,
        "image_digest": identity.image_digest,
        "policy": grant.isolation.value,
        "network": [str(rule) for rule in grant.network.rules],
        "credentials": sorted(grant.credentials),
        "limits": {name: getattr(grant.limits, name) for name in grant.limits.__slots__},
    }
