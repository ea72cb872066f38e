"""``clawbox creds``: credentials for requests, in their encrypted file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.options import ConfigOption, JsonOption
from clawbox.cli.output import escape, print_error, print_table, show, write

if TYPE_CHECKING:
    from clawbox.egress.credentials import Attachment, Credential
    from clawbox.egress.vault import Vault

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Secrets for requests, in a file that no sandbox sees.\n\n"
        "They are attached to the requests that they are for, by the sidecar of a sandbox whose grant names "
        "them: of a tool, or of `clawbox egress serve`. A running server sees a change at once.\n\n"
        "They are in the file that credentials.store_path names, encrypted with the key in the file that "
        "credentials.master_key_file names, else in CLAWBOX_MASTER_KEY: 64 hexadecimal digits, such as "
        "`openssl rand -hex 32` prints."
    ),
)

NameOption = Annotated[str, typer.Option("--name", help="Name by which grants ask for it.")]

_MAX_INPUT = 64 << 10


@app.command()
def add(
    name: NameOption,
    domain: Annotated[list[str], typer.Option("--domain", help="Host that it is for, exactly; repeat.")],
    header: Annotated[str, typer.Option(help="Header that carries it.")] = "Authorization",
    prefix: Annotated[str, typer.Option(help="What stands before it in the header.")] = "Bearer ",
    basic: Annotated[
        str | None, typer.Option("--basic", metavar="USER", help="Send it as the password of this user.")
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", metavar="PARAMETER", help="Send it in the URL's query.")
    ] = None,
    port: Annotated[list[int] | None, typer.Option(help="Port; repeat. Absent: 443.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only with this method; repeat.")] = None,
    path: Annotated[list[str] | None, typer.Option(help="Only at or below this path; repeat.")] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Send it over http, too: others can read it on the way.")
    ] = False,
    max_requests: Annotated[int | None, typer.Option(help="Requests in a window.", min=1)] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Bytes in a window, both ways.", min=1)] = None,
    window: Annotated[int, typer.Option(help="Length of a window, in seconds.", min=1)] = 86_400,
    env: Annotated[
        str | None,
        typer.Option(help="Environment variable for a placeholder: kept with it, not yet set in containers."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Take a secret that can be guessed.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a credential, or replace the one of that name.

    The value is one line of stdin; at a terminal it is asked for and not shown. It is never an argument.
    """
    from clawbox.egress.credentials import (  # noqa: PLC0415 - not for --help
        BasicAttachment,
        Budget,
        Credential,
        HeaderAttachment,
        QueryAttachment,
        Secret,
    )
    from clawbox.network_rules import RuleError, canonical_host  # noqa: PLC0415

    if basic is not None and query is not None:
        raise CliError("--basic and --query exclude each other")
    vault = _vault(config)
    attachment: Attachment = HeaderAttachment(header, prefix)
    if basic is not None:
        attachment = BasicAttachment(basic)
    elif query is not None:
        attachment = QueryAttachment(query)
    limited = max_requests is not None or max_bytes is not None
    with _explained():
        try:
            hosts = tuple(dict.fromkeys(canonical_host(one) for one in domain))
        except RuleError as error:
            raise CliError(f"--domain: {error.problems[0][1]}") from None
        credential = Credential(
            name=name,
            value=Secret(_value()),
            hosts=hosts,
            attachment=attachment,
            ports=tuple(port or (443,)),
            path_prefixes=tuple(path or ()),
            methods=tuple(method or ()),
            plain_http=plain_http,
            budget=Budget(max_requests, max_bytes, window) if limited else None,
            env=env,
            short=force,
        )
    replaced = vault.put(credential)
    verb = "replaced" if replaced else "added"
    show(
        _described(credential) | {"replaced": replaced},
        as_json=as_json,
        people=lambda: write(f"The credential {escape(name, keep='')} is {verb}.\n"),
    )


