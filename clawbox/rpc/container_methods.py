"""What the methods of the Containers service share: the parts that they delegate to, and their audit rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from clawbox.audit import Audit, recorded
from clawbox.containers.environment import MAX_VARIABLES
from clawbox.rpc import convert_containers
from clawbox.rpc.call import current

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from clawbox.audit import Record
    from clawbox.auth import Principal
    from clawbox.config import ImageTemplate
    from clawbox.containers.calls import ContainerFilter, SpawnCall, WatchEvent
    from clawbox.containers.quarters import Quarters
    from clawbox.containers.record import Container


class Manager(Protocol):
    """What is asked of containers as a whole: :class:`clawbox.containers.manager.ContainerManager`.

    A container that ``principal`` may not see is CONTAINER_NOT_FOUND.
    """

    @property
    def templates(self) -> Mapping[str, ImageTemplate]:
        """What the operator configured, by name."""

    async def spawn(self, call: SpawnCall, principal: Principal) -> Container:
        """Make a container and start its program."""

    def find(self, container_id: str, principal: Principal) -> Container:
        """One container."""

    def quarters(self, container_id: str) -> Quarters:
        """What control holds of it. Raises WRONG_STATE when that is nothing."""

    def list(
        self, principal: Principal, wanted: ContainerFilter, after: str, limit: int
    ) -> Sequence[Container]:
        """At most ``limit`` containers, newest first, of those behind the position ``after``."""

    def position(self, container: Container) -> str:
        """Where one is in a list."""

    def watch(
        self, principal: Principal, wanted: ContainerFilter, after_revision: str
    ) -> AsyncGenerator[WatchEvent]:
        """What there is, and what changes."""

    async def wait(self, container_id: str, principal: Principal) -> Container:
        """Return when it has finished."""

    async def stop(self, container_id: str, principal: Principal, grace_ms: int | None) -> Container:
        """End its program; None: the default grace."""

    async def kill(self, container_id: str, principal: Principal) -> Container:
        """End everything in it at once."""

    async def remove(
        self, container_id: str, principal: Principal, *, force: bool, delete_workspace: bool | None
    ) -> None:
        """Forget it."""

    async def pause(self, container_id: str, principal: Principal) -> Container:
        """Freeze it."""

    async def resume(self, container_id: str, principal: Principal) -> Container:
        """Let it go on."""


class ContainerMethods:
    """What a group of methods needs."""

    _manager: Manager
    _audit: Audit

    def _find(self, container_id: str, *, field: str = "container_id") -> Container:
        """The container that a request names. Raises INVALID_FIELD, CONTAINER_NOT_FOUND."""
        wanted = convert_containers.container_id(container_id, field=field)
        return self._manager.find(wanted, current().principal)

    def _recorded(self, kind: str, **fields: object) -> AbstractContextManager[Record]:
        call = current()
        return recorded(
            self._audit, kind, principal=call.principal.name, request_id=call.request_id, **fields
        )


def command_summary(command: Sequence[str]) -> dict[str, object]:
    """What an audit row says of a command: arguments can hold secrets, so the program and how many."""
    return {"program": command[0], "arguments": len(command) - 1} if command else {}


def names_of(env: Mapping[str, str]) -> list[str] | str:
    """What an audit row says of variables: their names, or how many when no request may have so many."""
    return sorted(env) if len(env) <= MAX_VARIABLES else f"{len(env)} variables"
