"""Tokens come and go while the server runs; each principal sees and does what it may, and no more."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from clawbox_client.v1 import sandbox_pb2 as pb
from clawbox_client.v1 import system_pb2

from tests.caller import UNLIMITED, Caller, Refusal, refused
from tests.faults.conftest import TOOLS
from tests.footprint import eventually, held
from tests.live import CLAWBOX

UNKNOWN = ("UNAUTHENTICATED", "TOKEN_INVALID")
TOO_MANY = ("RESOURCE_EXHAUSTED", "RATE_LIMIT")
"""What a token that is not known is answered when too many were of late: these tests share an address."""


def _token(server, *arguments):
    ended = subprocess.run(
        [CLAWBOX, "token", *arguments, "--config", server.home / "config.toml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout.strip()


@pytest.fixture
def people(server):
    """Makes principals, who may call at once; their tokens are revoked in the end."""
    with contextlib.ExitStack() as stack:
        made = []

        def add(name, *scopes, options=()):
            arguments = [part for scope in scopes for part in ("--scope", scope)]
            token = _token(server, "add", name, *arguments, *options)
            made.append(name)
            caller = stack.enter_context(Caller(server.address, token))
            eventually(lambda: refused(lambda: caller.execute("?")).kind not in {UNKNOWN, TOO_MANY})
            return caller

        yield add
        for name in made:
            _token(server, "revoke", name)


def test_a_token_is_good_from_when_it_is_added_until_it_is_revoked(server, caller):
    token = _token(server, "add", "ann", "--scope", "sandbox:execute")
    with Caller(server.address, token) as ann:
        eventually(lambda: _works(ann))
        with held(server):  # or it could have ended before anybody looks
            running = ann.begin("second")
            eventually(lambda: caller.status().running_executions == 1)
        _token(server, "revoke", "ann")
        eventually(lambda: not _works(ann))
        assert _refused_token(lambda: ann.execute("echo")).kind == UNKNOWN
        assert running.result().output_json == '"done"'  # it began when it was good
    assert token not in server.log.read_text()
    assert token not in (server.home / "config.toml").read_text()


def _refused_token(call):
    """How a call is refused by whoever has not met too many wrong tokens just now."""
    found: list[Refusal] = []

    def is_heard():
        found.append(refused(call))
        return found[-1].kind != TOO_MANY

    eventually(is_heard, explain=lambda: found[-1])
    return found[-1]


def _works(caller):
    try:
        return caller.execute("echo", "1").outcome == pb.OUTCOME_OK
    except Exception:  # noqa: BLE001 - refused, for whatever reason
        return False


def test_refused_tokens(server):
    with Caller(server.address, None) as nobody:
        assert refused(lambda: nobody.execute("echo")).kind == ("UNAUTHENTICATED", "TOKEN_MISSING")
        assert refused(nobody.status).kind == ("UNAUTHENTICATED", "TOKEN_MISSING")
    digest = hashlib.sha256(server.token.encode()).hexdigest()
    for wrong in ("x", server.token[:-1], server.token + "0", digest):
        with Caller(server.address, wrong) as stranger:
            assert _refused_token(partial(stranger.execute, "echo")).kind == UNKNOWN


@pytest.mark.parametrize(
    ("scope", "may"),
    [
        ("sandbox:execute", {"Execute", "ExecuteStream", "ListTools", "GetTool"}),
        ("sandbox:read", {"ListTools", "GetTool"}),
        ("sandbox:write", {"UploadTool", "DeleteTool", "RegisterTool", "ReloadTools"}),
        ("system:read", {"GetStatus"}),
        ("audit:read", {"WatchAudit"}),
        ("containers:write", set()),
    ],
)
def test_a_scope_opens_its_methods_and_no_other(people, scope, may):
    one = people("scoped", scope)
    calls = {
        "Execute": lambda: one.execute("echo"),
        "ExecuteStream": lambda: list(one.stream("echo")),
        "ListTools": one.tools,
        "GetTool": lambda: one.tool("echo"),
        "UploadTool": lambda: one.upload("?", b"?"),
        "DeleteTool": lambda: one.delete("nope"),
        "RegisterTool": lambda: one.sandbox.RegisterTool(pb.RegisterToolRequest(), metadata=one.metadata),
        "ReloadTools": lambda: one.sandbox.ReloadTools(pb.ReloadToolsRequest(), metadata=one.metadata),
        "GetStatus": one.status,
        # It goes on until its deadline. A refusal must have come by then: a tenth was too little at times.
        "WatchAudit": lambda: list(
            one.system.WatchAudit(system_pb2.WatchAuditRequest(), metadata=one.metadata, timeout=3)
        ),
    }
    denied = set()
    for name, call in calls.items():
        try:
            call()
        except Exception:  # noqa: BLE001 - looked at below
            found = refused(call)
            if found.reason == "SCOPE_MISSING":
                assert found.code == "PERMISSION_DENIED"
                denied.add(name)
    assert denied == set(calls) - may


def test_an_uploaded_tool_is_its_owner_s(people, caller):
    ann = people("ann", "sandbox:execute", "sandbox:write")
    bob = people("bob", "sandbox:execute", "sandbox:write")
    not_found = ("NOT_FOUND", "TOOL_NOT_FOUND")
    assert ann.upload("private", TOOLS["echo"]).owner == "ann"
    try:
        assert ann.execute("private", "1").output_json == "1"
        assert "private" in ann.tools()
        assert "private" not in bob.tools()
        assert refused(lambda: bob.execute("private")).kind == not_found
        assert refused(lambda: bob.tool("private")).kind == not_found
        assert refused(lambda: bob.delete("private")).kind == not_found
        # That the name is taken is all that others learn.
        taken = ("ALREADY_EXISTS", "TOOL_EXISTS")
        assert refused(lambda: bob.upload("private", TOOLS["echo"], replace=True)).kind == taken
        # What the operator put there is everybody's to run, and nobody's to change.
        assert bob.execute("echo", "1").output_json == "1"
        for change in (lambda: bob.delete("echo"), lambda: bob.upload("echo", TOOLS["spin"], replace=True)):
            assert refused(change).kind == ("PERMISSION_DENIED", "SCOPE_MISSING")
        assert refused(lambda: ann.upload("public", TOOLS["echo"], published=True)).reason == "SCOPE_MISSING"
        assert caller.tool("private").owner == "ann"
    finally:
        caller.delete("private")


def test_principals_that_alternate_find_nothing_of_each_other(people):
    ann, bob = people("ann", "sandbox:execute"), people("bob", "sandbox:execute")
    for _ in range(6):
        for one in (ann, bob):
            assert one.execute("counter").output_json == "1"
    with ThreadPoolExecutor(2) as both:

        def many(one):
            return [one.execute("echo", f'"{id(one)}-{n}"').output_json for n in range(25)]

        for one, said in zip((ann, bob), both.map(many, (ann, bob)), strict=True):
            assert said == [f'"{id(one)}-{n}"' for n in range(25)]


def test_a_principal_sees_its_own_audit_rows(people, caller):
    ann = people("ann", "sandbox:execute", "audit:read")
    caller.execute("echo", request_id="not-hers")
    ann.execute("echo", request_id="hers")
    with ann.audit(after=0, kinds=["execute"]) as rows:
        seen = [next(rows)]
        while seen[-1].request_id != "hers":
            seen.append(next(rows))
    assert {row.principal for row in seen} == {"ann"}


def test_a_principal_s_own_limit(people, caller):
    ann = people("ann", "sandbox:execute", options=("--max-sandboxes", "1"))
    with contextlib.ExitStack() as stack:
        stack.callback(ann.begin("spin", capabilities=UNLIMITED).cancel)
        eventually(lambda: caller.status().running_executions == 1)
        found = refused(lambda: ann.execute("echo"))
        assert found.kind == ("RESOURCE_EXHAUSTED", "EXECUTION_LIMIT")
        assert found.metadata["limit"] == "1"
        assert found.retry_after is not None
        assert caller.execute("echo", "1").output_json == "1"
    eventually(lambda: caller.status().running_executions == 0)


def test_a_principal_s_network_bounds_what_it_uploads(people):
    ann = people("ann", "sandbox:execute", "sandbox:write")
    manifest = {"tool": {"name": "reaching"}, "network": {"allowlist": [{"host": "api.example"}]}}
    found = refused(lambda: ann.upload("reaching", TOOLS["echo"], manifest))
    assert found.kind == ("PERMISSION_DENIED", "POLICY_DENIED")
    assert "api.example" in found.message


def test_broken_settings_leave_everything_as_it_is_until_they_are_mended(server, caller, people):
    ann = people("ann", "sandbox:execute")
    config = server.home / "config.toml"
    good = config.read_text()
    try:
        config.write_text(good + "\n[server\nport =")
        eventually(lambda: _component(caller, "tokens").state == system_pb2.COMPONENT_STATE_DEGRADED)
        assert caller.status().status == "degraded"
        assert ann.execute("echo", "1").output_json == "1"
        config.unlink()
        assert ann.execute("echo", "1").output_json == "1"
    finally:
        config.write_text(good)
    eventually(lambda: caller.status().status == "ok")
    assert ann.execute("echo", "1").output_json == "1"


def _component(caller, name):
    (found,) = (part for part in caller.status().components if part.name == name)
    return found


def test_the_administrator_s_token_can_be_changed(serve):
    with serve() as server, Caller(server.address, server.token) as before:
        assert _works(before)
        token = "another-token-of-forty-characters-0123456"
        (server.home / "token").write_text(token + "\n")
        with Caller(server.address, token) as after:
            eventually(lambda: _works(after))
        assert _refused_token(lambda: before.execute("echo")).kind == UNKNOWN
