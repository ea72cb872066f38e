"""Files of containers over a real channel, by a real files child, in a real workspace."""

from __future__ import annotations

import asyncio
import os
import secrets

import pytest
from clawbox_client.v1 import containers_pb2

from clawbox.containers.states import State
from clawbox.rpc import container_files

CHUNK = 64 << 10


def parts(made, path, data, **start):
    yield containers_pb2.WriteFileRequest(
        start=containers_pb2.WriteFileStart(container_id=made.container_id, path=path, **start)
    )
    for at in range(0, len(data), CHUNK):
        yield containers_pb2.WriteFileRequest(chunk=data[at : at + CHUNK])


async def put(service, made, path, data, **start):
    return await service.containers.WriteFile(parts(made, path, data, **start), **service.as_("ann"))


async def get(service, made, path, **range_):
    request = containers_pb2.ReadFileRequest(container_id=made.container_id, path=path, **range_)
    info, data = None, b""
    async for message in service.containers.ReadFile(request, **service.as_("ann")):
        if message.WhichOneof("part") == "info":
            info = message.info
        else:
            assert len(message.chunk) <= CHUNK
            data += message.chunk
    return info, data


async def test_a_file_comes_back_as_it_was_written(service) -> None:
    made = await service.spawned()
    data = secrets.token_bytes(3_000_001)
    written = await put(
        service, made, b"/workspace/a/b\xff.bin", data, make_parents=True, mode=0o600, size_bytes=len(data)
    )
    assert written.path == b"/workspace/a/b\xff.bin"
    assert (written.size_bytes, written.mode) == (len(data), 0o600)
    info, read = await get(service, made, b"/workspace/a/b\xff.bin")
    assert read == data
    assert info == written
    _, middle = await get(service, made, b"/workspace/a/b\xff.bin", offset=10, length=100_000)
    assert middle == data[10:100_010]
    row = next(row for row in service.audit.rows if row["kind"] == "container_file_write")
    assert (row["path"], row["size_bytes"]) == (b"/workspace/a/b\xff.bin", len(data))


async def test_folders_are_listed_in_pages_by_name(service) -> None:
    made = await service.spawned()
    names = [b"a", b"b\xfe", b"c", b"d"]
    for name in names:
        await put(service, made, b"/workspace/" + name, b"x")
    seen, token = [], ""
    while True:
        page = await service.containers.ListFiles(
            containers_pb2.ListFilesRequest(
                container_id=made.container_id, path=b"/workspace", page_size=3, page_token=token
            ),
            **service.as_("ann"),
        )
        seen += [one.path for one in page.files]
        token = page.next_page_token
        if not token:
            break
    assert seen == [b"/workspace/" + name for name in names]
    made_folder = await service.containers.MakeDirectory(
        containers_pb2.MakeDirectoryRequest(container_id=made.container_id, path=b"/workspace/f"),
        **service.as_("ann"),
    )
    assert made_folder.type == containers_pb2.FILE_TYPE_DIRECTORY
    root = await service.containers.StatFile(
        containers_pb2.StatFileRequest(container_id=made.container_id, path=b"/workspace"),
        **service.as_("ann"),
    )
    assert root.path == b"/workspace"
    removed = await service.containers.RemoveFile(
        containers_pb2.RemoveFileRequest(
            container_id=made.container_id, path=b"/workspace/f", recursive=True
        ),
        **service.as_("ann"),
    )
    assert removed.removed == 1


