"""Control's side of the keeper: keeps one running, gives it what it needs, and asks it.

A keeper that died is replaced: the new one gets the same keys, the credential file, and every sidecar that
still lives gets a socket to it. Nothing here ever holds a value of a credential, or a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from clawbox.audit.heads import SignerGoneError
from clawbox.children.channel import ChannelClosedError, FrameError
from clawbox.egress.keep_running import keep_running
from clawbox.egress.keeper.files import follow_store, read_store
from clawbox.egress.keeper.holdings import NOT_READ
from clawbox.egress.keeper.messages import (
    GONE,
    MAX_REPLY_BYTES,
    AuthenticatedLabels,
    AuthenticateLabels,
    Begin,
    Begun,
    Closed,
    Dismiss,
    Forget,
    FromKeeper,
    HandedOut,
    HandOut,
    SignedHead,
    SignHead,
    Store,
    Stored,
)
from clawbox.egress.process import ChildProcess, Forker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from clawbox.audit import Audit
    from clawbox.egress.keeper.bootstrap import Keys

_log = logging.getLogger(__name__)

KIND: Final = "keeper"
HAND_OUTS_AT_ONCE: Final = 32
"""How many may be under way: more descriptors would not fit into the keeper's socket."""
START_SECONDS: Final = 30.0
"""How long a keeper may take to say that it has its keys."""


class KeeperUnavailableError(Exception):
    """What it was asked for will not come: the sidecar is gone, the keeper is, or the server is stopping."""


