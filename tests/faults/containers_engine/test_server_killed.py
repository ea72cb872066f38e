"""The server dies with containers running, or leaves them: the next one has them as they were."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from clawbox_client.containers import ContainerChanged, ContainersSnapshot

from tests.faults.containers_engine.world import (
    LEAVE,
    client_of,
    command_lines,
    kill,
    output,
    reaching,
    sidecars,
    state_of,
    through_socket,
    until_said,
    until_state,
)
from tests.footprint import eventually, is_alive

COUNTS = "i=0; while sleep 0.02; do i=$((i+1)); echo line $i; done"


def lines_in_order(text: str) -> int:
    """How many lines ``line 1``, ``line 2`` … are there; none is missing or comes twice."""
    lines = text.splitlines()
    whole = lines if text.endswith("\n") else lines[:-1]
    assert whole == [f"line {number}" for number in range(1, len(whole) + 1)]
    return len(whole)


def listens_at_proxy_port(pid):
    """Whether anything listens at port 3128 in a process's network namespace."""
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    return any(re.search(":0C38 [0-9A-F]+:0000 0A", table) for table in tables)


def asks(upstream, path):
    """A program that asks the upstream through HTTP_PROXY all the time."""
    url = f"http://127.0.0.1:{upstream.port}{path}"
    return ["sh", "-c", f"while :; do wget -q -O /dev/null {url}; sleep 0.2; done"]


def asked(upstream, path):
    """How often that was asked."""
    return sum(seen.path == path for seen in upstream.seen)


