"""What the catalog says about a tool. Values only."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from clawbox.wasm.manifest import Manifest
    from clawbox.wasm.model import ToolCode


class ToolState(enum.Enum):
    """Whether a tool can be run."""

    READY = "ready"
    COMPILING = "compiling"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ToolEntry:
    """One tool, as it was when it was asked for; a run keeps the entry that it began with."""

    name: str
    manifest: Manifest
    has_manifest: bool
    """False: ``manifest`` is what a module without one gets."""
    owner: str
    """The principal that uploaded it; empty: the operator, who put it into the folder."""
    published: bool
    """Whether principals other than its owner see and run it."""
    state: ToolState
    load_error: str
    """Why the newest file is not in service; empty when it is."""
    warnings: tuple[str, ...]
    """What the manifest asks beyond what the server and the owner's token allow. It is never granted."""
    code: ToolCode | None
    """What is in service, perhaps of an older file; None when nothing is."""
    size_bytes: int
    """Size of the module in service."""
    update_time: datetime
    """When what is in service was put there."""
    builtin: bool
    """The module ships with clawbox."""


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A file that is not in service."""

    name: str
    error: str
    previous_in_service: bool


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload found."""

    reloaded: int
    """How many tools were read anew."""
    tools: tuple[str, ...]
    """Every tool that can be run, by name."""
    failures: tuple[LoadFailure, ...]
