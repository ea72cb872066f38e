"""``clawbox run``, ``py`` and ``js``: one run in a fresh sandbox, its output on this terminal as it comes."""

import json as json_module
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clawbox.cli.arguments import STDIN, parse_json, read_code, read_text
from clawbox.cli.bundles import bundled
from clawbox.cli.connection import Server, server_options
from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.options import JsonOption
from clawbox.cli.output import (
    ByteRelay,
    escape,
    json_text,
    print_error,
    print_json,
    print_json_line,
    print_text,
)

if TYPE_CHECKING:
    from clawbox_client import CodeResult, ExecutionResult, LogEntry, NetworkRule, RunOptions, SyncClient

_PANEL = "Limits of the run"
CodeArgument = Annotated[
    str,
    typer.Argument(help="The code, the path of a file, or - for stdin.", metavar="CODE", show_default=False),
]
InputOption = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="JSON that the code finds as `input`: the text, @FILE, or - for stdin.",
        metavar="JSON",
    ),
]


def mount(app: typer.Typer) -> None:
    """Adds the commands."""
    for name, function in (("run", run_tool), ("py", run_python), ("js", run_javascript)):
        app.command(name=name)(bundled(function, options=run_options, server=server_options))


def run_tool(
    server: Server,
    options: "RunOptions",
    *,
    tool: Annotated[
        str, typer.Argument(help="Its name; see `clawbox tools list`.", metavar="TOOL", show_default=False)
    ],
    params: Annotated[
        str, typer.Argument(help="Parameters as JSON: the text, @FILE, or - for stdin.", metavar="JSON")
    ] = "null",
    stream: Annotated[bool, typer.Option("--stream", help="Show what it writes as it writes it.")] = False,
    json: JsonOption = False,
) -> None:
    """Run a tool once. Its output goes to stdout; its stderr and what it logs to stderr.

    With --json the whole result; with --stream --json one JSON object for each event.
    """
    text = read_text(params, "params")
    parse_json(text, "params")
    with server.connect() as client:
        if stream:
            result = _stream_tool(client, tool, text, options, json=json)
        else:
            result = client.execute(tool, params_json=text, **options)
            if json:
                print_json(_result_object(result))
            else:
                _print_result(result)
    _exit_for(result, quiet=json)


def run_python(
    server: Server,
    options: "RunOptions",
    *,
    code: CodeArgument,
    input_: InputOption = None,
    json: JsonOption = False,
) -> None:
    """Run Python code in a fresh sandbox. What it prints shows at once, then its result, if it has one."""
    _run_code(server, "python", (".py",), code, input_, options, json=json)


def run_javascript(
    server: Server,
    options: "RunOptions",
    *,
    code: CodeArgument,
    input_: InputOption = None,
    json: JsonOption = False,
) -> None:
    """Run JavaScript in a fresh sandbox. What it prints shows at once, then its result, if it has one."""
    _run_code(server, "javascript", (".js", ".mjs"), code, input_, options, json=json)


def run_options(
    credentials: Annotated[
        str, typer.Option(help="Credentials that the run may use.", metavar="NAME,…", rich_help_panel=_PANEL)
    ] = "",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="A host that the run may reach, within what the tool's manifest allows; repeat.",
            metavar="HOST[:PORT]",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    timeout: Annotated[
        int | None,
        typer.Option(help="Time limit in milliseconds.", metavar="MS", min=1, rich_help_panel=_PANEL),
    ] = None,
    memory: Annotated[
        int | None, typer.Option(help="Memory limit in MiB.", metavar="MIB", min=1, rich_help_panel=_PANEL)
    ] = None,
    fuel: Annotated[
        int | None, typer.Option(help="Limit of instructions.", metavar="N", min=1, rich_help_panel=_PANEL)
    ] = None,
) -> "RunOptions":
    """The options that every run takes."""
    return {
        "credentials": [name.strip() for name in credentials.split(",") if name.strip()],
        "network": [_network_rule(host) for host in allow] if allow else None,
        "timeout_ms": timeout,
        "memory_mb": memory,
        "fuel": fuel,
    }


def _network_rule(host: str) -> "NetworkRule":
    from clawbox_client.tools import network_rule  # noqa: PLC0415 - brings gRPC

    try:
        return network_rule(host)
    except ValueError as error:
        raise CliError(f"--allow {error}") from None


def _run_code(
    server: Server,
    tool: str,
    suffixes: tuple[str, ...],
    code: str,
    input_: str | None,
    options: "RunOptions",
    *,
    json: bool,
) -> None:
    if code == STDIN and input_ == STDIN:
        raise CliError("the code and --input cannot both be read from stdin")
    params: dict[str, Any] = {"code": read_code(code, suffixes)}
    if input_ is not None:
        params["input"] = parse_json(read_text(input_, "--input"), "--input")
    with server.connect() as client:
        if json:
            from clawbox_client.results import code_result  # noqa: PLC0415 - loaded by connect

            result = code_result(client.execute(tool, params, **options))
            print_json(_code_object(result))
        else:
            result = _stream_code(client, tool, params, options)
    if result.error is not None and not json:
        print_error(_for_stderr(result.error.traceback.rstrip("\n") or result.error.type))
        raise typer.Exit(ExitCode.FAILED)
    _exit_for(result, quiet=json)


