"""What control, keeper, dialer and sidecars say to each other.

Frames are those of :mod:`clawbox.children.channel`. Beside its channel every child has a socket over which
control hands it descriptors, each with a :class:`Handed` that says what it is; the two are not ordered with
respect to each other, so the receiver joins them by number. A sidecar and the dialer speak over a
SOCK_SEQPACKET pair, one message a packet; keeper to sidecar is a pair on which only the keeper speaks.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from clawbox.egress.findings import Action, Place  # noqa: TC001 - msgspec reads the types
from clawbox.egress.patterns import Kind  # noqa: TC001
from clawbox.network_rules import NetworkRule, ShapeAction

MAX_FRAME_BYTES = 1 << 20
"""Largest frame that control accepts of an egress child."""
MAX_GRANT_BYTES = 32 << 20
"""Largest frame that an egress child accepts of control: every list of a grant at its longest, amply."""
MAX_PACKET_BYTES = 8 << 10
"""Largest packet between sidecar and dialer."""

Text = Annotated[str, msgspec.Meta(max_length=4096)]
Short = Annotated[str, msgspec.Meta(max_length=512)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""SHA-256."""


class Limits(msgspec.Struct, frozen=True):
    """How much one sandbox may do outside. Times are milliseconds, sizes bytes."""

    requests_per_second: int = 100
    burst: int = 200
    max_concurrent: int = 64
    max_tunnels: int = 64
    max_connections: int = 256
    """Connections from the sandbox, before any token was seen."""
    head_timeout_ms: int = 10_000
    connect_timeout_ms: int = 10_000
    idle_timeout_ms: int = 300_000
    max_request_bytes: int | None = None
    max_response_bytes: int | None = None
    call_max_response_bytes: int = 1 << 20
    """Of ``POST /proxy``, which answers with whole bodies."""
    call_timeout_ms: int = 30_000


class Grant(msgspec.Struct, frozen=True):
    """What one sandbox may do outside after narrowing; each process is told by control itself."""

    sandbox: str
    """Its id: names its CA and its audit rows."""
    owner: str
    rules: tuple[NetworkRule, ...] = ()
    credentials: tuple[str, ...] = ()
    on_shape: ShapeAction = ShapeAction.BLOCK
    """For rules that name none."""
    limits: Limits = Limits()


class Handed(msgspec.Struct, frozen=True):
    """Says what the descriptor beside it is."""

    purpose: Short
    """To a sidecar: ``keeper``, ``dialer``, ``connection``, and listeners: ``unix``, ``namespace``, ``tcp``.

    ``sidecar`` to the keeper and the dialer; ``key`` and ``identity`` to the keeper; ``connection`` to a WASM
    worker.
    """
    number: int = 0
    """Joins it to the message of the same number on the channel."""


# Control to sidecar ---------------------------------------------------------------------------------------


class Spent(msgspec.Struct, frozen=True, tag="spent"):
    """What a credential with a budget was used for in the window that it is in.

    A sidecar tells control, which tells the next sidecar of that sandbox.
    """

    credential: Short
    requests: Annotated[int, msgspec.Meta(ge=0)]
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    left_ms: Annotated[int, msgspec.Meta(ge=0)]
    """Until the window ends."""


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """The first message: what this sidecar is for."""

    grant: Grant
    upstream_ca: tuple[str, ...] = ()
    """PEM, trusted for upstreams besides the system's store."""
    spent: tuple[Spent, ...] = ()
    """By earlier sidecars of this sandbox."""


class Admit(msgspec.Struct, frozen=True, tag="admit"):
    """Requests with this token are accepted from now on."""

    token: Digest
    call: Short = ""
    """The request id of the call that the token belongs to; empty: the sandbox's own token."""
    connection: int = 0
    """The number of the connection that is handed for it, which is served from now on; 0: none is."""


class Revoke(msgspec.Struct, frozen=True, tag="revoke"):
    """Requests with this token are refused from now on, and those under way end."""

    token: Digest


class AuditState(msgspec.Struct, frozen=True, tag="audit"):
    """Whether rows can be written; while they cannot, requests are refused."""

    available: bool


class Clean(msgspec.Struct, frozen=True, tag="clean"):
    """Take this sandbox's secrets out of a stream of output."""

    stream: int
    data: bytes
    end: bool
    """It is the last piece: everything held back comes."""
    shapes: bool = True
    """Look for everything that the output of tools is searched for, too."""
    flush: bool = False
    """Nothing came for a while: everything held back comes, and the stream goes on."""


