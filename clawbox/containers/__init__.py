"""Whole programs, each in a hardened container without a network card.

For programs that embed clawbox: :class:`ContainerBackend` is what a backend has to do, :class:`DockerBackend`
the one for Docker's Engine API, and :class:`ContainerError` what one raises when the engine refuses or fails;
:class:`EngineError` is its other name. Each is imported when it is asked for: Docker's brings an HTTP client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from clawbox.containers.backend import ContainerBackend, EngineError
    from clawbox.containers.backend import EngineError as ContainerError
    from clawbox.containers.docker import DockerBackend

__all__ = ["ContainerBackend", "ContainerError", "DockerBackend", "EngineError"]

_FROM: Final = {
    "ContainerBackend": ("clawbox.containers.backend", "ContainerBackend"),
    "ContainerError": ("clawbox.containers.backend", "EngineError"),
    "DockerBackend": ("clawbox.containers.docker", "DockerBackend"),
    "EngineError": ("clawbox.containers.backend", "EngineError"),
}


def __getattr__(name: str) -> object:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _FROM[name]
    return getattr(importlib.import_module(module), attribute)
