"""WriteFile, ReadFile, ListFiles, StatFile, MakeDirectory and RemoveFile."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import grpc
import pytest
from clawbox_client import ClawboxError
from clawbox_client.v1 import containers_pb2 as pb

from tests.integration.containers_live.world import container, refused, until

BOTH = ["/workspace", "/tmp"]
GIB = 1 << 30


def sh(world, held, script):
    done = world.ann.run_command(held.container_id, ["sh", "-c", script])
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.fixture
def box(world, held):
    """The container, and nothing in its folders."""
    yield held
    sh(world, held, "rm -rf /workspace/* /workspace/.[!.]* /tmp/* /tmp/.[!.]*")


def resident(pid):
    """Bytes of memory of a process."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line)
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("area", BOTH)
def test_a_file_goes_in_and_out_and_belongs_to_the_user(world, box, area):
    info = world.ann.write_file(box.container_id, f"{area}/a", b"content", mode=0o640)
    assert (info.path, info.type, info.size_bytes, info.mode) == (f"{area}/a".encode(), "regular", 7, 0o640)
    assert sh(world, box, f"cat {area}/a; stat -c ' %a %u' {area}/a; id -u").split() == [
        "content",
        "640",
        str(info.uid),
        str(info.uid),
    ]
    sh(world, box, f"echo from inside > {area}/b; chmod 700 {area}/b")
    assert world.ann.read_file(box.container_id, f"{area}/b") == b"from inside\n"
    assert world.ann.read_file(box.container_id, f"{area}/b", offset=5, length=3) == b"ins"
    assert world.ann.stat_file(box.container_id, f"{area}/b").mode == 0o700
    gone = refused(lambda: world.ann.read_file(box.container_id, f"{area}/c"))
    assert (gone.reason, f"there is no {area}/c" in str(gone)) == ("FILE_NOT_FOUND", True)


def test_what_a_writer_may_say(world, box):
    def write(**options):
        return world.ann.write_file(box.container_id, options.pop("path", "/workspace/f"), **options)

    assert write(source=b"1").mode == 0o644
    assert refused(lambda: write(source=b"2", exclusive=True)).reason == "FILE_EXISTS"
    assert write(source=b"3", mode=0o755).mode == 0o755
    assert write(source=b"4").mode == 0o755, "it keeps the mode of what it replaces"
    deep = "/workspace/x/y/z"
    assert refused(lambda: write(path=deep, source=b"5")).reason == "FILE_NOT_FOUND"
    assert write(path=deep, source=b"5", make_parents=True).size_bytes == 1
    for size in (2, 4):
        error = refused(write, source=iter([b"abc"]), size_bytes=size)
        assert (error.reason, error.violations[0].field) == ("INVALID_FIELD", "size_bytes")
    assert world.ann.read_file(box.container_id, "/workspace/f") == b"4"
    assert sh(world, box, "ls -A /workspace").split() == ["f", "x"]


@pytest.mark.parametrize("area", BOTH)
def test_a_cancelled_upload_leaves_nothing(world, box, area):
    """Whenever it comes: what looks like the end of the bytes may be that the caller is gone."""
    world.ann.write_file(box.container_id, f"{area}/f", b"before")
    for number in range(25):
        begun = threading.Event()

        def messages(begun=begun):
            start = pb.WriteFileStart(container_id=box.container_id, path=f"{area}/f".encode())
            yield pb.WriteFileRequest(start=start)
            yield pb.WriteFileRequest(chunk=b"half")
            begun.set()
            threading.Event().wait(0.2)

        call = world.stub.WriteFile.future(messages(), **world.as_("ann"))
        begun.wait()
        time.sleep(0.003 * (number % 8))
        call.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            call.result()
    until(lambda: sh(world, box, f"ls -A {area}").split() == ["f"])
    assert world.ann.read_file(box.container_id, f"{area}/f") == b"before"


