"""Write ``docs/egress-refusals.md`` from the sidecar's reasons; with ``--check``, only compare them."""

import sys
from collections.abc import Iterator

from clawbox.egress.call_errors import call_error_status
from clawbox.egress.refusal import Denial, Refusal
from tools.generated_page import DOCS, write_or_check

PAGE = DOCS / "egress-refusals.md"

_STATUSES = {
    403: "Forbidden: what was asked for is not allowed, or cannot be carried",
    407: "Proxy Authentication Required: the token",
    429: "Too Many Requests: again later",
    502: "Bad Gateway: it was allowed, and did not work",
    504: "Gateway Timeout: it took too long",
}


def page() -> str:
    """The whole page, reasons grouped by the status that a sandbox sees."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# What the sidecar refuses, and why"
    yield ""
    yield "<!-- Made from clawbox/egress/refusal.py by `make generate`; do not edit. -->"
    yield ""
    yield "Each refusal has one reason. It is in the header `X-Clawbox-Error`, which nobody else can send, in"
    yield 'the JSON body (`{"error": "a sentence", "reason": "host_not_allowed"}`), and in the audit row.'
    yield "Decide by the reason; the sentence is for people and agents, and may change. [Egress](egress.md)"
    yield "says more."
    yield ""
    yield "A reason that begins with `upstream_` is one of these about the answer of the allowed host, in"
    yield "place of the request: `upstream_malformed_chunk` for one. Its status is 502. `POST /proxy` answers"
    yield "with the statuses of the Rust clawbox, 400, 401 and 403, in place of the others."
    for status, words in _STATUSES.items():
        yield ""
        yield f"## {status} {words}"
        yield ""
        yield "| reason | what it means | `POST /proxy` |"
        yield "|---|---|---|"
        for denial in Denial:
            refusal = Refusal(denial)
            if refusal.status == status:
                yield f"| `{refusal.code}` | {denial.meaning} | {call_error_status(refusal)} |"


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), source="clawbox/egress/refusal.py", arguments=sys.argv[1:]))