def test_rule_87_ten_containers_of_a_killed_server_go_on_with_the_next(world, busybox_image, upstream):
    rule = [f"127.0.0.1:{upstream.port}"]
    url = f"http://127.0.0.1:{upstream.port}/socket"

    def spawn(client, task, command, **options):
        return client.spawn(task, image=busybox_image, command=["sh", "-c", command], **options)

    with world.server(more=reaching(upstream)) as server, client_of(server) as client:
        plain = client.spawn("plain", image=busybox_image, hold=True, labels={"a": "b"})
        paused = spawn(client, "paused", COUNTS)
        execs = client.spawn("execs", image=busybox_image, hold=True)
        timed = spawn(client, "timed", COUNTS, timeout_ms=300_000)
        talks = spawn(client, "talks", COUNTS)
        named = client.spawn("named", image=busybox_image, hold=True, workspace_id="mine")
        asking = client.spawn("asks", image=busybox_image, command=asks(upstream, "/http"), network=rule)
        # It waits until nobody listens there any more, and then does itself.
        takes = spawn(
            client,
            "takes",
            "while ! nc -l -p 3128; do sleep 0.01; done; exec sleep 1000",
            network=rule,
        )
        ends = spawn(client, "ends", "until test -e /workspace/go; do sleep 0.05; done; echo bye; exit 7")
        client.pause_container(paused.container_id)
        client.write_file(named.container_id, "/workspace/kept", b"mine alone")
        eventually(lambda: asked(upstream, "/http") > 0)
        until_said(client, talks.container_id, "line 3\n")
        exec_ = client.exec(execs.container_id, ["sh", "-c", "sleep 777 & setsid sleep 778 & wait"])
        next(iter(exec_))
        lasting = [plain, paused, execs, timed, talks, named, asking, takes, ends]
        pids = {one.container_id: world.pid(one) for one in lasting}
        eventually(lambda: {"sleep 777", "sleep 778"} <= set(command_lines(pids[execs.container_id])))
        # The last, so that little of its time is over: it is to end while no server runs, or with the next.
        short = client.spawn("short", image=busybox_image, hold=True, timeout_ms=4_000)
        made = [*lasting, short]
        before = {one.container_id: client.get_container(one.container_id) for one in made}
        said = output(client, talks.container_id)
        socket = world.run_folder(asking.container_id) / "proxy.sock"
        token = next(
            value.partition("=")[2]
            for value in world.facts(asking)["Config"]["Env"]
            if value.startswith("CLAWBOX_PROXY_TOKEN=")
        )
        uid = int(world.facts(asking)["Config"]["User"].partition(":")[0])
        assert "from outside" in through_socket(pids[asking.container_id], uid, url, token)
        kill(server)

    workspace = next(
        Path(mount["Source"]) for mount in world.facts(ends)["Mounts"] if mount["Destination"] == "/workspace"
    )
    (workspace / "go").touch()
    eventually(lambda: world.facts(ends)["State"]["Status"] == "exited")
    eventually(lambda: listens_at_proxy_port(pids[takes.container_id]))
    assert all(is_alive(pids[one.container_id]) for one in lasting if one is not ends)
    asked_before = asked(upstream, "/http")

    with world.server() as server, client_of(server) as client:
        after = {one.container_id: one for one in client.list_containers(include_finished=True)}
        assert set(after) == set(before)
        for one in made:
            was, now = before[one.container_id], after[one.container_id]
            for name in ("name", "owner", "task", "image_id", "command", "labels", "workspace", "grant"):
                assert getattr(now, name) == getattr(was, name)
            assert (now.start_time, now.expire_time if now.active else None) == (
                was.start_time,
                was.expire_time if now.active else None,
            )
        running = [plain, execs, timed, talks, named, asking]
        assert {state_of(client, one.container_id) for one in running} == {"running"}
        assert {after[one.container_id].egress for one in running} == {"ready"}
        assert [world.pid(one) for one in running] == [pids[one.container_id] for one in running]

        # Its program asks as before, and so does one that uses the socket with the token that it had.
        eventually(lambda: asked(upstream, "/http") > asked_before)
        assert "from outside" in through_socket(pids[asking.container_id], uid, url, token)
        assert "407" in through_socket(pids[asking.container_id], uid, url, "another-token")
        assert socket.is_socket()

        # The port that a program took stays its own; the socket works.
        taken = client.get_container(takes.container_id)
        assert (taken.state.name, taken.egress) == ("RUNNING", "proxy_port_taken")
        assert "3128" in taken.egress_detail
        environment = world.facts(takes)["Config"]["Env"]
        own = next(value for value in environment if value.startswith("CLAWBOX_PROXY_TOKEN="))
        own_uid = int(world.facts(takes)["Config"]["User"].partition(":")[0])
        answer = through_socket(pids[takes.container_id], own_uid, url, own.partition("=")[2])
        assert "from outside" in answer

        # What was started inside by callers died, as nobody has its streams any more; the rest did not.
        eventually(lambda: not {"sleep 777", "sleep 778"} & set(command_lines(pids[execs.container_id])))
        assert client.run_command(execs.container_id, ["echo", "again"]).stdout == "again\n"
        with pytest.raises(Exception, match="EXEC_NOT_FOUND"):
            list(client.attach_exec(exec_.exec_id, reconnect=0))

        # Output goes on where it was: nothing is missing, and nothing comes twice.
        until_said(client, talks.container_id, f"line {lines_in_order(said) + 50}\n")
        assert lines_in_order(output(client, talks.container_id)) > lines_in_order(said)

        assert client.read_file(named.container_id, "/workspace/kept") == b"mine alone"
        with pytest.raises(Exception, match="in use"):
            client.spawn("second", image=busybox_image, hold=True, workspace_id="mine")

        assert state_of(client, paused.container_id) == "paused"
        frozen = output(client, paused.container_id)
        client.resume_container(paused.container_id)
        eventually(lambda: output(client, paused.container_id) != frozen)
        lines_in_order(output(client, paused.container_id))

        # Time went on, too.
        timed_out = client.wait_container(short.container_id, deadline=30)
        assert (timed_out.state.name, timed_out.state_reason) == ("TIMED_OUT", "its time limit was reached")

        ended = client.get_container(ends.container_id)
        assert (ended.state.name, ended.exit_code) == ("FAILED", 7)
        assert output(client, ends.container_id) == "bye\n"

        with client.watch_containers(include_finished=True) as events:
            first = next(iter(events))
            assert isinstance(first, ContainersSnapshot)
            assert {one.container_id for one in first.containers} == set(before)
            client.kill_container(plain.container_id)
            killed = next(
                event.container
                for event in events
                if isinstance(event, ContainerChanged) and not event.container.active
            )
            assert (killed.container_id, killed.state.name) == (plain.container_id, "KILLED")
        for one in made:
            client.remove_container(one.container_id, force=True, delete_workspace=True)
        world.nothing_left()
        assert world.left.workspaces() == []
        assert sidecars(server) == []
    assert world.left.rows() == []


