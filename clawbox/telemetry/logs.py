"""Logs: one JSON object a line, or text for people, on stderr.

Entries of the standard library's loggers (gRPC's own, for one) come out in the same form. Values under keys
that name a secret, and bearer tokens anywhere in text, are masked: a net under the rule that no secret is
ever given to the logger.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from clawbox.telemetry.context import request_id

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from structlog.typing import Processor

    from clawbox.config import LoggingSettings

MASK = "[MASKED]"

_SECRET_KEYS = re.compile(
    r"authorization|cookie|passw(or)?d|secret|api_?key|private_?key|master_?key|credential_?value|(^|_)tokens?$",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9\-._~+/]{8,}=*")
_DEEPEST = 8
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SEVERAL_LINES = frozenset({"exception", "stack"})


def configure_logging(settings: LoggingSettings, stream: TextIO | None = None) -> None:
    """Send all logs of the process to ``stream`` (stderr when None), in the configured form and level.

    May be called again; the last call counts.
    """
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    text = settings.format == "text"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        mask_secrets,
    ]
    out = stream if stream is not None else sys.stderr
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(
            colors=out.isatty(),
            pad_event_to=0,
            # The default shows local variables, and with them tokens.
            exception_formatter=structlog.dev.plain_traceback,
        )
        if text
        else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder(), *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # JSON escapes them itself.
                *([escape_controls] if text else []),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # These say at INFO and DEBUG what our own entries already say. And a log file in a folder that watchfiles
    # watches would grow for ever: each entry about a change is a change.
    for name in ("alembic", "asyncio", "grpc", "watchfiles"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def mask_secrets(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what looks like a secret, at any depth up to 8; deeper values are left out."""
    for key, value in entry.items():
        if _SECRET_KEYS.search(key) and value not in (None, ""):
            entry[key] = MASK
        elif not key.startswith("_"):
            entry[key] = _masked(value, 1)
    return entry


def escape_controls(
    _logger: object, _method: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Show control characters as escapes: a tool's name must not begin a line, nor move a cursor."""
    for key, value in entry.items():
        if isinstance(value, str):
            kept = "\n\t" if key in _SEVERAL_LINES else ""
            entry[key] = _CONTROLS.sub(
                lambda found, kept=kept: found[0] if found[0] in kept else ascii(found[0])[1:-1],  # type: ignore[misc]
                value,
            )
    return entry


def _masked(value: object, depth: int) -> object:
    if isinstance(value, str):
        return _BEARER.sub(rf"\1 {MASK}", value)
    if isinstance(value, dict):
        if depth >= _DEEPEST:
            return "…"
        return {
            key: MASK
            if isinstance(key, str) and _SECRET_KEYS.search(key) and inner
            else _masked(inner, depth + 1)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return "…" if depth >= _DEEPEST else [_masked(inner, depth + 1) for inner in value]
    return value


def _add_request_id(
    _logger: object, _method: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    if current := request_id.get():
        entry.setdefault("request_id", current)
    return entry
