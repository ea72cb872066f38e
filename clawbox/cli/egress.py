"""``clawbox egress``: one sandbox's way out by itself, to try a policy or beside another runtime."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clawbox.cli import grants
from clawbox.cli.egress_serve import serve
from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.options import JsonOption
from clawbox.cli.output import print_fields, show

if TYPE_CHECKING:
    from clawbox.egress.addresses import Address, AddressPolicy
    from clawbox.egress.credentials import SandboxSecrets
    from clawbox.egress.explain import AddressVerdict, Explanation
    from clawbox.egress.grant_file import GrantFile
    from clawbox.egress.messages import Limits

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "What one sandbox may do outside, by a grant file: examples/egress/grant.toml has every key.\n\n"
        "Credentials are those of `clawbox creds`; the grant names the ones that may be used."
    ),
)

app.command()(serve)

_SANDBOX = "egress"
_OWNER = "operator"


@app.command()
def explain(
    url: Annotated[str, typer.Argument(help="The URL of a request.")],
    grant: grants.GrantOption,
    method: Annotated[str, typer.Option("--method", "-X", help="Its method.")] = "GET",
    resolve: Annotated[
        bool, typer.Option("--resolve", help="Resolve the name, if the grant allows it, and judge that, too.")
    ] = False,
    config: grants.ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what would happen to a request, and which rule decides. Nothing is sent.

    Exit code 0 means that it would be sent, 1 that it would be refused, 2 that the grant file is wrong. What
    is only known on the way (leaks, limits, what the upstream does) is not foreseen.
    """
    from clawbox.egress.explain import explain as explain_request  # noqa: PLC0415 - not for --help
    from clawbox.egress.explain import needs_resolving  # noqa: PLC0415

    file = grants.load(grant)
    told = file.for_sandbox(_SANDBOX, _OWNER)
    secrets, unknown = _secrets(file, config)
    name = needs_resolving(told, url, method) if resolve else None
    answers = _resolve(name) if name is not None else []
    with _policy(file, url, answers) as policy:
        found = explain_request(told, url, method, policy=policy, secrets=secrets, answers=answers)
    show(
        _described(found, unknown, told.limits),
        as_json=as_json,
        people=lambda: print_fields(_lines(found, unknown, told.limits, resolved=resolve)),
    )
    if not found.allowed:
        raise typer.Exit(ExitCode.FAILED)


def _secrets(file: "GrantFile", config: Path | None) -> "tuple[SandboxSecrets | None, str]":
    """What a sidecar would have of the credentials, or None and why that is not known."""
    from clawbox.egress.credentials import SandboxSecrets  # noqa: PLC0415 - not for --help
    from clawbox.egress.keeper.holdings import NOT_THERE  # noqa: PLC0415
    from clawbox.egress.vault import Vault, VaultError, read_master_key  # noqa: PLC0415

    granted = file.grant.credentials
    if not granted:
        return SandboxSecrets(), ""
    import os  # noqa: PLC0415

    from clawbox.config import Config  # noqa: PLC0415

    settings = Config.load(config).credentials
    try:
        contents = Vault(settings.store_path, read_master_key(os.environ, settings.master_key_file)).load()
    except VaultError as error:
        return None, str(error)
    held = {name: credential for name in granted if (credential := contents.get(name)) is not None}
    broken = {name: contents.broken.get(name, NOT_THERE) for name in granted if name not in held}
    return SandboxSecrets(held, broken), ""


def _resolve(name: str) -> "list[Address]":
    import ipaddress  # noqa: PLC0415 - not for --help

    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CliError(
            f"{name} cannot be resolved: {error.strerror or error}", code=ExitCode.UNAVAILABLE
        ) from None
    return [ipaddress.ip_address(text) for text in dict.fromkeys(str(answer[4][0]) for answer in answers)]


