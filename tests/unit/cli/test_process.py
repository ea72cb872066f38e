"""The command line as a process: what must never show a traceback, whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socket
import sys

import pytest
from clawbox_client.v1 import sandbox_pb2

from tests.integration.client.fakes import run_events


def assert_one_line(ended, code):
    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("clawbox: ")


async def test_nobody_listens(spawn):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ended = await spawn("py", "1", "--address", f"127.0.0.1:{taken.getsockname()[1]}")
    assert_one_line(ended, 5)
    assert "Connection refused" in ended.err
    assert "clawbox serve" in ended.err


@pytest.mark.parametrize(
    "args",
    [
        (b"py", b"print('\xff')"),
        (b"run", b"t", b'"\xff"'),
        (b"run", b"\xff"),
        (b"tools", b"get", b"\xff"),
        (b"health", b"\xff"),
    ],
)
async def test_arguments_that_are_not_utf8(spawn, server, args):
    assert_one_line(await spawn(*args), 2)
    assert server.seen == []


async def test_stdin_that_is_not_utf8(spawn, server):
    assert_one_line(await spawn("py", "-", stdin=b"\xff\xfe"), 2)


@pytest.mark.parametrize("content", ["", "two words\n", "\x00", "é", "a" * 9000])
async def test_a_token_file_that_holds_no_token_is_not_shown(spawn, server, home, content):
    (home / "token").write_text(content)
    ended = await spawn("status", "--token-file", "token")
    assert_one_line(ended, 2)
    assert not content.strip() or content.strip() not in ended.err


async def test_a_token_file_that_is_a_folder(spawn, server, home):
    assert_one_line(await spawn("status", "--token-file", str(home)), 2)


async def test_a_certificate_that_is_none(spawn, server, home):
    (home / "ca.pem").write_text("nonsense")
    assert_one_line(await spawn("status", "--tls-ca", "ca.pem"), 2)


async def test_tls_to_a_server_without_it(spawn, server):
    assert_one_line(await spawn("health", "--tls", "--deadline", "30"), 5)


async def test_serve_with_settings_that_are_wrong(spawn, home):
    (home / "c.toml").write_text("[server]\nport = 99999\nprot = 1\n")
    ended = await spawn("serve", "--config", "c.toml")
    assert_one_line(ended, 2)
    assert "server.port" in ended.err
    assert "prot" in ended.err
    assert_one_line(await spawn("serve", "--config", "none.toml"), 2)


async def test_output_that_nobody_reads(server):
    for number in range(2000):
        server.tools[f"t{number}"] = sandbox_pb2.Tool(name=f"t{number}", description="d" * 200)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "clawbox", "tools", "list", "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]
    assert await asyncio.wait_for(process.stderr.read(), 60) == b""
    assert await process.wait() == 141


async def test_a_full_disk(server):
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230, PTH123
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "clawbox", "status", stdout=full, stderr=asyncio.subprocess.PIPE
        )
        _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 70
    assert err.count(b"\n") == 1
    assert b"No space left on device" in err


async def test_ctrl_c_ends_the_run_on_the_server(server):
    server.events = run_events(b"working\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "clawbox", "py", "while True: pass",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 60) == b"working\n"  # live, while it runs
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130
    assert err == b""
    await asyncio.wait_for(server.stream_ended.wait(), 10)


async def on_terminal(*args: str) -> str:
    """What a command shows on a terminal of 100 columns."""
    leader, follower = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "clawbox", *args, stdout=follower, stderr=follower,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
    )  # fmt: skip
    os.close(follower)
    await asyncio.wait_for(process.wait(), 60)
    shown = b""
    try:
        while data := os.read(leader, 65536):
            shown += data
    except OSError:  # EIO: nobody has the other end any more
        pass
    os.close(leader)
    return shown.decode().replace("\r\n", "\n")


async def test_rule_98_a_table_on_a_terminal_shows_markup_and_control_characters_as_text(server):
    shown = await on_terminal("status")

    assert "[bold]kernel[/bold] \\x1b[31msupport" in shown
    assert "\x1b[31m" not in shown


async def test_what_code_prints_cannot_steer_the_terminal(server):
    hostile = "a\x1b]52;c;AAAA\x07b\u202ec\x9bd ü\n".encode()
    server.events = run_events(
        hostile[:20], hostile[20:], output_json='{"stdout":"","stderr":"","result":null,"error":null}'
    )
    server.go_on.set()

    shown = await on_terminal("py", "x")

    assert shown == "a\\x1b]52;c;AAAA\\x07b\\u202ec\\x9bd ü\n"


async def test_what_code_prints_into_a_pipe_is_untouched(server):
    data = bytes(range(256))
    server.events = run_events(data, output_json='{"stdout":"","stderr":"","result":null,"error":null}')
    server.go_on.set()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "clawbox", "py", "x", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert out == data


async def test_an_ascii_terminal_gets_escapes_and_no_exception(spawn, server):
    ended = await spawn("run", "echo", '"é"', PYTHONIOENCODING="ascii")
    assert (ended.code, ended.out) == (0, "\\xe9\n")


async def test_help_reads_neither_grpc_nor_the_server():
    code = (
        "import sys; from clawbox.cli.app import run; status = run(['--help']); "
        "slow = ('grpc', 'wasmtime', 'pydantic', 'clawbox.rpc'); "
        "print([name for name in slow if name in sys.modules], status)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert out.decode().splitlines()[-1] == "[] 0"


async def test_completion_knows_the_commands(spawn):
    ended = await spawn(_CLAWBOX_COMPLETE="complete_bash", COMP_WORDS="clawbox tools re", COMP_CWORD="2")
    assert ended.out.split() == ["register", "reload"]


async def test_version(spawn):
    assert (await spawn("--version")).out == "clawbox 0.1.0\n"


async def test_json_on_a_terminal_is_json(server):
    answer = json.loads(await on_terminal("status", "--json"))
    assert answer["enforcements"][0]["detail"] == "no [bold]kernel[/bold] \x1b[31msupport"