def _stream_code(
    client: "SyncClient", tool: str, params: dict[str, Any], options: "RunOptions"
) -> "CodeResult":
    from clawbox_client.results import code_result  # noqa: PLC0415 - loaded by connect

    out, err = ByteRelay(sys.stdout), ByteRelay(sys.stderr)
    result = code_result(_relay(client, tool, json_module.dumps(params), options, out, err))
    if not out.wrote and result.stdout:
        out.feed(result.stdout.encode(), final=True)
    if not err.wrote and result.stderr:
        err.feed(result.stderr.encode(), final=True)
    err.end_line()
    if result.result is not None:
        out.end_line()
        print_text(result.result if isinstance(result.result, str) else json_text(result.result))
    if result.note:
        print_error(_for_stderr(f"clawbox: {result.note}"))
    return result


def _relay(
    client: "SyncClient", tool: str, params_json: str, options: "RunOptions", out: ByteRelay, err: ByteRelay
) -> "ExecutionResult":
    from clawbox_client import ExecutionResult, LogEntry, Stderr, Stdout  # noqa: PLC0415 - loaded by connect

    with client.execute_stream(tool, params_json=params_json, **options) as events:
        for event in events:
            if isinstance(event, Stdout):
                out.feed(event.data)
            elif isinstance(event, Stderr):
                err.feed(event.data)
            elif isinstance(event, LogEntry):
                _print_log(event)
            elif isinstance(event, ExecutionResult):
                out.feed(b"", final=True)
                err.feed(b"", final=True)
                return event
    raise _cut_off()


def _stream_tool(
    client: "SyncClient", tool: str, params_json: str, options: "RunOptions", *, json: bool
) -> "ExecutionResult":
    from clawbox_client import ExecutionResult  # noqa: PLC0415 - loaded by connect

    if not json:
        out, err = ByteRelay(sys.stdout, keep=True), ByteRelay(sys.stderr)
        result = _relay(client, tool, params_json, options, out, err)
        # A command's output is what it wrote to stdout, and that was shown already.
        if not _same(out.kept, result.output_json):
            out.end_line()
            _print_output(result)
        return result
    with client.execute_stream(tool, params_json=params_json, **options) as events:
        for event in events:
            if isinstance(event, ExecutionResult):
                print_json_line({"event": "result", **_result_object(event)})
                return event
            print_json_line({"event": _EVENT_NAMES[type(event).__name__], **_event_fields(event)})
    raise _cut_off()


_EVENT_NAMES = {"Started": "started", "Stdout": "stdout", "Stderr": "stderr", "LogEntry": "log"}


def _event_fields(event: object) -> dict[str, object]:
    from clawbox.cli.output import jsonable  # noqa: PLC0415

    fields = jsonable(event)
    return fields if isinstance(fields, dict) else {}


def _cut_off() -> CliError:
    return CliError(
        "the server ended the stream without a result", hint="Try again", code=ExitCode.UNAVAILABLE
    )


def _same(written: bytes, output_json: str | None) -> bool:
    if not written or output_json is None:
        return False
    text = written.decode("utf-8", "replace").strip()
    try:
        output = json_module.loads(output_json)
    except (ValueError, RecursionError):
        return True  # too deep or too long to compare: the same bytes, shown once
    if isinstance(output, str) and output.strip() == text:
        return True
    try:
        return bool(json_module.loads(text) == output)
    except (ValueError, RecursionError):
        return False


def _print_result(result: "ExecutionResult") -> None:
    relay = ByteRelay(sys.stderr)
    for part in (result.stdout_bytes, result.stderr_bytes):
        relay.feed(part, final=True)
        relay.end_line()
    for entry in result.logs:
        _print_log(entry)
    _print_output(result)


def _print_output(result: "ExecutionResult") -> None:
    if result.output_bytes is not None:
        ByteRelay(sys.stdout).feed(result.output_bytes, final=True)
    elif result.output_json is not None:
        value = _loads(result.output_json)
        if isinstance(value, str):
            print_text(value)
        elif sys.stdout.isatty():
            print_json(value)
        else:
            print_text(result.output_json)


def _loads(text: str) -> Any:
    """The value, or where Python cannot hold it the text."""
    try:
        return json_module.loads(text)
    except (ValueError, RecursionError):
        return text


def _print_log(entry: "LogEntry") -> None:
    print_error(_for_stderr(f"[{entry.level}] {entry.message}"))


def _for_stderr(text: str) -> str:
    return escape(text) if sys.stderr.isatty() else text


def _result_object(result: "ExecutionResult") -> dict[str, object]:
    return {
        "request_id": result.request_id,
        "outcome": result.outcome,
        "message": result.message,
        "output": _loads(result.output_json) if result.output_json is not None else result.output_bytes,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "logs": result.logs,
        "metadata": result.metadata,
    }


def _code_object(result: "CodeResult") -> dict[str, object]:
    return {
        "request_id": result.execution.request_id,
        "outcome": result.outcome,
        "message": result.message,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "result": result.result,
        "error": result.error,
        "note": result.note,
        "logs": result.execution.logs,
        "metadata": result.execution.metadata,
    }


def _exit_for(result: "ExecutionResult | CodeResult", *, quiet: bool) -> None:
    if result.ok:
        return
    if not quiet:
        why = f"{result.outcome.name}: {result.message}" if result.message else result.outcome.name
        print_error(escape(f"clawbox: {why}", keep=""))
    raise typer.Exit(ExitCode.FAILED)
