"""``clawbox tool``: projects of tools, made from a template and built from source. Needs no server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.options import JsonOption
from clawbox.cli.output import escape, print_error, print_fields, show
from clawbox.wasm.build import LANGUAGES, BuildError, Progress, TakenError, build
from clawbox.wasm.build import new as new_project

app = typer.Typer(no_args_is_help=True, help="Make and build tools.")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the tool: letters, digits, _ and -.")],
    lang: Annotated[str, typer.Option(help=f"One of {', '.join(LANGUAGES)}.")] = "python",
    folder: Annotated[Path, typer.Option("--dir", help="Where to make the folder NAME.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write the project of a new tool into DIR/NAME."""
    with _explained(ExitCode.USAGE):
        project = new_project(name, lang, folder)

    def people() -> None:
        print_fields([("folder", str(project.folder)), ("source", project.entry)])
        print_error(escape(f"Build it with: clawbox tool build {folder / name}"))

    show(
        {"name": name, "language": lang, "folder": str(project.folder), "entry": project.entry},
        as_json=as_json,
        people=people,
    )


@app.command("build")
def build_tool(
    project: Annotated[
        str, typer.Argument(help="Folder of the project, or the name of a folder below the current one.")
    ] = ".",
    out: Annotated[
        Path | None, typer.Option(help="Folder for NAME.wasm and NAME.json. Default: PROJECT/build.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build a tool from source. What is up to date stays as it is."""
    folder = Path(project)
    if not folder.is_dir():
        raise CliError(f"there is no folder {project}", hint="`clawbox tool new NAME` makes a project")
    with _explained(), _progress() as progress:
        built = build(folder, out if out is not None else folder / "build", progress)

    def people() -> None:
        state = "up to date" if built.up_to_date else f"built in {built.seconds:.1f} s"
        print_fields(
            [
                ("tool", f"{built.name} ({state})"),
                ("module", f"{built.wasm} ({built.size_bytes:,} bytes)"),
                ("manifest", str(built.manifest)),
            ]
        )

    show(
        {
            "name": built.name,
            "wasm": str(built.wasm),
            "manifest": str(built.manifest),
            "size_bytes": built.size_bytes,
            "seconds": round(built.seconds, 3),
            "up_to_date": built.up_to_date,
        },
        as_json=as_json,
        people=people,
    )


@contextmanager
def _explained(code: ExitCode = ExitCode.FAILED) -> Iterator[None]:
    try:
        yield
    except BuildError as error:
        if error.output:
            print_error(escape(error.output))
        if isinstance(error, TakenError):
            code = ExitCode.CONFLICT
        raise CliError(error.message, hint=error.hint, code=code) from None


@contextmanager
def _progress() -> Iterator[Progress]:
    """Says on stderr what is being done, with the seconds since the start."""
    began = time.monotonic()

    def tell(text: str) -> None:
        print_error(escape(f"[{time.monotonic() - began:5.1f} s] {text} …", keep=""))

    yield tell
