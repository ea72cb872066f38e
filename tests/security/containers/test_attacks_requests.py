"""Attacks with requests: messages whose bytes are few and whose decoding would hold up everybody else."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from clawbox_client.v1 import containers_pb2, sandbox_pb2
from google.protobuf import struct_pb2

from clawbox.errors import ClawboxError, Reason
from clawbox.rpc import convert_containers
from clawbox.rpc.container_methods import names_of
from clawbox.rpc.parts import MAX_ENTRIES, MAX_MESSAGES, RequestShape
from tests.integration.rpc.conftest import Serving, details, failure, metadata


def entry(number: int) -> bytes:
    """One entry of a map of texts, as field 1 of its message: {number in hexadecimal: ""}."""
    key = f"{number:05x}".encode()
    body = b"\x0a" + bytes([len(key)]) + key
    return b"\x0a" + bytes([len(body)]) + body


def many_entries(count: int) -> bytes:
    """A Struct of so many fields without a value, written without the library's help."""
    return b"".join(map(entry, range(count)))


def as_field(number: int, body: bytes) -> bytes:
    size, varint = len(body), b""
    while size >= 0x80:
        varint, size = varint + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + varint + bytes([size]) + body


PARAMS = sandbox_pb2.ExecuteRequest.DESCRIPTOR.fields_by_name["params"].number
ENV = containers_pb2.RunCommandRequest.DESCRIPTOR.fields_by_name["env"].number


def requests(count: int) -> dict[str, tuple[Any, bytes]]:
    """One request for each place where a map may be, with so many entries."""
    entries = [body[2:] for body in map(entry, range(count))]
    return {
        "params": (sandbox_pb2.ExecuteRequest, as_field(PARAMS, many_entries(count))),
        "env": (containers_pb2.RunCommandRequest, b"".join(as_field(ENV, body) for body in entries)),
    }


@pytest.mark.parametrize("place", ["params", "env"])
def test_rule_95_entries_of_maps_are_counted_before_they_are_decoded(place: str) -> None:
    kind, raw = requests(MAX_ENTRIES + 1)[place]
    with pytest.raises(ClawboxError, match="entries of maps") as caught:
        RequestShape(kind.DESCRIPTOR).check(raw)
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
    kind, raw = requests(MAX_ENTRIES)[place]
    RequestShape(kind.DESCRIPTOR).check(raw)
    kind.FromString(raw)


def test_rule_95_messages_within_messages_are_counted_before_they_are_decoded() -> None:
    request = sandbox_pb2.ExecuteRequest()
    values = request.params.fields["a"].list_value.values
    values.extend([struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)] * MAX_MESSAGES)
    with pytest.raises(ClawboxError, match="messages"):
        RequestShape(request.DESCRIPTOR).check(request.SerializeToString())


def test_rule_95_what_is_no_message_is_left_to_the_decoder() -> None:
    shape = RequestShape(sandbox_pb2.ExecuteRequest.DESCRIPTOR)
    for raw in (b"\xff" * 64, b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", bytes([PARAMS << 3 | 3]), b"\x08" * 9):
        shape.check(raw)


@pytest.mark.parametrize(
    ("path", "place"), [("/clawbox.v1.Sandbox/Execute", "params"), ("/clawbox.v1.Containers/Exec", "env")]
)
async def test_rule_95_a_request_of_too_many_parts_is_refused_and_the_loop_goes_on(
    running: Serving, path: str, place: str
) -> None:
    """8 MiB of map entries took 2.4 s of everybody's time."""
    channel = await running.channel()
    _, raw = requests(700_000)[place]
    if place == "env":
        start = containers_pb2.ExecStart.DESCRIPTOR.fields_by_name["env"].number
        first = containers_pb2.ExecRequest.DESCRIPTOR.fields_by_name["start"].number
        entries = b"".join(as_field(start, body[2:]) for body in map(entry, range(700_000)))
        raw = as_field(first, entries)
        call = channel.stream_stream(path)(iter([raw]), metadata=metadata())
    else:
        call = channel.unary_unary(path)(raw, metadata=metadata())
    assert len(raw) < 10 << 20
    longest = 0.0

    async def others() -> None:
        nonlocal longest
        while True:
            # What this thread used, and not what others of a busy machine did meanwhile.
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)

    watching = asyncio.create_task(others())
    try:
        error = await failure(call)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    assert details(error).reason == "MESSAGE_TOO_LARGE"
    assert longest < 1.0


def test_rule_95_more_variables_and_labels_than_may_be_are_refused_before_they_are_copied() -> None:
    request = containers_pb2.SpawnRequest(task="x", env={f"A{number}": "" for number in range(257)})
    with pytest.raises(ClawboxError, match="more than 256 variables"):
        convert_containers.spawn_call(request, "", any_host=False)
    assert names_of(request.env) == "257 variables"
    labels = {f"a{number}": "" for number in range(65)}
    with pytest.raises(ClawboxError, match="more than 64 labels"):
        convert_containers.container_filter(containers_pb2.ContainerFilter(labels=labels))
