"""Whether a server can serve containers at all: asked before what serves them is loaded."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from clawbox.children.enforcement import can_have_own_uids
from clawbox.containers.gate.elf import MACHINES

if TYPE_CHECKING:
    from clawbox.config import Config


def why_not(config: Config) -> str:
    """Why a server with these settings serves no containers, on this machine; empty: it can."""
    if not config.containers.enabled:
        return "containers.enabled is false"
    if not can_have_own_uids():
        return "containers need a server that is root: this one may not give them uids of their own"
    if platform.machine() not in MACHINES:
        return f"containers need a gate, and there is none for {platform.machine()}"
    return ""