class Suspend(msgspec.Struct, frozen=True, tag="suspend"):
    """Attach credentials no more: known secrets were found in requests, of this process or an earlier one."""


class CloseListeners(msgspec.Struct, frozen=True, tag="close_listeners"):
    """Accept nothing any more: the sandbox ended, and only its output is still to be cleaned."""


class PeerChecked(msgspec.Struct, frozen=True, tag="peer_checked"):
    """The answer to one :class:`Peer`."""

    number: int
    inside: bool
    """The process is the sandbox's: the connection may be served."""


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """End what is under way, send its rows, and end."""


ToSidecar = Configure | Admit | Revoke | AuditState | Clean | Suspend | CloseListeners | PeerChecked | Finish


# Sidecar to control ---------------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Confined, configured, with its secrets, and connected to the dialer."""

    ca_pem: Annotated[str, msgspec.Meta(max_length=16_384)]
    """The certificate of the sandbox's own CA."""


class Peer(msgspec.Struct, frozen=True, tag="peer"):
    """Somebody connected to the Unix socket: is that process the sandbox's? Nothing is read until it is."""

    number: int
    """Of the question; the answer has the same."""
    pid: int
    """As SO_PEERCRED has it (unix(7)): who connected; 0: nobody that is seen from here."""


class Found(msgspec.Struct, frozen=True):
    """One thing that the leak scanner found in a request, its answer, or output."""

    name: Short
    kind: Kind
    place: Place
    action: Action
    count: int


class Row(msgspec.Struct, frozen=True, tag="row"):
    """One request, for the audit log: exactly one of these for each, when it has ended."""

    way: Short
    """``absolute``, ``connect``, ``tunnel``, ``intercept``, ``call`` or ``local``: how it came."""
    decision: Short
    """``allowed``, ``denied`` (refused before anything was sent) or ``failed`` (not reached, or it broke)."""
    reason: Short
    """A Denial's code, or empty."""
    method: Short
    scheme: Short
    host: Short
    port: int
    path: Text
    """With every value of the query redacted."""
    rule: int | None
    address: Short
    """What was connected to, or empty."""
    status: int | None
    bytes_up: int
    bytes_down: int
    duration_us: int
    upstream_us: int | None
    """From sending the head until the answer's head came."""
    credential: Short
    removed: Annotated[tuple[Short, ...], msgspec.Meta(max_length=64)]
    """Names of the headers and parameters of the client's own authentication that were taken out."""
    found: Annotated[tuple[Found, ...], msgspec.Meta(max_length=64)]
    call: Short
    """Of the token."""


class Activity(msgspec.Struct, frozen=True, tag="activity"):
    """How many tunnels are open now; sent when it changes."""

    tunnels: int


class Unwritten(msgspec.Struct, frozen=True, tag="unwritten"):
    """So many requests were refused that have no Row: control did not take rows as fast as they came (75)."""

    count: int


class Suspended(msgspec.Struct, frozen=True, tag="suspended"):
    """Known secrets were found in several requests: this sandbox's credentials are attached no more (68)."""


class Cleaned(msgspec.Struct, frozen=True, tag="cleaned"):
    """The answer to one Clean."""

    stream: int
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_FRAME_BYTES)]
    end: bool
    found: Annotated[tuple[Found, ...], msgspec.Meta(max_length=64)]
    """Since the answer before."""
    rests: bool = False
    """Nothing is held back, and another process could go on behind a line end here."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The last message, after Finish: every request has had its row."""


FromSidecar = Ready | Peer | Row | Activity | Unwritten | Suspended | Spent | Cleaned | Finished


# Sidecar and dialer ---------------------------------------------------------------------------------------


class Dial(msgspec.Struct, frozen=True, tag="dial"):
    """Resolve, check, connect."""

    id: int
    host: Annotated[str, msgspec.Meta(max_length=255)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Hang(msgspec.Struct, frozen=True, tag="hang"):
    """Nobody waits for that Dial any more."""

    id: int


class Dialed(msgspec.Struct, frozen=True, tag="dialed"):
    """Connected: the socket, non-blocking, comes with the packet."""

    id: int
    address: Annotated[str, msgspec.Meta(max_length=64)]


class NotDialed(msgspec.Struct, frozen=True, tag="not_dialed"):
    """Not connected; ``denial`` is the name of a Denial."""

    id: int
    denial: Annotated[str, msgspec.Meta(max_length=64)]
    detail: Annotated[str, msgspec.Meta(max_length=300)]


ToDialer = Dial | Hang
FromDialer = Dialed | NotDialed
