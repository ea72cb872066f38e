"""Control's side of a forkserver: keeps one running, asks it for children, holds each child by its pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec

from clawbox.children import program
from clawbox.children.child import Child
from clawbox.children.requests import (
    MAX_PACKET_BYTES,
    Exited,
    Fork,
    Forked,
    Hello,
    Load,
    Loaded,
    Reply,
)
from clawbox.children.uids import UidRange, UidsExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from clawbox.children.kind import ForkServerStatus, Place

_log = logging.getLogger(__name__)

_FORKSERVER: Final = "clawbox.children.forkserver"
_NOTHING: Final[frozenset[str]] = frozenset()
_NEVER: Final = float("inf")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
REQUESTS_AT_ONCE = 32
"""More would not fit into the forkserver's socket."""
FAILURES_TOLERATED = 3
"""After so many short-lived forkservers in a row, who asks for a child is refused instead of kept waiting."""
SETTLED_SECONDS = 5.0
"""A forkserver that served so long is replaced without a pause. (One that only lived may fail slowly.)"""


class ChildrenUnavailableError(Exception):
    """No child can be started now; ``retry_after`` seconds from now it is tried again."""

    def __init__(self, why: str, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(why)


class ForkServerGoneError(ChildrenUnavailableError):
    """The forkserver ended before it answered. Another is being started; asking again waits for it."""


class LoadFailedError(Exception):
    """The forkserver could not load what it was told to; the text says why."""


class _Forking(NamedTuple):
    """A child that was asked for."""

    kind: str
    uid: int | None
    answer: asyncio.Future[Child]


class Launcher:
    """Runs one forkserver while entered, and starts another when it dies.

    ``kinds`` are the kinds of children that it forks: a name for each, and ``"module:object"``. ``uids`` is
    None where children cannot have uids of their own. ``changed`` is called whenever a forkserver came or
    went. Leaving kills every child and returns when all of them are dead.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        uids: UidRange | None,
        changed: Callable[[], None] = lambda: None,
        *,
        at_once: bool = True,
    ) -> None:
        """``at_once``: the forkserver is started by entering; else with the first child that is asked for."""
        self._kinds = dict(kinds)
        self._name = "+".join(kinds)
        self._uids = uids
        self._changed = changed
        self._socket: socket.socket | None = None
        self._status: ForkServerStatus | None = None
        self._loaded: dict[str, frozenset[str]] = {}
        self._next_id = 0
        self._loads: dict[int, asyncio.Future[Loaded]] = {}
        self._forks: dict[int, _Forking] = {}
        self._children: set[Child] = set()
        self._turn = asyncio.Event()
        self._room = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._ended: asyncio.Future[None] | None = None
        self._unheld: dict[int, int | None] = {}  # children without a pidfd here: pid → uid
        self._failures = 0
        self._starts = 0
        self._decoder = msgspec.msgpack.Decoder(Reply)
        self._encoder = msgspec.msgpack.Encoder()
        self._at_once = at_once
        self._supervisor: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._at_once:
            self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        children = list(self._children)
        for child in children:
            child.kill()
        for child in children:
            await child.dead()
        await asyncio.sleep(0)  # for what waits for their deaths

    @property
    def status(self) -> ForkServerStatus | None:
        """What the forkserver can give; None while there is none."""
        return self._status

    @property
    def restarts(self) -> int:
        """How often a forkserver was replaced."""
        return max(self._starts - 1, 0)

    def loaded(self, kind: str) -> frozenset[str]:
        """What children of that kind have that are forked now."""
        return self._loaded.get(kind, _NOTHING)

    @property
    def children(self) -> int:
        """How many children live."""
        return len(self._children)

    async def load(self, kind: str, key: str, spec: bytes) -> None:
        """Load something for children of a kind forked from now on.

        Raises :class:`LoadFailedError` or :class:`ChildrenUnavailableError`.
        """
        async with self._room:
            control = await self._connected()
            number = self._number()
            answer = self._loads[number] = asyncio.get_running_loop().create_future()
            try:
                self._send(control, Load(number, kind, key, spec))
                loaded = await answer
            finally:
                self._loads.pop(number, None)
        if loaded.error is not None:
            raise LoadFailedError(loaded.error)

    async def fork(
        self, kind: str, *, data_bytes: int | None = None, place: Place | None = None
    ) -> tuple[Child, socket.socket, socket.socket]:
        """A new child, which is about to confine itself, and control's ends of what leads to it.

        They are its channel, and the socket over which it is handed descriptors
        (:func:`clawbox.children.handing.hand`); both do not block. ``data_bytes`` stands in for what the
        kind's profile says, ``place`` for a uid of the range and an empty root.
        Raises :class:`ChildrenUnavailableError`.
        """
        if kind not in self._kinds:
            raise ValueError(f"no kind {kind!r} among {self._name}")
        async with self._room:
            return await self._fork(kind, data_bytes, place)

    async def _fork(
        self, kind: str, data_bytes: int | None, place: Place | None
    ) -> tuple[Child, socket.socket, socket.socket]:
        control = await self._connected()
        try:
            uid = self._uids.take() if self._uids is not None and place is None else None
        except UidsExhaustedError as error:
            raise ChildrenUnavailableError("every uid of the configured range is in use", 1.0) from error
        number = self._number()
        answer: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        # From here on whoever takes the entry out of the table gives the uid back.
        self._forks[number] = _Forking(kind, uid, answer)
        with contextlib.ExitStack() as ours:
            with contextlib.ExitStack() as theirs:
                ends = []
                for type_ in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
                    our, their = socket.socketpair(socket.AF_UNIX, type_)
                    ours.enter_context(our).setblocking(False)  # noqa: FBT003
                    ends.append((our, theirs.enter_context(their)))
                request = Fork(number, kind, uid, data_bytes)
                passed = [their.fileno() for _, their in ends]
                if place is not None:
                    request = Fork(number, kind, place.uid, data_bytes, place.gid, placed=True)
                    passed.append(place.root)
                self._send(control, request, *passed)
            # If it is forked although nobody waits any more, it is killed once it is known (see _forked).
            child = await answer
            ours.pop_all()
        (channel, _), (descriptors, _) = ends
        return child, channel, descriptors

    def _number(self) -> int:
        self._next_id += 1
        return self._next_id

    def _start(self) -> None:
        self._supervisor = asyncio.create_task(self._supervise(), name=f"forkserver {self._name}")

    async def _connected(self) -> socket.socket:
        if self._supervisor is None:
            self._start()
        while self._socket is None or self._status is None:
            if self._failures >= FAILURES_TOLERATED:
                raise ChildrenUnavailableError(
                    "the forkserver does not start, or ends at once", self._pause()
                )
            await self._turn.wait()
        return self._socket

    def _send(self, control: socket.socket, request: Load | Fork, *descriptors: int) -> None:
        try:
            socket.send_fds(control, [self._encoder.encode(request)], descriptors)
        except OSError as error:
            # Gone, or so far behind that it takes nothing: in any case it is replaced.
            self._lose()
            raise ForkServerGoneError("the forkserver is gone", FIRST_PAUSE_SECONDS) from error

    def _pause(self) -> float:
        excess = max(self._failures - FAILURES_TOLERATED, 0)
        return float(min(FIRST_PAUSE_SECONDS * 2**excess, LONGEST_PAUSE_SECONDS))

    def _announce(self) -> None:
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()
        self._changed()

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._serving_since = _NEVER
            self._starts += 1
            try:
                status = await self._serve()
            except OSError as error:
                status = error.errno or -1
            self._failures = 0 if loop.time() - self._serving_since >= SETTLED_SECONDS else self._failures + 1
            if self._failures < FAILURES_TOLERATED:
                _log.error("the forkserver of %s ended (status %s); starting another", self._name, status)
            elif self._failures == FAILURES_TOLERATED:
                _log.error(
                    "the forkserver of %s ended at once %d times in a row (status %s); "
                    "it is tried again at growing intervals of up to %.0f s",
                    self._name,
                    self._failures,
                    status,
                    LONGEST_PAUSE_SECONDS,
                )
            self._announce()
            if self._failures >= FAILURES_TOLERATED:
                await asyncio.sleep(self._pause())

    async def _serve(self) -> int:
        """Start one forkserver and stay until it ends; returns its exit status."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # noqa: FBT003
        with ours, theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - it returns once the program runs
                program.command(_FORKSERVER, str(theirs.fileno()), *map("=".join, self._kinds.items())),
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's interrupt is for control, which drains first
            )
            theirs.close()
            try:
                pidfd = os.pidfd_open(process.pid)
            except OSError:
                process.kill()
                process.wait()
                raise
            ended = self._ended = loop.create_future()
            try:
                loop.add_reader(pidfd, _resolve, ended)
                loop.add_reader(ours, self._receive, ours)
                await ended
            finally:
                loop.remove_reader(pidfd)
                loop.remove_reader(ours)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
                status = process.wait()
                self._forget()
        return status

    def _lose(self) -> None:
        """Nothing more is heard from the forkserver: end it, so that another can be started."""
        self._forget()
        if self._ended is not None:
            _resolve(self._ended)

    def _forget(self) -> None:
        """The forkserver is gone: nothing that was asked of it will be answered."""
        self._socket = None
        self._status = None
        self._loaded.clear()
        for child in self._children:
            child.orphaned = True
        gone = ForkServerGoneError("the forkserver ended", FIRST_PAUSE_SECONDS)
        for loading in self._loads.values():
            _fail(loading, gone)
        while self._unheld:
            self._release(self._unheld.popitem()[1])
        for number in list(self._forks):
            forking = self._forks.pop(number)
            _fail(forking.answer, gone)
            self._release(forking.uid)

    def _receive(self, control: socket.socket) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(control, MAX_PACKET_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            packet, descriptors = b"", []
        if not packet:
            asyncio.get_running_loop().remove_reader(control)
            self._lose()
            return
        match self._decoder.decode(packet):
            case Hello(status):
                self._socket, self._status = control, status
                self._serving_since = asyncio.get_running_loop().time()
                self._announce()
            case Loaded() as answer:
                self._loaded[answer.kind] = frozenset(answer.loaded)
                loading = self._loads.get(answer.id)
                if loading is not None and not loading.done():
                    loading.set_result(answer)
            case Forked() as answer:
                self._forked(answer, descriptors)
            case Exited(pid, kind, status):
                self._release(self._unheld.pop(pid, None))
                level = logging.DEBUG if status in {0, -signal.SIGKILL} else logging.WARNING
                _log.log(level, "%s %d ended with status %d", kind, pid, status)

    def _forked(self, answer: Forked, descriptors: list[int]) -> None:
        forking = self._forks.pop(answer.id)
        uid = forking.uid
        if answer.error is not None:
            self._release(uid)
            _fail(forking.answer, ChildrenUnavailableError(f"fork: {answer.error}", FIRST_PAUSE_SECONDS))
            return
        if not descriptors:
            # This process has no descriptor left for it. Its channel closes with the failure, which ends it.
            self._unheld[answer.pid] = uid
            _fail(forking.answer, ChildrenUnavailableError("out of descriptors", FIRST_PAUSE_SECONDS))
            return

        def dead() -> None:
            self._children.remove(child)
            self._release(uid)

        child = Child(answer.pid, descriptors[0], self.loaded(forking.kind))
        child.when_dead(dead)
        self._children.add(child)
        if forking.answer.done():
            child.kill()  # whoever asked for it went away
        else:
            forking.answer.set_result(child)

    def _release(self, uid: int | None) -> None:
        if uid is not None and self._uids is not None:
            self._uids.give_back(uid)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
