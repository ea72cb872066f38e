"""Spawn: what a caller says of a container is what it is."""

from __future__ import annotations

import time
from datetime import timedelta

from clawbox_client import ContainerState

from tests.integration.containers_live.world import between, container, logged, refused

RUNNING = ContainerState.RUNNING


def test_a_command_runs_and_its_end_is_told(world):
    with container(
        world.ann, image=world.image, command=["sh", "-c", 'echo "$0"; echo err >&2; exit 3', "a b"]
    ) as made:
        assert made.state is RUNNING
        assert made.command == ("sh", "-c", 'echo "$0"; echo err >&2; exit 3', "a b")
        assert (made.owner, made.task, made.image, made.template) == (
            "ann",
            "a test",
            f"docker.io/{world.image}",
            "",
        )
        assert made.name == f"clawbox-{made.container_id}"
        assert made.image_id.startswith("sha256:")
        assert made.policy == "container"
        assert made.runtime == "runc"
        ended = world.ann.wait_container(made.container_id, deadline=30)
        assert (ended.state, ended.exit_code) == (ContainerState.FAILED, 3)
        assert ended.create_time <= ended.start_time <= ended.finish_time < ended.purge_time
        assert logged(world.ann, ended) == b"a b\nerr\n" or logged(world.ann, ended) == b"err\na b\n"


def test_a_program_that_ends_well_is_completed(world):
    with container(world.ann, command=["true"]) as made:
        ended = world.ann.wait_container(made.container_id, deadline=30)
        assert (ended.state, ended.exit_code) == (ContainerState.COMPLETED, 0)
        assert ended.egress == "none"


def test_a_template_brings_everything_that_it_has(world):
    with container(world.ann, template="everything", credentials=["api"]) as made:
        limits = made.grant.limits
        assert made.template == "everything"
        assert made.command[-1] == "of-the-template"
        assert (limits.memory_mb, limits.cpu_shares, limits.cpu_millis, limits.pids) == (64, 512, 1500, 40)
        assert (limits.max_output_bytes, limits.timeout_ms) == (4096, 600_000)
        assert [rule.host for rule in made.grant.network] == ["api.example.test"]
        assert made.grant.credentials == ("api",)
        assert between(made.start_time, made.expire_time) == timedelta(milliseconds=600_000)
        assert made.egress == "ready"
        files = ("memory/memory.limit_in_bytes", "memory.max", "pids/pids.max", "pids.max")
        limits_of_it = "".join(f"cat /sys/fs/cgroup/{name} 2>/dev/null; " for name in files)
        said = world.ann.run_command(made.container_id, ["sh", "-c", f"id -u; id -g; {limits_of_it}"])
        assert said.stdout.split() == ["4321", "4322", str(64 << 20), "40"]
        answer = world.ann.run_command(
            made.container_id, ["wget", "-qO-", "http://api.example.test/reflect"], timeout_ms=20_000
        )
        assert answer.stdout == "you said Bearer [REDACTED], did you not?"
        assert world.outside.http.seen[-1].header("Authorization") is not None


def test_a_request_narrows_a_template_and_never_widens_it(world):
    with container(
        world.ann,
        template="everything",
        network=[],
        memory_mb=32,
        timeout_ms=500_000,
        command=["sleep", "99"],
    ) as made:
        assert made.grant.network == ()
        assert (made.grant.limits.memory_mb, made.grant.limits.timeout_ms) == (32, 500_000)
        assert made.command == ("sleep", "99")
        assert made.grant.credentials == ()
    for options in ({"memory_mb": 65}, {"pids": 41}, {"network": ["example.test"]}, {"timeout_ms": 600_001}):
        error = refused(world.ann.spawn, "too much", template="everything", **options)
        assert error.reason == "POLICY_DENIED"


def test_an_image_runs_its_own_command(world, images):
    image = images(['ENTRYPOINT ["sh", "-c", "echo entered; exec $0 $@"]', 'CMD ["echo", "own command"]'])
    with container(world.ann, image=image, hold=False, command=()) as made:
        assert made.command[-2:] == ("echo", "own command")
        world.ann.wait_container(made.container_id, deadline=30)
        assert logged(world.ann, made) == b"entered\nown command\n"


def test_an_image_without_a_command_needs_one(world):
    error = refused(lambda: world.ann.spawn("nothing to run", image=world.image))
    assert (error.reason, error.violations[0].field) == ("INVALID_FIELD", "command")


def test_neither_image_nor_template_is_the_default_image(world):
    with container(world.ann) as made:
        assert made.image == f"docker.io/{world.image}"
        assert world.ann.run_command(made.container_id, ["pwd"]).stdout == "/workspace\n"


def test_a_container_that_holds_does_nothing_and_ends_when_it_is_told(world):
    with container(world.ann, hold=True) as made:
        began = time.monotonic()
        ended = world.ann.stop_container(made.container_id)
        assert time.monotonic() - began < 8, "it ends by the signal, not by the grace period"
        assert ended.state is ContainerState.STOPPED


