"""The process that forks children of one or several kinds.

Started by :class:`clawbox.children.launcher.Launcher` with an empty environment; its arguments are the number
of the descriptor over which control speaks, and ``NAME=MODULE:OBJECT`` for each kind.
It is trusted, never runs what a child runs, and has one thread, so that forking it is safe. It opens a
pidfd for each child before it can possibly reap it: a process id that is handed out later could name another
process by then. When control is gone it ends, and the kernel ends its children (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import gc
import importlib
import os
import platform
import resource
import select
import signal
import socket
import sys
import tempfile
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

import msgspec

from clawbox.children import linux, seccomp
from clawbox.children.confine import Confinement, OrphanedError, confine, open_descriptors
from clawbox.children.kind import ForkServerStatus, Kind, LoadError, LoadingKind
from clawbox.children.requests import (
    MAX_PACKET_BYTES,
    Exited,
    Fork,
    Forked,
    Hello,
    Load,
    Loaded,
    Reply,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

EXIT_NOT_CONFINED: Final = 71
EXIT_FAILED: Final = 70
_ENDS: Final = 2
_MOST_DESCRIPTORS: Final = _ENDS + 1


def main(arguments: list[str]) -> None:
    """Serve until control closes its end."""
    control_descriptor, *named = arguments
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kinds = {name: _import(path) for name, _, path in (argument.partition("=") for argument in named)}
    linux.set_process_name(f"{next(iter(kinds.values())).name}-fork" if len(kinds) == 1 else "clawbox-fork")
    for kind in kinds.values():
        kind.preload()
    with socket.socket(fileno=int(control_descriptor)) as control:
        _ForkServer(kinds, control).serve()


def _import(path: str) -> Kind:
    module, _, attribute = path.partition(":")
    return cast("Kind", getattr(importlib.import_module(module), attribute))


class _ForkServer:
    def __init__(self, kinds: Mapping[str, Kind], control: socket.socket) -> None:
        self._kinds = kinds
        self._control = control
        self._children: dict[int, tuple[int, str]] = {}  # pidfd → pid and kind
        self._opened: dict[str, set[int]] = {name: set() for name in kinds}
        """What each kind has open by loading, and its children inherit; they inherit nothing else."""
        self._poll = select.poll()
        self._decoder = msgspec.msgpack.Decoder(Request)
        self._encoder = msgspec.msgpack.Encoder()
        self._empty_root, why_no_root = _empty_root()
        why_not_locked = ""
        if any(kind.profile.memory_locked for kind in kinds.values()):
            why_not_locked = _unlimit_locked_memory()
        self._lock_memory = not why_not_locked
        network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        why_no_network = _unshare(linux.CLONE_NEWNET)
        self._network = None if why_no_network else network
        self._status = ForkServerStatus(
            network_namespace=why_no_network,
            ipc_namespace=_unshare(linux.CLONE_NEWIPC),
            empty_root=why_no_root,
            memory_lock=why_not_locked,
        )

    def serve(self) -> None:
        _forgo_io_uring()
        _settle_memory()
        self._send(Hello(self._status))
        self._poll.register(self._control, select.POLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._control.fileno():
                    if not self._answer():
                        return
                else:
                    self._reap(descriptor)

    def _answer(self) -> bool:
        packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET_BYTES, _MOST_DESCRIPTORS)
        if not packet:
            return False
        match self._decoder.decode(packet):
            case Load() as load:
                self._load(load)
            case Fork() as fork:
                try:
                    if len(descriptors) == _ENDS + fork.placed:
                        self._fork(fork, *descriptors)
                    else:
                        self._send(Forked(fork.id, error="the forkserver is out of descriptors"))
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
        return True

    def _load(self, load: Load) -> None:
        kind = self._kinds[load.kind]
        assert isinstance(kind, LoadingKind)
        before = open_descriptors()
        error = None
        try:
            kind.load(load.key, load.spec)
        except LoadError as failure:
            error = str(failure)
        after = open_descriptors()
        opened = self._opened[load.kind]
        opened |= after - before
        opened &= after
        _settle_memory()
        self._send(Loaded(load.id, load.kind, kind.loaded(), error))

    def _fork(self, request: Fork, channel: int, descriptors: int, root: int | None = None) -> None:
        forkserver = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._send(Forked(request.id, error=str(error)))
            return
        if pid == 0:
            self._become_child(request, forkserver, channel, descriptors, root)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._send(Forked(request.id, error=str(error)))
            return
        self._children[pidfd] = (pid, request.kind)
        self._poll.register(pidfd, select.POLLIN)
        self._send(Forked(request.id, pid), pidfd)

    def _become_child(
        self, request: Fork, forkserver: int, channel: int, descriptors: int, root: int | None
    ) -> None:
        """Never returns: whatever happens in a child must not go on in the forkserver's code."""
        code = EXIT_NOT_CONFINED
        try:
            kind = self._kinds[request.kind]
            profile = kind.profile
            if request.data_bytes is not None:
                profile = replace(profile, data_bytes=request.data_bytes)
            confinement = Confinement(
                request.uid,
                self._empty_root,
                self._network,
                self._lock_memory,
                forkserver,
                profile,
                request.gid,
                root,
            )
            keep = {channel, descriptors, *self._opened[request.kind], *kind.open_own()}
            confine(confinement, keep=keep, name=kind.name)
            # Until here an error is this program's own and belongs on the server's stderr.
            code = EXIT_FAILED
            kind.main(channel, descriptors)
            code = 0
        except OrphanedError:
            pass
        except BaseException:  # noqa: BLE001 - see above
            if code == EXIT_NOT_CONFINED:
                traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        pid, kind = self._children.pop(pidfd)
        os.close(pidfd)
        assert ended is not None
        killed = ended.si_code != os.CLD_EXITED
        self._send(Exited(pid, kind, -ended.si_status if killed else ended.si_status))

    def _send(self, reply: Reply, *descriptors: int) -> None:
        try:
            socket.send_fds(self._control, [self._encoder.encode(reply)], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            sys.exit(0)  # control is gone


def _unshare(flag: int) -> str:
    try:
        linux.unshare(flag)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _unlimit_locked_memory() -> str:
    """Have children be able to lock any amount: with less, memory that they ask for later is refused."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return "no limit of locked memory but an unlimited one (RLIMIT_MEMLOCK) does"
    return ""


def _forgo_io_uring() -> None:
    """No filter sees what is done through io_uring. Event loops that cannot have it do without.

    It is refused from here on, for what kinds make before their children are confined.
    """
    architecture = seccomp.ARCHITECTURES.get(platform.machine())
    if architecture is not None:  # else no child can be confined
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.install(seccomp.refusing(architecture, ["io_uring_setup"]))


def _empty_root() -> tuple[int | None, str]:
    """A directory that is empty for ever: its name is gone, so nothing can be made in it any more."""
    if not linux.has_capability(linux.CAP_SYS_CHROOT):
        return None, "changing the root needs CAP_SYS_CHROOT"
    path = tempfile.mkdtemp(prefix="clawbox-empty-")
    try:
        os.chmod(path, 0o555)  # noqa: S103, PTH101 - nothing is in it, and every child enters it
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), ""
    finally:
        os.rmdir(path)  # noqa: PTH106


def _settle_memory() -> None:
    """Keep the collector in children from writing to, and so copying, what they share with this process."""
    gc.collect()
    gc.freeze()
