"""The commands for containers that are there: what they are, what they do, and how they end."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from clawbox.cli.arguments import milliseconds, pairs
from clawbox.cli.connection import Server, takes_server
from clawbox.cli.container_ids import SHOWN, IdArgument, IdsArgument, for_each, resolve
from clawbox.cli.container_output import exit_code
from clawbox.cli.errors import CliError
from clawbox.cli.options import JsonOption
from clawbox.cli.output import (
    escape,
    print_fields,
    print_json,
    print_json_line,
    print_table,
    write,
)

if TYPE_CHECKING:
    from clawbox_client import Container, Grant, Rule, SyncClient

_COLUMNS = ["id", "image", "task", "state", "age", "owner"]

LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", help="Only with this label; repeat.", metavar="KEY=VALUE"),
]


def mount(app: typer.Typer) -> None:
    """Adds the commands."""
    for name, function in (
        ("ps", ps),
        ("get", get),
        ("wait", wait),
        ("stop", stop),
        ("kill", kill),
        ("rm", remove),
        ("pause", pause),
        ("resume", resume),
        ("templates", templates),
    ):
        app.command(name=name)(takes_server(function))


def ps(
    server: Server,
    *,
    all_: Annotated[bool, typer.Option("--all", "-a", help="Finished ones, too.")] = False,
    label: LabelOption = None,
    template: Annotated[str, typer.Option(help="Only those made from this template.", metavar="NAME")] = "",
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on with a line for each that changes.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List containers, newest first; the active ones unless --all is said.

    With --watch --json one JSON object a line: `changed` with the container, or `removed` with its id.
    """
    labels = pairs(label, "--label")
    with server.connect() as client:
        if watch:
            _watch(client, labels, template, finished=all_, deadline=server.deadline, json=json)
            return
        found = list(client.list_containers(include_finished=all_, labels=labels, template=template))
    if json:
        print_json(found)
        return
    print_table(_COLUMNS, [_row(one) for one in found], empty="no containers")


def _watch(
    client: "SyncClient",
    labels: dict[str, str],
    template: str,
    *,
    finished: bool,
    deadline: float | None,
    json: bool,
) -> None:
    from clawbox_client import ContainerChanged, ContainerRemoved, ContainersSnapshot  # noqa: PLC0415 - brings gRPC

    def changed(container: "Container") -> None:
        if json:
            print_json_line({"event": "changed", "container": container})
        else:
            write("\t".join(escape(cell, keep="") for cell in _row(container)) + "\n")

    with client.watch_containers(
        include_finished=finished, labels=labels, template=template, deadline=deadline
    ) as events:
        for event in events:
            match event:
                case ContainersSnapshot(found):
                    for container in found:
                        changed(container)
                case ContainerChanged(container):
                    changed(container)
                case ContainerRemoved(container_id):
                    if json:
                        print_json_line({"event": "removed", "container_id": container_id})
                    else:
                        write(f"{escape(container_id[:SHOWN], keep='')}\tremoved\n")


def _row(one: "Container") -> list[str]:
    code = "" if one.exit_code is None else f" ({one.exit_code})"
    return [
        one.container_id[:SHOWN],
        one.template or one.image,
        one.task,
        f"{one.state.name.lower()}{code}",
        _age(one.create_time),
        one.owner,
    ]


def _age(since: datetime | None) -> str:
    if since is None:
        return ""
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def get(server: Server, *, container_id: IdArgument, json: JsonOption = False) -> None:
    """Show one container: what it is, what it may do, and how it does."""
    with server.connect() as client:
        one = client.get_container(resolve(client, container_id))
    if json:
        print_json(one)
        return
    workspace = one.workspace
    kept = "deleted with it" if workspace.delete_on_removal else "kept"
    print_fields(
        [
            ("id", one.container_id),
            ("task", one.task),
            ("state", one.state.name.lower()),
            ("why", one.state_reason),
            ("exit code", "" if one.exit_code is None else str(one.exit_code)),
            ("killed for memory", "yes" if one.oom_killed else ""),
            ("owner", one.owner),
            ("agent", one.agent_id),
            ("template", one.template),
            ("image", one.image),
            ("image digest", one.image_digest),
            ("image id", one.image_id),
            ("command", " ".join(one.command)),
            ("policy", one.policy),
            ("runtime", one.runtime),
            *_granted(one.grant),
            ("way out", f"{one.egress}: {one.egress_detail}" if one.egress_detail else one.egress),
            ("environment", " ".join(one.env_names)),
            ("workspace", f"{workspace.workspace_id}, {kept}{', read-only' if workspace.read_only else ''}"),
            ("labels", " ".join(f"{key}={value}" for key, value in sorted(one.labels.items()))),
            ("created", _moment(one.create_time)),
            ("started", _moment(one.start_time)),
            ("ended", _moment(one.finish_time)),
            ("ends by", _moment(one.expire_time)),
            ("forgotten", _moment(one.purge_time)),
        ]
    )


