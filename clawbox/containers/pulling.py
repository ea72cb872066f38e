"""From the name of an image to what runs: looked for once, pulled where allowed, then known by its id."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from clawbox.containers.backend import EngineError, NotThereError
from clawbox.containers.failures import engine_refused
from clawbox.containers.image_facts import check_image
from clawbox.containers.record import Pull
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clawbox.containers.backend import ContainerBackend, ImageFound
    from clawbox.containers.images import Reference

PullPolicy = Literal["never", "missing", "always"]

TELL_SECONDS: Final = 0.5
"""How often the progress of a pull is told at most."""
PULLS_AT_ONCE: Final = 3
"""Pulls under way; others wait for their turn."""

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Pulling:
    """One pull that several callers may wait for."""

    task: asyncio.Task[None] = field(init=False)
    waiting: int = 0
    last: Pull | None = None


class Images:
    """Resolves references. Those who want the same image at the same time share one pull."""

    def __init__(self, backend: ContainerBackend, policy: PullPolicy) -> None:
        self._backend = backend
        self._policy = policy
        self._pulls: dict[str, _Pulling] = {}
        self._turns = asyncio.Semaphore(PULLS_AT_ONCE)

    async def resolve(self, reference: Reference, tell: Callable[[Pull], Awaitable[None]]) -> ImageFound:
        """The image that the reference means now; ``tell`` gets the progress of its pull.

        Raises IMAGE_NOT_FOUND, IMAGE_REFUSED for one that no sandbox may be made from, DOCKER_UNAVAILABLE,
        ENGINE_REFUSED.
        A pull that nobody waits for any more is given up.
        """
        name = str(reference)
        found = None if self._policy == "always" else await self._find(name)
        if found is None and self._policy != "never":
            await self._pull(name, tell)
            found = await self._find(name)
        if found is None:
            raise _missing(name, "the engine does not have it")
        check_image(found.facts)
        return found

    async def _find(self, name: str) -> ImageFound | None:
        try:
            return await self._backend.image(name)
        except EngineError as error:
            raise engine_refused("look for the image", error) from error

    async def _pull(self, name: str, tell: Callable[[Pull], Awaitable[None]]) -> None:
        pulling = self._pulls.get(name)
        if pulling is None:
            pulling = self._begin(name)
        pulling.waiting += 1
        told = None
        try:
            while not pulling.task.done():
                await asyncio.wait([pulling.task], timeout=TELL_SECONDS)
                if pulling.last is not told and pulling.last is not None:
                    told = pulling.last
                    await tell(told)
            await pulling.task
        except NotThereError:
            raise _missing(name, "nobody has it") from None
        except EngineError as error:
            _log.warning("the image %s cannot be pulled: %s", name, error)
            raise _missing(name, f"it cannot be pulled (status {error.status}; the log says why)") from error
        finally:
            pulling.waiting -= 1
            if not pulling.waiting and not pulling.task.done():
                # First: who wants the image from here on has a pull of its own, and not the one given up.
                self._leave(name, pulling)
                pulling.task.cancel()
                await asyncio.wait([pulling.task])

    def _begin(self, name: str) -> _Pulling:
        pulling = self._pulls[name] = _Pulling()
        pulling.task = asyncio.create_task(self._run(name, pulling), name=f"pull {name}")
        pulling.task.add_done_callback(lambda _: self._leave(name, pulling))
        return pulling

    def _leave(self, name: str, pulling: _Pulling) -> None:
        """Nobody joins this pull any more; another one of the same image may be under way by then."""
        if self._pulls.get(name) is pulling:
            del self._pulls[name]

    async def _run(self, name: str, pulling: _Pulling) -> None:
        async with self._turns, contextlib.aclosing(self._backend.pull(name)) as steps:
            async for step in steps:
                pulling.last = Pull(step.received_bytes, step.total_bytes, step.detail)


def _missing(name: str, why: str) -> ClawboxError:
    return ClawboxError(
        Reason.IMAGE_NOT_FOUND,
        "there is no image {image}: {why}",
        resource=("image", name),
        image=name,
        why=why,
    )
