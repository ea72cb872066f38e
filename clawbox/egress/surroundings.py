"""What the ways out of all sandboxes of a server share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from clawbox.egress.dialer.control import DialerControl
    from clawbox.egress.keeper.control import Keeper
    from clawbox.egress.process import Forker
    from clawbox.egress.spending import Spending


class Restarts(Protocol):
    """Where restarts are counted: :class:`clawbox.telemetry.Metrics`."""

    def egress_restarted(self, process: str) -> None:
        """A process ended by itself."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every door of a server is given."""

    forker: Forker
    keeper: Keeper
    dialer: DialerControl
    upstream_ca: tuple[str, ...]
    """PEM texts."""
    spending: Spending
    number: Callable[[], int]
    """Gives numbers that were never given before."""
    recordable: Callable[[], bool]
    """Whether audit rows can be written, or need not be."""
    restarts: Restarts
