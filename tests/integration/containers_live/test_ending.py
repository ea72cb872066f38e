"""Stop, Kill, Remove, Pause and Resume."""

from __future__ import annotations

import time

from clawbox_client import ContainerState

from tests.integration.containers_live.world import container, logged, mark, processes, refused, until

SAYS = ["sh", "-c", "trap 'echo got TERM; exit 7' TERM; echo ready; while :; do sleep 0.05; done"]
IGNORES = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]


def started(world, made):
    """Wait until its program has said ``ready``."""
    until(lambda: b"ready" in logged(world.ann, made))


def test_a_program_may_clean_up_when_it_is_stopped(world):
    with container(world.ann, command=SAYS) as made:
        started(world, made)
        ended = world.ann.stop_container(made.container_id)
        assert (ended.state, ended.exit_code) == (ContainerState.STOPPED, 7)
        assert logged(world.ann, made) == b"ready\ngot TERM\n"
        assert world.ann.stop_container(made.container_id) == ended


def test_one_that_ignores_the_signal_is_killed_after_its_grace(world):
    with container(world.ann, command=IGNORES) as made:
        started(world, made)
        began = time.monotonic()
        ended = world.ann.stop_container(made.container_id, grace_ms=800)
        assert 0.8 <= time.monotonic() - began < 8
        assert (ended.state, ended.exit_code) == (ContainerState.STOPPED, 137)


def test_no_grace_is_sigkill_at_once(world):
    with container(world.ann, command=SAYS) as made:
        started(world, made)
        ended = world.ann.stop_container(made.container_id, grace_ms=0)
        assert ended.exit_code == 137
        assert b"got TERM" not in logged(world.ann, made)


def test_the_stop_signal_of_an_image_is_the_one_that_is_sent(world, images):
    image = images.add("stopped-by-usr1", lambda name: _with_stop_signal(world, images.engine, name))
    command = [*SAYS[:2], "trap 'echo got USR1; exit 9' USR1; echo ready; while :; do sleep 0.05; done"]
    with container(world.ann, image=image, command=command) as made:
        started(world, made)
        assert world.ann.stop_container(made.container_id).exit_code == 9
        assert logged(world.ann, made) == b"ready\ngot USR1\n"


def _with_stop_signal(world, engine, reference):
    container_id = engine.create(world.image, ["true"])
    try:
        repository, _, tag = reference.rpartition(":")
        config = engine.image(world.image)["Config"] | {"StopSignal": "SIGUSR1"}
        query = {"container": container_id, "repo": repository, "tag": tag}
        engine.call("POST", "/commit", query, as_json=config)
    finally:
        engine.remove_container(container_id)


def test_a_paused_one_is_stopped_too(world):
    with container(world.ann, command=SAYS) as made:
        started(world, made)
        world.ann.pause_container(made.container_id)
        ended = world.ann.stop_container(made.container_id, grace_ms=2_000)
        assert ended.state is ContainerState.STOPPED


def test_kill_returns_the_end_of_what_was_written(world):
    script = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; echo problem >&2; sleep 1000"
    with container(world.ann, command=["sh", "-c", script], max_output_bytes=100) as made:
        until(lambda: b"problem" in logged(world.ann, made))
        killed = world.ann.kill_container(made.container_id)
        assert killed.container.state is ContainerState.KILLED
        assert killed.container.exit_code == 137
        assert killed.stdout_bytes.endswith(b"line 198\nline 199\n")
        assert len(killed.stdout_bytes) == 100
        assert killed.stderr_bytes == b"problem\n"
        assert dict(killed.truncated) == {"stdout": 100}
        again = world.ann.kill_container(made.container_id)
        assert again.stdout_bytes == killed.stdout_bytes
        assert again.container == killed.container


def test_kill_leaves_no_process(world):
    own = mark()
    script = f"setsid sleep {own} & sleep {own} & echo ready; sleep {own}"
    with container(world.ann, command=["sh", "-c", script]) as made:
        started(world, made)
        # Each of them is a shell first, and a sleep a moment later.
        until(lambda: len(processes(own)) >= 3)
        world.ann.kill_container(made.container_id)
        assert processes(own) == []


