"""A whole server that is not root: less confines its tools, and it says so, but enough does."""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from clawbox_client import SyncClient

from clawbox.config.running import default_cache_dir
from clawbox.wasm.compiler import BUILTIN_FOLDER
from tests import live
from tests.unit.children.conftest import ROOT

UID = 917_001
LACKING = {"worker_own_uid", "worker_network_namespace", "worker_ipc_namespace", "worker_empty_root"}


def importable() -> str:
    """PYTHONPATH for an interpreter that knows nothing of this installation."""
    site = Path(msgspec.__file__).parents[1]
    return os.pathsep.join((ROOT, str(Path(ROOT, "clients/python")), str(site)))


def runs(interpreter: str) -> bool:
    """Whether ``UID`` can run this program with it."""
    check = f"import sys, wasmtime, clawbox.cli; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    try:
        done = subprocess.run(
            [interpreter, "-c", check],
            user=UID,
            cwd="/",
            env={"PYTHONPATH": importable()},
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


def copy_cache(folder: Path) -> None:
    """Compiling the interpreters again would take half a minute."""
    ours = default_cache_dir().expanduser()
    digests = [hashlib.sha256(tool.read_bytes()).hexdigest() for tool in BUILTIN_FOLDER.glob("*.wasm")]
    folder.mkdir(mode=0o700, parents=True)
    if ours.is_dir():
        for path in ours.iterdir():
            wanted = path.suffix not in {".cwasm", ".json"} or path.name.startswith(tuple(digests))
            if path.is_file() and wanted:
                shutil.copy2(path, folder)


@pytest.fixture
def home(monkeypatch):
    """A folder of the user's own, with ``tests.live.CLAWBOX`` as that user."""
    if os.geteuid() != 0:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, "home")
        return
    minor = "python{}.{}".format(*sys.version_info[:2])
    candidates = (sys.executable, f"/usr/bin/{minor}", f"/usr/local/bin/{minor}", "/usr/bin/python3")
    interpreter = next(filter(runs, candidates), None)
    if interpreter is None:
        pytest.skip(
            f"an unprivileged user can run none of {', '.join(candidates)} with these packages, "
            "which are in a folder that only root can enter"
        )
    with tempfile.TemporaryDirectory() as folder:
        copy_cache(Path(folder, ".cache/clawbox"))
        for path in (Path(folder), *Path(folder).rglob("*")):
            os.chown(path, UID, UID)
        wrapper = Path(folder, "clawbox")
        wrapper.write_text(
            f"#!{interpreter} -I\nimport os, sys\n"
            f"os.setgroups([]); os.setresgid({UID}, {UID}, {UID}); os.setresuid({UID}, {UID}, {UID})\n"
            f"os.chdir('/'); environment = dict(os.environ, HOME={folder!r}, PYTHONPATH={importable()!r})\n"
            "environment.pop('XDG_CACHE_HOME', None)\n"
            f"os.execve({interpreter!r}, [{interpreter!r}, '-m', 'clawbox', *sys.argv[1:]], environment)\n"
        )
        wrapper.chmod(0o755)
        monkeypatch.setattr(live, "CLAWBOX", wrapper)
        yield Path(folder, "home")


def status_of(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # a compiler that is done, a worker that was retired
        return {"Name": ""}
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_a_server_that_is_not_root_runs_tools_and_says_what_it_lacks(home):
    with live.running(home) as server, SyncClient(server.address, token=server.token) as client:
        main = status_of(server.process.pid)
        assert "0" not in main["Uid"].split()
        assert int(main["CapEff"], 16) == 0

        assert client.run_python("print(6 * 7)").stdout == "42\n"
        assert client.run_javascript("console.log(6 * 7)").stdout == "42\n"

        enforcements = {found.name: found for found in client.status().enforcements}
        assert {name for name, found in enforcements.items() if not found.in_force} == LACKING
        assert all(enforcements[name].detail for name in LACKING)
        assert enforcements["worker_seccomp"].in_force

        statuses = [status_of(pid) for pid in server.descendants()]
        workers = [status for status in statuses if status["Name"] == "clawbox-worker"]
        assert workers
        assert {"2"} == {status["Seccomp"].strip() for status in workers}
        assert {"1"} == {status["NoNewPrivs"].strip() for status in workers}

        for code in (
            f"import socket; socket.create_connection(('127.0.0.1', {server.port}), 2)",
            "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1/')",
            f"open({str(server.home / 'token')!r}).read()",
        ):
            refused = client.run_python(code)
            assert (refused.ok, refused.stdout) == (False, ""), shlex.quote(code)
