"""The request id of the call that the current task works for."""

from __future__ import annotations

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("clawbox_request_id", default="")
"""Set by ``rpc/`` for each call; empty outside of calls. Tasks that a call starts inherit it."""