@dataclass(eq=False, slots=True)
class Recipient:
    """One sidecar that gets its secrets of the keeper, whichever keeper runs, until it is dismissed."""

    sandbox: str
    owner: str
    credentials: tuple[str, ...]
    deliver: Callable[[socket.socket], None]
    closed: Callable[[str], None]
    number: int = 0
    report: HandedOut | None = None
    """What it was given last: names alone."""
    first: asyncio.Future[HandedOut] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Keeper:
    """Runs the keeper while entered.

    ``forker`` knows the kind ``keeper``. ``keys`` stay the caller's. ``path`` is the credential file, which
    is read again whenever it changed. Each hand-out becomes a row of ``audit`` (docs/security.md, 62): names
    of credentials, and why those that are missing are.
    """

    def __init__(
        self,
        forker: Forker,
        keys: Keys,
        path: Path,
        audit: Audit,
        restarted: Callable[[], None] = lambda: None,
    ) -> None:
        self._forker = forker
        self._restarted = restarted
        self._keys = keys
        self._path = path
        self._audit = audit
        self._store = Store(None, NOT_READ)
        self._storing = 0
        self._stored: list[asyncio.Future[Stored]] = []
        self._recipients: dict[int, Recipient] = {}
        self._waiting: dict[Recipient, None] = {}  # in the order in which they came
        self._unanswered: set[int] = set()
        self._signing: deque[asyncio.Future[bytes]] = deque()
        self._authenticating: deque[asyncio.Future[bytes]] = deque()
        self._last_number = 0
        self._starts = 0
        self._process: ChildProcess[FromKeeper] | None = None
        self._begun: asyncio.Future[Begun] | None = None
        self._running = False
        self._changed = asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self.public_key: bytes | None = None
        """What audit heads are signed with (Ed25519, 32 bytes); None until the first keeper has begun."""
        self.status = Stored((), {}, NOT_READ)
        """Which credentials there are, and what is wrong with the others or with the file."""

    async def __aenter__(self) -> Self:
        self._store = await asyncio.to_thread(read_store, self._path)
        self._tasks = (
            asyncio.create_task(keep_running(KIND, self._serve, self._restarted), name="keeper"),
            asyncio.create_task(self._follow(), name="credential file"),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        gone = KeeperUnavailableError("the keeper has ended")
        for recipient in [*self._waiting, *self._recipients.values()]:
            _fail(recipient.first, gone)
        for future in self._stored:
            _fail(future, gone)

    @property
    def running(self) -> bool:
        """Whether there is a keeper that has its keys."""
        return self._running

    @property
    def restarts(self) -> int:
        """How often a keeper was replaced."""
        return max(self._starts - 1, 0)

    async def begun(self) -> None:
        """Return once a keeper has its keys."""
        while not self._running:
            await self._changed.wait()

    async def store(self, store: Store) -> Stored:
        """The credential file is this now; returns what the keeper made of it. Sidecars hear of changes."""
        self._store = store
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._stored.append(future)
        if self._running:
            self._send_store()
        return await future

    async def hand_out(
        self,
        sandbox: str,
        owner: str,
        credentials: tuple[str, ...],
        deliver: Callable[[socket.socket], None],
        closed: Callable[[str], None] = lambda _: None,
    ) -> Recipient:
        """Have a sidecar sent the credentials of its grant and its CA, now and whenever they change.

        ``deliver`` is given the sidecar's end of a stream pair, which is closed after it returns: once now,
        and again with each new keeper. It may raise ChannelClosedError: the sidecar is gone. ``closed`` is
        told why a sidecar was given up that was not dismissed. Returns once the keeper has sent the first
        secrets. Raises KeeperUnavailableError.
        """
        recipient = Recipient(sandbox, owner, credentials, deliver, closed)
        self._waiting[recipient] = None
        self._give_next()
        try:
            await recipient.first
        except BaseException:
            self.dismiss(recipient)
            raise
        return recipient

    def dismiss(self, recipient: Recipient) -> None:
        """It gets nothing any more."""
        self._waiting.pop(recipient, None)
        if self._recipients.pop(recipient.number, None) is not None:
            self._send(Dismiss(recipient.number))
            self._answered(recipient.number)

    def forget(self, sandbox: str) -> None:
        """The sandbox's retention ended: what it had need not be known any more (docs/security.md, 76)."""
        self._send(Forget(sandbox))

    async def sign(self, sequence: int, digest: str) -> bytes:
        """The signature of a head of the audit log. Raises SignerGoneError."""
        if not self._running:
            raise SignerGoneError("there is no keeper just now")
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._signing.append(future)
        self._send(SignHead(sequence, digest))
        return await future

    async def authenticate_labels(self, text: str) -> bytes:
        """The MAC over a container's labels, 32 bytes. Raises KeeperUnavailableError.

        ``text`` has at most :data:`~clawbox.egress.keeper.messages.MAX_LABELS_CHARACTERS`.
        """
        if not self._running:
            raise KeeperUnavailableError("there is no keeper just now")
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._authenticating.append(future)
        self._send(AuthenticateLabels(text))
        return await future

    # Its life

    async def _follow(self) -> None:
        async with contextlib.aclosing(follow_store(self._path)) as stores:
            async for store in stores:
                if store != self._store:
                    await self.store(store)

    async def _serve(self) -> None:
        """Start one keeper and stay until it is gone."""
        self._starts += 1
        self._begun = asyncio.get_running_loop().create_future()
        process = await ChildProcess.start(
            self._forker, KIND, _DECODER, self._received, max_bytes=MAX_REPLY_BYTES
        )
        self._process = process
        gone = asyncio.create_task(process.gone(), name="keeper gone")
        try:
            process.send(Begin(self._keys.no_key))
            process.hand("identity", 0, self._keys.identity)
            if self._keys.key is not None:
                process.hand("key", 0, self._keys.key)
            both: list[asyncio.Future[Any]] = [self._begun, gone]
            async with asyncio.timeout(START_SECONDS):
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if self._begun.done():
                self._start_serving(self._begun.result())
            await gone
        finally:
            self._stop_serving()
            gone.cancel()
            await process.end()

    def _start_serving(self, begun: Begun) -> None:
        self.public_key = begun.public_key
        if begun.fault:
            # Where there is a file that it would be for, Stored says so, too.
            _log.info("there are no credentials: %s", begun.fault)
        self._running = True
        self._storing = 0
        self._send_store()
        self._give_next()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _stop_serving(self) -> None:
        self._running = False
        self._process = None
        self._waiting = dict.fromkeys([*self._recipients.values(), *self._waiting])
        self._recipients.clear()
        self._unanswered.clear()
        while self._signing:
            _fail(self._signing.popleft(), SignerGoneError("the keeper ended before it signed"))
        while self._authenticating:
            _fail(self._authenticating.popleft(), KeeperUnavailableError("the keeper ended"))

    def _send(self, message: object) -> None:
        if self._process is not None:
            self._process.send(message)

    def _send_store(self) -> None:
        self._storing += 1
        self._send(self._store)

    def _give_next(self) -> None:
        """Hand out to those that wait, but to no more at once than the keeper's socket has room for."""
        while self._running and self._waiting and len(self._unanswered) < HAND_OUTS_AT_ONCE:
            recipient = next(iter(self._waiting))
            del self._waiting[recipient]
            self._give(recipient)

    def _give(self, recipient: Recipient) -> None:
        """Make a pair, and hand the keeper its end and the sidecar's."""
        assert self._process is not None
        self._last_number += 1
        recipient.number = number = self._last_number
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            # What a sidecar would write meets a closed door: it cannot ask (docs/security.md, 44).
            ours.shutdown(socket.SHUT_RD)
            try:
                recipient.deliver(theirs)
            except ChannelClosedError:
                self._give_up(recipient, GONE)
                return
            self._recipients[number] = recipient
            self._unanswered.add(number)
            self._send(HandOut(number, recipient.sandbox, recipient.owner, recipient.credentials))
            with contextlib.suppress(ChannelClosedError):  # then another keeper will do all this again
                self._process.hand("sidecar", number, ours.fileno())

    def _give_up(self, recipient: Recipient, why: str) -> None:
        _fail(recipient.first, KeeperUnavailableError(why))
        recipient.closed(why)

    def _answered(self, number: int) -> None:
        self._unanswered.discard(number)
        self._give_next()

    # What it says

    def _received(self, message: FromKeeper) -> None:
        match message:
            case Begun():
                if self._begun is None or self._begun.done():
                    raise FrameError("a second beginning")
                self._begun.set_result(message)
            case Stored():
                self._was_stored(message)
            case HandedOut():
                self._handed_out(message)
            case Closed(number, why):
                if (recipient := self._recipients.pop(number, None)) is not None:
                    if why != GONE:
                        _log.warning("the sidecar of %s gets no secrets any more: %s", recipient.sandbox, why)
                    self._give_up(recipient, why)
                    self._answered(number)
            case SignedHead(signature=signature):
                _answer(self._signing, signature)
            case AuthenticatedLabels(mac):
                _answer(self._authenticating, mac)

    def _was_stored(self, stored: Stored) -> None:
        self._storing -= 1
        if self._storing < 0:
            raise FrameError("an answer that nobody asked for")
        self.status = stored
        if stored.fault:
            _log.error("no credential can be used: %s", stored.fault)
        for name, why in stored.broken.items():
            _log.warning("the credential %s cannot be used: %s", name, why)
        if not self._storing:
            waiting, self._stored = self._stored, []
            for future in waiting:
                if not future.done():
                    future.set_result(stored)

    def _handed_out(self, report: HandedOut) -> None:
        recipient = self._recipients.get(report.number)
        if recipient is None:
            return  # dismissed meanwhile
        names = {*report.credentials, *report.missing}
        if names != set(recipient.credentials):
            raise FrameError("a hand-out of something else than was asked for")
        recipient.report = report
        self._audit.append(
            "hand_out",
            principal=recipient.owner,
            decision="failed" if report.missing else "allowed",
            sandbox=recipient.sandbox,
            credentials=list(report.credentials),
            missing=dict(report.missing),
        )
        if not recipient.first.done():
            recipient.first.set_result(report)
        self._answered(report.number)


_DECODER: Final = msgspec.msgpack.Decoder[FromKeeper](FromKeeper)


def _answer(asked: deque[asyncio.Future[bytes]], answer: bytes) -> None:
    """Tell the first of those who wait, if it still does. Raises FrameError when nobody asked."""
    if not asked:
        raise FrameError("an answer that nobody asked for")
    future = asked.popleft()
    if not future.done():
        future.set_result(answer)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # who asked may be gone: then nobody is told, which is no fault
