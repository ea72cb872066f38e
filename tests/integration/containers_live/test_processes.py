"""Exec and RunCommand: processes inside a container."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import grpc
import pytest
from clawbox_client import DeadlineExceeded, ExecExited, ExecStarted, Gap, Stderr, Stdout
from clawbox_client.v1 import containers_pb2 as pb

from tests.integration.containers_live.world import container, mark, processes, refused, until


class Read:
    """Everything that a process said, up to its end or to something that is waited for."""

    def __init__(self, process):
        self.process = process
        self.stdout = b""
        self.stderr = b""
        self.gaps: list[Gap] = []
        self.offsets: list[int] = []
        self.started: Any = None
        self.exited: Any = None

    def until(self, condition=lambda: False):
        for event in self.process:
            match event:
                case ExecStarted():
                    self.started = event
                case Stdout(data, offset):
                    self.offsets.append(offset)
                    self.stdout += data
                case Stderr(data):
                    self.stderr += data
                case Gap():
                    self.gaps.append(event)
                case ExecExited():
                    self.exited = event
            if condition():
                break
        return self


def sh(world, held, script, **options):
    return Read(world.ann.exec(held.container_id, ["sh", "-c", script], deadline=60, **options))


def has(world, made, name):
    """Whether there is a file of that name."""
    found = world.ann.list_files(made.container_id, "/workspace")
    return b"/workspace/" + name in [one.path for one in found]


# Exec


def test_streams_come_apart_with_offsets_and_stdin_ends(world, held):
    with world.ann.exec(held.container_id, ["sh", "-c", "cat; echo done >&2; exit 4"]) as process:
        read = Read(process)
        read.until(lambda: read.started)
        process.write(b"first\n")
        read.until(lambda: read.stdout == b"first\n")
        process.write(b"second")
        process.close_stdin()
        read.until()
    assert (read.stdout, read.stderr) == (b"first\nsecond", b"done\n")
    assert read.offsets == sorted(read.offsets)
    assert read.offsets[0] == 0
    assert (read.exited.exit_code, read.exited.timed_out, read.exited.lost) == (4, False, False)


def test_a_megabyte_goes_through_unchanged(world, held):
    sent = bytes(range(256)) * 4096
    with world.ann.exec(held.container_id, ["sha256sum"]) as process:

        def write():
            process.write(sent)
            process.close_stdin()

        thread = threading.Thread(target=write)
        thread.start()
        read = Read(process).until()
        thread.join()
    assert read.stdout.split()[0].decode() == hashlib.sha256(sent).hexdigest()


def test_where_as_whom_and_with_what_it_runs(world, held):
    read = sh(world, held, "pwd; echo $EXTRA; id -u", env={"EXTRA": "more"}, working_dir="/tmp").until()
    where, extra, uid = read.stdout.split()
    assert (where, extra) == (b"/tmp", b"more")
    assert int(uid) >= 100_000
    other = sh(world, held, "id -u; id -g", user="54321:54322").until()
    assert other.stdout == b"54321\n54322\n"


def test_a_terminal_has_a_size_and_changes_it(world, held):
    script = "stty size; trap 'stty size; exit 0' WINCH; echo err >&2; tty; while :; do sleep 0.05; done"
    with world.ann.exec(held.container_id, ["sh", "-c", script], tty=True, size=(10, 33)) as process:
        read = Read(process)
        read.until(lambda: b"/dev/pts" in read.stdout)
        assert read.stdout.startswith(b"10 33\r\nerr\r\n")
        assert read.stderr == b""
        process.resize(44, 55)
        read.until()
    assert read.stdout.endswith(b"44 55\r\n")
    assert read.exited.exit_code == 0


def test_keys_of_a_terminal_are_signals(world, held):
    with world.ann.exec(held.container_id, ["sh", "-c", "echo on; sleep 1000"], tty=True) as process:
        read = Read(process)
        read.until(lambda: b"on" in read.stdout)
        process.write(b"\x03")
        read.until()
    assert read.exited.exit_code == 130


@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("KILL", 137), ("INT", 130), ("USR1", 138)])
def test_a_signal_reaches_the_process_group(world, held, name, code):
    own = mark()
    script = f"sh -c 'sleep {own}; true'; true"
    with world.ann.exec(held.container_id, ["sh", "-c", script]) as process:
        read = Read(process)
        read.until(lambda: read.started)
        until(lambda: processes(own))
        process.signal(name)
        read.until()
    assert read.exited.exit_code == code
    until(lambda: not processes(own))


def test_exit_codes_are_those_of_the_process(world, held):
    for code in (0, 1, 127, 255):
        assert sh(world, held, f"exit {code}").until().exited.exit_code == code
    missing = Read(world.ann.exec(held.container_id, ["/no/such"])).until()
    assert missing.exited.exit_code == 127
    assert sh(world, held, "kill -SEGV $$").until().exited.exit_code == 139


def test_a_timeout_ends_it_with_all_that_it_started(world, held):
    own = mark()
    read = sh(world, held, f"setsid sleep {own} & sleep {own}", timeout_ms=500).until()
    assert read.exited.timed_out
    assert 450 <= read.exited.duration_ms < 10_000
    assert processes(own) == []


def test_whoever_comes_back_goes_on_from_what_they_have(world, held):
    script = "echo one; read go; echo two; read go; echo three; exit 6"
    process = world.ann.exec(held.container_id, ["sh", "-c", script], exec_id="comes-back")
    read = Read(process)
    read.until(lambda: read.stdout == b"one\n")
    process.close()
    with world.ann.attach_exec("comes-back", stdout_offset=4) as again:
        rest = Read(again)
        rest.until(lambda: rest.started)
        assert rest.started.attached
        again.write(b"go\n")
        rest.until(lambda: rest.stdout == b"two\n")
        assert rest.offsets == [4]
    with world.ann.attach_exec("comes-back") as third:
        whole = Read(third)
        whole.until(lambda: whole.started)
        assert whole.started.stdin_offset == 3
        third.write(b"go\n")
        whole.until()
    assert whole.stdout == b"one\ntwo\nthree\n"
    assert whole.exited.exit_code == 6
    # It has ended less than a minute ago.
    late = Read(world.ann.attach_exec("comes-back", stdout_offset=8)).until()
    assert (late.stdout, late.exited.exit_code) == (b"three\n", 6)


def test_the_same_start_attaches_and_another_is_refused(world, held):
    one = ["sh", "-c", "echo here; sleep 1000"]
    with world.ann.exec(held.container_id, one, exec_id="started-twice") as process:
        read = Read(process)
        read.until(lambda: read.stdout)
        with world.ann.exec(held.container_id, one, exec_id="started-twice") as again:
            same = Read(again)
            same.until(lambda: same.stdout)
            assert same.started.attached
            assert same.stdout == b"here\n"
        other = world.ann.exec(held.container_id, ["true"], exec_id="started-twice")
        assert refused(lambda: list(other)).reason == "EXEC_EXISTS"
    with world.ann.attach_exec("started-twice", stdout_offset=5) as last:
        last.signal("KILL")
        Read(last).until()


def test_what_a_reader_missed_is_told_as_a_gap(world, held):
    total = 3 << 20
    script = f"yes 1234567 | head -c {total}; touch flooded; sleep 1000"
    process = world.ann.exec(held.container_id, ["sh", "-c", script], exec_id="floods", keep_running=True)
    read = Read(process)
    read.until(lambda: read.started)
    process.close()
    until(lambda: has(world, held, b"flooded"))
    world.ann.remove_file(held.container_id, "/workspace/flooded")
    with world.ann.attach_exec("floods", deadline=30) as look:
        seen = Read(look)
        seen.until(lambda: sum(gap.length for gap in seen.gaps) + len(seen.stdout) == total)
    assert seen.gaps
    assert seen.gaps[0].offset == 0
    assert set(seen.stdout.split(b"\n")[1:-1]) == {b"1234567"}
    with world.ann.attach_exec("floods", stdout_offset=total) as last:
        last.signal("KILL")
        assert Read(last).until().exited.exit_code == 137


def test_one_that_may_goes_on_without_its_reader(world, held):
    own = mark()
    process = world.ann.exec(
        held.container_id, ["sh", "-c", f"echo on; sleep {own}"], exec_id="goes-on", keep_running=True
    )
    read = Read(process)
    read.until(lambda: read.stdout)
    process.close()
    until(lambda: processes(own))
    with world.ann.attach_exec("goes-on", stdout_offset=3) as again:
        again.signal("KILL")
        assert Read(again).until().exited.exit_code == 137


def test_nobody_attaches_to_what_is_anothers(world, held):
    with world.ann.exec(held.container_id, ["sh", "-c", "echo x; sleep 1000"], exec_id="anns") as process:
        read = Read(process)
        read.until(lambda: read.stdout)
        for act in (
            lambda: list(world.bob.attach_exec("anns")),
            lambda: list(world.bob.exec(held.container_id, ["true"])),
        ):
            assert refused(act).reason in {"EXEC_NOT_FOUND", "CONTAINER_NOT_FOUND"}
        process.signal("KILL")
        read.until()


def test_it_is_lost_with_its_container(world):
    with container(world.ann) as made:
        process = world.ann.exec(made.container_id, ["sh", "-c", "echo on; sleep 1000"])
        read = Read(process)
        read.until(lambda: read.stdout)
        world.ann.kill_container(made.container_id)
        read.until()
        assert read.exited.lost
        assert read.exited.exit_code in {None, 137}
        assert read.exited.reason


# RunCommand


def test_a_command_runs_to_its_end(world, held):
    done = world.ann.run_command(
        held.container_id,
        ["sh", "-c", "cat; echo $A; pwd; echo bad >&2; exit 9"],
        stdin=b"in\n",
        env={"A": "b"},
        working_dir="/tmp",
    )
    assert (done.stdout, done.stderr, done.exit_code) == ("in\nb\n/tmp\n", "bad\n", 9)
    assert not done.truncated
    assert (done.timed_out, done.lost, done.ok) == (False, False, False)


def test_what_is_over_the_cap_is_dropped_and_told(world, held):
    script = "head -c 200000 /dev/zero | tr '\\0' x; echo -n ok >&2; echo end > finished"
    done = world.ann.run_command(held.container_id, ["sh", "-c", script], max_output_bytes=1000)
    assert done.stdout_bytes == b"x" * 1000
    assert dict(done.truncated) == {"stdout": 1000}
    assert done.stderr == "ok"
    assert done.exit_code == 0, "it went on although nothing more was kept"
    assert world.ann.read_file(held.container_id, "/workspace/finished") == b"end\n"
    world.ann.remove_file(held.container_id, "/workspace/finished")


def test_its_timeout_kills_all_that_it_started(world, held):
    own = mark()
    script = f"echo begun; setsid sh -c 'setsid sleep {own} & sleep {own}' & sleep {own}"
    # Long enough that a busy machine has let it say something by then.
    done = world.ann.run_command(held.container_id, ["sh", "-c", script], timeout_ms=2_000)
    assert (done.timed_out, done.stdout) == (True, "begun\n")
    assert processes(own) == []


def test_the_calls_deadline_kills_it(world, held):
    own = mark()
    with pytest.raises(DeadlineExceeded):
        world.ann.run_command(
            held.container_id, ["sh", "-c", f"setsid sleep {own} & sleep {own}"], deadline=1
        )
    until(lambda: not processes(own))


def test_cancelling_the_call_kills_it(world, held):
    own = mark()
    command = ["sh", "-c", f"setsid sleep {own} & sleep {own}"]
    request = pb.RunCommandRequest(container_id=held.container_id, command=command)
    call = world.stub.RunCommand.future(request, **world.as_("ann"))
    until(lambda: len(processes(own)) == 2)
    call.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        call.result()
    until(lambda: not processes(own))


def test_a_command_is_lost_with_its_container(world):
    with container(world.ann) as made:
        results = []
        thread = threading.Thread(
            target=lambda: results.append(
                world.ann.run_command(made.container_id, ["sh", "-c", "touch on; sleep 1000"], deadline=60)
            )
        )
        thread.start()
        until(
            lambda: any(f.path.endswith(b"on") for f in world.ann.list_files(made.container_id, "/workspace"))
        )
        world.ann.kill_container(made.container_id)
        thread.join()
        assert results[0].lost
        assert results[0].exit_code in {None, 137}


def test_nothing_runs_in_what_has_ended(world):
    with container(world.ann, command=["true"]) as made:
        world.ann.wait_container(made.container_id, deadline=30)
        for act in (
            lambda: world.ann.run_command(made.container_id, ["true"]),
            lambda: list(world.ann.exec(made.container_id, ["true"])),
        ):
            assert refused(act).reason == "WRONG_STATE"
