"""gVisor's runsc: what works as with runc, what it does of its own, and what is said of it."""

from __future__ import annotations

import signal
import time

import pytest
from clawbox_client import ClawboxError, SyncClient

from tests.containers_world import Leftovers, containers_server

SETTINGS = 'runtime = "runsc"'


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runsc") / "clawbox"


@pytest.fixture(scope="module")
def client(home, runsc_engine):
    with (
        containers_server(home, runsc_engine.url, SETTINGS) as server,
        SyncClient(server.address, token=server.token) as client,
    ):
        yield client


@pytest.fixture
def container_id(client, runsc_busybox_image):
    container = client.spawn("under gVisor", image=runsc_busybox_image, hold=True)
    assert (container.runtime, container.egress) == ("runsc", "ready")
    yield container.container_id
    client.remove_container(container.container_id, force=True)


def run(client, container_id, *command, **options):
    return client.run_command(container_id, command, **{"timeout_ms": 20_000, **options})


def test_programs_run_and_find_their_way_out(client, container_id):
    assert "Starting gVisor" in run(client, container_id, "dmesg").stdout
    assert run(client, container_id, "sh", "-c", "exit 7").exit_code == 7
    assert run(client, container_id, "cat", stdin=b"given").stdout == "given"
    told = run(client, container_id, "sh", "-c", "cat /proc/self/status; touch /etc/x /run/clawbox/x").stdout
    status = dict(line.split(":\t") for line in told.splitlines() if ":\t" in line)
    assert {status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {""}
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split()[0] != "0"
    # Through the listener inside, by its sidecar, which refuses what was not granted.
    assert "403" in run(client, container_id, "wget", "-O-", "http://example.test/").stderr
    with pytest.raises(ClawboxError) as refused:
        run(client, container_id, "id", working_dir="/nowhere")
    assert refused.value.reason == "INVALID_FIELD"


def test_files_are_those_of_the_workspace_alone(client, container_id):
    client.write_file(container_id, "/workspace/new", b"content")
    assert run(client, container_id, "cat", "/workspace/new").stdout == "content"
    with pytest.raises(ClawboxError) as refused:
        client.write_file(container_id, "/tmp/new", b"content")
    assert refused.value.reason == "NOT_SERVED"


def test_rule_86_a_process_that_must_end_takes_its_container_along(client, container_id):
    done = run(client, container_id, "sh", "-c", "setsid sleep 99 & sleep 99", timeout_ms=300)
    assert done.timed_out
    ended = client.wait_container(container_id, deadline=20)
    assert ended.exit_code == 137


def test_a_signal_for_one_process_is_not_served(client, container_id):
    with client.exec(container_id, ["sh", "-c", "echo ready; read line; echo $line"]) as process:
        for event in process:
            if getattr(event, "data", b"") == b"ready\n":
                process.signal("TERM")
                with pytest.raises(ClawboxError) as refused:
                    list(process)
                assert refused.value.reason == "NOT_SERVED"
                break


def test_output_stop_and_kill(client, runsc_busybox_image):
    script = "trap 'echo bye; exit 3' TERM; echo out; echo err >&2; while :; do sleep 9 & wait; done"
    container = client.spawn("stopped", image=runsc_busybox_image, command=["sh", "-c", script])
    lines = client.logs(container.container_id, follow=True, deadline=20)
    said = {next(lines).data, next(lines).data}
    assert said == {b"out\n", b"err\n"}
    stopped = client.stop_container(container.container_id)
    assert (stopped.exit_code, stopped.state.name) == (3, "STOPPED")
    assert [event.data for event in lines if getattr(event, "data", b"")] == [b"bye\n"]
    held = client.spawn("killed", image=runsc_busybox_image, hold=True)
    assert client.kill_container(held.container_id).container.state.name == "KILLED"


def test_the_status_says_what_is_otherwise(client):
    told = {one.name: one for one in client.status().enforcements}
    assert told["container_own_kernel"].in_force
    for name in ("container_seccomp", "container_seen_from_host", "container_exec_ended_alone"):
        assert not told[name].in_force
        assert "runsc" in told[name].detail


def test_the_next_server_goes_on_and_ends_what_has_a_process_of_nobodys(
    tmp_path, runsc_engine, runsc_busybox_image
):
    home = tmp_path / "clawbox"
    with (
        containers_server(home, runsc_engine.url, SETTINGS) as server,
        SyncClient(server.address, token=server.token) as client,
    ):
        spawned = [client.spawn("stays", image=runsc_busybox_image, hold=True) for _ in range(2)]
        quiet, busy = (container.container_id for container in spawned)
        with client.exec(busy, ["sh", "-c", "echo ready; sleep 99"], reconnect=0) as process:
            assert any(getattr(event, "data", b"") == b"ready\n" for event in process)
            server.stop(signal.SIGKILL)
    with (
        containers_server(home, runsc_engine.url, SETTINGS) as server,
        SyncClient(server.address, token=server.token) as client,
    ):
        assert client.wait_container(busy, deadline=20).exit_code == 137
        assert run(client, quiet, "echo", "on").stdout == "on\n"
        assert "403" in run(client, quiet, "wget", "-O-", "http://example.test/").stderr
        for container_id in (quiet, busy):
            client.remove_container(container_id, force=True)
        until = time.monotonic() + 10
        while Leftovers(home, runsc_engine.api).containers():
            assert time.monotonic() < until
            time.sleep(0.01)
