"""``clawbox egress serve``: one sidecar in the foreground, with a keeper and a dialer of its own."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shlex
import signal
import socket as sockets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clawbox.cli import grants
from clawbox.cli.audit import row_line
from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.listening import address_of, bracketed, listening_tcp, listening_unix, place_of
from clawbox.cli.output import print_error, print_json_line, write

if TYPE_CHECKING:
    from clawbox.audit import AuditLog
    from clawbox.children.uids import UidRange
    from clawbox.config import Config
    from clawbox.egress.grant_file import GrantFile
    from clawbox.egress.sandbox_door import SandboxDoor
    from clawbox.network_rules import NetworkRule

_OWNER = "operator"
_LOOK_SECONDS = 1.0
_SHORTEST_TOKEN = 16
_ENDING = (signal.SIGTERM, signal.SIGINT)


def serve(
    grant: grants.GrantOption,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            help="Listen there for HTTP proxying; port 0 is any free one; repeat.", metavar="ADDR:PORT"
        ),
    ] = None,
    socket: Annotated[
        list[Path] | None,
        typer.Option(help="Listen on a Unix socket, for this user; repeat.", metavar="PATH"),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token; absent: one is made, and printed once.", metavar="FILE"),
    ] = None,
    ca_out: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the certificate that clients must trust; absent: in --env-dir, or a file "
            "that goes when this ends.",
            metavar="FILE",
        ),
    ] = None,
    env_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what programs need to go this way: variables in env.sh, certificates beside it.",
            metavar="DIR",
        ),
    ] = None,
    audit_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to keep the audit log in; absent: rows are only printed.", metavar="DIR"),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Listen on another address than loopback: the network sees the token."
        ),
    ] = False,
    config: grants.ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the line on stdout as JSON.")] = False,
) -> None:
    """Run one sidecar in the foreground until SIGTERM or Ctrl-C.

    The first line on stdout, written when it serves, names where it listens: `HOST:PORT` and `unix:PATH`,
    with blanks between, or with --json an object with addresses, the CA's file and a token that was made.
    What people want to know, and a line for each request, is on stderr.
    """
    from clawbox.egress.keeper.bootstrap import hide_master_key  # noqa: PLC0415 - not for --help

    try:
        hide_master_key()  # before anything is started: this may be where the program is executed anew
    except OSError as error:
        raise CliError(f"the master key cannot be hidden: {error}") from error
    places = [place_of(text, insecure=insecure) for text in listen or ()]
    paths = [path.absolute() for path in socket or ()]
    if not places and not paths:
        raise CliError("there is nowhere to listen", hint="Give --listen 127.0.0.1:3128 or --socket PATH")
    from clawbox.config import Config, LoggingSettings  # noqa: PLC0415
    from clawbox.telemetry import configure_logging  # noqa: PLC0415

    file = grants.load(grant)
    authorities = grants.authorities(file, grant)
    settings = Config.load(config)
    token = _read_token(token_file) if token_file is not None else secrets.token_urlsafe(32)
    configure_logging(LoggingSettings(format="text", level="warning"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_held_back())
        listeners = [stack.enter_context(listening_tcp(host, port)) for host, port in places]
        bound = [address_of(listener) for listener in listeners]
        listeners += [stack.enter_context(listening_unix(path)) for path in paths]
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clawbox-egress-")))
        run = _Run(
            grant_path=grant.absolute(),
            file=file,
            authorities=authorities,
            settings=settings,
            token=token,
            token_file=token_file,
            listeners=listeners,
            tcp=bound,
            unix=paths,
            ca_path=(ca_out or (env_dir or temporary) / "ca.pem").absolute(),
            env_dir=None if env_dir is None else env_dir.absolute(),
            audit_dir=(audit_dir or temporary / "audit").absolute(),
            keeps_audit=audit_dir is not None,
            as_json=as_json,
        )
        run.run()


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Have a signal wait until it can be heeded: it would leave behind what was made, sockets for one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run, with everything open that it needs."""

    grant_path: Path
    file: "GrantFile"
    authorities: tuple[str, ...]
    settings: "Config"
    token: str
    token_file: Path | None
    listeners: list[sockets.socket]
    tcp: list[tuple[str, int]]
    unix: list[Path]
    ca_path: Path
    env_dir: Path | None
    audit_dir: Path
    keeps_audit: bool
    as_json: bool

    def run(self) -> None:
        import uvloop  # noqa: PLC0415 - not for --help

        from clawbox.children.uids import UidsExhaustedError, server_uids  # noqa: PLC0415
        from clawbox.egress.vault import VaultError  # noqa: PLC0415
        from clawbox.errors import ClawboxError  # noqa: PLC0415

        children = self.settings.children
        try:
            with server_uids(children.uid_first, children.uid_count) as uids:
                uvloop.run(self._serve(uids))
        except* (ClawboxError, VaultError, UidsExhaustedError) as group:
            error = _first(group)
            raise CliError(f"egress cannot be served: {error}", code=ExitCode.FAILED) from error

    async def _serve(self, uids: "UidRange | None") -> None:
        from clawbox.audit import AuditLog  # noqa: PLC0415 - not for --help
        from clawbox.egress.dialer.messages import AddressPolicySpec  # noqa: PLC0415
        from clawbox.egress.keeper.bootstrap import identity_folder  # noqa: PLC0415
        from clawbox.egress.standalone import Standalone  # noqa: PLC0415
        from clawbox.egress.supervisor import EgressSetup  # noqa: PLC0415
        from clawbox.rpc.drain import shutdown_on_signals  # noqa: PLC0415
        from clawbox.telemetry import Metrics  # noqa: PLC0415

        table = self.file.grant
        addresses = AddressPolicySpec(table.trusted_networks, table.deny_addresses, tuple(self.tcp))
        standalone = Standalone(
            EgressSetup(self.settings.credentials.store_path, addresses, self.authorities),
            identity_folder(self.settings),
            self.settings.credentials.master_key_file,
            uids,
        )
        # The name decides the CA: who trusts it for this grant file may do so the next time.
        told = self.file.for_sandbox(f"egress-{_digest(self.grant_path)}", _OWNER)
        stop = asyncio.Event()
        with shutdown_on_signals(stop):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            async with asyncio.TaskGroup() as tasks, AuditLog(self.audit_dir) as audit:
                tasks.create_task(_print_rows(audit))
                serving = asyncio.Event()
                task = tasks.create_task(
                    self._serve_until(
                        stop,
                        serving,
                        standalone.serve(told, self.token, self.listeners, audit=audit, metrics=Metrics()),
                    )
                )
                await _first_of(task, stop)
                if not serving.is_set():
                    task.cancel()  # asked to stop before it served
                await asyncio.wait([task])
        print_error("clawbox: stopped.")

    async def _serve_until(
        self,
        stop: asyncio.Event,
        serving: asyncio.Event,
        door: "contextlib.AbstractAsyncContextManager[SandboxDoor]",
    ) -> None:
        async with door as opened:
            if self.env_dir is not None:
                self._write_environment(self.env_dir, opened.ca_pem)
            _put(str(self.ca_path), opened.ca_pem.encode("ascii"))
            self._announce()
            serving.set()
            await _until(stop, opened)

    def _write_environment(self, folder: Path, ca_pem: str) -> None:
        """What docs/programs.md is about. The folder is this user's alone: the token is in it."""
        from clawbox.egress.environment import (  # noqa: PLC0415 - not for --help
            proxy_url,
            sandbox_environment,
            sandbox_files,
        )
        from clawbox.egress.tls.upstream import private_authorities, system_authorities  # noqa: PLC0415

        variables = sandbox_environment(
            folder=str(folder),
            token=self.token,
            socket=str(self.unix[0]) if self.unix else None,
            proxy=proxy_url(*self.tcp[0], self.token) if self.tcp else None,
        )
        authorities = [*system_authorities(), *private_authorities(self.authorities)]
        files = sandbox_files(folder=str(folder), ca_pem=ca_pem, authorities=authorities)
        lines = (f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        folder.mkdir(mode=0o700, exist_ok=True)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(opened).st_uid != os.geteuid():
                raise CliError(f"--env-dir {folder}: it is another user's, who would see the token")
            os.fchmod(opened, 0o700)
            for name, data in {**files, "env.sh": "".join(lines).encode()}.items():
                _put(name, data, opened)
        finally:
            os.close(opened)

    def _announce(self) -> None:
        places = [f"{bracketed(host)}:{port}" for host, port in self.tcp]
        names = [*places, *(f"unix:{path}" for path in self.unix)]
        made = None if self.token_file else self.token
        if self.as_json:
            print_json_line(
                {
                    "addresses": places,
                    "sockets": [str(path) for path in self.unix],
                    "ca": str(self.ca_path),
                    "token": made,
                }
            )
        else:
            write(" ".join(names) + "\n")
        lines = [
            ("serving", str(self.grant_path)),
            ("on", " ".join(names)),
            ("ca", f"{self.ca_path}: of this sandbox alone; nothing else should trust it"),
            *([("programs", f". {self.env_dir}/env.sh")] if self.env_dir else []),
            ("token", f"{made}   (not shown again)" if made else f"in {self.token_file}"),
            ("audit log", str(self.audit_dir) if self.keeps_audit else "not kept (--audit-dir DIR keeps it)"),
            ("try", self._example()),
        ]
        print_error("".join(f"{name:<9}  {value}\n" for name, value in lines).rstrip())

    def _example(self) -> str:
        url = _example_url(self.file.rules)
        token = f"$(cat {shlex.quote(str(self.token_file))})" if self.token_file else self.token
        if self.tcp:
            where, port = self.tcp[0]
            proxy = f"--proxy http://x:{token}@{bracketed(where)}:{port}"
            if self.token_file:  # whose characters may mean something in a URL
                proxy = f'--proxy http://{bracketed(where)}:{port} --proxy-user "x:{token}"'
            return f"curl {proxy} --cacert {shlex.quote(str(self.ca_path))} {url}"
        header = f'-H "Proxy-Authorization: Bearer {token}"'
        return f"curl --unix-socket {shlex.quote(str(self.unix[0]))} {header} http://localhost/{url}"


def _put(name: str, data: bytes, folder: int | None = None) -> None:
    """Write a file that is this user's, whoever had one of that name: its owner could change it later."""
    temporary = f"{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o644, dir_fd=folder), "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(data)
    try:
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(temporary, dir_fd=folder)
        raise


def _example_url(rules: "Sequence[NetworkRule]") -> str:
    """One that the first rule allows, where that can be told."""
    if not rules:
        return "https://example.com/"
    rule = rules[0]
    host = bracketed(rule.host.removeprefix("*").removeprefix(".") or "example.com")
    path = rule.path_prefixes[0] if rule.path_prefixes else "/"
    if 443 in rule.ports:
        return f"https://{host}{path}"
    return f"http://{host}{path}" if 80 in rule.ports else f"https://{host}:{rule.ports[0]}{path}"


async def _first_of(task: asyncio.Task[None], event: asyncio.Event) -> None:
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def _until(stop: asyncio.Event, door: "SandboxDoor") -> None:
    """Until a signal comes, or the sidecar is not started again. Raises CliError for the latter."""
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _LOOK_SECONDS)
        if door.failure:
            raise CliError(f"egress is served no more: {door.failure}", code=ExitCode.FAILED)


async def _print_rows(audit: "AuditLog") -> None:
    from clawbox.audit.heads import KIND as HEAD  # noqa: PLC0415 - not for --help

    async with contextlib.aclosing(audit.watch()) as rows:
        async for row in rows:
            if row.kind != HEAD:  # the log's own affair
                print_error(row_line(row))


def _read_token(path: Path) -> str:
    from clawbox.config.fields import is_token  # noqa: PLC0415 - not for --help

    token = path.read_text("utf-8").strip()
    if not is_token(token) or len(token) < _SHORTEST_TOKEN:
        raise CliError(
            f"{path}: a token is {_SHORTEST_TOKEN} or more letters, digits and -._~+/",
            hint=f"`openssl rand -hex 32 > {path}` makes one",
        )
    return token


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
