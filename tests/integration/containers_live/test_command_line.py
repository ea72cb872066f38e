"""The commands against a real server, as people type them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clawbox_client import ContainerState

from tests.integration.containers_live.world import container, until


@pytest.fixture
def box(world):
    with container(world.ann) as made:
        yield made


def test_spawn_follows_a_command_and_exits_with_its_code(world):
    command = ("sh", "-c", "echo out; echo err >&2; exit 3")
    done = world.clawbox("spawn", "--rm", "--image", world.image, "--", *command)
    assert done.returncode == 3
    assert done.stdout == "out\n"
    assert "err" in done.stderr
    made = done.stderr.split()[0]
    assert world.clawbox("get", made).returncode != 0, "--rm removed it"


def test_a_container_from_its_start_to_its_end(world):
    spawned = world.clawbox("spawn", "--hold", "--label", "by=cli", "--task", "typed", "--memory", "64")
    assert spawned.returncode == 0, spawned.stderr
    made = spawned.stdout.strip()
    try:
        listed = json.loads(world.clawbox("ps", "--label", "by=cli", "--json").stdout)
        assert [one["container_id"] for one in listed] == [made]
        assert made[:8] in world.clawbox("ps").stdout
        got = world.clawbox("get", made[:8])
        assert "typed" in got.stdout
        ran = world.clawbox("exec", "-i", made, "--", "sh", "-c", "cat; exit 6", data=b"typed in")
        assert (ran.returncode, ran.stdout) == (6, "typed in")
        stats = json.loads(world.clawbox("stats", made, "--once", "--json").stdout.splitlines()[0])
        assert json.dumps(stats).count(str(64 << 20)) >= 1
        assert world.clawbox("pause", made).returncode == 0
        assert world.ann.get_container(made).state is ContainerState.PAUSED
        assert world.clawbox("resume", made).returncode == 0
        assert world.clawbox("stop", made).returncode == 0
        waited = world.clawbox("wait", made)
        assert world.ann.get_container(made).state is ContainerState.STOPPED, waited.stderr
        assert world.clawbox("rm", made).returncode == 0
        assert world.clawbox("get", made).returncode != 0
    finally:
        world.clawbox("rm", "--force", made)


def test_files_are_copied_both_ways(world, box, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").write_text("one")
    (tmp_path / "folder/b").write_bytes(bytes(range(256)) * 1000)
    into = world.clawbox("cp", str(tmp_path / "folder"), f"{box.container_id}:/workspace")
    assert into.returncode == 0, into.stderr
    assert world.ann.run_command(box.container_id, ["cat", "folder/a"]).stdout == "one"
    out = world.clawbox("cp", f"{box.container_id}:/workspace/folder", str(tmp_path / "back"))
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "back/b").read_bytes() == (tmp_path / "folder/b").read_bytes()
    piped = world.clawbox("cp", "-", f"{box.container_id}:/tmp/piped", data=b"from a pipe")
    assert piped.returncode == 0, piped.stderr
    assert world.clawbox("cp", f"{box.container_id}:/tmp/piped", "-").stdout == "from a pipe"


def test_logs_kill_and_templates(world):
    with container(world.ann, command=["sh", "-c", "echo said; sleep 1000"]) as made:
        until(lambda: world.clawbox("logs", made.container_id).stdout == "said\n")
        killed = world.clawbox("kill", made.container_id)
        assert killed.returncode == 0, killed.stderr
        assert world.ann.get_container(made.container_id).state is ContainerState.KILLED
        assert world.clawbox("logs", "-f", made.container_id).stdout == "said\n"
        assert "everything" in world.clawbox("templates").stdout


def test_what_is_wrong_is_said_without_a_traceback(world):
    for args in (["get", "0" * 8], ["spawn", "--image", "evil/image", "--hold"], ["exec", "0" * 8, "true"]):
        done = world.clawbox(*args)
        assert done.returncode not in {0, 1} or done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


FETCH = ("--allow", "example.test:443", "--", "sh", "-c", "curl -sS https://example.test/")


def test_a_program_fetches_what_the_operator_and_the_caller_allow(operated, agent_image):
    done = operated.clawbox("spawn", "--rm", "--image", agent_image, *FETCH)
    assert (done.returncode, done.stdout) == (0, "hello from example.test\n"), done.stderr
    seen = operated.outside.https.seen[-1]
    assert (seen.method, seen.path, seen.server_name) == ("GET", "/", "example.test")
    rows = until(lambda: [row for row in operated.audit("egress") if "example.test" in str(row)])
    assert rows[-1]["decision"] == "allowed"


def test_without_the_operators_line_it_is_refused_and_says_why(pulling, agent_image):
    done = pulling.clawbox("spawn", "--rm", "--image", agent_image, *FETCH)
    assert done.returncode != 0
    assert "example.test" in done.stderr
    assert "server does not allow" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(pulling.ann.list_containers(include_finished=True)) == []


def test_the_program_of_the_clients_readme_runs(operated, agent_image):
    page = (Path(__file__).parents[3] / "clients/python/README.md").read_text()
    [block] = [one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "client.spawn(" in one]
    address, token = operated.server.address, operated.server.home / "token"
    block = block.replace('token_file="~/.clawbox/token"', f'"{address}", token_file="{token}"')
    block = block.replace("clawbox/agent-base", agent_image)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[:3] == ["0 6", "", "True"]
    assert said[-2:] == ["KILLED", "POLICY_DENIED evil.example.com"]


def test_what_the_caller_did_not_allow_is_refused_inside(operated, agent_image):
    other = "curl -sS https://refused.example.test/ || echo refused"
    done = operated.clawbox(
        "spawn", "--rm", "--image", agent_image, "--allow", "example.test:443", "--", "sh", "-c", other
    )
    assert done.stdout.endswith("refused\n"), done.stderr
    assert not [seen for seen in operated.outside.https.seen if seen.server_name == "refused.example.test"]
