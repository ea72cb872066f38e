"""Logs and Stats, and that no output holds a secret that the container's grant brings."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from clawbox_client import Gap, LogChunk, Stderr, Stdout

from tests.integration.containers_live.world import SECRET, container, logged, refused, until

WITH_SECRET = {"network": ["api.example.test"], "credentials": ["api"]}


@pytest.fixture(scope="module")
def spoken(world):
    """One that wrote five lines, two of them to stderr, and goes on."""
    script = (
        "for i in 1 2 3; do echo out $i; done; until [ -e go ]; do sleep 0.05; done; "
        "echo err 4 >&2; echo err 5 >&2; sleep 1000"
    )
    with container(world.ann, command=["sh", "-c", script]) as made:
        until(lambda: logged(world.ann, made).count(b"\n") == 3)
        world.ann.write_file(made.container_id, "/workspace/go", b"")
        until(lambda: logged(world.ann, made).count(b"\n") == 5)
        yield made


def test_streams_are_told_apart_and_have_times_and_offsets(world, spoken):
    with world.ann.logs(spoken.container_id) as stream:
        chunks = list(stream)
    assert all(isinstance(chunk, LogChunk) for chunk in chunks)
    for name, text in (("stdout", b"out 1\nout 2\nout 3\n"), ("stderr", b"err 4\nerr 5\n")):
        own = [chunk for chunk in chunks if chunk.stream == name]
        assert b"".join(chunk.data for chunk in own) == text
        at = 0
        for chunk in own:
            assert chunk.offset == at
            at += len(chunk.data)
            assert spoken.start_time - timedelta(seconds=5) < chunk.time
        assert logged(world.ann, spoken, streams=[name]) == text


def test_where_to_begin(world, spoken):
    assert logged(world.ann, spoken, tail=2) == b"err 4\nerr 5\n"
    assert logged(world.ann, spoken, tail=0) == b""
    assert logged(world.ann, spoken, tail=4, streams=["stdout"]) == b"out 1\nout 2\nout 3\n"
    assert logged(world.ann, spoken, offsets=(6, 6)) == b"out 2\nout 3\nerr 5\n"
    with world.ann.logs(spoken.container_id, streams=["stderr"]) as stream:
        later = next(stream).time
    assert logged(world.ann, spoken, since=later) == b"err 4\nerr 5\n"
    assert logged(world.ann, spoken, since=later + timedelta(hours=1)) == b""
    assert logged(world.ann, spoken, since=spoken.create_time - timedelta(hours=1)).count(b"\n") == 5


def test_following_ends_with_the_container(world):
    script = "echo first; until [ -e go ]; do sleep 0.05; done; echo second; echo last >&2; exit 2"
    with container(world.ann, command=["sh", "-c", script]) as made:
        with world.ann.logs(made.container_id, follow=True, deadline=40) as stream:
            assert next(stream).data == b"first\n"
            world.ann.write_file(made.container_id, "/workspace/go", b"")
            rest = b"".join(chunk.data for chunk in stream)
        assert sorted(rest.splitlines()) == [b"last", b"second"]
        assert logged(world.ann, made, follow=True, tail=1) in {b"last\n", b"second\n"}


def test_a_flood_is_read_to_its_end_or_told_as_a_gap(world):
    size, line = 8 << 20, "1234567 " * 127 + "1234567"
    with container(world.ann, command=["sh", "-c", f"yes '{line}' | head -c {size}"]) as made:
        world.ann.wait_container(made.container_id, deadline=60)
        data, missing = b"", 0
        with world.ann.logs(made.container_id, follow=True, deadline=60) as stream:
            for piece in stream:
                if isinstance(piece, Gap):
                    missing += piece.length
                else:
                    assert piece.offset == len(data) + missing
                    data += piece.data
        assert len(data) + missing == size
        assert data.endswith(line.encode() + b"\n")


# Stats


def test_what_one_uses(world):
    script = "x=$(head -c 30000000 /dev/zero | tr '\\0' x); sleep 1000 & while :; do :; done"
    with container(world.ann, command=["sh", "-c", script], memory_mb=128, pids=50, cpu_millis=500) as made:
        with world.ann.stats(made.container_id, interval_ms=200, deadline=30) as stream:
            first = next(stream)
            assert first.cpu_millis == 0
            assert (first.memory_limit_bytes, first.pids_limit) == (128 << 20, 50)
            later = [next(stream) for _ in range(3)]
        assert later[-1].cpu_time_us > first.cpu_time_us
        assert 0 < max(one.cpu_millis for one in later) < 1_500
        assert 0 < later[-1].memory_bytes < 128 << 20
        assert later[-1].pids >= 2
        assert first.time < later[0].time
        with world.ann.stats(made.container_id, once=True, deadline=30) as stream:
            assert len(list(stream)) == 1


def test_stats_end_with_the_container(world):
    with container(world.ann) as made:
        with world.ann.stats(made.container_id, interval_ms=100, deadline=30) as stream:
            next(stream)
            world.ann.kill_container(made.container_id)
            list(stream)
        assert refused(lambda: list(world.ann.stats(made.container_id))).reason == "WRONG_STATE"


def test_what_went_through_the_sidecar_is_counted(world):
    with container(world.ann, **WITH_SECRET) as made:

        def usage():
            with world.ann.stats(made.container_id, once=True, deadline=30) as stream:
                return next(stream)

        before = usage()
        assert (before.egress_allowed, before.egress_denied) == (0, 0)
        post = ["wget", "-qO-", "--post-data", "x" * 1000, "http://api.example.test/"]
        assert world.ann.run_command(made.container_id, post).stdout == "hello from example.test\n"
        refused_one = world.ann.run_command(
            made.container_id, ["wget", "-qO-", "http://refused.example.test/"]
        )
        assert refused_one.exit_code != 0
        until(lambda: (usage().egress_allowed, usage().egress_denied) == (1, 1))
        after = usage()
        assert after.egress_sent_bytes >= 1000
        assert after.egress_received_bytes >= len("hello from example.test\n")


# Secrets

PIECES = (SECRET[:9], SECRET[9:])
SPEAKS = f"printf 'a {PIECES[0]}'; sleep 0.2; echo '{PIECES[1]} b'; echo 'e {SECRET} f' >&2"
HIDDEN = (b"a [REDACTED] b\n", b"e [REDACTED] f\n")


def test_no_secret_is_in_what_a_command_wrote(world, held):
    done = world.ann.run_command(held.container_id, ["sh", "-c", SPEAKS])
    assert (done.stdout_bytes, done.stderr_bytes) == HIDDEN
    assert done.findings


@pytest.mark.parametrize("tty", [False, True])
def test_no_secret_is_in_what_a_process_writes(world, held, tty):
    # A terminal is shown what it got when nothing came for a moment, so there it must not come in two parts.
    script = f"echo 'a {SECRET} b'; echo 'e {SECRET} f' >&2" if tty else SPEAKS
    with world.ann.exec(held.container_id, ["sh", "-c", script], tty=tty, deadline=30) as process:
        events = list(process)
    out = b"".join(event.data for event in events if isinstance(event, Stdout))
    err = b"".join(event.data for event in events if isinstance(event, Stderr))
    if tty:
        assert out == b"".join(HIDDEN).replace(b"\n", b"\r\n")
    else:
        assert (out, err) == HIDDEN
    assert events[-1].findings


def test_no_secret_is_in_logs_or_in_what_kill_returns(world):
    with container(world.ann, command=["sh", "-c", f"{SPEAKS}; sleep 1000"], **WITH_SECRET) as made:
        until(lambda: logged(world.ann, made).count(b"\n") == 2)
        assert logged(world.ann, made, streams=["stdout"]) == HIDDEN[0]
        assert logged(world.ann, made, streams=["stderr"]) == HIDDEN[1]
        killed = world.ann.kill_container(made.container_id)
        assert (killed.stdout_bytes, killed.stderr_bytes) == HIDDEN
        assert killed.findings
        assert killed.container.command[-1] != ""


def test_what_comes_back_from_outside_is_hidden_in_every_output(world):
    """The upstream got the credential and says it back: neither program nor caller sees it."""
    script = "wget -qO- http://api.example.test/reflect; echo; sleep 1000"
    with container(world.ann, command=["sh", "-c", script], **WITH_SECRET) as made:
        until(lambda: b"\n" in logged(world.ann, made))
        assert logged(world.ann, made) == b"you said Bearer [REDACTED], did you not?\n"
        assert world.outside.http.seen[-1].header("Authorization") == f"Bearer {SECRET}"


def test_shapes_of_credentials_are_hidden_too(world, held):
    shape = "ghp_" + "a1B2" * 9
    done = world.ann.run_command(held.container_id, ["sh", "-c", f"echo {shape[:20]}{shape[20:]}"])
    assert shape not in done.stdout
    assert done.findings


def test_readers_do_not_wait_for_each_other(world, spoken):
    """One that follows and reads nothing keeps nobody from reading."""
    with world.ann.logs(spoken.container_id, follow=True, deadline=60) as idle:
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(logged(world.ann, spoken))) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {len(one) for one in results} == {30}
        idle.close()