def test_an_active_one_is_removed_by_force_alone(world):
    with container(world.ann) as made:
        assert refused(lambda: world.ann.remove_container(made.container_id)).reason == "WRONG_STATE"
        world.ann.remove_container(made.container_id, force=True)
        for call in (
            lambda: world.ann.get_container(made.container_id),
            lambda: list(world.ann.logs(made.container_id)),
            lambda: world.ann.stat_file(made.container_id, "/workspace"),
            lambda: world.ann.remove_container(made.container_id),
        ):
            assert refused(call).reason == "CONTAINER_NOT_FOUND"


def test_what_has_ended_is_kept_until_it_is_removed(world):
    with container(world.ann, command=["sh", "-c", "echo said > file; echo said"]) as made:
        world.ann.wait_container(made.container_id, deadline=30)
        assert logged(world.ann, made) == b"said\n"
        assert world.ann.read_file(made.container_id, "/workspace/file") == b"said\n"
        assert refused(lambda: world.ann.stat_file(made.container_id, "/tmp")).reason == "WRONG_STATE"
        world.ann.remove_container(made.container_id)
        assert refused(lambda: world.ann.get_container(made.container_id)).reason == "CONTAINER_NOT_FOUND"


def test_a_fresh_workspace_is_kept_where_the_removal_says_so(world):
    with container(world.ann) as made:
        name = made.workspace.workspace_id
        world.ann.write_file(made.container_id, "/workspace/kept", b"yes")
        world.ann.remove_container(made.container_id, force=True, delete_workspace=False)
    with container(world.ann, workspace_id=name) as again:
        assert world.ann.read_file(again.container_id, "/workspace/kept") == b"yes"
        # And a kept one goes where the removal says so.
        world.ann.remove_container(again.container_id, force=True, delete_workspace=True)
    with container(world.ann, workspace_id=name, delete_workspace=True) as again:
        assert list(world.ann.list_files(again.container_id, "/workspace")) == []


def test_paused_processes_do_nothing_until_they_go_on(world):
    script = "i=0; while :; do i=$((i+1)); echo $i > next; mv next count; done"
    with container(world.ann, command=["sh", "-c", script]) as made:
        until(lambda: _exists(world, made))
        paused = world.ann.pause_container(made.container_id)
        assert paused.state is ContainerState.PAUSED
        assert world.ann.pause_container(made.container_id).state is ContainerState.PAUSED
        before = world.ann.stat_file(made.container_id, "/workspace/count").modify_time
        used = [one.cpu_time_us for one in _stats(world, made, 3)]
        assert used[0] == used[-1]
        assert world.ann.stat_file(made.container_id, "/workspace/count").modify_time == before
        # Files can be worked at meanwhile, processes cannot be begun.
        world.ann.write_file(made.container_id, "/workspace/other", b"x")
        assert refused(lambda: world.ann.run_command(made.container_id, ["true"])).reason == "WRONG_STATE"
        resumed = world.ann.resume_container(made.container_id)
        assert resumed.state is ContainerState.RUNNING
        assert world.ann.resume_container(made.container_id).state is ContainerState.RUNNING
        until(lambda: world.ann.stat_file(made.container_id, "/workspace/count").modify_time > before)


def _exists(world, made):
    return any(one.path.endswith(b"/count") for one in world.ann.list_files(made.container_id, "/workspace"))


def _stats(world, made, number):
    with world.ann.stats(made.container_id, interval_ms=100, deadline=20) as stream:
        return [next(stream) for _ in range(number)]


def test_a_time_limit_goes_on_while_it_is_paused(world):
    # Long enough that a busy machine has frozen it by then.
    with container(world.ann, timeout_ms=4_000) as made:
        world.ann.pause_container(made.container_id)
        ended = world.ann.wait_container(made.container_id, deadline=30)
        assert ended.state is ContainerState.TIMED_OUT


def test_what_has_ended_is_not_paused_or_resumed(world):
    with container(world.ann, command=["true"]) as made:
        world.ann.wait_container(made.container_id, deadline=30)
        for act in (world.ann.pause_container, world.ann.resume_container):
            assert refused(act, made.container_id).reason == "WRONG_STATE"
