"""What the audit log has of files that are read and processes that are started."""

from __future__ import annotations

import grpc.aio
import pytest
from clawbox_client.v1 import containers_pb2

CHUNK = 64 << 10


async def put(service, made, path, data):
    def messages():
        start = containers_pb2.WriteFileStart(container_id=made.container_id, path=path)
        yield containers_pb2.WriteFileRequest(start=start)
        for at in range(0, len(data), CHUNK):
            yield containers_pb2.WriteFileRequest(chunk=data[at : at + CHUNK])

    await service.containers.WriteFile(messages(), **service.as_("ann"))


def read(service, made, path, **range_):
    request = containers_pb2.ReadFileRequest(container_id=made.container_id, path=path, **range_)
    return service.containers.ReadFile(request, **service.as_("ann"))


async def row_of(service, kind):
    """The one row of that kind, once the call that it is about is over."""
    assert await service.server.calls.wait_none_left(5)
    (row,) = [row for row in service.audit.rows if row["kind"] == kind]
    return row


@pytest.mark.parametrize(("range_", "sent"), [({}, 200_000), ({"offset": 10, "length": 70_000}, 70_000)])
async def test_a_file_that_is_read_leaves_a_row(service, range_, sent) -> None:
    made = await service.spawned()
    await put(service, made, b"/workspace/a", b"x" * 200_000)

    async for _ in read(service, made, b"/workspace/a", **range_):
        pass

    row = await row_of(service, "container_file_read")
    assert (row["decision"], row["principal"]) == ("allowed", "ann")
    assert (row["container_id"], row["path"]) == (made.container_id, b"/workspace/a")
    assert row["sent_bytes"] == sent


async def test_a_read_that_its_reader_leaves_says_how_much_went_out(service) -> None:
    made = await service.spawned()
    await put(service, made, b"/workspace/big", b"x" * (8 << 20))
    call = read(service, made, b"/workspace/big")
    got = 0
    while got < 2 * CHUNK:
        got += len((await call.read()).chunk)

    call.cancel()

    row = await row_of(service, "container_file_read")
    assert row["decision"] == "cancelled"
    assert got <= row["sent_bytes"] < 8 << 20


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (b"/workspace/none", "FILE_NOT_FOUND"),
        (b"/etc/passwd", "INVALID_FIELD"),
        (b"/workspace/../x", "INVALID_FIELD"),
    ],
)
async def test_a_read_that_is_refused_leaves_a_row(service, path, reason) -> None:
    made = await service.spawned()

    refused = await service.refused(read(service, made, path))

    row = await row_of(service, "container_file_read")
    assert row["reason"] == refused.reason == reason
    assert (row["decision"], row["path"], row["sent_bytes"]) == ("failed", path, 0)


@pytest.mark.parametrize("exec_id", ["", "mine"])
async def test_the_row_of_an_exec_names_it(service, exec_id) -> None:
    made = await service.spawned()
    stream = service.containers.Exec(**service.as_("ann"))
    start = containers_pb2.ExecStart(container_id=made.container_id, command=["cat"], exec_id=exec_id)
    await stream.write(containers_pb2.ExecRequest(start=start))
    started = (await stream.read()).started
    await stream.write(containers_pb2.ExecRequest(close_stdin=containers_pb2.ExecCloseStdin()))
    while await stream.read() is not grpc.aio.EOF:
        pass

    row = await row_of(service, "container_exec")
    assert row["exec_id"] == started.exec_id == (exec_id or "made")
