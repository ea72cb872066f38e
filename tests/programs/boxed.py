"""``python -m tests.programs.boxed FOLDER COMMAND…``: one command in a sandbox whose listener wants no token.

The listener is bound in the sandbox's own network (``network_box.py``), as in a container. Run by
``test_own_network.py`` where names resolve as ``world.with_hosts`` says; prints JSON of what came of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clawbox.audit import AuditLog
from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.uids import UidRange
from clawbox.egress.credentials import Credential, Secret
from clawbox.egress.dialer.messages import AddressPolicySpec
from clawbox.egress.environment import proxy_url, sandbox_environment, sandbox_files
from clawbox.egress.keeper.bootstrap import open_keys
from clawbox.egress.messages import Grant
from clawbox.egress.supervisor import EgressSetup, EgressSupervisor
from clawbox.egress.tls.upstream import system_authorities
from clawbox.egress.vault import MasterKey, Vault
from clawbox.network_rules import NetworkRule
from clawbox.telemetry import Metrics
from tests.egress_world import TestCa, Upstream, answers
from tests.programs.network_box import PORT
from tests.programs.world import ALLOWED, KEY, SECONDS, SECRET

if TYPE_CHECKING:
    from clawbox.egress.sandbox_door import SandboxDoor

UIDS = UidRange(920_000, 16) if can_have_own_uids() else None
HOST = ALLOWED[0]


async def run(door: SandboxDoor, folder: Path, command: list[str]) -> dict[str, object]:
    """Exit code and what the command printed."""
    files = sandbox_files(folder=str(folder), ca_pem=door.ca_pem, authorities=system_authorities())
    for name, data in files.items():
        await asyncio.to_thread((folder / name).write_bytes, data)
    variables = sandbox_environment(
        folder=str(folder), token="never-admitted", proxy=proxy_url("127.0.0.1", PORT), sandbox="box"
    )
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.programs.network_box", str(theirs.fileno()), *command),
                env={"PATH": os.environ["PATH"], "HOME": str(folder), **variables},
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        _, listeners, _, _ = await asyncio.to_thread(socket.recv_fds, ours, 64, 1)
        for listener in listeners:
            door.listen_namespace(socket.socket(fileno=listener))
            ours.send(b"!")
        out, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    return {"code": process.returncode, "out": out.decode()}


async def main(folder: Path, command: list[str]) -> None:
    home, ca = folder / "home", TestCa()
    home.mkdir(mode=0o700)
    setup = EgressSetup(home / "credentials.enc", AddressPolicySpec(trusted=("127.0.0.0/8",)), (ca.pem,))
    with open_keys(home, None, {"CLAWBOX_MASTER_KEY": KEY}) as keys:
        async with (
            AuditLog(home / "audit") as audit,
            Upstream({"/": answers.echo}, tls=ca.server_context(HOST)) as upstream,
            EgressSupervisor(setup, keys, audit=audit, metrics=Metrics(), uids=UIDS) as supervisor,
        ):
            rule = NetworkRule.parse({"host": HOST, "ports": [upstream.port]})
            credential = Credential("api", Secret(SECRET), (HOST,), ports=(upstream.port,))
            Vault(setup.store, MasterKey(KEY)).put(credential)
            async with supervisor.sandbox(Grant("box", "ann", (rule,), credentials=("api",))) as door:
                result = await run(
                    door, folder, [part.replace("PORT", str(upstream.port)) for part in command]
                )
            result["seen"] = [seen.header("authorization") for seen in upstream.seen]
    rows = map(json.loads, (home / "audit/audit.jsonl").read_text().splitlines())
    result["rows"] = [
        [row["fields"]["host"], row["decision"], row["fields"].get("reason", "")]
        for row in rows
        if row["kind"] == "egress"
    ]
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
