"""What is in the image clawbox/agent-base."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.engine import EngineApi, PrivateEngine

READ_ONLY = {"ReadonlyRootfs": True, "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"]}


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("python3 --version", r"Python 3\."),
        ("pip --version", r"pip \d"),
        ("python3 -m venv --help", "usage: venv"),
        ("node --version", r"v(2[4-9]|[3-9]\d)\."),
        ("npm --version", r"\d+\."),
        ("npx --version", r"\d+\."),
        ("git --version", "git version"),
        ("curl --version", r"curl \d.*https"),
        ("wget --version", "GNU Wget"),
        ("less --version", "less"),
        ("ps --version", "procps"),
        ("id", r"uid=1000\(agent\) gid=1000\(agent\) groups=1000\(agent\)$"),
        ("pwd", "^/workspace$"),
        ("node -e 'fetch(`data:,hi`).then(r=>r.text()).then(console.log)'", "^hi$"),
        ("test -s /etc/ssl/certs/ca-certificates.crt && echo there", "^there$"),
        ("echo yes > /workspace/new && cat /workspace/new", "^yes$"),
        ("apt-get --version", "^apt "),
    ],
)
def test_a_program_is_there_and_runs_without_rights(
    engine_api: EngineApi, agent_image: str, program: str, said: str
) -> None:
    host = {**READ_ONLY, "Tmpfs": {"/workspace": "uid=1000,gid=1000", "/tmp": ""}}
    status, out = engine_api.run(agent_image, ["sh", "-c", program], host=host)
    assert status == 0, out
    assert re.search(said, out.strip(), re.DOTALL | re.MULTILINE), out


def test_it_waits_for_what_is_executed_in_it_and_asks_for_nothing_that_is_refused(
    engine_api: EngineApi, agent_image: str
) -> None:
    config = engine_api.image(agent_image)["Config"]
    assert (config["Cmd"], config["Entrypoint"]) == (["sleep", "infinity"], None)
    assert config["User"] == "1000:1000"
    assert config["WorkingDir"] == "/workspace"
    assert not config["Volumes"]
    assert not config["Labels"]


def test_nothing_in_it_gives_its_user_more_rights_than_it_has(
    engine_api: EngineApi, agent_image: str
) -> None:
    for wanted in (["-user", "1000"], ["-type", "f", "-perm", "/6000"], ["-type", "f", "-perm", "-2"]):
        command = ["find", "/", "-xdev", *wanted, "!", "-path", "/workspace"]
        assert engine_api.run(agent_image, command, user="0:0") == (0, ""), wanted


def test_java_runs_in_the_image_with_java(engine_api: EngineApi, java_image: str) -> None:
    status, out = engine_api.run(java_image, ["java", "-version"])
    assert status == 0, out
    assert "64-Bit Server VM" in out


def test_gvisors_kernel_is_what_a_container_sees(
    runsc_engine: PrivateEngine, runsc_busybox_image: str
) -> None:
    command = ["dmesg"]
    status, out = runsc_engine.api.run(runsc_busybox_image, command, host={"Runtime": "runsc"})
    assert status == 0, out
    assert "Starting gVisor" in out
