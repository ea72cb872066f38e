"""Why the sidecar does not do what it was asked, as values: a reason for machines, a sentence for agents.

Each refusal has one :class:`Denial`, whose ``code`` is in replies, audit rows and metrics and never changes.
Nothing that the sandbox or the upstream sent becomes a label: only ``detail`` holds such text, escaped.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import NamedTuple

_MAX_SHOWN = 120


class Side(enum.Enum):
    """Whose bytes were at fault."""

    CLIENT = "client"
    """The sandbox's: the request is not passed on."""
    UPSTREAM = "upstream"
    """What the allowed host answered: the answer is not passed on."""


class _Spec(NamedTuple):
    code: str
    meaning: str
    status: int = 403


class Denial(enum.Enum):
    """Every reason for which a request, or its answer, does not go on, with its sentence and HTTP status."""

    # The target and the Host header
    MALFORMED_TARGET = _Spec("malformed_target", "The request target is not an absolute http or https URL.")
    USERINFO = _Spec("userinfo_refused", "The URL has a user name or password before the host.")
    SCHEME = _Spec("scheme_refused", "Only http and https are carried.")
    BAD_HOST = _Spec("malformed_host", "The host is not a plain ASCII name or a canonical IP address.")
    BAD_PORT = _Spec("malformed_port", "The port is not a decimal number in 1..65535.")
    BAD_PATH = _Spec("ambiguous_path", "Servers disagree about what the path means, so it is not passed on.")
    HOST_MISSING = _Spec("host_missing", "The request has no Host header.")
    HOST_REPEATED = _Spec("host_repeated", "The request has more than one Host header.")
    HOST_DIFFERS = _Spec(
        "host_differs", "The Host header names another host or port than the request target."
    )
    TUNNEL_DIFFERS = _Spec(
        "tunnel_differs", "A request inside a tunnel names another scheme, host or port than the tunnel."
    )

    # Heads
    BAD_START_LINE = _Spec("malformed_start_line", "The first line is not one of HTTP/1.0 or HTTP/1.1.")
    HTTP_VERSION = _Spec("http_version", "The HTTP version is not 1.0 or 1.1.")
    HTTP2 = _Spec("http2_refused", "HTTP/2 in clear text (h2c, PRI) is not carried.")
    BAD_HEADER = _Spec("malformed_header", "A header line is not a token, a colon and a value.")
    FOLDED_HEADER = _Spec("folded_header", "A header line begins with white space.")
    CONTROL_BYTE = _Spec("control_byte", "The head has a control byte, or a CR or LF alone.")
    HEAD_TOO_LARGE = _Spec("head_too_large", "The head is larger than the limit.")
    TOO_MANY_HEADERS = _Spec("too_many_headers", "The head has more lines than the limit.")

    # Framing
    BAD_LENGTH = _Spec("malformed_content_length", "Content-Length is not one plain decimal number.")
    BAD_TRANSFER_ENCODING = _Spec(
        "transfer_encoding_refused", "Transfer-Encoding is not exactly one chunked on HTTP/1.1."
    )
    LENGTH_AND_CHUNKED = _Spec(
        "conflicting_framing", "The message has both Content-Length and Transfer-Encoding."
    )
    BAD_CHUNK = _Spec("malformed_chunk", "A chunk's size line or terminator is malformed.")
    BAD_TRAILER = _Spec("malformed_trailer", "The trailers are malformed or too large.")
    TRUNCATED = _Spec("truncated", "The connection ended in the middle of a message.")
    UNEXPECTED_BYTES = _Spec("unexpected_bytes", "Bytes came where none may come.")
    UNEXPECTED_BODY = _Spec("unexpected_body", "The message has a body that it must not have.")
    TOO_MANY_INTERIM = _Spec("too_many_interim", "Too many 1xx responses came before the response.")

    # What HTTP can ask for and does not get
    WEBSOCKET = _Spec(
        "websocket_refused",
        "WebSocket is not carried where the sidecar reads the traffic; ask for a tunnel rule for this host.",
    )
    UPGRADE = _Spec("upgrade_refused", "Changing the protocol of a connection is not carried.")
    EXPECTATION = _Spec("expectation_refused", "The only expectation that is carried is 100-continue.")
    METHOD_REFUSED = _Spec("method_refused", "CONNECT inside a tunnel, TRACE and TRACK are never passed on.")

    # Policy
    NO_RULES = _Spec("network_not_granted", "This sandbox was granted no network.")
    HOST_NOT_ALLOWED = _Spec("host_not_allowed", "No rule of this sandbox's grant names the host.")
    PORT_NOT_ALLOWED = _Spec("port_not_allowed", "The grant names the host, but not this port.")
    METHOD_NOT_ALLOWED = _Spec("method_not_allowed", "The grant names the host, but not this method.")
    PATH_NOT_ALLOWED = _Spec("path_not_allowed", "The grant names the host, but not this path.")
    ADDRESS_REFUSED = _Spec(
        "address_refused", "The host's address is private, special, or one that the operator denies."
    )
    NO_ADDRESS = _Spec("no_address", "The host has no address.", 502)

    # Who asks, and how much
    TOKEN_MISSING = _Spec(
        "token_missing", "The request carries no token; send the one in CLAWBOX_PROXY_TOKEN.", 407
    )
    TOKEN_INVALID = _Spec("token_invalid", "The token is not this sandbox's.", 407)
    RATE_LIMITED = _Spec("rate_limited", "The sandbox sends more requests per second than it may.", 429)
    TOO_MANY_REQUESTS = _Spec(
        "too_many_requests", "As many requests of the sandbox are under way as may be.", 429
    )
    TOO_MANY_TUNNELS = _Spec("too_many_tunnels", "As many tunnels of the sandbox are open as may be.", 429)
    BODY_TOO_LARGE = _Spec("body_too_large", "The body is larger than the limit.")
    HEAD_TIMEOUT = _Spec("head_timeout", "The head took too long to come.")
    IDLE_TIMEOUT = _Spec("idle_timeout", "Nothing came for too long.", 504)
    CALL_TIMEOUT = _Spec("timeout", "The call took longer than it may.", 504)
    MALFORMED_CALL = _Spec("malformed_call", "The body of POST /proxy is not the JSON that it takes.")
    UNKNOWN_ROUTE = _Spec(
        "unknown_route", "The sidecar itself serves POST /proxy and http://localhost/https://host/path alone."
    )

    # Reaching the upstream
    DNS_FAILED = _Spec("dns_failed", "The host's name could not be resolved.", 502)
    DNS_TIMEOUT = _Spec("dns_timeout", "Resolving the host's name took too long.", 504)
    CONNECT_FAILED = _Spec("connect_failed", "No connection to the host could be made.", 502)
    CONNECT_TIMEOUT = _Spec("connect_timeout", "Connecting to the host took too long.", 504)
    TLS_FAILED = _Spec("tls_failed", "The host's certificate or TLS handshake is not good.", 502)
    UPSTREAM_GONE = _Spec("upstream_gone", "The host closed the connection without an answer.", 502)

    # TLS from the sandbox
    NOT_TLS = _Spec("not_tls", "What came through the tunnel is not TLS.")
    SNI_MISSING = _Spec("sni_missing", "The TLS handshake names no server.")
    SNI_DIFFERS = _Spec("sni_differs", "The TLS handshake names another server than CONNECT did.")
    HTTP2_ONLY = _Spec(
        "http2_only", "The client speaks HTTP/2 alone; ask for a tunnel rule for this host, or use HTTP/1.1."
    )
    CLIENT_TLS_FAILED = _Spec(
        "client_tls_failed", "The client did not finish the TLS handshake; it may not trust the sandbox's CA."
    )

    # Secrets
    LEAK = _Spec("leak_detected", "The request holds a secret that must not leave the sandbox.")
    LEAK_INBOUND = _Spec("leak_in_answer", "The answer holds a secret that could not be taken out.", 502)
    UNREADABLE_CODING = _Spec(
        "content_coding_refused", "The body is in an encoding that cannot be looked into."
    )
    CREDENTIAL_UNAVAILABLE = _Spec(
        "credential_unavailable", "The credential for this request cannot be used now.", 502
    )
    CREDENTIALS_SUSPENDED = _Spec(
        "credentials_suspended",
        "Known secrets were found in this sandbox's requests, so its credentials are not attached any more.",
    )
    BUDGET_SPENT = _Spec("budget_spent", "The credential's budget is spent for now.", 429)
    AUDIT_UNAVAILABLE = _Spec(
        "audit_unavailable", "Nothing may be sent because it could not be written down.", 502
    )
    CLIENT_GONE = _Spec("client_gone", "The client closed its connection before the answer was complete.")
    ENDED = _Spec("ended", "The sandbox or its call ended.", 502)
    INTERNAL = _Spec("internal", "The sidecar failed.", 502)

    @property
    def code(self) -> str:
        """``host_not_allowed`` for one: stable, lower case."""
        return self.value.code

    @property
    def meaning(self) -> str:
        """One sentence for the agent."""
        return self.value.meaning


