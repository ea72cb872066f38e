"""GET with what is on the machine: the answer comes, with a credential that the program never sees."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.egress_world import answers
from tests.programs.world import CLIENTS, REFUSED, SECRET, World, need, node

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.programs.world import Command

COMMANDS: dict[str, Callable[[], Command]] = {
    "curl": lambda: [need("curl"), "--silent", "--show-error", "--fail"],
    "wget": lambda: [need("wget"), "--no-verbose", "--tries=1", "--output-document=-"],
    "urllib": lambda: [sys.executable, CLIENTS / "fetch_urllib.py"],
    "requests": lambda: [sys.executable, CLIENTS / "fetch_requests.py"],
    "httpx": lambda: [sys.executable, CLIENTS / "fetch_httpx.py"],
    "aiohttp": lambda: [sys.executable, CLIENTS / "fetch_aiohttp.py"],
    "node": lambda: [node()[0], CLIENTS / "fetch.mjs"],
    "java": lambda: [need("java"), CLIENTS / "Fetch.java", "--authenticate"],
}


SOCKET_COMMANDS: dict[str, Callable[[World], Command]] = {
    "curl": lambda world: [need("curl"), "--silent", "--show-error", "--fail", *world.curl_at_socket],
    "httpx": lambda _: [sys.executable, CLIENTS / "socket_httpx.py"],
    "node": lambda _: [node()[0], CLIENTS / "socket_node.mjs"],
    "call": lambda _: [sys.executable, CLIENTS / "socket_call.py"],
}


def fetch(world: World, name: str, command: Command, prefix: str = "") -> None:
    path, mark = f"/fetch/{name}", world.mark()
    world.route(path, answers.echo)

    done = world.run(*command, prefix + world.url(path))

    assert '"method": "GET"' in done.out
    (seen,) = world.seen(path)
    assert seen.header("authorization") == f"Bearer {SECRET}"
    assert seen.header("proxy-authorization") is None
    refused = world.run(*command, prefix + world.url(path, REFUSED), fails=True)
    assert "GET" not in refused.out
    assert len(world.seen(path)) == 1
    first, *others = world.rows(mark)
    assert (first["decision"], first["host"], first["path"]) == ("allowed", "api.example.test", path)
    assert first["credential"] == "api"
    assert {(row["decision"], row["reason"], row["host"]) for row in others} == {
        ("denied", "host_not_allowed", REFUSED)
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_program_gets_its_answer_and_no_other_host(world, name):
    fetch(world, name, COMMANDS[name]())


@pytest.mark.parametrize("name", SOCKET_COMMANDS)
def test_a_program_at_the_unix_socket_gets_its_answer_and_no_other_host(world, name):
    prefix = "http://localhost/" if name == "curl" else ""
    fetch(world, f"socket/{name}", SOCKET_COMMANDS[name](world), prefix)


def test_a_go_program_gets_its_answer_and_no_other_host(world, go_program):
    fetch(world, "go", [go_program()])