def _moment(time: datetime | None) -> str:
    return time.isoformat(timespec="seconds") if time else ""


def _granted(grant: "Grant") -> list[tuple[str, str]]:
    limits = grant.limits
    return [
        ("may reach", ", ".join(map(_rule, grant.network)) or "nothing"),
        ("credentials", " ".join(grant.credentials)),
        ("memory", f"{limits.memory_mb} MiB" if limits.memory_mb is not None else ""),
        ("cores", f"{limits.cpu_millis / 1000:g}" if limits.cpu_millis is not None else ""),
        ("processes", str(limits.pids) if limits.pids is not None else ""),
        (
            "time limit",
            str(timedelta(milliseconds=limits.timeout_ms)) if limits.timeout_ms is not None else "",
        ),
    ]


def _rule(rule: "Rule") -> str:
    ports = ",".join(map(str, rule.ports))
    words = [f"{rule.host}:{ports}" if ports else rule.host, *rule.methods, *rule.path_prefixes]
    return " ".join(words)


def wait(server: Server, *, ids: IdsArgument, json: JsonOption = False) -> None:
    """Wait until containers have ended; print their exit codes, and exit with the first that is not 0."""
    codes: list[int] = []
    with server.connect() as client:

        def one(text: str) -> None:
            ended = client.wait_container(resolve(client, text), deadline=server.deadline)
            codes.append(exit_code(ended))
            if json:
                print_json_line(ended)
            else:
                write(f"{'unknown' if ended.exit_code is None else ended.exit_code}\n")

        for_each(ids, one)
    raise typer.Exit(next((code for code in codes if code), 0))


def stop(
    server: Server,
    *,
    ids: IdsArgument,
    grace: Annotated[
        str | None,
        typer.Option(help="Time between its stop signal and SIGKILL; default 10s.", metavar="DURATION"),
    ] = None,
    json: JsonOption = False,
) -> None:
    """End containers: their stop signal first, SIGKILL after a grace period."""
    grace_ms = None if grace is None else milliseconds(grace, "--grace")
    _each(
        server,
        ids,
        lambda client, one: client.stop_container(one, grace_ms=grace_ms, deadline=server.deadline),
        json=json,
    )


def kill(server: Server, *, ids: IdsArgument, json: JsonOption = False) -> None:
    """Kill everything in containers at once. With --json the end of what they wrote, too."""
    _each(server, ids, lambda client, one: client.kill_container(one), json=json)


def remove(
    server: Server,
    *,
    ids: IdsArgument,
    force: Annotated[bool, typer.Option("--force", "-f", help="Kill those that are active.")] = False,
    workspace: Annotated[
        str,
        typer.Option(
            help="What becomes of the workspace, keep or delete; default: what was said when it was made.",
            metavar="WHAT",
        ),
    ] = "",
    json: JsonOption = False,
) -> None:
    """Forget finished containers and their output."""
    if workspace not in {"", "keep", "delete"}:
        raise CliError(f"--workspace: {workspace!r} is neither keep nor delete")
    delete = None if not workspace else workspace == "delete"

    def one(client: "SyncClient", container_id: str) -> object:
        client.remove_container(container_id, force=force, delete_workspace=delete)
        return {"removed": container_id}

    _each(server, ids, one, json=json)


def pause(server: Server, *, ids: IdsArgument, json: JsonOption = False) -> None:
    """Freeze every process of containers. Their time limits go on."""
    _each(server, ids, lambda client, one: client.pause_container(one), json=json)


def resume(server: Server, *, ids: IdsArgument, json: JsonOption = False) -> None:
    """Let paused containers go on."""
    _each(server, ids, lambda client, one: client.resume_container(one), json=json)


def _each(
    server: Server, ids: Sequence[str], action: Callable[["SyncClient", str], object], *, json: bool
) -> None:
    """Does something to each container, and prints its id, or what came of it as a JSON line."""
    with server.connect() as client:

        def one(text: str) -> None:
            container_id = resolve(client, text)
            done = action(client, container_id)
            if json:
                print_json_line(done)
            else:
                write(f"{escape(container_id, keep='')}\n")

        for_each(ids, one)


def templates(server: Server, *, json: JsonOption = False) -> None:
    """List the templates that containers can be made from."""
    with server.connect() as client:
        found = list(client.list_templates())
    if json:
        print_json(found)
        return
    print_table(
        ["name", "image", "may reach", "credentials", "description"],
        [
            [
                one.name,
                one.image,
                ", ".join(map(_rule, one.grant.network)) or "-",
                " ".join(one.grant.credentials) or "-",
                one.description,
            ]
            for one in found
        ],
        empty="no templates",
    )


listing = typer.Typer(
    help="What there is; the names of 0.1 for ps, templates and tools list.", no_args_is_help=True
)
listing.command(name="containers")(takes_server(ps))
listing.command(name="images")(takes_server(templates))
