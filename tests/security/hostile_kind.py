"""A worker in the hands of what it runs: its parameters name what it says instead of working."""

import json
import os

import msgspec

from clawbox.children.channel import encode_frame
from clawbox.children.filters import compute_only
from clawbox.children.kind import Profile
from clawbox.wasm.messages import BEGUN, Done, Ready, RunFrame, Wrote
from clawbox.wasm.model import Outcome

_decoder = msgspec.msgpack.Decoder(RunFrame)

DONE = Done(
    outcome=Outcome.OK,
    message="",
    output=b"1",
    written=[],
    logged=[],
    truncated=[],
    exit_code=None,
    trapped=False,
    bloated=False,
    prepares=False,
    fuel_consumed=1,
    peak_memory_bytes=1,
    host_calls=0,
    egress_calls=0,
    duration_us=1,
)


def _frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def _done(**changes: object) -> bytes:
    values = {name: getattr(DONE, name) for name in DONE.__struct_fields__} | changes
    return _frame(msgspec.msgpack.encode(["done", *values.values()]))


def _entry(message: object) -> list[object]:
    return ["info", message, 0]


_GOOD = bytes(encode_frame(DONE))
_NOTHING = bytes(encode_frame(Wrote([], [])))
_MIB = 1 << 20
_BAD_TEXT = b"\xa3\xed\xa0\x80"  # half of a surrogate pair, as a msgpack string

ATTACKS: dict[str, list[bytes]] = {
    "a frame of 4 GiB": [b"\xff\xff\xff\xff"],
    "a frame beyond the limit": [_frame(bytes(6 * _MIB))],
    "no msgpack": [_frame(b"\xc1" * 100)],
    "no message": [_frame(msgspec.msgpack.encode({"done": 1}))],
    "an unknown message": [_frame(msgspec.msgpack.encode(["ready?", 1]))],
    "a message from elsewhere": [_frame(msgspec.msgpack.encode(["prepared", False]))],
    "nested without end": [_frame(b"\x91" * 200_000)],
    "ready again": [bytes(encode_frame(Ready()))],
    "output of another type": [_done(output=5)],
    "too much output": [_done(output=bytes(_MIB + 1))],
    "too much on stdout": [_frame(msgspec.msgpack.encode(["wrote", [["stdout", bytes(_MIB + 1)]], []]))],
    "an unknown stream": [_frame(msgspec.msgpack.encode(["wrote", [["log", b"x"]], []]))],
    "more log entries than calls": [
        _frame(msgspec.msgpack.encode(["wrote", [], [_entry("x") for _ in range(101)]]))
    ],
    "longer log entries than may be": [_frame(msgspec.msgpack.encode(["wrote", [], [_entry("x" * 70_000)]]))],
    "messages without end": [_NOTHING * 10_000] * 20,
    "pieces without end": [_frame(msgspec.msgpack.encode(["wrote", [["stdout", b""]] * 200_000, []]))] * 20,
    "an outcome that is not its own": [_done(outcome="blocked")],
    "truncations without end": [_done(truncated=[["stdout", 1]] * 100_000)],
    "violations without end": [_frame(msgspec.msgpack.encode(["refused", [["", "", ""]] * 100_000]))],
    "an exit status of 41 bits": [_done(exit_code=1 << 40)],
    "half a surrogate pair": [
        _done(message="BAD").replace(b"\xa3BAD", _BAD_TEXT),
    ],
    "half a surrogate pair in the log": [
        _frame(msgspec.msgpack.encode(["wrote", [], [_entry("BAD")]]).replace(b"\xa3BAD", _BAD_TEXT))
    ],
}
"""What is written by the name of the attack; then the worker sleeps."""

SILENCE: dict[str, list[bytes]] = {"half a frame": [_GOOD[:7]], "nothing": []}
"""What is never finished."""

LIES: dict[str, list[bytes]] = {
    "numbers": [
        _done(fuel_consumed=-5, peak_memory_bytes=-(1 << 62), host_calls=1 << 63, duration_us=(1 << 64) - 1)
    ],
    "a long message": [_done(message="x" * 500_000)],
}
"""What control cannot know to be untrue, and bears."""

AFTERWARDS: dict[str, list[bytes]] = {
    "a second result": [_GOOD + _GOOD],
    "a result and then a flood": [_GOOD + _NOTHING * 100_000],
    "a result and then a frame of 4 GiB": [_GOOD + b"\xff\xff\xff\xff"],
}
"""What begins as it should."""


class HostileKind:
    name = "hostile"
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
        os.write(channel, encode_frame(Ready()))
        while True:
            size = int.from_bytes(os.read(channel, 4), "big")
            if not size:
                return
            wanted = json.loads(_decoder.decode(os.read(channel, size)).params)
            os.write(descriptors, BEGUN)  # said before anything is run: no run has a worker that did not
            if wanted == "work":
                os.write(channel, _GOOD)
                continue
            for data in {**ATTACKS, **SILENCE, **LIES, **AFTERWARDS}[wanted]:
                view = memoryview(data)
                while view:
                    view = view[os.write(channel, view) :]
            if wanted in LIES:
                continue
            os.read(channel, 1)  # for ever
            os._exit(0)


KIND = HostileKind()
