"""``clawbox spawn``: a container of its own for a program."""

import contextlib
import shlex
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clawbox.cli.arguments import environment, milliseconds, pairs
from clawbox.cli.command_line import WithCommand
from clawbox.cli.connection import Server, takes_server
from clawbox.cli.container_output import StreamPrinter, exit_code, explain_end, follow
from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.options import JsonOption
from clawbox.cli.output import escape, print_error, print_json, write

if TYPE_CHECKING:
    from clawbox_client import Container, LogEvent, SpawnOptions, SyncClient

_LIMITS = "Limits"
_REACH = "What it may reach"
_TASK_CHARACTERS = 80


def mount(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(name="spawn", cls=WithCommand)(takes_server(spawn))


def spawn(
    server: Server,
    *,
    template: Annotated[
        str, typer.Argument(help="What it is made from; see `clawbox templates`.", show_default=False)
    ] = "",
    command: Annotated[
        list[str] | None,
        typer.Argument(help="The command, in place of the template's or image's.", metavar="-- COMMAND…"),
    ] = None,
    image: Annotated[
        str, typer.Option(help="Image, in place of a template.", metavar="REFERENCE", show_default=False)
    ] = "",
    task: Annotated[
        str, typer.Option(help="What it is for; default: the command.", metavar="TEXT", show_default=False)
    ] = "",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="A host that it may reach, within what is allowed; repeat. Without: what the template says.",
            metavar="HOST[:PORT]",
            rich_help_panel=_REACH,
        ),
    ] = None,
    no_network: Annotated[
        bool, typer.Option("--no-network", help="It may reach nothing.", rich_help_panel=_REACH)
    ] = False,
    credential: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a credential for its requests; repeat.", metavar="NAME", rich_help_panel=_REACH
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            "-e",
            help="Environment variable, NAME alone for this one's value; repeat.",
            metavar="NAME[=VALUE]",
        ),
    ] = None,
    memory: Annotated[
        int | None, typer.Option(help="Memory in MiB.", metavar="MIB", min=1, rich_help_panel=_LIMITS)
    ] = None,
    cpus: Annotated[
        float | None,
        typer.Option(help="Cores, 0.5 for one.", metavar="N", min=0.001, rich_help_panel=_LIMITS),
    ] = None,
    pids: Annotated[
        int | None, typer.Option(help="Processes and threads.", metavar="N", min=1, rich_help_panel=_LIMITS)
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            help="Most time from its start: 90, 5m, 1h.", metavar="DURATION", rich_help_panel=_LIMITS
        ),
    ] = None,
    lifetime: Annotated[
        str | None,
        typer.Option(
            help="Most time from its creation, paused or not.", metavar="DURATION", rich_help_panel=_LIMITS
        ),
    ] = None,
    workspace: Annotated[
        str, typer.Option(help="Your name of a workspace that is kept; default: a fresh one.", metavar="ID")
    ] = "",
    read_only: Annotated[bool, typer.Option("--read-only", help="The workspace cannot be written.")] = False,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="Label; repeat.", metavar="KEY=VALUE")
    ] = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="Keep it alive with a program that does nothing, for exec.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print its id and leave it alone.")] = False,
    rm: Annotated[bool, typer.Option("--rm", help="Remove it when it has ended.")] = False,
    json: JsonOption = False,
) -> None:
    """Start a container. With a command, show what it writes and exit with its exit code.

    Without a command, or with --detach, the id is printed and the container goes on. Ctrl-C stops a container
    that is followed. With --json: the container, or when it is followed one JSON object for each event.
    """
    words = command or []
    if rm and (detach or not words):
        raise CliError("--rm removes what is followed to its end", hint="Give a command, and no --detach")
    if allow and no_network:
        raise CliError("--allow and --no-network exclude each other")
    if image and template:
        raise CliError(
            f"give a template or --image, not both: {template!r} is taken for a template",
            hint="A command goes after `--`",
        )
    if hold and words:
        raise CliError("--hold takes no command")
    options: SpawnOptions = {
        "command": words,
        "hold": hold,
        "network": [] if no_network else [_rule(host) for host in allow] if allow else None,
        "credentials": credential or [],
        "env": environment(env, "--env"),
        "memory_mb": memory,
        "cpu_millis": None if cpus is None else max(1, round(cpus * 1000)),
        "pids": pids,
        "timeout_ms": None if timeout is None else milliseconds(timeout, "--timeout"),
        "max_lifetime_ms": None if lifetime is None else milliseconds(lifetime, "--lifetime"),
        "workspace_id": workspace,
        "read_only_workspace": read_only,
        "labels": pairs(label, "--label"),
        "request_id": uuid.uuid4().hex,
        "deadline": server.deadline,
    }
    with server.connect() as client:
        with _pull_shown(client, options["request_id"]):
            made = client.spawn(
                task or _task(words, template, image), image=image, template=template, **options
            )
        if detach or not words:
            if json:
                print_json(made)
            else:
                write(f"{escape(made.container_id, keep='')}\n")
            return
        code = _follow(client, made, remove=rm, json=json)
    raise typer.Exit(code)


