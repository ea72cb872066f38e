"""What callers are told when an engine or this machine did not do its part, and what the log is told of it.

The words of either hold paths of the host: they are for the log alone.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from clawbox.containers.backend import EngineError
from clawbox.containers.host.cgroups import CgroupError
from clawbox.containers.host.fifo import GateStuckError
from clawbox.containers.host.gate_check import UnsafeContainerError
from clawbox.containers.host.processes import ProcessGoneError
from clawbox.containers.mounts import MountError
from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)


def engine_refused(operation: str, error: EngineError) -> ClawboxError:
    """The ENGINE_REFUSED for an engine that did not do ``operation``."""
    _log.error("the engine refused to %s: %s", operation, error)
    return ClawboxError(
        Reason.ENGINE_REFUSED,
        "the engine refused to {operation} (status {status}); the server's log says why",
        operation=operation,
        status=error.status,
    )


def ended_early() -> ClawboxError:
    """The SANDBOX_UNAVAILABLE for a container of which nothing runs when its gate should."""
    return ClawboxError(
        Reason.SANDBOX_UNAVAILABLE, "the container ended before its program began", retry_after=1.0
    )


@contextlib.contextmanager
def while_making(container_id: str) -> Iterator[None]:
    """Everything that keeps a container from being made, as ENGINE_REFUSED or SANDBOX_UNAVAILABLE."""
    try:
        yield
    except EngineError as error:
        raise engine_refused("make the container", error) from error
    except (ProcessGoneError, CgroupError) as error:
        _log.warning("container %s ended before its program began: %s", container_id, error)
        raise ended_early() from error
    except GateStuckError as error:
        _log.warning("the program of container %s could not be let go: %s", container_id, error)
        raise ClawboxError(
            Reason.SANDBOX_UNAVAILABLE, "the container's program could not be let go", retry_after=1.0
        ) from error
    except (UnsafeContainerError, MountError) as error:
        _log.error("container %s is not as it was asked for: %s", container_id, error)
        raise ClawboxError(
            Reason.SANDBOX_UNAVAILABLE, "the container would be less safe than it must be; the log says how"
        ) from error
    except OSError as error:  # no room on the disk, no descriptors left
        _log.exception("container %s could not be made", container_id)
        raise ClawboxError(
            Reason.SANDBOX_UNAVAILABLE,
            "the server could not set up what the container needs of this machine; its log says why",
        ) from error
