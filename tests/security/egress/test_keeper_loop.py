"""The keeper's own loop, in a thread: what control says out of order, and who never reads."""

from __future__ import annotations

import os
import socket
import threading

import msgspec
import pytest

from clawbox.children.channel import FrameReader, encode_frame
from clawbox.children.handing import hand
from clawbox.egress.keeper import outbox
from clawbox.egress.keeper.bootstrap import open_keys
from clawbox.egress.keeper.main import Keeper
from clawbox.egress.keeper.messages import (
    MAX_REPLY_BYTES,
    Begin,
    Begun,
    Closed,
    Dismiss,
    FromKeeper,
    HandedOut,
    HandOut,
    SignedHead,
    SignHead,
    Store,
)
from clawbox.egress.messages import Handed
from clawbox.egress.vault import KEY_VARIABLE, MasterKey, encrypt

from .keeping import HEX_KEY

ENTRY = {
    "name": "large",
    "value": "0123456789abcdef" * 512,
    "domain": "api.example.com",
    "header_name": "Authorization",
    "header_prefix": "Bearer ",
}
LARGE = [ENTRY | {"name": f"large{number}"} for number in range(100)]


class Loop:
    """Control's ends of a keeper in a thread."""

    def __init__(self, folder):
        self.channel, theirs = socket.socketpair()
        self.descriptors, their_descriptors = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keys = open_keys(folder, None, {KEY_VARIABLE: HEX_KEY})
        keeper = Keeper(theirs.detach(), their_descriptors.detach())
        self.thread = threading.Thread(target=keeper.serve)
        self._reader = FrameReader(MAX_REPLY_BYTES)
        self._decode = msgspec.msgpack.Decoder[FromKeeper](FromKeeper).decode
        self._said: list[bytes] = []

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.channel.close()
        self.descriptors.close()
        self.thread.join()
        self.keys.__exit__(None, None, None)

    def tell(self, *messages):
        self.channel.sendall(b"".join(map(encode_frame, messages)))

    def hand(self, purpose, number=0, descriptor=-1):
        assert self.keys.key is not None
        known = {"key": self.keys.key, "identity": self.keys.identity}
        hand(self.descriptors, Handed(purpose, number), known.get(purpose, descriptor))

    def begin(self):
        self.tell(Begin())
        self.hand("key")
        self.hand("identity")
        assert isinstance(self.heard(), Begun)

    def heard(self):
        """What it says next; None when it has ended."""
        while not self._said:
            try:
                data = self.channel.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._said += self._reader.feed(data)
        return self._decode(self._said.pop(0))

    def sidecar(self, number):
        ours, theirs = socket.socketpair()
        with theirs:
            self.hand("sidecar", number, theirs.fileno())
        return ours


@pytest.fixture
def loop(tmp_path):
    with Loop(tmp_path) as loop:
        yield loop


def test_rule_63_one_that_never_reads_is_closed_and_others_are_served_on(loop, monkeypatch):
    monkeypatch.setattr(outbox, "STALL_SECONDS", 0.05)
    loop.begin()
    loop.tell(Store(encrypt(LARGE, MasterKey(HEX_KEY))))
    loop.heard()
    names = tuple(entry["name"] for entry in LARGE)
    with loop.sidecar(1), loop.sidecar(2) as other:
        loop.tell(HandOut(1, "deaf", "ann", names))
        assert isinstance(loop.heard(), HandedOut)
        assert loop.heard() == Closed(1, "it does not read what it is sent")
        loop.tell(HandOut(2, "other", "ann", ()))
        assert loop.heard() == HandedOut(2, (), {})
        assert other.recv(1 << 20)


@pytest.mark.parametrize("first", ["descriptor", "message"])
def test_a_descriptor_and_what_it_is_for_come_in_any_order(loop, first):
    loop.begin()
    if first == "message":
        loop.tell(HandOut(7, "sandbox-1", "ann", ()))
        loop.tell(SignHead(1, "0" * 64))
        assert isinstance(loop.heard(), SignedHead)
    with loop.sidecar(7):
        if first == "descriptor":
            loop.tell(HandOut(7, "sandbox-1", "ann", ()))
        assert loop.heard() == HandedOut(7, (), {})


def test_one_that_is_dismissed_before_its_descriptor_comes_is_sent_nothing(loop):
    loop.begin()
    loop.tell(HandOut(7, "sandbox-1", "ann", ()), Dismiss(7), SignHead(1, "0" * 64))
    assert isinstance(loop.heard(), SignedHead)
    with loop.sidecar(7) as sidecar:
        assert sidecar.recv(1) == b""


def test_nothing_is_answered_before_there_are_keys(loop):
    loop.tell(SignHead(1, "0" * 64), Begin())
    loop.hand("key")
    loop.hand("identity")
    assert isinstance(loop.heard(), Begun)
    assert isinstance(loop.heard(), SignedHead)


def _twice_begun(loop):
    loop.tell(Begin())


def _twice_in_use(loop):
    with loop.sidecar(1):
        loop.tell(HandOut(1, "sandbox-1", "ann", ()), HandOut(1, "sandbox-1", "ann", ()))
        loop.heard()


def _another_key(loop):
    loop.hand("key")


def _no_purpose(loop):
    loop.hand("listener", 1, loop.channel.fileno())


def _no_message(loop):
    loop.channel.sendall(b"\0\0\0\1x")


def _too_large(loop):
    loop.channel.sendall(b"\x7f\xff\xff\xff")


@pytest.mark.parametrize(
    "wrong", [_twice_begun, _twice_in_use, _another_key, _no_purpose, _no_message, _too_large]
)
def test_rule_63_whoever_breaks_the_protocol_ends_the_keeper_which_holds_on_to_nothing(loop, wrong):
    loop.begin()
    wrong(loop)
    while loop.heard() is not None:
        pass
    loop.thread.join()


def test_rule_36_an_identity_key_of_another_size_is_not_used(loop, tmp_path):
    (tmp_path / "short").write_bytes(bytes(16))
    loop.tell(Begin("no key here"))
    with (tmp_path / "short").open("rb") as file:
        hand(loop.descriptors, Handed("identity"), file.fileno())
    assert loop.heard() is None


def test_a_key_is_read_from_its_beginning_wherever_the_descriptor_stands(loop):
    os.lseek(loop.keys.identity, 0, os.SEEK_END)
    loop.begin()
