"""What of a call gets into the log."""

from __future__ import annotations

import structlog
from clawbox_client.v1 import sandbox_pb2

from tests.integration.rpc.conftest import READER, Serving, failure, metadata

REQUEST = sandbox_pb2.ExecuteRequest(tool="echo")


async def test_callers_without_a_token_do_not_fill_the_log(running: Serving) -> None:
    stub = await running.sandbox_stub()
    with structlog.testing.capture_logs() as logs:
        await failure(stub.Execute(REQUEST))
        await failure((await running.channel()).unary_unary("/no.Such/Method")(b""))
    assert [log for log in logs if log["log_level"] != "debug"] == []


async def test_refusals_of_a_known_caller_are_logged_with_reason_and_name(running: Serving) -> None:
    stub = await running.sandbox_stub()
    with structlog.testing.capture_logs() as logs:
        await failure(stub.Execute(REQUEST, metadata=metadata(READER)))
        await failure(stub.Execute(REQUEST, metadata=metadata("wrong-token")))
    found = [(log["log_level"], log["reason"], log["principal"], log["method"]) for log in logs]
    method = "/clawbox.v1.Sandbox/Execute"
    assert found == [
        ("info", "SCOPE_MISSING", "reader", method),
        ("info", "TOKEN_INVALID", "", method),
    ]
    assert "wrong-token" not in str(logs)
