"""A run with a network: who gets a way out, with what grant, and what is shown of what it gave."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from clawbox.auth import Principal
from clawbox.errors import ClawboxError, Reason
from clawbox.network_rules import NetworkRule
from clawbox.policy import Requested
from clawbox.wasm.executor import Started
from clawbox.wasm.known_secrets import KnownSecrets
from clawbox.wasm.model import (
    InvalidInputError,
    Level,
    LogEntry,
    Outcome,
    OutputChunk,
    OutputStream,
    RunResult,
)
from clawbox.wasm.output import Action, Finding, OutputForm
from tests.tool_door import StandInCall, StandInDoor

from .test_executor import ANN, DIGEST, SECRET, Bench, audit  # noqa: F401 - a fixture

KNOWN = "correct-horse-battery-staple"
NUMBER = "4711081547110815"
SPELLED = "".join(f"\\u{ord(character):04x}" for character in KNOWN)


@pytest.fixture
def door():
    return StandInDoor(known=[("k", KNOWN), ("n", NUMBER)])


@pytest.fixture
def bench(audit, door):  # noqa: F811
    return Bench(audit, door=door)


async def shown(bench, **result):
    bench.pool.result = RunResult(**{"outcome": Outcome.OK, "output": b"null", **result})
    return (await bench.execute()).scanned


async def test_the_door_gets_owner_narrowed_grant_and_request(bench, door):
    asked = Requested(network=(NetworkRule("a.example"),), credentials=("k",))
    await bench.execute(requested=asked)

    [(owner, grant, call)] = door.asked
    assert (owner, call) == ("ann", "r1")
    assert [rule.host for rule in grant.network.rules] == ["a.example"]
    assert grant.credentials == {"k"}
    assert bench.pool.doors == door.calls
    assert door.calls[0].left


async def test_without_a_network_there_is_no_way_out(bench, door):
    bench.pool.result = RunResult(Outcome.OK, output=f'"{KNOWN}"'.encode())
    execution = await bench.execute(requested=Requested(network=(), credentials=("k",)))

    assert (door.asked, bench.pool.doors) == ([], [None])
    assert execution.scanned.result.output == f'"{KNOWN}"'.encode()


async def test_a_server_that_has_no_way_out_says_so_to_a_run_that_was_granted_one(audit):  # noqa: F811
    bench = Bench(audit)
    await bench.execute()
    await bench.execute(requested=Requested(network=()))

    assert [run.network for run in bench.pool.runs] == [True, False]
    assert bench.pool.doors == [None, None]


async def test_without_a_way_out_to_be_had_nothing_runs(bench, door, monkeypatch):
    def unavailable(*_):
        raise ClawboxError(Reason.SANDBOX_UNAVAILABLE, "no sidecar")

    monkeypatch.setattr(door, "call", unavailable)
    seen: list[object] = []
    with pytest.raises(ClawboxError) as caught:
        await bench.execute(on_event=seen.append)

    assert caught.value.reason is Reason.SANDBOX_UNAVAILABLE
    assert (bench.pool.runs, seen) == ([], [])
    [row] = await bench.rows()
    assert row.fields["reason"] == "SANDBOX_UNAVAILABLE"


@pytest.mark.parametrize("streamed", [True, False])
async def test_cancelling_takes_the_way_out_away(bench, door, streamed):
    bench.pool.hold = asyncio.Event()
    running = asyncio.create_task(bench.execute(on_event=(lambda _: None) if streamed else None))
    await bench.pool.began.wait()
    assert not door.calls[0].left
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert door.calls[0].left
    assert bench.pool.cancelled


async def test_nothing_is_cleaned_where_the_sidecar_knows_no_secret(bench, door):
    door.known = []
    scanned = await shown(bench, output=f'"{KNOWN}"'.encode())

    assert scanned.result.output == f'"{KNOWN}"'.encode()
    assert door.cleanings == 0


async def test_known_secrets_go_from_everything_and_the_report_says_where(bench):
    scanned = await shown(
        bench,
        output=json.dumps({"a": [f"x {KNOWN}", SECRET], "b": "clean"}).encode(),
        stdout=f"{KNOWN} {KNOWN}".encode(),
        stderr=KNOWN.encode(),
        message=f"it said {KNOWN}",
        logs=(LogEntry(Level.INFO, "clean", 1), LogEntry(Level.WARN, KNOWN, 2)),
    )

    result = scanned.result
    assert json.loads(result.output) == {"a": ["x [REDACTED]", "[REDACTED]"], "b": "clean"}
    assert (result.stdout, result.stderr) == (b"[REDACTED] [REDACTED]", b"[REDACTED]")
    assert result.message == "it said [REDACTED]"
    assert result.logs == (LogEntry(Level.INFO, "clean", 1), LogEntry(Level.WARN, "[REDACTED]", 2))
    assert [(found.pattern, found.location, found.count) for found in scanned.report.findings] == [
        ("known_secret", "/a/0", 1),
        ("known_secret", "message", 1),
        ("known_secret", "stdout", 2),
        ("known_secret", "stderr", 1),
        ("known_secret", "logs/1", 1),
        ("github_personal_token", "/a/1", 1),
    ]
    assert KNOWN not in repr(scanned)
    [row] = await bench.rows()
    assert row.fields["findings"] == {"known_secret": 6, "github_personal_token": 1}


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (f'["{SPELLED}", 1.50]', '["[REDACTED]", 1.50]'),
        (f'{{"{KNOWN}": 1, "{SPELLED}": 2}}', '{"[REDACTED]": 1, "[REDACTED] 2": 2}'),
        (rf'"\\\\\\{SPELLED}"', r'"\\\\\\[REDACTED]"'),
        (f'"{KNOWN.encode().hex()}"', '"[REDACTED]"'),
        (f' [ "a" ,"{KNOWN}",  123456789012345678901234567890 ] ', None),
    ],
)
async def test_json_stays_json_whatever_is_replaced(bench, output, expected):
    scanned = await shown(bench, output=output.encode())

    assert scanned.form is OutputForm.JSON
    assert scanned.result.output == (expected or output.replace(KNOWN, "[REDACTED]")).encode()
    assert scanned.report.issues_found >= 1


async def test_where_a_secret_stood_is_told_without_the_secret(bench):
    scanned = await shown(bench, output=f'{{"{KNOWN}": "{KNOWN}"}}'.encode())

    assert scanned.result.output == b'{"[REDACTED]": "[REDACTED]"}'
    assert {found.location for found in scanned.report.findings} == {"/[REDACTED]"}


@pytest.mark.parametrize("output", [NUMBER, f'{{"a": {NUMBER}}}'])
async def test_a_number_that_is_a_secret_is_replaced_and_the_output_is_text(bench, output):
    scanned = await shown(bench, output=output.encode())

    assert scanned.result.output == output.replace(NUMBER, "[REDACTED]").encode()
    assert scanned.form is OutputForm.TEXT
    assert scanned.report.findings == (Finding("known_secret", Action.REDACTED, "", 1),)


async def test_output_that_is_no_text_is_cleaned_too(bench):
    scanned = await shown(bench, output=b"\xff" + KNOWN.encode())

    assert (scanned.result.output, scanned.form) == (b"\xff[REDACTED]", OutputForm.BINARY)


async def test_clean_output_is_untouched_and_asked_about_once(bench, door):
    result = RunResult(Outcome.OK, output=b' {"a": 1.0, "b": "\\ud800"} ', stderr=b"x", stdout=b"\xff")
    bench.pool.result = result
    scanned = (await bench.execute()).scanned

    assert scanned.result == result
    assert scanned.report.findings == ()
    assert door.cleanings == 1


@pytest.mark.parametrize("streamed", [True, False])
async def test_what_cannot_be_cleaned_is_not_shown(bench, door, streamed):
    door.broken = True
    bench.pool.result = RunResult(Outcome.OK, output=b'"nothing secret"')
    seen: list[object] = []
    with pytest.raises(ClawboxError) as caught:
        await bench.execute(on_event=seen.append if streamed else None)

    assert caught.value.reason is Reason.REDACTION_UNAVAILABLE
    assert seen == ([Started(DIGEST)] if streamed else [])
    [row] = await bench.rows()
    assert row.fields["reason"] == "REDACTION_UNAVAILABLE"
    assert door.calls[0].left


async def test_a_run_whose_events_cannot_be_cleaned_is_killed(bench, door):
    door.broken = True
    bench.pool.hold = asyncio.Event()
    bench.pool.events = (OutputChunk(OutputStream.STDOUT, b"line\n", 0),)
    seen: list[object] = []
    with pytest.raises(ClawboxError) as caught:
        await bench.execute(on_event=seen.append)

    assert caught.value.reason is Reason.REDACTION_UNAVAILABLE
    assert bench.pool.cancelled
    assert seen == [Started(DIGEST)]


async def test_output_that_comes_back_in_another_shape_is_not_shown(bench, door, monkeypatch):
    async def swallow(*_, **__):
        return b"[REDACTED]"

    monkeypatch.setattr(StandInCall, "clean", swallow)
    with pytest.raises(ClawboxError) as caught:
        await shown(bench, output=b'"a"', stderr=b"b")

    assert caught.value.reason is Reason.REDACTION_UNAVAILABLE


async def test_events_come_without_known_secrets_and_in_order(bench):
    half = len(KNOWN) // 2
    bench.pool.events = (
        OutputChunk(OutputStream.STDOUT, b"one\n" + KNOWN[:half].encode(), 0),
        LogEntry(Level.INFO, f"log {KNOWN}", 3),
        OutputChunk(OutputStream.STDERR, SECRET.encode() + b"\n", 0),
        OutputChunk(OutputStream.STDOUT, KNOWN[half:].encode() + b" two\nlast", 14),
    )
    seen: list[object] = []
    await bench.execute(on_event=seen.append)

    assert seen == [
        Started(DIGEST),
        OutputChunk(OutputStream.STDOUT, b"one\n", 0),
        LogEntry(Level.INFO, "log [REDACTED]", 3),
        OutputChunk(OutputStream.STDERR, b"[REDACTED]\n", 0),
        OutputChunk(OutputStream.STDOUT, b"[REDACTED] two\n", 4),
        OutputChunk(OutputStream.STDOUT, b"last", 19),
    ]


async def test_input_that_is_refused_is_refused_with_a_way_out_too(bench, door):
    bench.pool.error = InvalidInputError(())
    with pytest.raises(ClawboxError) as caught:
        await bench.execute(on_event=lambda _: None)

    assert caught.value.reason is Reason.INVALID_INPUT
    assert door.calls[0].left


async def test_two_principals_are_told_apart_by_the_door(bench, door):
    await bench.execute()
    await bench.execute(principal=Principal("bob", ANN.scopes))

    (first, ann_grant, _), (second, bob_grant, _) = door.asked
    assert (first, second) == ("ann", "bob")
    assert ann_grant == bob_grant
    assert door.calls[0].token != door.calls[1].token


async def test_many_strings_are_cleaned_in_a_few_questions(door):
    call = StandInCall(door, None)  # type: ignore[arg-type]
    strings = [f"{number}" for number in range(5000)]
    result = RunResult(Outcome.OK, output=json.dumps([*strings, KNOWN]).encode())
    cleaned, report = await KnownSecrets(call).clean(result)

    assert cleaned == replace(result, output=json.dumps([*strings, "[REDACTED]"]).encode())
    assert report.issues_found == 1
    assert door.cleanings == 3
