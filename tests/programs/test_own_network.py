"""Programs in a network of their own, whose one listener asks for no token: what they find in a container."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.programs.world import ALLOWED, CLIENTS, REFUSED, SECONDS, SECRET, need, with_hosts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.programs.world import Command

HOST = ALLOWED[0]
URL = f"https://{HOST}:PORT/"


def run(folder: Path, *command: str | Path) -> dict[str, Any]:
    done = subprocess.run(
        [*with_hosts(folder), sys.executable, "-m", "tests.programs.boxed", folder, *command],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    result: dict[str, Any] = json.loads(done.stdout)
    assert SECRET not in result["out"]
    return result


@pytest.mark.parametrize("program", ["java", "curl", "urllib"])
def test_no_token_is_needed(tmp_path, program):
    commands: dict[str, Callable[[], Command]] = {
        "java": lambda: [need("java"), CLIENTS / "Fetch.java"],
        "curl": lambda: [need("curl"), "--silent", "--show-error", "--fail"],
        "urllib": lambda: [sys.executable, CLIENTS / "fetch_urllib.py"],
    }

    result = run(tmp_path, *commands[program](), URL)

    assert result["code"] == 0, result["out"]
    assert '"method": "GET"' in result["out"]
    assert result["seen"] == [f"Bearer {SECRET}"]
    assert result["rows"] == [[HOST, "allowed", ""]]


def test_other_hosts_are_refused_there_too(tmp_path):
    result = run(tmp_path, need("curl"), "--silent", "--show-error", f"https://{REFUSED}/")

    assert result["code"] != 0
    assert "403" in result["out"]
    assert result["rows"] == [[REFUSED, "denied", "host_not_allowed"]]


def test_there_is_no_other_way(tmp_path):
    direct = ["--noproxy", "*", "--connect-to", "::127.0.0.1:PORT"]

    result = run(tmp_path, need("curl"), "--silent", "--show-error", *direct, URL)

    assert result["code"] == 7, result["out"]  # nobody listens there
    assert result["seen"] == []
