from __future__ import annotations

import json
import stat

import grpc
import pytest
from clawbox_client.v1 import sandbox_pb2
from grpc_health.v1 import health_pb2

from tests.integration.client.fakes import TOKEN, Refusal, serving


async def test_health(cli, server):
    assert await cli("health") == type(await cli("health"))(0, "SERVING\n", "")
    ended = await cli("health", "clawbox.v1.Sandbox", "--json")
    assert json.loads(ended.out) == {"service": "clawbox.v1.Sandbox", "status": "serving"}

    server.health = health_pb2.HealthCheckResponse.NOT_SERVING
    ended = await cli("health")
    assert (ended.code, ended.out) == (5, "NOT_SERVING\n")
    assert (await cli("health", "nobody")).code == 4


async def test_status(cli, server):
    ended = await cli("status")
    assert ended.code == 0
    assert "version     9.9" in ended.out
    assert "wasm_engine\tok\t2 workers" in ended.out
    assert "[bold]kernel[/bold] \\x1b[31msupport" in ended.out

    answer = json.loads((await cli("status", "--json")).out)
    assert (answer["status"], answer["uptime"], answer["running_executions"]) == ("ok", 61.0, 3)
    assert answer["start_time"] == "2026-01-02T03:04:05+00:00"
    assert answer["enforcements"][0]["in_force"] is False


async def test_tools_list(cli, server):
    assert (await cli("tools", "list")).out == "no tools\n"
    for name in ("b", "a", "c"):
        server.tools[name] = sandbox_pb2.Tool(
            name=name, description="two\nlines\x1b]0;x\x07", size_bytes=2048
        )

    lines = (await cli("tools", "list")).out.splitlines()

    assert lines[0].split("\t")[0] == "NAME"
    assert [line.split("\t")[0] for line in lines[1:]] == ["a", "b", "c"]
    assert lines[1].endswith("2 KiB\ttwo\\nlines\\x1b]0;x\\x07")
    found = json.loads((await cli("tools", "list", "--json", "--prefix", "b")).out)
    assert [tool["name"] for tool in found] == ["b"]
    assert found[0]["description"] == "two\nlines\x1b]0;x\x07"


async def test_tools_get(cli, server):
    tool = sandbox_pb2.Tool(name="t", state=sandbox_pb2.TOOL_STATE_READY)
    tool.manifest.tool.name = "t"
    server.tools["t"] = tool

    ended = await cli("tools", "get", "t")
    assert "state      ready\n" in ended.out
    assert ended.out.endswith('manifest\n{\n  "tool": {\n    "name": "t"\n  }\n}\n')
    assert json.loads((await cli("tools", "get", "t", "--json")).out)["manifest"] == {"tool": {"name": "t"}}

    ended = await cli("tools", "get", "none")
    assert ended.code == 4
    assert ended.err == (
        "clawbox: there is no tool none [TOOL_NOT_FOUND]. `clawbox tools list` shows what there is.\n"
    )


async def test_register(cli, server, home):
    (home / "m.json").write_text('{"tool": {"name": "t", "description": "d"}}')

    assert (await cli("tools", "register", "m.json", "--publish")).out == "t: manifest registered\n"
    assert server.seen[0].request.published
    done = json.loads((await cli("tools", "register", "m.json", "--json")).out)
    assert (done["created"], done["tool"]["name"]) == (True, "t")
    assert not server.seen[1].request.HasField("published")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "m.json is not JSON"),
        ("[]", "a JSON object is needed"),
        ('{"tool": {"nam": "t"}}', "nam"),
        ("\ud800", "is not JSON in UTF-8"),
    ],
)
async def test_a_manifest_that_is_none(cli, server, home, text, said):
    (home / "m.json").write_bytes(text.encode("utf-8", "surrogatepass"))

    ended = await cli("tools", "register", "m.json")

    assert ended.code == 2
    assert said in ended.err
    assert server.seen == []


async def test_upload(cli, server, home):
    (home / "t.wasm").write_bytes(b"\0asm" * 50_000)
    (home / "t.json").write_text('{"tool": {"name": "named", "description": "d"}}')

    ended = await cli("tools", "upload", "t.wasm", "--manifest", "t.json", "--replace", "--no-publish")
    assert ended.code == 0
    assert "named" in ended.out
    start = server.uploaded.start
    assert (start.name, start.replace, start.published, start.HasField("published")) == (
        "named", True, False, True,
    )  # fmt: skip

    server.tools["t"] = sandbox_pb2.Tool(name="t")
    ended = await cli("tools", "upload", "t.wasm", "--json")
    assert (ended.code, ended.out) == (7, "")
    assert "[TOOL_EXISTS]" in ended.err
    assert (await cli("tools", "upload", "none.wasm")).code == 2


