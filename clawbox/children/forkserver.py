"""The process that forks children of one kind.

Started by :class:`clawbox.children.launcher.Launcher` with an empty environment; its arguments are
``MODULE:OBJECT``, which names the kind, and the number of the descriptor over which control speaks.
It is trusted, never runs what a child runs, and has one thread, so that forking it is safe. It opens a
pidfd for each child before it can possibly reap it: a process id that is handed out later could name another
process by then. When control is gone it ends, and the kernel ends its children (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import traceback
from typing import cast

import msgspec

from clawbox.children import linux
from clawbox.children.confine import Confinement, confine
from clawbox.children.kind import ForkServerStatus, Kind, LoadError
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

EXIT_NOT_CONFINED = 71
EXIT_FAILED = 70


def main(arguments: list[str]) -> None:
    """Serve until control closes its end."""
    kind_name, control_descriptor = arguments
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module, _, attribute = kind_name.partition(":")
    kind = cast("Kind", getattr(importlib.import_module(module), attribute))
    linux.set_process_name(f"{kind.name}-fork")
    kind.preload()
    with socket.socket(fileno=int(control_descriptor)) as control:
        _ForkServer(kind, control).serve()


class _ForkServer:
    def __init__(self, kind: Kind, control: socket.socket) -> None:
        self._kind = kind
        self._control = control
        self._children: dict[int, int] = {}  # pidfd → pid
        self._poll = select.poll()
        self._decoder = msgspec.msgpack.Decoder(Request)
        self._encoder = msgspec.msgpack.Encoder()
        self._empty_root, why_no_root = _empty_root()
        self._status = ForkServerStatus(
            network_namespace=_unshare(linux.CLONE_NEWNET),
            ipc_namespace=_unshare(linux.CLONE_NEWIPC),
            empty_root=why_no_root,
        )
        # What is open now belongs to this process alone; what the kind opens later, by loading, is inherited.
        self._own = _open_descriptors() | {self._control.fileno()}

    def serve(self) -> None:
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
        packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET_BYTES, 1)
        if not packet:
            return False
        match self._decoder.decode(packet):
            case Load() as load:
                error = None
                try:
                    self._kind.load(load.key, load.spec)
                except LoadError as failure:
                    error = str(failure)
                _settle_memory()
                self._send(Loaded(load.id, self._kind.loaded(), error))
            case Fork() as fork if not descriptors:
                self._send(Forked(fork.id, error="the forkserver is out of descriptors"))
            case Fork() as fork:
                with socket.socket(fileno=descriptors[0]) as channel:
                    self._fork(fork, channel)
        return True

    def _fork(self, request: Fork, channel: socket.socket) -> None:
        forkserver = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._send(Forked(request.id, error=str(error)))
            return
        if pid == 0:
            confinement = Confinement(request.uid, self._empty_root, forkserver, request.data_bytes)
            self._become_child(confinement, channel.fileno())
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._send(Forked(request.id, error=str(error)))
            return
        self._children[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        self._send(Forked(request.id, pid), pidfd)

    def _become_child(self, confinement: Confinement, channel: int) -> None:
        """Never returns: whatever happens in a child must not go on in the forkserver's code."""
        code = EXIT_NOT_CONFINED
        try:
            private = self._own | set(self._children)
            keep = {descriptor for descriptor in _open_descriptors() if descriptor not in private}
            keep |= {channel, *self._kind.open_own()}
            confine(confinement, keep=keep, name=self._kind.name)
            # Until here an error is this program's own and belongs on the server's stderr.
            code = EXIT_FAILED
            self._kind.main(channel)
            code = 0
        except BaseException:  # noqa: BLE001 - see above
            if code == EXIT_NOT_CONFINED:
                traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        pid = self._children.pop(pidfd)
        os.close(pidfd)
        assert ended is not None
        killed = ended.si_code != os.CLD_EXITED
        self._send(Exited(pid, -ended.si_status if killed else ended.si_status))

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


def _open_descriptors() -> set[int]:
    found = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208
    # One of them was the listing itself.
    return {descriptor for descriptor in found if _is_open(descriptor)}


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _settle_memory() -> None:
    """Keep the collector in children from writing to, and so copying, what they share with this process."""
    gc.collect()
    gc.freeze()
