"""What a container uses, again and again until it ends."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clawbox.containers.backend import ConflictError, EngineError, NotThereError
from clawbox.containers.failures import engine_refused
from clawbox.egress.recording import EgressUsage
from clawbox.errors import invalid_field

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from clawbox.containers.backend import ContainerBackend, UsageSample
    from clawbox.containers.quarters import Quarters

DEFAULT_INTERVAL_MS: Final = 1_000
SHORTEST_INTERVAL_MS: Final = 100
LONGEST_INTERVAL_MS: Final = 3_600_000

_MILLIS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container uses at one time; 0 where the engine does not say."""

    sample: UsageSample
    cpu_millis: int
    """CPU use since the one before, in thousandths of a core; 0 in the first."""
    egress: EgressUsage
    """Since its way out was opened; zeros where it has none."""


def watch_usage(
    backend: ContainerBackend, quarters: Quarters, *, interval_ms: int, once: bool
) -> AsyncGenerator[Usage]:
    """What a container uses: at once, then every ``interval_ms`` (0: 1,000) until it has ended.

    Raises INVALID_FIELD here; DOCKER_UNAVAILABLE and ENGINE_REFUSED while it is iterated.
    """
    interval_ms = interval_ms or DEFAULT_INTERVAL_MS
    if not SHORTEST_INTERVAL_MS <= interval_ms <= LONGEST_INTERVAL_MS:
        raise invalid_field(
            "interval_ms",
            f"must be {SHORTEST_INTERVAL_MS} to {LONGEST_INTERVAL_MS}, or 0",
            "range",
        )
    return _watch(backend, quarters, interval_ms / _MILLIS, once=once)


async def _watch(
    backend: ContainerBackend, quarters: Quarters, seconds: float, *, once: bool
) -> AsyncGenerator[Usage]:
    before: UsageSample | None = None
    while not quarters.ended.is_set():
        try:
            sample = await backend.usage(quarters.engine_id)
        except (ConflictError, NotThereError):
            return  # it has ended; who watches over it is about to say so
        except EngineError as error:
            raise engine_refused("measure the container", error) from error
        door = quarters.door
        yield Usage(sample, cpu_millis(before, sample), EgressUsage() if door is None else door.usage)
        if once:
            return
        before = sample
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await quarters.ended.wait()


def cpu_millis(before: UsageSample | None, now: UsageSample) -> int:
    """CPU use between two samples, in thousandths of a core."""
    if before is None or now.time_ns <= before.time_ns:
        return 0
    return max(now.cpu_ns - before.cpu_ns, 0) * _MILLIS // (now.time_ns - before.time_ns)