@app.command("list")
def list_credentials(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show every credential and what it is for; never its value."""
    contents = _vault(config).load()
    rows = [_described(credential) for credential in contents.credentials]
    broken = [{"name": name, "error": text} for name, text in contents.broken.items()]

    def people() -> None:
        print_table(
            ("name", "hosts", "ports", "attached", "methods", "paths", "env"),
            [
                (
                    credential.name,
                    " ".join(credential.hosts),
                    " ".join(map(str, credential.ports)),
                    _attached(credential),
                    " ".join(credential.methods) or "any",
                    " ".join(credential.path_prefixes) or "any",
                    credential.env or "-",
                )
                for credential in contents.credentials
            ],
            empty="There are no credentials.",
        )
        for name, text in contents.broken.items():
            print_error(escape(f"clawbox: {name} cannot be used: {text}.", keep=""))

    show({"credentials": rows, "broken": broken}, as_json=as_json, people=people)


@app.command()
def remove(name: NameOption, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Remove a credential; that there is none is no error."""
    removed = _vault(config).remove(name)
    words = "is removed" if removed else "was not there"
    show(
        {"name": name, "removed": removed},
        as_json=as_json,
        people=lambda: write(f"The credential {escape(name, keep='')} {words}.\n"),
    )


@app.command("test")
def check(
    name: NameOption,
    url: Annotated[str | None, typer.Argument(help="Would it go with a request to this URL?")] = None,
    method: Annotated[str, typer.Option(help="The request's method.")] = "GET",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a credential can be used, and for a URL. Nothing is sent; exit code 1 if not."""
    from clawbox.egress.refusal import RefusedError  # noqa: PLC0415 - not for --help
    from clawbox.egress.rules import may_attach  # noqa: PLC0415
    from clawbox.egress.target import parse_url  # noqa: PLC0415

    contents = _vault(config).load()
    credential = contents.get(name)
    why = ""
    if credential is None:
        if name not in contents.broken:
            raise CliError(f"there is no credential {name}", code=ExitCode.NOT_FOUND)
        why = contents.broken[name]
    elif url is not None:
        try:
            target = parse_url(url)
        except RefusedError as error:
            raise CliError(str(error)) from None
        if not may_attach(credential.scope, target, method.upper()):
            why = f"it is not for {method.upper()} {target.url}"
    good = "can be used" if url is None else "would go with it"

    def people() -> None:
        if why:
            write(f"The credential {escape(name, keep='')} is of no use: {escape(why, keep='')}.\n")
        else:
            write(f"The credential {escape(name, keep='')} {good}.\n")

    show({"name": name, "ok": not why, "error": why}, as_json=as_json, people=people)
    if why:
        raise typer.Exit(ExitCode.FAILED)


def _vault(config: Path | None) -> Vault:
    import os  # noqa: PLC0415 - with the next ones

    from clawbox.config import Config  # noqa: PLC0415 - not for --help
    from clawbox.egress.vault import Vault, read_master_key  # noqa: PLC0415

    settings = Config.load(config).credentials
    return Vault(settings.store_path, read_master_key(os.environ, settings.master_key_file))


def _value() -> str:
    """The secret: one line, without the blanks around it."""
    if sys.stdin.isatty():
        import getpass  # noqa: PLC0415 - for a terminal

        return getpass.getpass("Value (not shown): ").strip()
    data = sys.stdin.buffer.read(_MAX_INPUT)
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        raise CliError("the value on stdin is not UTF-8") from None


@contextmanager
def _explained() -> Iterator[None]:
    from clawbox.egress.credentials import SHORTEST, InvalidCredentialError  # noqa: PLC0415 - not for --help

    try:
        yield
    except InvalidCredentialError as error:
        hint = "--force takes it" if f"shorter than {SHORTEST}" in str(error) else ""
        raise CliError(str(error), hint=hint) from None


def _described(credential: Credential) -> dict[str, object]:
    from clawbox.egress.credentials import BasicAttachment, HeaderAttachment  # noqa: PLC0415 - not for --help

    budget = credential.budget
    how: dict[str, object] = {}
    match credential.attachment:
        case HeaderAttachment(name, prefix):
            how = {"header": name, "prefix": prefix}
        case BasicAttachment(username):
            how = {"basic": username}
        case query:
            how = {"query": query.parameter}
    return {
        "name": credential.name,
        "hosts": credential.hosts,
        "ports": credential.ports,
        **how,
        "methods": credential.methods,
        "path_prefixes": credential.path_prefixes,
        "plain_http": credential.plain_http,
        "budget": budget,
        "env": credential.env,
    }


def _attached(credential: Credential) -> str:
    from clawbox.egress.credentials import BasicAttachment, HeaderAttachment  # noqa: PLC0415 - not for --help

    match credential.attachment:
        case HeaderAttachment(name, prefix):
            return f"{name}: {prefix}…"
        case BasicAttachment(username):
            return f"basic {username}:…"
        case query:
            return f"?{query.parameter}=…"
