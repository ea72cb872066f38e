"""The keeper's process: one thread, one loop, and no peer that it ever waits for (docs/security.md, 63).

It is handed its keys as descriptors, which it reads and closes, and speaks with control alone. To sidecars it
writes; what they write is never read, so there is nothing that they could ask (docs/security.md, 44).
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.children.channel import ChannelClosedError, FrameError, FrameReader, encode_frame
from clawbox.children.filters import keeping
from clawbox.children.handing import receive_handed
from clawbox.children.kind import Profile
from clawbox.egress.keeper.holdings import Holdings
from clawbox.egress.keeper.identity import IDENTITY_BYTES, Identity
from clawbox.egress.keeper.messages import (
    GONE,
    MAX_STORE_BYTES,
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
    ToKeeper,
)
from clawbox.egress.keeper.outbox import Outbox, PeerGoneError
from clawbox.egress.messages import Handed
from clawbox.egress.tls.authority import derive_authority
from clawbox.egress.vault import MAX_KEY_BYTES, Fault, MasterKey, VaultError, decrypt, encrypt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from clawbox.egress.keeper.secrets import Secrets

MAX_SIDECARS: Final = 8192
"""Sidecars that it serves at once."""
_MAX_REQUESTS: Final = 2 * MAX_SIDECARS
_MAX_REPLIES_BYTES: Final = 16 << 20
_READ_BYTES: Final = 1 << 18


class Keeping:
    """The kind: see :class:`clawbox.children.kind.Kind`."""

    name = "clawbox-keeper"
    profile = Profile(filter=keeping, descriptors=MAX_SIDECARS + 64, threads=4, memory_locked=True)

    def preload(self) -> None:
        """Do once, with keys of nobody, all that loads code or tables."""
        key = MasterKey("00" * 32)
        decrypt(encrypt([], key), key)
        identity = Identity(bytes(IDENTITY_BYTES))
        identity.sign_head(1, "0" * 64)
        identity.authenticate_labels("{}")
        derive_authority(identity.ca_seed, "preload").to_bytes()

    def open_own(self) -> tuple[int, ...]:
        """Nothing of its own."""
        return ()

    def main(self, channel: int, descriptors: int) -> None:
        """Serve until control is gone."""
        Keeper(channel, descriptors).serve()


KEEPER = Keeping()


class Keeper:
    """The loop. ``channel`` and ``descriptors`` are the keeper's ends, which it closes at the end."""

    def __init__(self, channel: int, descriptors: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=channel)
        self._descriptors = descriptors
        self._clock = clock
        self._frames = FrameReader(MAX_STORE_BYTES)
        self._decode = msgspec.msgpack.Decoder[ToKeeper](ToKeeper).decode
        self._decode_handed = msgspec.msgpack.Decoder(Handed)
        self._replies = bytearray()
        self._requests: list[ToKeeper] = []
        self._begin: Begin | None = None
        self._keys: dict[str, int] = {}
        self._identity: Identity | None = None
        self._holdings: Holdings | None = None
        self._outboxes: dict[int, Outbox] = {}
        self._numbers: dict[int, int] = {}  # descriptor → number
        self._unclaimed: dict[int, int] = {}  # number → descriptor that came before its HandOut
        self._awaited: dict[int, HandOut] = {}  # HandOuts that came before their descriptor
        self._cancelled: set[int] = set()  # numbers dismissed before their descriptor came
        self._poll = select.epoll()

    def serve(self) -> None:
        """Until control is gone, or broke the protocol."""
        self._poll.register(self._channel.fileno(), select.EPOLLIN)
        self._poll.register(self._descriptors, select.EPOLLIN)
        try:
            while True:
                for descriptor, events in self._poll.poll(self._patience()):
                    self._ready(descriptor, events)
                self._close_stalled()
        except (ChannelClosedError, FrameError, msgspec.DecodeError):
            return
        finally:
            for number in [*self._outboxes, *self._unclaimed]:
                self._drop(number)
            self._poll.close()
            self._channel.close()
            os.close(self._descriptors)

    # Control

    def _ready(self, descriptor: int, events: int) -> None:
        if descriptor == self._channel.fileno():
            if events & select.EPOLLOUT:
                self._send_replies()
            if events & ~select.EPOLLOUT:
                self._read_channel()
        elif descriptor == self._descriptors:
            self._read_descriptor()
        else:
            self._serve_sidecar(descriptor, events)

    def _read_channel(self) -> None:
        try:
            data = self._channel.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelClosedError from error
        if not data:
            raise ChannelClosedError
        for payload in self._frames.feed(data):
            self._take(self._decode(payload))

    def _read_descriptor(self) -> None:
        try:
            handed = receive_handed(self._descriptors, self._decode_handed, wait=False)
        except BlockingIOError:
            return
        if handed is None:
            raise ChannelClosedError
        what, descriptor = handed
        match what:
            case Handed("key" | "identity" as purpose) if (
                purpose not in self._keys and self._holdings is None
            ):
                self._keys[purpose] = descriptor
                self._try_to_begin()
            case Handed("sidecar", number) if number in self._cancelled:
                self._cancelled.remove(number)
                os.close(descriptor)
            case Handed("sidecar", number) if self._is_new(number, self._unclaimed):
                self._unclaimed[number] = descriptor
                self._join(number)
            case _:
                os.close(descriptor)
                raise FrameError(f"a descriptor for {what.purpose!r}, which is not expected")

    def _take(self, message: ToKeeper) -> None:
        """Nothing but Begin is answered before there are keys."""
        if isinstance(message, Begin):
            if self._begin is not None:
                raise FrameError("a second beginning")
            self._begin = message
            self._try_to_begin()
        elif self._holdings is None or self._identity is None:
            if len(self._requests) >= _MAX_REQUESTS:
                raise FrameError("too many requests before there are keys")
            self._requests.append(message)
        else:
            self._do(message, self._holdings, self._identity)

    def _do(self, message: ToKeeper, holdings: Holdings, identity: Identity) -> None:
        match message:
            case Store():
                self._reply(holdings.store(message))
                self._send(holdings.news())
            case HandOut(number=number):
                if not self._is_new(number, self._awaited):
                    raise FrameError("a number that is in use, or too many")
                self._awaited[number] = message
                self._join(number)
            case Dismiss(number):
                if self._awaited.pop(number, None) is not None:
                    self._cancelled.add(number)
                self._drop(number)
            case Forget(sandbox):
                holdings.forget(sandbox)
            case SignHead(sequence, digest):
                self._reply(SignedHead(sequence, identity.sign_head(sequence, digest)))
            case AuthenticateLabels(text):
                self._reply(AuthenticatedLabels(identity.authenticate_labels(text)))

    def _try_to_begin(self) -> None:
        begin = self._begin
        if begin is None or "identity" not in self._keys or (not begin.no_key and "key" not in self._keys):
            return
        self._identity = identity = _read_identity(self._keys["identity"])
        key, fault = None, begin.no_key
        if not fault:
            key, fault = _read_key(self._keys["key"])
        for descriptor in self._keys.values():
            os.close(descriptor)
        self._holdings = Holdings(
            key, fault, lambda sandbox: derive_authority(identity.ca_seed, sandbox).to_bytes()
        )
        self._reply(Begun(identity.public_key, fault))
        waiting, self._requests = self._requests, []
        for message in waiting:
            self._take(message)

    def _reply(self, reply: FromKeeper) -> None:
        self._replies += encode_frame(reply)
        self._send_replies()

    def _send_replies(self) -> None:
        """What control does not take now waits, up to a bound: if it never reads, its keeper ends."""
        if self._replies:
            try:
                sent = self._channel.send(self._replies, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise ChannelClosedError from error
            del self._replies[:sent]
        if len(self._replies) > _MAX_REPLIES_BYTES:
            raise ChannelClosedError
        wanted = select.EPOLLIN | (select.EPOLLOUT if self._replies else 0)
        self._poll.modify(self._channel.fileno(), wanted)

    # Sidecars

    def _is_new(self, number: int, waiting: Collection[int]) -> bool:
        return number not in waiting and number not in self._outboxes and len(waiting) < MAX_SIDECARS

    def _join(self, number: int) -> None:
        """Begin to serve a sidecar once both its descriptor and what it may have are here."""
        if number not in self._unclaimed or number not in self._awaited or self._holdings is None:
            return
        outbox = Outbox(self._unclaimed.pop(number))
        if len(self._outboxes) >= MAX_SIDECARS:
            outbox.close()
            self._reply(Closed(number, "as many sidecars as the keeper serves are there"))
            del self._awaited[number]
            return
        self._outboxes[number] = outbox
        self._numbers[outbox.fileno()] = number
        self._poll.register(outbox.fileno(), 0)  # that it hung up is told in any case
        self._holdings.grant(self._awaited.pop(number))
        self._send(self._holdings.news(number))

    def _send(self, news: Iterable[tuple[Secrets, HandedOut]]) -> None:
        for secrets, report in list(news):
            outbox = self._outboxes[report.number]
            try:
                outbox.put(secrets, self._clock())
            except PeerGoneError:
                self._close(report.number, GONE)
                continue
            self._reply(report)
            self._watch(outbox)

    def _serve_sidecar(self, descriptor: int, events: int) -> None:
        number = self._numbers.get(descriptor)
        if number is None:
            return  # dismissed in this same turn
        if events & (select.EPOLLHUP | select.EPOLLERR):
            self._close(number, GONE)
            return
        outbox = self._outboxes[number]
        try:
            outbox.flush(self._clock())
        except PeerGoneError:
            self._close(number, GONE)
        else:
            self._watch(outbox)

    def _watch(self, outbox: Outbox) -> None:
        self._poll.modify(outbox.fileno(), 0 if outbox.stalls_at is None else select.EPOLLOUT)

    def _patience(self) -> float | None:
        """Seconds until the first sidecar will have left its secrets unread for too long."""
        stalls = [outbox.stalls_at for outbox in self._outboxes.values() if outbox.stalls_at is not None]
        return max(min(stalls) - self._clock(), 0.0) if stalls else None

    def _close_stalled(self) -> None:
        now = self._clock()
        for number, outbox in list(self._outboxes.items()):
            if outbox.stalls_at is not None and outbox.stalls_at <= now:
                self._close(number, "it does not read what it is sent")

    def _close(self, number: int, why: str) -> None:
        self._drop(number)
        self._reply(Closed(number, why))

    def _drop(self, number: int) -> None:
        if self._holdings is not None:
            self._holdings.dismiss(number)
        if (descriptor := self._unclaimed.pop(number, None)) is not None:
            os.close(descriptor)
        if (outbox := self._outboxes.pop(number, None)) is not None:
            del self._numbers[outbox.fileno()]
            # Closing does not do that as long as control has a duplicate.
            self._poll.unregister(outbox.fileno())
            outbox.close()


def _read_identity(descriptor: int) -> Identity:
    data = os.pread(descriptor, IDENTITY_BYTES + 1, 0)
    try:
        return Identity(data)
    except ValueError as error:
        raise FrameError(str(error)) from None


def _read_key(descriptor: int) -> tuple[MasterKey | None, str]:
    """The key, or what is wrong with it."""
    try:
        return MasterKey(os.pread(descriptor, MAX_KEY_BYTES, 0).decode("ascii")), ""
    except VaultError as error:
        return None, error.fault.value
    except UnicodeDecodeError:
        return None, Fault.BAD_KEY.value
