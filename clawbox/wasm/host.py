"""What a guest may call: ``clawbox.host_call`` for core modules, the ``host`` interface for components.

The JSON protocol of core modules, error texts included, is that of the Rust clawbox 0.1; what differs is that
a reply is never cut: see ``docs/tool-abi.md``. A guest can pass any numbers as pointers, so every one is
checked against the memory as it is now, and no function here raises into the guest.
"""

from __future__ import annotations

import base64
import ctypes
import json
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import wasmtime
from wasmtime import component

from clawbox.egress.call_messages import joined
from clawbox.wasm import interface
from clawbox.wasm.egress import Egress, EgressRefusedError, HttpRequest, HttpResponse
from clawbox.wasm.model import Level

MAX_REQUEST_BYTES: Final = 4 << 20
"""Largest request of one ``host_call``."""


@dataclass(slots=True)
class Session:
    """What one run has asked of its host, and how much more it may."""

    max_calls: int
    max_log_bytes: int
    egress: Egress
    on_log: LogSink
    calls: int = 0
    egress_calls: int = 0
    log_bytes: int = 0
    logs_cut: bool = False
    pending_reply: bytes = field(default=b"")

    @property
    def exceeded(self) -> bool:
        """Whether it made more calls than it may."""
        return self.calls > self.max_calls

    def count(self) -> None:
        """Count one call. Raises :class:`HostCallError` beyond the limit."""
        self.calls += 1
        if self.exceeded:
            raise HostCallError(f"host_call limit exceeded (max {self.max_calls})")

    def send(self, request: HttpRequest) -> HttpResponse:
        """Send a request. Raises :class:`~clawbox.wasm.egress.EgressRefusedError`."""
        self.egress_calls += 1
        return self.egress.send(request)

    def log(self, level: Level, message: str) -> None:
        """Keep a log entry, or as much of it as still may be kept."""
        room = self.max_log_bytes - self.log_bytes
        encoded = message.encode("utf-8", "surrogatepass")
        if len(encoded) > room:
            self.logs_cut = True
            if room <= 0:
                return
            encoded = encoded[:room]
        self.log_bytes += len(encoded)
        self.on_log(level, encoded.decode("utf-8", "ignore"))


class LogSink(Protocol):
    """Takes a log entry."""

    def __call__(self, level: Level, message: str) -> None:
        """Keep it."""


class HostCallError(Exception):
    """A host call failed; the guest is told the text."""


def level_named(name: str) -> Level:
    """The level that a guest means; UNKNOWN for what no level is called."""
    lowered = name.lower()
    if lowered == "warning":
        return Level.WARN
    try:
        return Level(lowered)
    except ValueError:
        return Level.UNKNOWN


def answer(session: Session, request: bytes) -> bytes | None:
    """The JSON reply to one JSON request of a core module; None where the call itself is malformed."""
    try:
        text = request.decode("utf-8")
    except UnicodeDecodeError:
        return None
    try:
        session.count()
        result = _dispatch(session, text)
    except (HostCallError, EgressRefusedError) as error:
        return json.dumps({"error": str(error)}).encode()
    return json.dumps({"ok": result}).encode()


def _dispatch(session: Session, text: str) -> Any:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HostCallError(f"invalid host_call request: {error}"[:500]) from error
    if not isinstance(call, dict) or not isinstance(call.get("method"), str):
        raise HostCallError("invalid host_call request: missing 'method'")
    return call_by_name(session, call["method"], call.get("params"))


def call_by_name(session: Session, method: str, params: Any) -> Any:
    """What ``host_call`` and the component's ``call`` do.

    Raises :class:`HostCallError` or :class:`EgressRefusedError`.
    """
    values = params if isinstance(params, dict) else {}
    if method == "log":
        message = values.get("message", "")
        session.log(
            level_named(str(values.get("level", "info"))),
            message if isinstance(message, str) else json.dumps(message),
        )
        return None
    if method == "http_request":
        return _reply(session.send(_request(values)), values.get("binary"))
    raise HostCallError(f"unknown host call method: {method[:200]}")


def _request(values: dict[str, Any]) -> HttpRequest:
    """The request in parameters whose members are those of ``POST /proxy``; only ``url`` must be there."""
    url = values.get("url")
    if not isinstance(url, str):
        raise HostCallError("missing 'url' parameter")
    method = values.get("method", "GET")
    if not isinstance(method, str):
        raise HostCallError("invalid host_call request: 'method' is not a string")
    return HttpRequest(method, url, _headers(values.get("headers")), _body(values))


def _headers(headers: object) -> tuple[tuple[str, str], ...]:
    if isinstance(headers, list):
        if not all(isinstance(pair, list) and list(map(type, pair)) == [str, str] for pair in headers):
            raise HostCallError("invalid host_call request: 'headers' is not a list of pairs of strings")
        return tuple((name, value) for name, value in headers)
    if headers is not None and not isinstance(headers, dict):
        raise HostCallError("invalid host_call request: 'headers' is not an object")
    return tuple((str(name), str(value)) for name, value in (headers or {}).items())


def _body(values: dict[str, Any]) -> bytes | None:
    body, encoded = values.get("body"), values.get("body_base64")
    if body is not None and not isinstance(body, str):
        raise HostCallError("invalid host_call request: 'body' is not a string")
    if encoded is None:
        return body.encode("utf-8", "surrogatepass") if body is not None else None
    if body is not None:
        raise HostCallError("invalid host_call request: both 'body' and 'body_base64'")
    try:
        return base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError) as error:
        raise HostCallError("invalid host_call request: 'body_base64' is not base64") from error