async def test_delete_and_reload(cli, server):
    server.tools["t"] = sandbox_pb2.Tool(name="t")
    assert (await cli("tools", "delete", "t")).out == "t: deleted\n"
    assert server.tools == {}
    assert json.loads((await cli("tools", "delete", "t", "--json")).out) == {"deleted": "t"}

    ended = await cli("tools", "reload")
    assert (ended.code, ended.out) == (1, "2 read anew, 0 ready\n")
    assert ended.err == "bad: no _start; the version before still serves\n"
    assert json.loads((await cli("tools", "reload", "--json")).out)["failures"][0]["name"] == "bad"


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID", 3),
        (grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", 6),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "EXECUTION_LIMIT", 6),
        (grpc.StatusCode.NOT_FOUND, "TOOL_NOT_FOUND", 4),
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT", 2),
        (grpc.StatusCode.FAILED_PRECONDITION, "TOOL_NOT_READY", 7),
        (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", 5),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE", 5),
        (grpc.StatusCode.INTERNAL, "INTERNAL", 70),
        (grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD", 7),
    ],
)
async def test_each_kind_of_refusal_has_its_exit_code(cli, server, status, reason, code):
    server.refuse["Execute"] = [Refusal(status, "be\x1bcause\n", reason)]

    ended = await cli("run", "t")

    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith(f"clawbox: be\\x1bcause\\n [{reason}]. ")
    assert ended.err.count("\n") == 1


async def test_violations_and_the_time_to_wait_are_said(cli, server):
    server.refuse["Execute"] = [
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "2 fields are wrong", "INVALID_INPUT")
        .with_violation("/a", "is missing", "required")
        .with_violation("/b", "is no number", "type"),
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", "EXECUTION_LIMIT").with_retry(1.5),
    ]

    assert (await cli("run", "t")).err == (
        "clawbox: 2 fields are wrong (/a: is missing; /b: is no number) [INVALID_INPUT]. "
        "`clawbox tools get TOOL` shows what it accepts.\n"
    )
    assert (await cli("run", "t")).err == "clawbox: busy [EXECUTION_LIMIT]. Try again in 1.5 s.\n"


async def test_the_token_is_looked_for_in_order(cli, server, home, monkeypatch):
    def sent() -> object:
        return server.seen[-1].metadata.get("authorization")

    (home / ".clawbox").mkdir()
    (home / ".clawbox" / "token").write_text("from-home\n")
    (home / "file").write_text("from-file\n")
    monkeypatch.setenv("CLAWBOX_AUTH_TOKEN", "from-old-name")

    assert (await cli("status")).code == 0
    assert sent() == f"Bearer {TOKEN}"
    assert (await cli("status", "--token-file", "file")).code == 3
    assert sent() == "Bearer from-file"
    monkeypatch.delenv("CLAWBOX_TOKEN")
    await cli("status")
    assert sent() == "Bearer from-old-name"
    monkeypatch.setenv("CLAWBOX_AUTH_TOKEN", "")
    await cli("status")
    assert sent() == "Bearer from-home"
    (home / ".clawbox" / "token").unlink()
    ended = await cli("status")
    assert sent() is None
    assert ended.code == 3
    assert "made for this server, with --token-file FILE or in CLAWBOX_TOKEN." in ended.err


async def test_the_settings_say_where_the_server_is(cli, server, home, monkeypatch):
    monkeypatch.delenv("CLAWBOX_ADDRESS")
    monkeypatch.delenv("CLAWBOX_TOKEN")
    port = server.address.rpartition(":")[2]
    folder = home / "elsewhere"
    folder.mkdir()
    (folder / "config.toml").write_text(f'[server]\nhost = "0.0.0.0"\nport = {port}\n')
    (folder / "token").write_text(TOKEN)
    monkeypatch.setenv("CLAWBOX_CONFIG", str(folder / "config.toml"))

    assert (await cli("status")).code == 0

    monkeypatch.setenv("CLAWBOX_PORT", "1")
    assert (await cli("status")).code == 5


async def test_settings_of_the_current_folder_do_not_decide_who_gets_the_token(
    cli, server, home, monkeypatch
):
    monkeypatch.delenv("CLAWBOX_ADDRESS")
    monkeypatch.setenv("CLAWBOX_HOST", "127.0.0.1")
    (home / "config").mkdir()
    (home / "config" / "default.toml").write_text(f"[server]\nport = {server.address.rpartition(':')[2]}\n")

    await cli("status")

    assert server.seen == []


async def test_settings_that_cannot_be_read(cli, home, monkeypatch):
    (home / "c.toml").write_text("[server\n")
    monkeypatch.setenv("CLAWBOX_CONFIG", str(home / "c.toml"))

    ended = await cli("health")

    assert ended.code == 2
    assert "c.toml, which says where the server is, cannot be read" in ended.err
    assert "--address" in ended.err
    async with serving() as fake:
        assert (await cli("health", "--address", fake.address)).code == 0


async def test_a_unix_socket(cli, tmp_path, monkeypatch):
    async with serving(address=f"unix:{tmp_path}/s.sock") as fake:
        assert (await cli("health", "--address", fake.address)).code == 0


async def test_init_is_mounted(cli, home):
    assert (await cli("init")).code == 0
    assert stat.S_IMODE((home / ".clawbox" / "token").stat().st_mode) == 0o600
    assert (await cli("config", "check")).code == 0
    assert (await cli("init")).code == 7
