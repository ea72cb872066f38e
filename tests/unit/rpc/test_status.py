"""Errors on the wire."""

import base64
from urllib.parse import quote

from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from clawbox.errors import ClawboxError, FieldViolation, Reason
from clawbox.rpc.status import cut, wire_status


def _size(error: ClawboxError) -> int:
    """Bytes of trailing metadata, in the longer of the ways to send it."""
    status = wire_status(error)
    return len(quote(status.message)) + len(base64.b64encode(status.details)) + 200


texts = st.text(max_size=3_000)


@given(
    message=texts,
    metadata=st.dictionaries(st.from_regex(r"[a-z]{1,40}", fullmatch=True), texts, max_size=30),
    violations=st.lists(st.builds(FieldViolation, texts, texts, texts), max_size=60),
)
def test_no_error_is_larger_than_clients_accept(message, metadata, violations) -> None:
    for key in ("reason", "message", "violations", "resource", "precondition", "self"):
        metadata.pop(key, None)
    error = ClawboxError(
        Reason.INVALID_INPUT,
        "{text_of_it}",
        violations=violations,
        resource=("tool", message),
        precondition=("STATE", message),
        **{**metadata, "text_of_it": message},
    )
    assert _size(error) <= 8192
    status = status_pb2.Status.FromString(wire_status(error).details)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "INVALID_INPUT"


def test_retry_precondition_and_resource() -> None:
    error = ClawboxError(
        Reason.WRONG_STATE, "not now", retry_after=1.5, resource=("tool", "t"), precondition=("STATE", "t")
    )
    details = status_pb2.Status.FromString(wire_status(error).details).details
    kinds = [detail.TypeName() for detail in details]
    assert kinds == [
        "google.rpc.ErrorInfo",
        "google.rpc.RetryInfo",
        "google.rpc.ResourceInfo",
        "google.rpc.PreconditionFailure",
    ]
    retry = error_details_pb2.RetryInfo()
    details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_field_violations_say_field_rule_and_what_is_wrong() -> None:
    error = ClawboxError(
        Reason.INVALID_FIELD, "bad", violations=[FieldViolation("a.b", "must be", "pattern")]
    )
    details = status_pb2.Status.FromString(wire_status(error).details).details
    request = error_details_pb2.BadRequest()
    assert details[1].Unpack(request)
    (violation,) = request.field_violations
    assert (violation.field, violation.description, violation.reason) == ("a.b", "must be", "PATTERN")


def test_every_reason_has_a_grpc_status() -> None:
    for reason in Reason:
        assert wire_status(ClawboxError(reason, "x")).code.value[0] == reason.code.value


@given(st.text(), st.integers(3, 50))
def test_cut_text_is_valid_and_short(text, limit) -> None:
    short = cut(text, limit)
    assert len(short.encode()) <= limit
    assert short == text or short.endswith("…")


def test_rules_are_named_as_reasons_are() -> None:
    violations = [
        FieldViolation("a", "is wrong", rule) for rule in ("required", "additionalProperties", "oneOf")
    ]
    status = wire_status(ClawboxError(Reason.INVALID_INPUT, "wrong", violations=violations))
    bad = error_details_pb2.BadRequest()
    assert status_pb2.Status.FromString(status.details).details[1].Unpack(bad)
    assert [violation.reason for violation in bad.field_violations] == [
        "REQUIRED",
        "ADDITIONAL_PROPERTIES",
        "ONE_OF",
    ]
