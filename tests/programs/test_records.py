"""What is left behind by requests of programs: for people to read, and for nobody else."""

from __future__ import annotations

import json
import stat
import subprocess
import sys

from tests.egress_world import answers
from tests.programs.world import REFUSED, SECRET, TOKEN, need


def test_the_audit_log_has_them_and_verifies(world):
    mark, curl = world.mark(), [need("curl"), "--silent", "--show-error"]
    world.route("/recorded", answers.echo)
    body = ["--request", "PUT", "--data-binary", "x" * 1000]
    world.run(*curl, *body, world.url("/recorded?token=what-nobody-needs-to-know"))
    world.run(*curl, world.url("/recorded", REFUSED), fails=True)

    allowed, denied = world.rows(mark)

    assert (allowed["method"], allowed["host"], allowed["path"]) == (
        "PUT",
        "api.example.test",
        "/recorded?token=[REDACTED]",
    )
    assert (allowed["credential"], allowed["status"]) == ("api", 200)
    assert allowed["bytes_up"] >= 1000
    assert (denied["decision"], denied["reason"]) == ("denied", "host_not_allowed")
    audit = world.home / "audit"
    before = (audit / "audit.jsonl").read_text().count("\n")
    verified = subprocess.run(
        [sys.executable, "-m", "clawbox", "audit", "verify", "--dir", audit, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    log = (audit / "audit.jsonl").read_text()
    # A head is signed every minute, whoever verifies meanwhile.
    assert before <= json.loads(verified.stdout)["rows"] <= log.count("\n")
    assert "what-nobody" not in log
    assert SECRET not in log
    assert TOKEN not in log


def test_what_programs_are_told_is_this_users_alone(world):
    folder = world.home / "env"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert SECRET not in (folder / "env.sh").read_text()
