"""What code in the sandbox may ask of its host.

    import clawbox

    clawbox.log("info", "starting")
    reply = clawbox.http_request("GET", "https://api.example.com/items", headers={"accept": "application/json"})
    reply.status, reply.headers, reply.json()
"""

import json as _json

from wit_world.imports import host as _host

__all__ = ["HostError", "Response", "call", "http_request", "log"]

_LEVELS = {
    "debug": _host.Level.DEBUG,
    "info": _host.Level.INFO,
    "warn": _host.Level.WARN,
    "warning": _host.Level.WARN,
    "error": _host.Level.ERROR,
}


class HostError(Exception):
    """The host refused or could not do what was asked; the message says why."""


class Response:
    """An HTTP response: ``status``, ``headers`` (pairs, in order, as sent) and ``body`` (bytes)."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def header(self, name: str, default: str | None = None) -> str | None:
        """The first header of that name, in any case."""
        name = name.lower()
        return next((value for key, value in self.headers if key.lower() == name), default)

    @property
    def text(self) -> str:
        """The body as UTF-8 text; what is not UTF-8 is replaced."""
        return self.body.decode("utf-8", "replace")

    def json(self):  # noqa: ANN201 - whatever the JSON holds
        """The body, parsed as JSON."""
        return _json.loads(self.body)

    def __repr__(self) -> str:
        return f"<Response {self.status}, {len(self.body)} bytes>"


def log(level: str, message: object) -> None:
    """Add an entry to the log of the call; ``level`` is debug, info, warn or error."""
    try:
        chosen = _LEVELS[level.lower()]
    except (KeyError, AttributeError):
        raise ValueError(f"level must be debug, info, warn or error, not {level!r}") from None
    _host.log(chosen, str(message))


def http_request(method, url, headers=None, body=None):  # noqa: ANN001, ANN201
    """Send one HTTP request through the sandbox's sidecar and return the :class:`Response`.

    ``headers`` is a mapping or a list of pairs, ``body`` is bytes, text (sent as UTF-8) or None. A redirect is
    returned, not followed. HostError says why a request was refused or failed.
    """
    if hasattr(headers, "items"):
        headers = headers.items()
    if isinstance(body, str):
        body = body.encode("utf-8")
    elif body is not None:
        body = bytes(body)
    request = _host.Request(
        str(method).upper(), str(url), [_host.Header(str(k), str(v)) for k, v in headers or ()], body
    )
    try:
        reply = _host.http_request(request)
    except Exception as error:
        raise HostError(_reason(error)) from None
    return Response(reply.status, [(item.name, item.value) for item in reply.headers], reply.body)


def call(method, params=None):  # noqa: ANN001, ANN201
    """Call a host function by name; ``params`` and the answer are what JSON can hold."""
    try:
        answer = _host.call(method, _json.dumps(params))
    except Exception as error:
        raise HostError(_reason(error)) from None
    return _json.loads(answer)


def _reason(error: Exception) -> str:
    return str(getattr(error, "value", error))