def test_a_source_that_fails_leaves_nothing(world, box):
    def source():
        yield b"half"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        world.ann.write_file(box.container_id, "/workspace/f", source())
    until(lambda: sh(world, box, "ls -A /workspace") == "")


def test_a_gibibyte_goes_both_ways_in_constant_memory(world, box):
    piece = hashlib.sha256(b"a piece").digest() * 2048
    pids = [world.server.process.pid, *world.server.descendants()]
    before = {pid: resident(pid) for pid in pids}
    most = dict(before)
    over = threading.Event()

    def look():
        while not over.wait(0.05):
            for pid in pids:
                most[pid] = max(most[pid], resident(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        info = world.ann.write_file(
            box.container_id, "/workspace/big", (piece for _ in range(GIB // len(piece))), size_bytes=GIB
        )
        assert info.size_bytes == GIB
        digest, size = hashlib.sha256(), 0
        with world.ann.open_file(box.container_id, "/workspace/big") as parts:
            for part in parts:
                if isinstance(part, bytes):
                    assert len(part) <= 64 << 10
                    digest.update(part)
                    size += len(part)
    finally:
        over.set()
        thread.join()
    expected = hashlib.sha256()
    for _ in range(GIB // len(piece)):
        expected.update(piece)
    assert (size, digest.digest()) == (GIB, expected.digest())
    assert max(most[pid] - before[pid] for pid in pids) < 48 << 20


def test_a_file_that_is_larger_than_tmp_is_refused_and_leaves_nothing(world, box):
    piece = b"\1" * (1 << 20)
    error = refused(lambda: world.ann.write_file(box.container_id, "/tmp/big", (piece for _ in range(300))))
    assert error.reason == "FILE_LIMIT"
    assert sh(world, box, "ls -A /tmp; df -k /tmp | tail -1 | awk '{print $3}'").split() == ["0"]


@pytest.mark.parametrize("area", BOTH)
def test_folders_are_listed_in_pages_by_name(world, box, area):
    sh(world, box, f"cd {area}; mkdir b; touch c a .hidden b/below; ln -s /etc/passwd link; mkfifo pipe")
    found = list(world.ann.list_files(box.container_id, area, page_size=2))
    assert [(one.path.decode().removeprefix(f"{area}/"), one.type) for one in found] == [
        (".hidden", "regular"),
        ("a", "regular"),
        ("b", "directory"),
        ("c", "regular"),
        ("link", "symlink"),
        ("pipe", "other"),
    ]
    link = found[4]
    assert link.link_target == b"/etc/passwd"
    assert world.ann.stat_file(box.container_id, f"{area}/link") == link
    assert [one.path for one in world.ann.list_files(box.container_id, f"{area}/b")] == [
        f"{area}/b/below".encode()
    ]
    request = pb.ListFilesRequest(container_id=box.container_id, path=area.encode(), page_size=2)
    request.page_token = world.stub.ListFiles(request, **world.as_("ann")).next_page_token
    request.path = f"{area}/b".encode()
    with pytest.raises(grpc.RpcError) as caught:
        world.stub.ListFiles(request, **world.as_("ann"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_folders_are_made_and_removed(world, box):
    made = world.ann.make_directory(box.container_id, "/workspace/d", mode=0o700)
    assert (made.type, made.mode) == ("directory", 0o700)
    again = lambda: world.ann.make_directory(box.container_id, "/workspace/d")  # noqa: E731
    assert refused(again).reason == "FILE_EXISTS"
    world.ann.make_directory(box.container_id, "/workspace/d/e/f", make_parents=True)
    world.ann.make_directory(box.container_id, "/workspace/d/e/f", make_parents=True)
    world.ann.write_file(box.container_id, "/workspace/d/e/file", b"x")
    sh(world, box, "echo stays > /tmp/outside; ln -s /tmp/outside d/link")
    error = refused(lambda: world.ann.remove_file(box.container_id, "/workspace/d"))
    assert error.reason == "WRONG_STATE"
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert world.ann.remove_file(box.container_id, "/workspace/d", recursive=True) == 5
    assert sh(world, box, "ls -A /workspace; cat /tmp/outside") == "stays\n"


# Ways out


@pytest.mark.parametrize("area", BOTH)
def test_no_link_leads_outside(world, box, area):
    secret = world.server.home / "token"
    sh(
        world,
        box,
        f"cd {area}; ln -s {secret} abs; ln -s ../../../../../../..{secret} up; ln -s / root; "
        "ln -s /proc/1/root proc; ln -s /etc etc; mkdir d; ln -s .. d/up",
    )
    below = (f"root{secret}", f"proc{secret}", "etc/passwd", "d/up/../x", "root/etc/hostname")
    for path in ("abs", "up", *below):
        error = refused(world.ann.read_file, box.container_id, f"{area}/{path}")
        assert error.reason in {"INVALID_FIELD", "FILE_NOT_FOUND", "WRONG_STATE"}, path
        name = f"{area}/{path}-new" if path in below else f"{area}/{path}"
        error = refused(world.ann.write_file, box.container_id, name, b"x", make_parents=True)
        assert error.reason in {"INVALID_FIELD", "FILE_NOT_FOUND", "WRONG_STATE"}, path
    # What is removed is the link.
    assert secret.read_text().strip() == world.server.token
    assert world.ann.remove_file(box.container_id, f"{area}/root", recursive=True) == 1
    assert sh(world, box, "ls -d /etc") == "/etc\n"


def test_a_hard_link_is_replaced_and_not_written_through(world, box):
    sh(world, box, "echo first > a; ln a b")
    world.ann.write_file(box.container_id, "/workspace/b", b"second")
    assert sh(world, box, "cat a b") == "first\nsecond"


def test_no_race_leads_outside(world, box):
    """A folder that becomes a link and back, as fast as a program can, while files are read below it."""
    (world.server.home / "outside-of-it").write_text("never to be seen")
    target = world.server.home
    with container(world.ann, workspace_id="race", delete_workspace=True) as made:
        script = (
            f"mkdir real; echo inside > real/outside-of-it; ln -s {target} link; echo x > ready; "
            "while :; do mv real way 2>/dev/null; mv way real; mv link way; mv way link; done"
        )
        with world.ann.exec(made.container_id, ["sh", "-c", script]) as process:
            thread = threading.Thread(target=lambda: [None for _ in process])
            thread.start()
            until(
                lambda: (
                    b"/workspace/ready"
                    in [one.path for one in world.ann.list_files(made.container_id, "/workspace")]
                )
            )
            seen = set()
            for number in range(150):
                path = f"/workspace/way/{'outside-of-it' if number % 2 else f'new-{number}'}"
                try:
                    if number % 2:
                        seen.add(world.ann.read_file(made.container_id, path))
                    else:
                        world.ann.write_file(made.container_id, path, b"x")
                except ClawboxError as error:
                    seen.add(error.reason)
            process.signal("KILL")
            thread.join()
        assert seen <= {b"inside\n", "FILE_NOT_FOUND", "INVALID_FIELD", "WRONG_STATE"}
        assert not list(target.glob("new-*"))
    (world.server.home / "outside-of-it").unlink()


def test_what_is_no_file_is_not_read(world, box):
    sh(world, box, "mkfifo pipe; mkdir d")
    for name in ("pipe", "d"):
        error = refused(world.ann.read_file, box.container_id, f"/workspace/{name}")
        assert error.reason in {"WRONG_STATE", "INVALID_FIELD"}
    assert world.ann.remove_file(box.container_id, "/workspace/pipe") == 1


def test_files_are_worked_at_while_it_is_paused(world):
    with container(world.ann) as made:
        world.ann.pause_container(made.container_id)
        for area in BOTH:
            world.ann.write_file(made.container_id, f"{area}/f", b"x")
            assert world.ann.read_file(made.container_id, f"{area}/f") == b"x"
