"""A kind of child that is dead before it says that it is ready."""

import os

from clawbox.children.filters import compute_only
from clawbox.children.kind import Profile


class CrashingKind:
    name = "crashing"
    profile = Profile(filter=compute_only)

    def __init__(self) -> None:
        self._loaded: list[str] = []

    def preload(self) -> None:
        pass

    def load(self, key: str, spec: bytes) -> None:
        self._loaded.append(key)

    def loaded(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def open_own(self) -> tuple[int, ...]:
        return ()

    def main(self, channel: int, descriptors: int) -> None:
        os._exit(3)


KIND = CrashingKind()
