"""Which worker gets which call. Pure: the roster says what there is, and the pool does what comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clawbox.wasm.pool_worker import Fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clawbox.wasm.call import Call
    from clawbox.wasm.pool_worker import PoolWorker

OVERDUE_SECONDS: Final = 0.025
"""A call that waited so long gets a worker beyond the warm ones: those may all be waiting for something."""
_SKIP_PREPARING_SECONDS: Final = 0.05


def choose_worker(
    call: Call,
    now: float,
    *,
    idle: Sequence[PoolWorker],
    spare: Sequence[PoolWorker],
    busy: int,
    size: int,
    most: int,
) -> PoolWorker | None:
    """A worker that may run ``call`` now, of those that are ``idle`` (longest first) or ``spare``; or None.

    Best is one that ran the same tool last and has the next instance ready; among equals the one that ran
    last, whose caches are warm. One that still makes its next instance would keep the call waiting.
    ``now`` is in seconds on the loop's clock. ``busy`` workers run calls; ``size`` are kept warm, and
    ``most`` run calls at once.
    """
    best: PoolWorker | None = None
    best_rank = len(Fit)
    for worker in idle:
        if worker.owner != call.run.owner or not worker.can_run(call):
            continue
        if worker.preparing_since is not None and now - worker.preparing_since > _SKIP_PREPARING_SECONDS:
            continue
        rank = worker.fit(call)
        if rank <= best_rank:
            best, best_rank = worker, rank
    if best is not None and best.preparing_since is None:
        return best
    another = busy + len(idle) < size
    may_take_spare = busy < size or (busy < most and is_overdue(call, now))
    if another or (best is None and may_take_spare):
        return next((one for one in spare if one.can_run(call)), best)
    return best


def is_overdue(call: Call, now: float) -> bool:
    """Whether a call has waited for :data:`OVERDUE_SECONDS`."""
    return now - call.queued_at >= OVERDUE_SECONDS * 0.9  # a timer may fire a little early
