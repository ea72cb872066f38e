import json

import pytest

from clawbox.egress.call_errors import call_error_body, call_error_status, call_error_text
from clawbox.egress.refusal import Denial, Refusal, Side

URL = "https://api.example.com/a?b=c"
# compat: every error of the Rust clawbox's proxy.
TEXTS = (
    "URL blocked by allowlist: ",
    "request to private/internal IP blocked: ",
    "invalid URL: ",
    "credential leak detected in outbound request",
    "rate limited: ",
    "HTTP error: ",
    "unauthorized",
)


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        (Refusal(Denial.NO_RULES), f"URL blocked by allowlist: {URL}"),
        (Refusal(Denial.HOST_NOT_ALLOWED, "api.example.com"), f"URL blocked by allowlist: {URL}"),
        (
            Refusal(Denial.METHOD_NOT_ALLOWED),
            f"URL blocked by allowlist: {URL} (The grant names the host, but not this method.)",
        ),
        (
            Refusal(Denial.ADDRESS_REFUSED, "10.0.0.1: private"),
            "request to private/internal IP blocked: 10.0.0.1: private",
        ),
        (
            Refusal(Denial.DNS_FAILED, "api.example.com"),
            "invalid URL: The host's name could not be resolved. (api.example.com)",
        ),
        (Refusal(Denial.LEAK, "url"), "credential leak detected in outbound request"),
        (
            Refusal(Denial.RATE_LIMITED),
            "rate limited: The sandbox sends more requests per second than it may.",
        ),
        (Refusal(Denial.CONNECT_FAILED), "HTTP error: No connection to the host could be made."),
        (
            Refusal(Denial.BAD_CHUNK, side=Side.UPSTREAM),
            "HTTP error: The upstream's answer was refused. A chunk's size line or terminator is malformed.",
        ),
        # What an upstream did is never told as if the sandbox had done it.
        (
            Refusal(Denial.LEAK, side=Side.UPSTREAM),
            (
                "HTTP error: The upstream's answer was refused. "
                "The request holds a secret that must not leave the sandbox."
            ),
        ),
    ],
)
def test_texts_are_those_that_programs_match_on(refusal: Refusal, text: str) -> None:
    assert call_error_text(refusal, URL) == text


@pytest.mark.parametrize("denial", Denial)
@pytest.mark.parametrize("side", Side)
def test_every_refusal_has_one_of_the_known_texts(denial: Denial, side: Side) -> None:
    refusal = Refusal(denial, "detail", side)
    expected = (denial.meaning,) if denial is Denial.MALFORMED_CALL and side is Side.CLIENT else TEXTS

    assert call_error_text(refusal, URL).startswith(expected)


@pytest.mark.parametrize("denial", Denial)
def test_statuses_are_401_400_and_403(denial: Denial) -> None:
    special = {Denial.TOKEN_MISSING: 401, Denial.TOKEN_INVALID: 401, Denial.MALFORMED_CALL: 400}

    assert call_error_status(Refusal(denial)) == special.get(denial, 403)
    assert call_error_status(Refusal(denial, side=Side.UPSTREAM)) == 403


def test_the_body_names_the_reason_for_programs() -> None:
    body = json.loads(call_error_body(Refusal(Denial.HOST_NOT_ALLOWED), URL))

    assert body == {"error": f"URL blocked by allowlist: {URL}", "reason": "host_not_allowed"}
