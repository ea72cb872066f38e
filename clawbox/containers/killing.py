"""How a container's program is asked, and then made, to end, whether or not the engine answers."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

from clawbox.containers.backend import ConflictError, EngineError
from clawbox.containers.runtimes import has_own_kernel
from clawbox.errors import ClawboxError

if TYPE_CHECKING:
    from clawbox.containers.backend import ContainerBackend
    from clawbox.containers.quarters import Quarters
    from clawbox.containers.record import Container

_log = logging.getLogger(__name__)


async def ask_to_end(backend: ContainerBackend, container: Container, quarters: Quarters) -> bool:
    """Whether its first process was sent its stop signal, and can take it."""
    name = container.identity.stop_signal
    if quarters.pidfd >= 0 and not has_own_kernel(container.runtime):
        # As the engine does it, but without waiting for one that does not answer.
        if not _send(container, quarters, _number(name)):
            return False
    else:
        try:
            await backend.signal(container.engine_id, name)
        except (EngineError, ClawboxError):
            return False
    await _thaw(backend, container)
    return True


async def kill(backend: ContainerBackend, container: Container, quarters: Quarters) -> None:
    """Kill it with everything in it; it has ended only once the engine says so."""
    # At once, and whether or not the engine answers.
    if quarters.pidfd >= 0 and not _send(container, quarters, signal.SIGKILL):
        return
    try:
        await backend.signal(container.engine_id, "SIGKILL")
    except ConflictError:
        pass
    except (EngineError, ClawboxError) as error:
        _log.warning("container %s cannot be killed by the engine: %s", container.container_id, error)
    await _thaw(backend, container)


def _send(container: Container, quarters: Quarters, number: int) -> bool:
    """Whether its first process is there to take a signal; that it could not be sent is logged."""
    try:
        signal.pidfd_send_signal(quarters.pidfd, number)
    except ProcessLookupError:
        return False
    except OSError as error:
        _log.warning("container %s takes no signal by its process: %s", container.container_id, error)
    return True


def _number(name: str) -> int:
    """Of a signal as :func:`clawbox.containers.image_facts.stop_signal` names it."""
    base, _, offset = name.partition("+")
    return signal.Signals[base].value + int(offset or 0)


async def _thaw(backend: ContainerBackend, container: Container) -> None:
    """Frozen processes take no signal."""
    try:
        await backend.unpause(container.engine_id)
    except (EngineError, ClawboxError):
        return  # not frozen, as a rule
