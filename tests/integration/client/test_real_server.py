"""The command line and the client against the server itself, as a user has them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
README = ROOT / "clients" / "python" / "README.md"


@dataclass(frozen=True)
class Machine:
    """A user's home with a server that runs."""

    environment: dict[str, str]
    address: str
    server: subprocess.Popen[bytes]

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def clawbox(self, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "clawbox", *args, **variables)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    home = tmp_path_factory.mktemp("home")
    port, metrics_port = free_ports()
    # The compiled interpreters are kept where the user who runs the tests keeps them.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CLAWBOX_")},
        "HOME": str(home),
        "XDG_CACHE_HOME": str(cache),
        "CLAWBOX_PORT": str(port),
        "CLAWBOX_METRICS__PORT": str(metrics_port),
    }
    clawbox = [sys.executable, "-m", "clawbox"]
    subprocess.run([*clawbox, "init"], env=environment, check=True, stdout=subprocess.DEVNULL)
    with (
        (home / "log").open("wb") as log,
        subprocess.Popen([*clawbox, "serve"], env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            subprocess.run(
                [*clawbox, "health", "--wait", "--deadline", "60"],
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            yield Machine(environment, f"127.0.0.1:{port}", server)
        finally:
            server.send_signal(signal.SIGTERM)
            ended = server.wait(60)
    said = (home / "log").read_text()
    assert (ended, "Traceback" in said) == (0, False), said


def test_code_runs_and_its_exit_code_tells(machine):
    good = machine.clawbox("py", "print('hi')\nresult = input + 1", "--input", str(2**70))
    assert (good.returncode, good.stdout, good.stderr) == (0, f"hi\n{2**70 + 1}\n", "")

    bad = machine.clawbox("py", "print('hi')\ndef f():\n    1 / 0\nf()")
    assert (bad.returncode, bad.stdout) == (1, "hi\n")
    assert 'File "<code>", line 3, in f' in bad.stderr

    script = machine.clawbox("js", "console.log('hi'); result = input.map(x => x * 2)", "--input", "[1, 2]")
    assert (script.returncode, script.stdout) == (0, "hi\n[2,4]\n")


def test_refusals_have_their_exit_codes(machine):
    assert machine.clawbox("run", "no-such-tool").returncode == 4
    assert machine.clawbox("run", "python", '{"cod": 1}').returncode == 2
    assert machine.clawbox("tools", "list", CLAWBOX_TOKEN="wrong").returncode == 3
    denied = machine.clawbox("py", "1", "--allow", "api.example")
    assert (denied.returncode, "api.example" in denied.stderr) == (6, True)
    endless = machine.clawbox("py", "while True: pass", "--timeout", "300")
    assert (endless.returncode, endless.stderr) == (1, "clawbox: TIMEOUT: ran longer than 300 ms\n")


def test_status_and_tools(machine):
    assert "wasm_engine" in machine.clawbox("status").stdout
    assert '"name": "python"' in machine.clawbox("tools", "list", "--json").stdout
    assert machine.clawbox("tools", "get", "javascript").returncode == 0


@pytest.mark.parametrize("taken", ["port", "metrics"])
def test_a_second_server_on_a_port_says_so_in_one_line(machine, tmp_path, taken):
    free = {"CLAWBOX_METRICS__PORT" if taken == "port" else "CLAWBOX_PORT": str(free_ports()[0])}
    second = machine.clawbox("serve", CLAWBOX_LOGGING__AUDIT_DIR=str(tmp_path), **free)
    assert second.returncode == 2, second.stderr
    setting = "server.host, server.port" if taken == "port" else "metrics.host, metrics.port"
    [said] = second.stderr.splitlines()
    assert said.startswith(f"clawbox: the server cannot start: {setting}: cannot listen on 127.0.0.1:")
    assert ": Address already in use. " in said


def test_the_programs_of_the_readme_run(machine):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    # That with containers is run where there is an engine: tests/integration/containers_live.
    blocks = [block for block in blocks if "client.spawn(" not in block]
    assert len(blocks) == 2
    outputs = []
    for block in blocks:
        elsewhere = block.replace("token_file=", f'address="{machine.address}", token_file=')
        ended = machine.run("-c", elsewhere)
        assert (ended.returncode, ended.stderr) == (0, "")
        outputs.append(ended.stdout)
    assert "TIMEOUT" in outputs[0]
    assert outputs[0].endswith("TOOL_NOT_FOUND {'tool': 'no-such-tool'}\n")
    assert outputs[1].endswith("wrote b'2\\n'\nOK done\n")


def test_the_first_screen_of_the_project_shows_what_happens(machine, tmp_path):
    page = (ROOT / "README.md").read_text()
    (tmp_path / "clawbox").write_text(f'#!/bin/sh\nexec {sys.executable} -m clawbox "$@"\n')
    (tmp_path / "clawbox").chmod(0o755)
    examples = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    [block] = [one for one in examples if "import statistics" in one]
    shown = re.findall(r"^\$ (clawbox .*)\n((?:[^$].*\n)*)", block, re.MULTILINE)
    assert len(shown) == 4
    for command, output in shown:
        ran = subprocess.run(
            ["/bin/sh", "-c", command],
            env=machine.environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert (command, ran.stdout) == (command, output)

    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ran = machine.run("-c", program.replace("127.0.0.1:9800", machine.address))
    assert (ran.stdout, ran.stderr) == ("6\n", "")


def test_the_example_of_a_server_inside_a_program_runs(machine):
    ran = machine.run(str(ROOT / "examples" / "embed.py"), CLAWBOX_PORT="0", CLAWBOX_METRICS__PORT="0")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "OK 6\n", "")