@contextlib.contextmanager
def _policy(file: "GrantFile", url: str, answers: "list[Address]") -> "Iterator[AddressPolicy]":
    """What is thought of addresses here: this machine's own are asked of the kernel, as the dialer does."""
    from clawbox.egress.dialer.routes import Routes, open_netlink  # noqa: PLC0415 - not for --help
    from clawbox.egress.explain import literal_address  # noqa: PLC0415

    literal = literal_address(url)
    routes = Routes(open_netlink())
    try:
        yield file.address_policy(own=routes.own(answers if literal is None else [literal]))
    finally:
        routes.close()


def _described(found: "Explanation", unknown: str, limits: "Limits") -> dict[str, object]:
    target, refusal = found.target, found.refusal
    return {
        "method": found.method,
        "url": None if target is None else target.url,
        "scheme": None if target is None else target.scheme,
        "host": None if target is None else target.host,
        "port": None if target is None else target.port,
        "path": None if target is None else target.path,
        "allowed": found.allowed,
        "reason": None if refusal is None else refusal.code,
        "message": None if refusal is None else refusal.message,
        "status": None if refusal is None else refusal.status,
        "rule": None if found.rule is None else found.rule[0],
        "rule_text": None if found.rule is None else str(found.rule[1]),
        "tls": None if found.tls is None else found.tls.value,
        "on_shape": found.on_shape or None,
        "credential": found.credential,
        "credentials_unknown": unknown or None,
        "addresses": found.addresses,
        "limits": {name: getattr(limits, name) for name in limits.__struct_fields__},
    }


def _lines(found: "Explanation", unknown: str, limits: "Limits", *, resolved: bool) -> list[tuple[str, str]]:
    target, refusal = found.target, found.refusal
    rule = "" if found.rule is None else f"grant.network[{found.rule[0]}]: {found.rule[1]}"
    lines = [
        ("request", found.method + (" " + target.url if target is not None else "")),
        ("verdict", "allowed" if refusal is None else f"REFUSED, {refusal.status} {refusal.code}"),
        ("because", "" if refusal is None else refusal.message),
        ("rule", rule or ("none names the host" if target is not None else "")),
        ("tls", _tls(found)),
        ("credential", _credential(found, unknown)),
        ("look-alikes", _LOOK_ALIKES.get(found.on_shape, "")),
    ]
    lines += [("address", _address(one)) for one in found.addresses]
    if target is not None and not found.addresses and refusal is None:
        lines.append(("address", "judged once the name is resolved" + ("" if resolved else " (--resolve)")))
    if refusal is None:
        lines.append(("limits", _limits(limits)))
    return lines


_LOOK_ALIKES = {
    "block": "what looks like a credential is refused",
    "redact": "what looks like a credential is taken out",
    "report": "what looks like a credential passes, and is written down",
}


def _tls(found: "Explanation") -> str:
    if found.target is None or found.refusal is not None:
        return ""
    if found.tls is None:
        return "none: http in clear text"
    if found.tls.value == "tunnel":
        return "CONNECT is a tunnel: bytes pass unread; POST /proxy and absolute URLs are read"
    return "intercepted with the sandbox's CA: every request in it is decided by itself"


def _credential(found: "Explanation", unknown: str) -> str:
    if found.target is None or found.refusal is not None:
        return ""
    if unknown:
        return f"not known here: {unknown}"
    if found.credential is None:
        return "none"
    if found.tls is not None and found.tls.value == "tunnel":
        return f"{found.credential}, where it is read; none in the tunnel"
    return found.credential


def _address(one: "AddressVerdict") -> str:
    return f"{one.address}: " + ("good" if one.refused is None else f"refused, {one.refused}")


def _limits(limits: "Limits") -> str:
    return (
        f"{limits.requests_per_second} requests/s after {limits.burst} at once, "
        f"{limits.max_concurrent} under way, {limits.max_tunnels} tunnels, "
        f"idle {limits.idle_timeout_ms / 1000:g} s"
    )
