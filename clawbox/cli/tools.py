"""``clawbox tools``: the tools that a server has."""

import json as json_module
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clawbox.cli.connection import Server, takes_server
from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.options import JsonOption
from clawbox.cli.output import escape, print_error, print_fields, print_json, print_table, write

if TYPE_CHECKING:
    from clawbox_client import Tool

app = typer.Typer(help="The tools that the server has.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The tool's name.", show_default=False)]
PublishOption = Annotated[
    bool | None,
    typer.Option(
        "--publish/--no-publish",
        help="Whether other principals see it (administrators only).",
        show_default=False,
    ),
]


def list_tools(
    server: Server,
    *,
    prefix: Annotated[str, typer.Option(help="Only names that begin with this.")] = "",
    json: JsonOption = False,
) -> None:
    """List the tools that you may run."""
    with server.connect() as client:
        found = list(client.list_tools(name_prefix=prefix))
    if json:
        print_json(found)
        return
    print_table(
        ["name", "version", "kind", "state", "owner", "size", "description"],
        [
            [one.name, one.version, one.abi, _state(one), one.owner, _size(one.size_bytes), one.description]
            for one in found
        ],
        empty="no tools",
    )


def get(server: Server, *, name: NameArgument, json: JsonOption = False) -> None:
    """Show one tool and its manifest."""
    with server.connect() as client:
        tool = client.get_tool(name)
    if json:
        print_json(tool)
        return
    _print_tool(tool)
    write("\nmanifest\n")
    print_json(tool.manifest)


def register(
    server: Server,
    *,
    file: Annotated[Path, typer.Argument(help="The manifest, a JSON file.", show_default=False)],
    publish: PublishOption = None,
    json: JsonOption = False,
) -> None:
    """Give a manifest to a tool whose module is already there; `tool.name` says which."""
    manifest = _read_manifest(file)
    with server.connect() as client:
        done = client.register_tool(manifest, published=publish)
    if json:
        print_json(done)
        return
    write(f"{escape(done.tool.name)}: manifest {'registered' if done.created else 'replaced'}\n")


def upload(
    server: Server,
    *,
    file: Annotated[Path, typer.Argument(help="The module or component, a .wasm file.", show_default=False)],
    name: Annotated[str, typer.Option(help="Its name; default: the manifest's, else the file's.")] = "",
    manifest: Annotated[Path | None, typer.Option(help="Its manifest, a JSON file.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a tool of that name.")] = False,
    publish: PublishOption = None,
    json: JsonOption = False,
) -> None:
    """Upload a tool. The server compiles it before it answers."""
    values = None if manifest is None else _read_manifest(manifest)
    options: dict[str, Any] = {} if server.deadline is None else {"deadline": server.deadline}
    with server.connect() as client, _progress() as progress:
        tool = client.upload_tool(
            name or _manifest_name(values) or file.stem,
            file,
            manifest=values,
            replace=replace,
            published=publish,
            progress=progress,
            **options,
        )
    if json:
        print_json(tool)
        return
    _print_tool(tool)


def delete(server: Server, *, name: NameArgument, json: JsonOption = False) -> None:
    """Delete a tool's module and manifest. Calls that run it finish."""
    with server.connect() as client:
        client.delete_tool(name)
    if json:
        print_json({"deleted": name})
        return
    write(f"{escape(name)}: deleted\n")


def reload(server: Server, *, json: JsonOption = False) -> None:
    """Have the server read its tool folder again. Exit code 1 when a file failed to load."""
    options: dict[str, Any] = {} if server.deadline is None else {"deadline": server.deadline}
    with server.connect() as client:
        report = client.reload_tools(**options)
    if json:
        print_json(report)
    else:
        write(f"{report.reloaded} read anew, {len(report.tools)} ready\n")
        for failure in report.failures:
            still = "; the version before still serves" if failure.previous_in_service else ""
            print_error(escape(f"{failure.name}: {failure.error}{still}", keep=""))
    if report.failures:
        raise typer.Exit(ExitCode.FAILED)


for _name, _function in (
    ("list", list_tools),
    ("get", get),
    ("register", register),
    ("upload", upload),
    ("delete", delete),
    ("reload", reload),
):
    app.command(name=_name)(takes_server(_function))


def _print_tool(tool: "Tool") -> None:
    print_fields(
        [
            ("name", tool.name),
            ("description", tool.description),
            ("version", tool.version),
            ("kind", tool.abi),
            ("state", _state(tool)),
            ("problem", tool.load_error),
            ("not granted", "; ".join(tool.warnings)),
            ("owner", tool.owner),
            ("published", "yes" if tool.published else "no"),
            ("size", _size(tool.size_bytes)),
            ("digest", tool.digest),
            ("changed", tool.update_time.isoformat(timespec="seconds") if tool.update_time else ""),
        ]
    )


def _state(tool: "Tool") -> str:
    return f"{tool.state} (newest file failed)" if tool.load_error and tool.state == "ready" else tool.state


def _size(size_bytes: int) -> str:
    if size_bytes < 1 << 10:
        return f"{size_bytes} B"
    return f"{size_bytes / 1024:.0f} KiB" if size_bytes < 1 << 20 else f"{size_bytes / (1 << 20):.1f} MiB"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        value = json_module.loads(path.read_text("utf-8"))
    except RecursionError:
        raise CliError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise CliError(f"{path} is not JSON in UTF-8: {error}") from None
    if not isinstance(value, dict):
        raise CliError(f"{path} is no manifest: a JSON object is needed")
    from clawbox_client.tools import manifest_from_json  # noqa: PLC0415 - brings gRPC

    try:
        manifest_from_json(value)
    except ValueError as error:
        raise CliError(f"{path}: {error}") from None
    return value


def _manifest_name(manifest: dict[str, Any] | None) -> str:
    tool = (manifest or {}).get("tool")
    name = tool.get("name") if isinstance(tool, dict) else None
    return name if isinstance(name, str) else ""


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal's stderr: bytes sent, then that the server compiles."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - only for a bar
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("uploading")

        def report(sent: int, total: int) -> None:
            waiting = sent >= total
            bar.update(task, completed=sent, total=total, description="compiling" if waiting else "uploading")

        yield report