# Not decided here: what was allowed and did not come about.
_NOT_OURS = frozenset(
    {
        Denial.NO_ADDRESS,
        Denial.DNS_FAILED,
        Denial.DNS_TIMEOUT,
        Denial.CONNECT_FAILED,
        Denial.CONNECT_TIMEOUT,
        Denial.TLS_FAILED,
        Denial.UPSTREAM_GONE,
        Denial.IDLE_TIMEOUT,
        Denial.CALL_TIMEOUT,
        Denial.CLIENT_TLS_FAILED,
        Denial.CLIENT_GONE,
        Denial.ENDED,
        Denial.INTERNAL,
    }
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal: what, whose fault, and a detail of the request itself."""

    denial: Denial
    detail: str = ""
    """Printable ASCII, under 300 characters; never a header's or a query's value, nor an upstream's text."""
    side: Side = Side.CLIENT

    @property
    def code(self) -> str:
        """The reason for replies, audit rows and metrics; ``upstream_…`` where the upstream was at fault."""
        return f"upstream_{self.denial.code}" if self.side is Side.UPSTREAM else self.denial.code

    @property
    def status(self) -> int:
        """The HTTP status that the sandbox sees (property 60); 502 for whatever the upstream is at fault."""
        return 502 if self.side is Side.UPSTREAM else self.denial.value.status

    @property
    def decided(self) -> bool:
        """Whether it was refused here: else it was allowed, and did not come about."""
        return self.side is Side.CLIENT and self.denial not in _NOT_OURS

    @property
    def message(self) -> str:
        """The sentence, with the detail where there is one."""
        meaning = self.denial.meaning
        if self.side is Side.UPSTREAM:
            meaning = f"The upstream's answer was refused. {meaning}"
        return f"{meaning} ({self.detail})" if self.detail else meaning

    def body(self) -> bytes:
        """The JSON body of the reply, which names the reason (property 60)."""
        return json.dumps({"error": self.message, "reason": self.code}).encode("ascii")


class RefusedError(Exception):
    """Carries a refusal out of a pure function."""

    def __init__(self, denial: Denial, detail: str = "", side: Side = Side.CLIENT) -> None:
        self.refusal = Refusal(denial, detail, side)
        super().__init__(self.refusal.message)

    @classmethod
    def of(cls, refusal: Refusal) -> RefusedError:
        """The error for a refusal that is at hand."""
        return cls(refusal.denial, refusal.detail, refusal.side)


def shown(text: str) -> str:
    """A client's text as a detail may have it: printable ASCII, cut. An upstream's may reflect secrets."""
    escaped = ascii(text[:_MAX_SHOWN])[1:-1]
    return escaped if len(escaped) <= _MAX_SHOWN else escaped[: _MAX_SHOWN - 3] + "..."
