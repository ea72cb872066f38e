"""Who may see and do what: two principals without ``*``, and an administrator."""

from __future__ import annotations

import pytest
from clawbox_client import SyncClient

from tests.integration.containers_live.world import container, refused


def every_method(client, container_id):
    """A call of each method that names a container."""
    path = "/workspace/f"
    return {
        "Get": lambda: client.get_container(container_id),
        "Wait": lambda: client.wait_container(container_id, deadline=5),
        "Stop": lambda: client.stop_container(container_id),
        "Kill": lambda: client.kill_container(container_id),
        "Remove": lambda: client.remove_container(container_id, force=True),
        "Pause": lambda: client.pause_container(container_id),
        "Resume": lambda: client.resume_container(container_id),
        "Exec": lambda: list(client.exec(container_id, ["true"], deadline=5)),
        "RunCommand": lambda: client.run_command(container_id, ["true"]),
        "Logs": lambda: list(client.logs(container_id, deadline=5)),
        "Stats": lambda: list(client.stats(container_id, once=True, deadline=5)),
        "WriteFile": lambda: client.write_file(container_id, path, b""),
        "ReadFile": lambda: client.read_file(container_id, path),
        "ListFiles": lambda: list(client.list_files(container_id, "/workspace")),
        "StatFile": lambda: client.stat_file(container_id, path),
        "MakeDirectory": lambda: client.make_directory(container_id, path),
        "RemoveFile": lambda: client.remove_file(container_id, path),
    }


def test_what_is_anothers_is_not_there(world, held):
    for method, call in every_method(world.bob, held.container_id).items():
        error = refused(call)
        assert error.reason == "CONTAINER_NOT_FOUND", method
        assert "ann" not in str(error)
    assert held.container_id not in [one.container_id for one in world.bob.list_containers()]
    assert world.ann.get_container(held.container_id) == held


def test_an_administrator_sees_and_does_everything(world):
    with container(world.ann) as made:
        admin = world.admin
        assert made.container_id in [one.container_id for one in admin.list_containers(owner="ann")]
        assert admin.get_container(made.container_id).owner == "ann"
        admin.write_file(made.container_id, "/workspace/f", b"from above")
        assert admin.run_command(made.container_id, ["cat", "f"]).stdout == "from above"
        assert admin.kill_container(made.container_id).container.owner == "ann"


def test_without_a_token_nothing_is_done(world, held):
    with SyncClient(world.server.address) as nobody:
        calls = every_method(nobody, held.container_id)
        calls["Spawn"] = lambda: nobody.spawn("x", hold=True)
        calls["List"] = lambda: list(nobody.list_containers())
        calls["Watch"] = lambda: list(nobody.watch_containers(deadline=5))
        calls["ListTemplates"] = lambda: list(nobody.list_templates())
        assert len(calls) == 21
        for method, call in calls.items():
            assert refused(call).reason == "TOKEN_MISSING", method


def test_the_network_past_the_sidecar_is_off_unless_it_is_allowed(world):
    error = refused(lambda: world.ann.spawn("direct", hold=True, direct=True))
    assert error.reason == "POLICY_DENIED"
    assert error.metadata["entry"] == "container_direct"
    assert type(error).__name__ == "PermissionDenied"


def test_where_it_is_allowed_a_container_joins_the_network_and_the_log_says_so(operated, direct_network):
    with container(operated.ann, direct=True) as made:
        assert (made.policy, made.egress) == ("container_direct", "direct")
        assert made.grant.network == ()
        ip = operated.ann.run_command(made.container_id, ["ip", "addr"]).stdout
        assert "eth0" in ip
        env = operated.ann.run_command(made.container_id, ["env"]).stdout
        assert "PROXY" not in env.upper()
        rows = [row for row in operated.audit("container_spawn") if made.container_id in str(row)]
        assert rows
        assert "container_direct" in str(rows)
    with container(operated.ann) as usual:
        assert usual.policy == "container"
        assert "eth0" not in operated.ann.run_command(usual.container_id, ["ip", "addr"]).stdout
    error = refused(lambda: operated.ann.spawn("both", hold=True, direct=True, network=["example.test"]))
    assert (error.reason, error.violations[0].field) == ("INVALID_FIELD", "capabilities.network")


@pytest.mark.parametrize("options", [{"template": "bare"}])
def test_a_template_is_never_past_the_sidecar(operated, options):
    error = refused(lambda: operated.ann.spawn("direct", hold=True, direct=True, **options))
    assert error.reason == "POLICY_DENIED"
