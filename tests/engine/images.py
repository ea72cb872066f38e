"""Images for tests, made of what this machine has: busybox, linked statically, and nothing of the network."""

from __future__ import annotations

import io
import secrets
import shutil
import tarfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.engine.private import EngineMissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.engine.api import EngineApi

PREFIX = "clawbox-test"
"""The first part of every name that is given here: ``images.allowed = ["clawbox-test/"]`` allows them all."""

# fmt: off
SHELL_COMMANDS = (
    "ash", "awk", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "dmesg", "du", "echo", "env",
    "false", "find", "free", "grep", "head", "hostname", "id", "ip", "kill", "ln", "ls", "mkdir",
    "mkfifo", "mknod", "mount", "mv", "nc", "nohup", "nproc", "od", "printf", "ps", "pwd", "readlink",
    "realpath", "rm", "rmdir", "sed", "seq", "setsid", "sh", "sha256sum", "sleep", "sort", "stat", "stty",
    "sync", "tail", "tar", "tee", "telnet", "test", "timeout", "touch", "tr", "true", "tty", "umount",
    "uname", "unshare", "vi", "wc", "wget", "which", "whoami", "xargs", "yes",
)
# fmt: on
SHELL_LESS_COMMANDS = ("cat", "echo", "false", "id", "nc", "sleep", "true", "wget")
"""Programs one by one, none of which starts others by a command line."""


@cache
def busybox() -> bytes:
    """A busybox that needs no library. Raises EngineMissingError when this machine has none."""
    for path in (shutil.which("busybox"), "/bin/busybox", "/usr/lib/busybox/bin/busybox"):
        if path and Path(path).exists():
            data = Path(path).read_bytes()
            # A program that needs libraries names the one that loads them (elf(5), PT_INTERP).
            if b"/ld-linux" not in data[:4096] and b"/ld-musl" not in data[:4096]:
                return data
    raise EngineMissingError("no static busybox (on Debian and Ubuntu: apt install busybox-static)")


def tar_of(files: Mapping[str, bytes | str], *, folders: Sequence[str] = ("tmp", "etc")) -> bytes:
    """A layer: bytes are a file that anybody may run, text is a symbolic link to what it says."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in folders:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@cache
def busybox_layer(files: tuple[tuple[str, bytes | str], ...] = ()) -> bytes:
    """A shell and what one uses in it, in ``/bin``, and ``files`` as :func:`tar_of` has them."""
    commands = dict.fromkeys((f"bin/{name}" for name in SHELL_COMMANDS), "busybox")
    return tar_of({"bin/busybox": busybox(), **commands, **dict(files)})


@cache
def shell_less_layer() -> bytes:
    """A few programs in ``/bin``, no shell, and no name by which busybox would become one."""
    first, *rest = SHELL_LESS_COMMANDS
    return tar_of({f"bin/{first}": busybox(), **dict.fromkeys((f"bin/{name}" for name in rest), first)})


def make_image(
    engine: EngineApi,
    changes: Sequence[str] = (),
    *,
    layer: bytes | None = None,
    files: Mapping[str, bytes | str] | None = None,
    name: str = "image",
) -> str:
    """Make an image under a name that nobody has; returns that name. Tens of milliseconds.

    It is busybox with a shell and ``files`` besides, or ``layer`` alone, with ``ENV PATH=/bin``. ``changes``
    are instructions of a Dockerfile: ``VOLUME /data``, ``LABEL clawbox.owner=x``, ``HEALTHCHECK CMD true``,
    ``USER root``, ``WORKDIR /proc/self/fd/8``, ``ENV LD_PRELOAD=/x.so``, ``ENTRYPOINT ["/bin/sleep"]``.
    Whoever makes it removes it: :class:`ImageMaker` does.
    """
    if layer is None:
        layer = busybox_layer(tuple((files or {}).items()))
    reference = _new_name(name)
    engine.import_image(reference, layer, ["ENV PATH=/bin", *changes])
    return reference


def _new_name(name: str) -> str:
    return f"{PREFIX}/{name}-{secrets.token_hex(4)}:latest"


@dataclass
class ImageMaker:
    """Makes images on one engine, and removes them with all containers that were made of them."""

    engine: EngineApi
    made: list[str] = field(default_factory=list)

    def __call__(
        self,
        changes: Sequence[str] = (),
        *,
        layer: bytes | None = None,
        files: Mapping[str, bytes | str] | None = None,
        name: str = "image",
    ) -> str:
        """As :func:`make_image`."""
        reference = make_image(self.engine, changes, layer=layer, files=files, name=name)
        self.made.append(reference)
        return reference

    def add(self, name: str, make: Callable[[str], object]) -> str:
        """Have ``make`` give the engine an image under the reference that it is called with; returns that."""
        reference = _new_name(name)
        self.made.append(reference)
        make(reference)
        return reference

    def remove(self) -> None:
        """What this made, and nothing else."""
        while self.made:
            reference = self.made.pop()
            for container in self.engine.container_ids(ancestor=reference):
                self.engine.remove_container(container)
            self.engine.remove_image(reference)
