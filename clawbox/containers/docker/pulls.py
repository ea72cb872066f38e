"""How far a pull has come, from what the engine says of each layer. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clawbox.containers.backend import EngineError, NotThereError, PullStep

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_LAYERS: Final = 4096
_MAX_DETAIL: Final = 200
_DOWNLOADING: Final = "Downloading"
_RECEIVED: Final = ("Verifying Checksum", "Download complete", "Extracting", "Pull complete")
_NOT_THERE: Final = re.compile(
    r"manifest unknown|not found|does not exist|name unknown|no matching manifest", re.IGNORECASE
)


@dataclass(slots=True)
class _Layer:
    received: int = 0
    total: int = 0


class PullProgress:
    """Adds up a pull's layers. Neither sum ever falls, also when a layer is begun again."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}

    def step(self, said: Mapping[str, Any]) -> PullStep:
        """Take one line of progress.

        Raises :class:`EngineError` when the line says that the pull failed, NotThereError when the registry
        has no such image or does not say that it has.
        """
        if "error" in said or "errorDetail" in said:
            raise _said_failure(said)
        status = str(said.get("status", ""))
        name = str(said.get("id", ""))
        self._count(name, status, said.get("progressDetail") or {})
        detail = f"{name}: {status}" if name else status
        return PullStep(
            received_bytes=sum(layer.received for layer in self._layers.values()),
            total_bytes=sum(layer.total for layer in self._layers.values()),
            # Part of it is what a registry says.
            detail="".join(letter for letter in detail if letter.isprintable())[:_MAX_DETAIL],
        )

    def _count(self, name: str, status: str, progress: Mapping[str, Any]) -> None:
        if status == _DOWNLOADING:
            if name not in self._layers and len(self._layers) >= _MAX_LAYERS:
                return
            layer = self._layers.setdefault(name, _Layer())
            current = max(0, int(progress.get("current") or 0))
            layer.total = max(layer.total, int(progress.get("total") or 0), current)
            layer.received = max(layer.received, current)
        elif status in _RECEIVED and name in self._layers:
            self._layers[name].received = self._layers[name].total


def failure(status: int, words: str) -> EngineError:
    """The error for a pull that failed. Some engines call an image that is missing an error of their own."""
    if status == 404 or _NOT_THERE.search(words):
        return NotThereError(404, words)
    return EngineError(status, words)


def _said_failure(said: Mapping[str, Any]) -> EngineError:
    detail = said.get("errorDetail")
    detail = detail if isinstance(detail, dict) else {}
    words = str(detail.get("message") or said.get("error") or "the pull failed")
    code = detail.get("code")
    return failure(code if isinstance(code, int) and code >= 400 else 500, words)