async def test_an_upload_that_is_cancelled_leaves_nothing(service) -> None:
    made = await service.spawned()

    # Each time at another moment: to the handler a call that breaks off looks like one that is complete.
    for at in range(20):
        begun = asyncio.Event()

        async def messages(begun=begun, count=at % 5):
            for part in parts(made, b"/workspace/half", b"x" * CHUNK * count):
                yield part
            begun.set()
            await asyncio.Event().wait()

        call = service.containers.WriteFile(messages(), **service.as_("ann"))
        await begun.wait()
        await asyncio.sleep(0.002 * (at % 4))
        call.cancel()
        # It may not have come yet; it has when one that was begun later is answered.
        await service.containers.Get(
            containers_pb2.ContainersGetRequest(container_id=made.container_id), **service.as_("ann")
        )
        assert await service.server.calls.wait_none_left(5)
        assert list((service.manager.folder / made.workspace.workspace_id).iterdir()) == []


async def test_a_reader_that_leaves_leaves_no_process(service) -> None:
    made = await service.spawned()
    await put(service, made, b"/workspace/big", b"x" * (8 << 20))
    request = containers_pb2.ReadFileRequest(container_id=made.container_id, path=b"/workspace/big")
    call = service.containers.ReadFile(request, **service.as_("ann"))
    await call.read()
    call.cancel()
    assert await service.server.calls.wait_none_left(5)
    assert service.launcher.children == 0


async def test_a_writer_that_says_nothing_is_cut(service, monkeypatch) -> None:
    monkeypatch.setattr(container_files, "PATIENCE_SECONDS", 0.2)
    made = await service.spawned()
    call = service.containers.WriteFile(**service.as_("ann"))
    for part in parts(made, b"/workspace/slow", b"x"):
        await call.write(part)
    assert (await service.refused(call)).reason == "DEADLINE"
    assert list((service.manager.folder / made.workspace.workspace_id).iterdir()) == []


async def test_a_read_only_workspace_is_read_and_not_written(service) -> None:
    made = await service.spawned(workspace=containers_pb2.WorkspaceSpec(workspace_id="mine", read_only=True))
    (service.manager.folder / "mine" / "here").write_bytes(b"content")
    assert (await get(service, made, b"/workspace/here"))[1] == b"content"
    with pytest.raises(Exception, match="read-only"):
        await put(service, made, b"/workspace/here", b"other")
    assert (service.manager.folder / "mine" / "here").read_bytes() == b"content"


async def test_the_workspace_of_a_finished_container_is_read_and_not_written(service) -> None:
    made = await service.spawned()
    await put(service, made, b"/workspace/kept", b"content")
    await service.manager.finish(made.container_id, State.COMPLETED)
    assert (await get(service, made, b"/workspace/kept"))[1] == b"content"
    with pytest.raises(Exception, match="COMPLETED"):
        await put(service, made, b"/workspace/kept", b"other")
    stat = containers_pb2.StatFileRequest(container_id=made.container_id, path=b"/tmp")
    assert (await service.refused(service.containers.StatFile(stat, **service.as_("ann")))).reason == (
        "WRONG_STATE"
    )


async def test_the_tmp_of_the_host_is_never_taken_for_a_containers(service) -> None:
    made = await service.spawned()
    service.manager.pid = os.getpid()
    service.manager.pidfd = os.pidfd_open(os.getpid())
    try:
        stat = containers_pb2.StatFileRequest(container_id=made.container_id, path=b"/tmp")
        refusal = await service.refused(service.containers.StatFile(stat, **service.as_("ann")))
        assert refusal.reason == "NOT_SERVED"
    finally:
        os.close(service.manager.pidfd)


async def test_nobody_has_more_operations_at_once_than_allowed(service, monkeypatch) -> None:
    monkeypatch.setattr(container_files, "MAX_CALLS", 1)
    made = await service.spawned()
    call = service.containers.WriteFile(**service.as_("ann"))
    for part in parts(made, b"/workspace/open", b"x"):
        await call.write(part)
    await service.until(lambda: service.launcher.children > 0)
    stat = containers_pb2.StatFileRequest(container_id=made.container_id, path=b"/workspace")
    assert (await service.refused(service.containers.StatFile(stat, **service.as_("ann")))).reason == (
        "STREAM_LIMIT"
    )
    await call.done_writing()
    assert (await call).size_bytes == 1
