"""Which server a command talks to, and with which token: the options that every such command takes."""

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clawbox.cli.bundles import bundled
from clawbox.cli.errors import CliError

if TYPE_CHECKING:
    from clawbox_client import SyncClient

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 9800
_PANEL = "Connection"


@dataclass(frozen=True, slots=True)
class Server:
    """The connection options of one command line."""

    address: str | None
    token_file: Path | None
    tls: bool
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_server_name: str | None
    insecure: bool
    deadline: float | None

    @contextmanager
    def connect(self) -> "Iterator[SyncClient]":
        """A client. Raises CliError for options that cannot be used."""
        # What goes wrong is one line on stderr, and ours; gRPC reads this when it is loaded.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from clawbox_client import SyncClient, Tls  # noqa: PLC0415 - gRPC is most of the start-up time
        from clawbox_client.connection import DEFAULT_DEADLINE  # noqa: PLC0415

        try:
            settings = client_settings(os.environ)
        except CliError:
            if self.address is None:
                raise
            # Settings that cannot be read keep nobody from a server and a token that were named.
            settings = ClientSettings(self.address, ())
        wants_tls = self.tls or any((self.tls_ca, self.tls_cert, self.tls_key, self.tls_server_name))
        try:
            client = SyncClient(
                self.address or settings.address,
                token=None if self.token_file else token_from_environment(os.environ),
                token_file=self.token_file
                or (None if token_from_environment(os.environ) else settings.token_file()),
                tls=Tls(self.tls_ca, self.tls_cert, self.tls_key, self.tls_server_name)
                if wants_tls
                else None,
                insecure=self.insecure,
                deadline=DEFAULT_DEADLINE if self.deadline is None else self.deadline,
            )
        except ValueError as error:
            raise CliError(
                str(error), hint="See --token-file, --tls, --tls-ca, --insecure and --address in --help"
            ) from None
        with client:
            yield client


def token_from_environment(environ: Mapping[str, str]) -> str | None:
    """``CLAWBOX_TOKEN``, else ``CLAWBOX_AUTH_TOKEN``; an empty one counts as absent."""
    return environ.get("CLAWBOX_TOKEN") or environ.get("CLAWBOX_AUTH_TOKEN") or None


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What the server's own settings on this machine say to a client."""

    address: str
    token_files: tuple[Path, ...]

    def token_file(self) -> Path | None:
        """The first of the token files that is there."""
        return next((path for path in self.token_files if path.exists()), None)


def client_settings(environ: Mapping[str, str]) -> ClientSettings:
    """Address and token file as ``clawbox serve`` on this machine would have them.

    The settings file is ``$CLAWBOX_CONFIG``, ``~/.clawbox/config.toml``, ``~/.clawbox/config/clawbox.toml``,
    never ``config/default.toml`` of the folder at hand: a folder from elsewhere must not decide who is sent
    the token. Only ``server.host``, ``server.port`` and ``server.auth_token_file`` are read.
    Raises CliError when the file cannot be read.
    """
    home = _home()
    named = environ.get("CLAWBOX_CONFIG")
    places = [Path(named).expanduser()] if named else [home / "config.toml", home / "config" / "clawbox.toml"]
    file = next((place for place in places if named or place.is_file()), None)
    section = _server_section(file) if file else {}
    host = (
        environ.get("CLAWBOX_SERVER__HOST")
        or environ.get("CLAWBOX_HOST")
        or section.get("host")
        or DEFAULT_HOST
    )
    port = (
        environ.get("CLAWBOX_SERVER__PORT")
        or environ.get("CLAWBOX_PORT")
        or section.get("port")
        or DEFAULT_PORT
    )
    token_file = section.get("auth_token_file") or "token"
    beside = [(file.parent / str(token_file)).expanduser()] if file else []
    return ClientSettings(_address(str(host), str(port)), (*beside, home / "token"))


def _home() -> Path:
    try:
        return Path("~/.clawbox").expanduser()
    except RuntimeError:
        raise CliError(
            "there is no home folder", hint="Set HOME, or give --address and --token-file"
        ) from None


def _server_section(file: Path) -> dict[str, object]:
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        problem = error.strerror or str(error)
    except (ValueError, RecursionError) as error:
        problem = str(error)
    else:
        section = values.get("server", {})
        return section if isinstance(section, dict) else {}
    raise CliError(
        f"{file}, which says where the server is, cannot be read: {problem}",
        hint="`clawbox config check` says more; --address HOST:PORT does without it",
    )


_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1", "": DEFAULT_HOST}  # noqa: S104 - listened on, not connected to


def _address(host: str, port: str) -> str:
    host = _ANY_HOST.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server_options(
    address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT or unix:/PATH; default: as in the settings, else 127.0.0.1:9800.",
            metavar="ADDRESS",
            envvar="CLAWBOX_ADDRESS",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token; default: CLAWBOX_TOKEN, CLAWBOX_AUTH_TOKEN, ~/.clawbox/token.",
            metavar="FILE",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="TLS, trusting what the system trusts.", rich_help_panel=_PANEL)
    ] = False,
    tls_ca: Annotated[
        Path | None,
        typer.Option(help="TLS, trusting this authority (PEM).", metavar="FILE", rich_help_panel=_PANEL),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Client certificate (PEM).", metavar="FILE", rich_help_panel=_PANEL)
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(help="Key of the client certificate (PEM).", metavar="FILE", rich_help_panel=_PANEL),
    ] = None,
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            help="Name in the server's certificate, if not its host.", metavar="NAME", rich_help_panel=_PANEL
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Plaintext to another machine: the network sees the token.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
    deadline: Annotated[
        float | None,
        typer.Option(
            help="Seconds that the call may take, waiting included.",
            metavar="SECONDS",
            min=0.001,
            rich_help_panel=_PANEL,
        ),
    ] = None,
) -> Server:
    """The options of every command that talks to a server."""
    return Server(address, token_file, tls, tls_ca, tls_cert, tls_key, tls_server_name, insecure, deadline)


def takes_server(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the connection options; it gets them as one ``server: Server``."""
    return bundled(function, server=server_options)
