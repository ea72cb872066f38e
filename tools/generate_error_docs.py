"""Write ``docs/errors.md`` from ``clawbox/errors.py``; with ``--check``, only compare them."""

import sys
from collections.abc import Iterator

from clawbox.errors import DOMAIN, Code, Reason
from tools.generated_page import DOCS, write_or_check

PAGE = DOCS / "errors.md"


def page() -> str:
    """The whole page, reasons grouped by status code in the order of their codes."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Errors"
    yield ""
    yield "<!-- Made from clawbox/errors.py by `make generate`; do not edit. -->"
    yield ""
    yield "Every error that clawbox answers has a gRPC status code and, in its details, a"
    yield f"`google.rpc.ErrorInfo` with domain `{DOMAIN}`, one of the reasons below, and as metadata every"
    yield "value that the message mentions. Decide by the reason; the message is for people and may change."
    yield ""
    yield "Where they help there are also `google.rpc.BadRequest` (each field that is wrong),"
    yield "`google.rpc.RetryInfo` (when to try again), `google.rpc.ResourceInfo` (what was not found or is in"
    yield "the way) and `google.rpc.PreconditionFailure` (which state something is in)."
    yield ""
    yield "What untrusted code does is no error: a tool that fails, traps, or runs into a limit is a reply"
    yield "with another `Outcome` than OK."
    for code in Code:
        reasons = [reason for reason in Reason if reason.code is code]
        if not reasons:
            continue
        yield ""
        yield f"## {code.name} ({code.value})"
        yield ""
        yield "| reason | what it means | what to do |"
        yield "|---|---|---|"
        for reason in reasons:
            yield f"| `{reason.name}` | {_cell(reason.meaning)} | {_cell(reason.remedy)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page(), source="clawbox/errors.py", arguments=sys.argv[1:]))