def test_env_and_labels(world):
    with container(world.ann, env={"GREETING": "hé llo", "EMPTY": ""}, labels={"team": "a b"}) as made:
        assert made.env_names == ("EMPTY", "GREETING")
        assert made.labels == {"team": "a b"}
        env = world.ann.run_command(made.container_id, ["env"]).stdout.splitlines()
        assert "GREETING=hé llo" in env
        assert "EMPTY=" in env
        assert "HOME=/workspace" in env


def test_a_fresh_workspace_goes_with_its_container(world):
    with container(world.ann) as made:
        assert not made.workspace.read_only
        assert made.workspace.delete_on_removal
        world.ann.write_file(made.container_id, "/workspace/x", b"1")
        folder = made.workspace.workspace_id
        assert _workspaces(world, folder)
        world.ann.remove_container(made.container_id, force=True)
        assert not _workspaces(world, folder)


def test_a_kept_workspace_is_there_again_and_not_for_two_at_once(world):
    with container(world.ann, workspace_id="kept-one") as made:
        assert not made.workspace.delete_on_removal
        world.ann.run_command(made.container_id, ["sh", "-c", "echo mine > note"])
        error = refused(lambda: world.ann.spawn("a second", hold=True, workspace_id="kept-one"))
        assert error.reason == "WRONG_STATE"
        # The same name of another principal is another folder.
        with container(world.bob, workspace_id="kept-one") as other:
            assert list(world.bob.list_files(other.container_id, "/workspace")) == []
    with container(world.ann, workspace_id="kept-one", delete_workspace=True) as made:
        assert world.ann.run_command(made.container_id, ["cat", "note"]).stdout == "mine\n"
        assert made.workspace.delete_on_removal
    with container(world.ann, workspace_id="kept-one", delete_workspace=True) as made:
        assert list(world.ann.list_files(made.container_id, "/workspace")) == []


def test_a_read_only_workspace(world):
    with container(world.ann, workspace_id="ro", read_only_workspace=True, delete_workspace=True) as made:
        assert made.workspace.read_only
        wrote = world.ann.run_command(made.container_id, ["sh", "-c", "echo x > /workspace/x"])
        assert wrote.exit_code == 1
        assert "Read-only file system" in wrote.stderr
        error = refused(lambda: world.ann.write_file(made.container_id, "/workspace/x", b"x"))
        assert error.reason == "FILE_DENIED"
        world.ann.write_file(made.container_id, "/tmp/x", b"x")


def test_time_from_the_start_ends_it(world):
    with container(world.ann, timeout_ms=700) as made:
        ended = world.ann.wait_container(made.container_id, deadline=30)
        assert ended.state is ContainerState.TIMED_OUT
        assert "time" in ended.state_reason
        assert between(ended.start_time, ended.finish_time) >= timedelta(milliseconds=650)


def test_its_lifetime_ends_it_also_while_it_is_paused(world):
    # Long enough that a busy machine has made it and frozen it by then.
    with container(world.ann, max_lifetime_ms=5_000) as made:
        world.ann.pause_container(made.container_id)
        ended = world.ann.wait_container(made.container_id, deadline=30)
        assert ended.state is ContainerState.TIMED_OUT
        assert between(made.create_time, made.expire_time) == timedelta(milliseconds=5_000)


def test_the_same_request_id_is_one_container(world):
    with container(world.ann, request_id="spawn-once-1") as made:
        again = world.ann.spawn("a test", hold=True, request_id="spawn-once-1")
        assert again.container_id == made.container_id
        assert made.request_id == "spawn-once-1"
        error = refused(lambda: world.ann.spawn("another body", hold=True, request_id="spawn-once-1"))
        assert (error.reason, error.violations[0].field) == ("INVALID_FIELD", "request_id")
        with container(world.bob, request_id="spawn-once-1") as other:
            assert other.container_id != made.container_id


def test_a_program_that_is_not_there_fails_honestly(world):
    with container(world.ann, command=["/no/such/program"]) as made:
        ended = world.ann.wait_container(made.container_id, deadline=30)
        assert (ended.state, ended.exit_code) == (ContainerState.FAILED, 127)


def test_templates_are_listed_by_name_in_pages(world):
    found = list(world.ann.list_templates())
    assert [one.name for one in found] == ["bare", "everything"]
    everything = found[1]
    assert everything.description == "with everything that a template can say"
    assert (everything.image, everything.user) == (world.image, "4321:4322")
    assert everything.grant.limits.memory_mb == 64
    assert [rule.host for rule in everything.grant.network] == ["api.example.test"]
    assert everything.grant.credentials == ("api",)
    assert everything.max_lifetime_ms == 900_000
    assert [one.name for one in world.ann.list_templates(page_size=1)] == ["bare", "everything"]


def _workspaces(world, name):
    root = world.server.home / "workspaces"
    return [folder for folder in root.glob("*/*") if folder.name == name]
