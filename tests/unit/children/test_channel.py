import os
import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbox.children.channel import (
    BlockingChannel,
    ChannelClosedError,
    FrameError,
    FrameProtocol,
    FrameReader,
    encode_frame,
)


class Note(msgspec.Struct, tag="note"):
    text: str


@given(st.lists(st.text()), st.lists(st.integers(min_value=1, max_value=9)))
def test_frames_survive_any_cut(texts, sizes):
    stream = b"".join(bytes(encode_frame(Note(text))) for text in texts)
    reader = FrameReader(1 << 20)
    payloads: list[bytes] = []
    while stream:
        size = sizes[len(payloads) % len(sizes)] if sizes else len(stream)
        payloads += reader.feed(stream[:size])
        stream = stream[size:]
    assert texts == [msgspec.msgpack.decode(payload, type=Note).text for payload in payloads]


def test_a_frame_that_is_too_large_is_refused_by_its_length_alone():
    reader = FrameReader(100)
    assert reader.feed((100).to_bytes(4, "big") + b"x" * 100) == [b"x" * 100]
    with pytest.raises(FrameError, match="101"):
        reader.feed((101).to_bytes(4, "big"))


class Transport:
    aborted = False

    def abort(self):
        self.aborted = True

    def is_closing(self):
        return self.aborted


@pytest.mark.parametrize("payload", [b"\xc1", b"\x81\xa4type\xa5other", b"\x81\xa4type\xa4note", b""])
def test_what_is_not_a_declared_type_ends_the_channel_once(payload):
    heard: list[Note] = []
    broken: list[object] = []
    protocol = FrameProtocol(msgspec.msgpack.Decoder(Note), heard.append, broken.append, max_bytes=100)
    good = bytes(encode_frame(Note("good")))
    protocol.data_received(good + len(payload).to_bytes(4, "big") + payload + good)
    protocol.data_received(good)
    protocol.connection_lost(None)
    assert [Note("good")] == heard
    assert [FrameError] == [type(error) for error in broken]


def test_lists_in_lists_without_end_end_the_channel_too():
    broken: list[object] = []
    protocol = FrameProtocol(msgspec.msgpack.Decoder(Note), lambda _: None, broken.append, max_bytes=1 << 20)
    deep = b"\x82\xa1x" + b"\x91" * 100_000
    protocol.data_received(len(deep).to_bytes(4, "big") + deep)
    assert [FrameError] == [type(error) for error in broken]


def test_what_a_child_sent_is_not_told_whole_and_steers_no_terminal():
    broken: list[object] = []
    protocol = FrameProtocol(msgspec.msgpack.Decoder(Note), lambda _: None, broken.append, max_bytes=1 << 20)
    sent = msgspec.msgpack.encode({"type": "\x1b[2J\nanother line\u202e" + "secret" * 1000})
    protocol.data_received(len(sent).to_bytes(4, "big") + sent)
    assert str(broken[0]).isascii()
    assert str(broken[0]).isprintable()
    assert len(str(broken[0])) < 500


def test_the_blocking_end_reads_and_writes_frames():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = BlockingChannel(theirs.fileno(), msgspec.msgpack.Decoder(Note), max_bytes=1000)
        ours.sendall(encode_frame(Note("one")) + encode_frame(Note("x" * 500)))
        assert [Note("one"), Note("x" * 500)] == [channel.receive(), channel.receive()]
        channel.send(Note("back"))
        assert ours.recv(100) == encode_frame(Note("back"))
        ours.sendall(encode_frame(Note("x" * 2000)))
        with pytest.raises(FrameError):
            channel.receive()


def test_the_blocking_end_knows_when_the_other_is_gone():
    reading, writing = os.pipe()
    os.write(writing, b"\x00\x00")
    os.close(writing)
    with pytest.raises(ChannelClosedError):
        BlockingChannel(reading, msgspec.msgpack.Decoder(Note), max_bytes=10).receive()
    os.close(reading)