def _rule(host: str) -> Any:
    from clawbox_client.tools import network_rule  # noqa: PLC0415 - brings gRPC

    try:
        return network_rule(host)
    except ValueError as error:
        raise CliError(f"--allow {error}") from None


def _task(command: list[str], template: str, image: str) -> str:
    """The first words of the command: the task is seen by others, and arguments further on hold more."""
    text = " ".join(shlex.join(command[:3]).split()) or template or image or "no task was given"
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= _TASK_CHARACTERS else f"{text[: _TASK_CHARACTERS - 1]}…"


def _follow(client: "SyncClient", made: "Container", *, remove: bool, json: bool) -> int:
    from clawbox_client import Gap  # noqa: PLC0415 - loaded by connect

    printer = StreamPrinter(as_json=json)
    if json:
        printer.event("spawned", container=made)
    else:
        print_error(escape(made.container_id, keep=""))
    interrupted = False
    shown = {"stdout": 0, "stderr": 0}

    def show(events: "Iterable[LogEvent]") -> None:
        for event in events:
            if isinstance(event, Gap):
                printer.gap(event)
                shown[event.stream] = event.offset + event.length
            else:
                printer.feed(event.stream, event.data, event.offset, event.time)
                shown[event.stream] = event.offset + len(event.data)

    try:
        try:
            show(follow(client, made.container_id, follow=True))
            ended = client.wait_container(made.container_id)
        except KeyboardInterrupt:
            interrupted = True
            ended = _stop(client, made.container_id)
            # What it wrote on its way out.
            show(client.logs(made.container_id, offsets=(shown["stdout"], shown["stderr"])))
        printer.finish()
        if json:
            printer.event("ended", container=ended)
        else:
            explain_end(ended)
    finally:
        if remove:
            client.remove_container(made.container_id, force=True)
    return ExitCode.INTERRUPTED if interrupted else exit_code(ended)


def _stop(client: "SyncClient", container_id: str) -> "Container":
    print_error("clawbox: stopping; Ctrl-C again kills.")
    try:
        return client.stop_container(container_id)
    except KeyboardInterrupt:
        return client.kill_container(container_id).container


@contextlib.contextmanager
def _pull_shown(client: "SyncClient", request_id: str) -> Iterator[None]:
    """A bar on a terminal's stderr while an image is pulled."""
    if not sys.stderr.isatty():
        yield
        return
    from clawbox_client import ClawboxError, ContainerChanged, ContainersSnapshot  # noqa: PLC0415 - as above
    from rich.console import Console  # noqa: PLC0415 - only for a bar
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (TextColumn("pulling the image"), BarColumn(), DownloadColumn())
    # Opened before the container is asked for, so that nothing of the pull is missed.
    watch = client.watch_containers(request_id=request_id)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        def show() -> None:
            task = None
            with contextlib.suppress(ClawboxError):  # the spawn itself says what is wrong
                for event in watch:
                    match event:
                        case ContainerChanged(container):
                            pull = container.pull
                        case ContainersSnapshot((container, *_)):
                            pull = container.pull
                        case _:
                            continue
                    if pull is None:
                        continue
                    task = bar.add_task("", total=None) if task is None else task
                    bar.update(task, completed=pull.received_bytes, total=pull.total_bytes or None)

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            watch.close()
            thread.join()
