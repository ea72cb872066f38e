"""What is known of the runtimes that an engine can run containers with. Pure."""

from __future__ import annotations

from typing import Final

_OWN_KERNEL: Final = ("runsc", "kata")
"""gVisor's and Kata's, under whatever name an engine has them: ``runsc-kvm``, ``io.containerd.kata.v2``."""


def has_own_kernel(runtime: str) -> bool:
    """Whether what a runtime runs is under a kernel of its own, so that the host sees nothing of it."""
    return any(name in runtime for name in _OWN_KERNEL)