def _reply(response: HttpResponse, binary: object) -> dict[str, object]:
    if binary is True:
        body = base64.b64encode(response.body).decode("ascii")
        return {"status": response.status, "header_list": response.headers, "body_base64": body}
    text = response.body.decode("utf-8", "replace")
    return {"status": response.status, "headers": joined(response.headers), "body": text}


class Host:
    """The functions that are linked into every instance; they serve whichever run is in :attr:`session`."""

    def __init__(self) -> None:
        self.session: Session | None = None
        """The run that goes on; None while no guest runs, and then every call is refused."""

    def core_linker(self, engine: wasmtime.Engine) -> wasmtime.Linker:
        """A linker with everything that a core module may import."""
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        i32 = wasmtime.ValType.i32()
        call = wasmtime.FuncType([i32, i32, i32, i32], [i32])
        where = interface.CLAWBOX_MODULE
        linker.define_func(where, "host_call", call, self._host_call, access_caller=True)
        read = wasmtime.FuncType([i32, i32, i32], [i32])
        linker.define_func(where, "host_call_read", read, self._host_call_read, access_caller=True)
        return linker

    def component_linker(self, engine: wasmtime.Engine) -> component.Linker:
        """A linker with everything that a component may import."""
        linker = component.Linker(engine)
        linker.add_wasip2()
        with linker.root() as root, root.add_instance(interface.CLAWBOX_HOST) as host:
            host.add_func("log", self._log)
            host.add_func("http-request", self._http_request)
            host.add_func("call", self._call)
        return linker

    def _host_call(self, caller: wasmtime.Caller, request: int, size: int, reply: int, capacity: int) -> int:
        session = self.session
        memory = caller.get("memory")
        if session is None or not isinstance(memory, wasmtime.Memory):
            return -1
        session.pending_reply = b""
        if size & 0xFFFF_FFFF > MAX_REQUEST_BYTES:
            answered: bytes | None = json.dumps(
                {"error": f"invalid host_call request: more than {MAX_REQUEST_BYTES} bytes"}
            ).encode()
        else:
            data = _read(memory, caller, request, size)
            answered = answer(session, data) if data is not None else None
        if answered is None:
            return -1
        capacity &= 0xFFFF_FFFF
        if len(answered) > capacity:
            # Never cut: say how much there is, and keep it for host_call_read.
            session.pending_reply = answered
            text = f"the reply has {len(answered)} bytes and does not fit: fetch it with host_call_read"
            answered = json.dumps({"error": text, "size": len(answered)}).encode()
            if len(answered) > capacity:
                return -1
        return len(answered) if _write(memory, caller, reply, answered) else -1

    def _host_call_read(self, caller: wasmtime.Caller, offset: int, pointer: int, capacity: int) -> int:
        memory = caller.get("memory")
        if self.session is None or not self.session.pending_reply or not isinstance(memory, wasmtime.Memory):
            return -1
        start = offset & 0xFFFF_FFFF
        piece = self.session.pending_reply[start : start + (capacity & 0xFFFF_FFFF)]
        return len(piece) if _write(memory, caller, pointer, piece) else -1

    def _log(self, _store: Any, level: str, message: str) -> None:
        session = self.session
        if session is not None:
            try:
                session.count()
            except HostCallError:
                return
            session.log(level_named(level), message)

    def _http_request(self, _store: Any, request: Any) -> Any:
        session = self.session
        if session is None:
            return "no run is going on"
        try:
            session.count()
            response = session.send(
                HttpRequest(
                    request.method,
                    request.url,
                    tuple((header.name, header.value) for header in request.headers),
                    request.body,
                )
            )
        except (HostCallError, EgressRefusedError) as error:
            return _sayable(error)
        headers = [_record(name=name, value=value) for name, value in response.headers]
        return _record(status=response.status, headers=headers, body=response.body)

    def _call(self, _store: Any, method: str, params: str) -> component.Variant:
        session = self.session
        if session is None:
            return component.Variant("err", "no run is going on")
        try:
            session.count()
            try:
                values = json.loads(params) if params else None
            except (ValueError, RecursionError) as error:
                raise HostCallError(f"invalid host_call request: {error}"[:500]) from error
            return component.Variant("ok", json.dumps(call_by_name(session, method, values)))
        except (HostCallError, EgressRefusedError) as error:
            return component.Variant("err", _sayable(error))


def _sayable(error: Exception) -> str:
    """The text as a component can be told it: JSON's escapes can name half of a surrogate pair."""
    return str(error).encode("utf-8", "replace").decode()


def _record(**fields: object) -> component.Record:
    record = component.Record()
    vars(record).update(fields)
    return record


def _span(memory: wasmtime.Memory, caller: wasmtime.Caller, pointer: int, size: int) -> int | None:
    """Where ``size`` bytes at ``pointer`` lie in this process; None if they are not all inside the memory."""
    pointer &= 0xFFFF_FFFF
    size &= 0xFFFF_FFFF
    length = memory.data_len(caller)
    if pointer + size > length or not length:
        return None
    return ctypes.addressof(memory.data_ptr(caller).contents) + pointer


def _read(memory: wasmtime.Memory, caller: wasmtime.Caller, pointer: int, size: int) -> bytes | None:
    address = _span(memory, caller, pointer, size)
    return None if address is None else ctypes.string_at(address, size & 0xFFFF_FFFF)


def _write(memory: wasmtime.Memory, caller: wasmtime.Caller, pointer: int, data: bytes) -> bool:
    address = _span(memory, caller, pointer, len(data))
    if address is None:
        return False
    ctypes.memmove(address, data, len(data))
    return True
