"""What a guest, or a worker that it took over, gets of the way out: one connection for one call (65, 66)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from clawbox.auth import Principal
from clawbox.wasm.known_secrets import KnownSecrets
from clawbox.wasm.model import Outcome, RunResult
from tests.integration.tool_egress.conftest import LIMITS, Bench, bench, forge, request  # noqa: F401
from tests.tool_door import StandInCall, StandInDoor
from tests.unit.executor.test_executor import ANN
from tests.unit.executor.test_executor import Bench as Executing
from tests.unit.executor.test_executor import audit as audit_log  # noqa: F401
from tests.unit.wasm import wat

if TYPE_CHECKING:
    from clawbox.audit import AuditLog

KNOWN = "correct-horse-battery-staple"


async def test_rule_65_the_connection_of_a_call_dies_with_it(bench: Bench) -> None:  # noqa: F811
    async with bench.way_out() as call:
        await bench.run(request(), call)
        assert call.connection.fileno() == -1  # control keeps none beyond the run
        async with asyncio.timeout(10):
            await call.closed.wait()  # though the worker lives, and the context was not left


@pytest.mark.parametrize(
    ("text", "outcome"),
    [(wat.TRAP, Outcome.TOOL_ERROR), (wat.EXIT_3, Outcome.TOOL_ERROR), (wat.SPIN, Outcome.TIMEOUT)],
)
async def test_rule_65_however_the_call_ends(bench: Bench, text: str, outcome: Outcome) -> None:  # noqa: F811
    # Short only for what takes all of it: the others may have to wait for the processor.
    timeout_ms = 200 if outcome is Outcome.TIMEOUT else 60_000
    limits = msgspec.structs.replace(LIMITS, timeout_ms=timeout_ms, fuel=1 << 60)
    async with bench.way_out() as call:
        result = await bench.run(b"{}", call, text=text, limits=limits)
        async with asyncio.timeout(10):
            await call.closed.wait()

    assert result.outcome is outcome


async def test_rule_65_each_call_has_its_own_connection_and_token(bench: Bench) -> None:  # noqa: F811
    for _ in range(3):
        await bench.send()

    assert bench.pool.stats().idle == 1  # the worker that served them all
    assert len({call.token for call in bench.door.calls}) == 3
    for call in bench.door.calls:
        assert [asked.token for asked in call.requests] == [call.token]


async def test_rule_65_a_connection_that_a_call_never_used_is_not_the_next_ones(bench: Bench) -> None:  # noqa: F811
    async with bench.way_out() as unused, bench.way_out() as used:
        await bench.run(b"{}", unused)
        await bench.run(request(), used)

    assert (len(unused.requests), len(used.requests)) == (0, 1)


async def test_rule_66_equal_grants_of_two_principals_are_two_sandboxes(audit_log: AuditLog) -> None:  # noqa: F811
    door = StandInDoor()
    executing = Executing(audit_log, door=door)
    await executing.execute()
    await executing.execute(principal=Principal("bob", ANN.scopes))

    (first, ann_grant, _), (second, bob_grant, _) = door.asked
    assert (first, second) == ("ann", "bob")
    assert ann_grant == bob_grant
    assert door.calls[0].token != door.calls[1].token


INJECTED = "https://a.example/\r\n\r\nPOST /proxy HTTP/1.1\r\nAuthorization: Bearer x\r\n\r\n"


@pytest.mark.parametrize(
    "params",
    [
        {"url": INJECTED},
        {"method": INJECTED},
        {"headers": {"a": INJECTED}},
        {"headers": [[INJECTED, "a"]]},
        {"headers": {"Authorization": "Bearer x", "Proxy-Authorization": "Bearer x"}},
        {"body": INJECTED},
    ],
)
async def test_rule_65_a_guest_cannot_speak_for_another_call(bench: Bench, params: dict[str, object]) -> None:  # noqa: F811
    await bench.send(_call(params))

    [call] = bench.door.calls
    [asked] = call.requests  # one request, whatever is in it, and with this call's token
    assert asked.token == call.token


def _call(params: dict[str, object]) -> bytes:
    return json.dumps({"method": "http_request", "params": {"url": "https://a.example/", **params}}).encode()


async def test_rule_45_output_is_cleaned_of_known_secrets_as_it_reads_and_as_it_is_spelled() -> None:
    door = StandInDoor(known=[("k", KNOWN)])
    call = StandInCall(door, None)  # type: ignore[arg-type]
    half = "".join(f"\\u{ord(character):04x}" for character in KNOWN[:9]) + KNOWN[9:]
    for spelled in (KNOWN, half, KNOWN.encode().hex(), KNOWN.replace("-", "%2D")):
        output = f'{{"{spelled}": ["a", "x {spelled} y"]}}'.encode()
        result, _ = await KnownSecrets(call).clean(RunResult(Outcome.OK, output=output))

        assert result.output == b'{"[REDACTED]": ["a", "x [REDACTED] y"]}'
        assert isinstance(json.loads(result.output), dict)