def test_the_output_of_one_that_never_stops_writing_is_whole_over_a_killed_server(world, busybox_image):
    with world.server() as server, client_of(server) as client:
        talks = client.spawn("talks", image=busybox_image, command=["sh", "-c", COUNTS])
        first = until_said(client, talks.container_id, "line 20\n")
        kill(server)
    with world.server() as server, client_of(server) as client:
        more = lines_in_order(first) + 20
        first = until_said(client, talks.container_id, f"line {more}\n")
        lines_in_order(first)
        kill(server)
    with world.server() as server, client_of(server) as client:
        ended = client.kill_container(talks.container_id)
        lines_in_order(output(client, talks.container_id))
        assert lines_in_order(ended.stdout_bytes.decode()) > lines_in_order(first)


def test_a_server_that_leaves_its_containers_finds_them_again(world, busybox_image, upstream):
    rule = [f"127.0.0.1:{upstream.port}"]
    with world.server(more=reaching(upstream), **LEAVE) as server, client_of(server) as client:
        asking = client.spawn("asks", image=busybox_image, command=asks(upstream, "/left"), network=rule)
        eventually(lambda: asked(upstream, "/left") > 0)
        pid = world.pid(asking)
        assert server.stop() == 0
    assert is_alive(pid)
    assert world.left.rows() == [(asking.container_id, "running")]
    before = asked(upstream, "/left")
    with world.server(**LEAVE) as server, client_of(server) as client:
        found = client.get_container(asking.container_id)
        assert (found.state.name, found.egress, world.pid(found)) == ("RUNNING", "ready", pid)
        eventually(lambda: asked(upstream, "/left") > before)
        # Its run folder is what it was: the program still reads its certificates.
        assert "BEGIN CERT" in client.run_command(asking.container_id, ["cat", "/run/clawbox/ca.pem"]).stdout
        client.remove_container(asking.container_id, force=True)
        world.nothing_left()


def test_a_server_that_stops_stops_its_containers(world, busybox_image):
    with world.server() as server, client_of(server) as client:
        polite = client.spawn(
            "polite",
            image=busybox_image,
            command=["sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while sleep 0.05; do :; done"],
        )
        held = client.spawn("held", image=busybox_image, hold=True)
        frozen = client.spawn("frozen", image=busybox_image, hold=True)
        client.pause_container(frozen.container_id)
        until_said(client, polite.container_id, "ready")
        pids = [world.pid(one) for one in (polite, held, frozen)]
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 20
    assert not any(map(is_alive, pids))
    world.nothing_left(output=[one.container_id for one in (polite, held, frozen)])
    assert {state for _, state in world.left.rows()} == {"stopped"}
    with world.server() as server, client_of(server) as client:
        found = client.get_container(polite.container_id)
        assert (found.state.name, found.exit_code) == ("STOPPED", 3)
        assert found.state_reason == "the server was stopped"
        assert output(client, polite.container_id) == "ready\nbye\n"
        for one in (polite, held, frozen):
            client.remove_container(one.container_id)
    assert world.left.folders() == world.left.workspaces() == []


def test_one_that_was_removed_while_no_server_ran_is_lost(world, busybox_image):
    with world.server() as server, client_of(server) as client:
        container = client.spawn("gone", image=busybox_image, command=["sh", "-c", "echo hi; sleep 1000"])
        until_said(client, container.container_id, "hi")
        kill(server)
    world.engine.remove_container(container.name)
    with world.server() as server, client_of(server) as client:
        found = until_state(client, container.container_id, "lost")
        assert found.exit_code is None
        assert found.state_reason == "it is gone, and nobody knows how it ended"
        assert output(client, container.container_id, whole=False) == "hi\n"
        client.remove_container(container.container_id)
        world.nothing_left()
        assert world.left.workspaces() == []


def test_fifty_containers_are_taken_over(world, busybox_image, record_testsuite_property):
    with world.server() as server, client_of(server) as client:
        made = [client.spawn("idle", image=busybox_image, hold=True) for _ in range(50)]
        kill(server)
    pids = [world.pid(one) for one in made]
    began = time.monotonic()
    with world.server() as server, client_of(server) as client:
        # A server serves once everything was taken over; its own start is in it.
        seconds = time.monotonic() - began
        found = {one.container_id: one for one in client.list_containers()}
        assert set(found) == {one.container_id for one in made}
        assert {(one.state.name, one.egress) for one in found.values()} == {("RUNNING", "ready")}
        assert len(sidecars(server)) == 50
        record_testsuite_property(
            "seconds until a server serves that adopts 50 containers", round(seconds, 2)
        )
        assert [world.pid(one) for one in made] == pids
        assert server.stop(timeout=120) == 0
    assert world.left.containers() == set()
    assert not any(map(is_alive, pids))
