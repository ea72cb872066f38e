"""The way out of one call of a tool, as control sees it: a connection to that call's sidecar, and its token.

Which process serves the call, and how it is started, is not said here: ``clawbox.egress.supervisor``
implements it, and what runs tools depends on these two Protocols alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from contextlib import AbstractAsyncContextManager

    from clawbox.policy import ToolGrant


class CallDoor(Protocol):
    """What one call was given, while the context that gave it lasts."""

    @property
    def connection(self) -> socket.socket:
        """A Unix stream socket, connected to the sidecar, in blocking mode.

        Only this call has it. Who takes it over closes it; leaving the context closes it in any case.
        """

    @property
    def token(self) -> str:
        """What each request on :attr:`connection` carries as ``Authorization: Bearer``.

        New for each call, accepted by this sidecar alone, and refused once the context was left.
        """

    @property
    def max_response_bytes(self) -> int:
        """Largest body that the sidecar answers ``POST /proxy`` with (``Limits.call_max_response_bytes``)."""

    @property
    def has_secrets(self) -> bool:
        """Whether the sidecar knows a secret that the output could show: one in use, or a retired one.

        Fixed for the call. Where it is False, output need not go through :meth:`clean`.
        """

    async def clean(self, stream: str, data: bytes, *, end: bool) -> bytes:
        """Take the known secrets of this sandbox out of one stream of output, in every encoding.

        ``stream`` names it within this call; any number of streams go on side by side, and each is one text:
        what may be the beginning of a secret is held back until more comes, or ``end``, after which the name
        is free for another text. ``data`` has any size. Only known secrets are looked for, not shapes.
        Calls for one stream are awaited one after the other.
        Raises ClawboxError(REDACTION_UNAVAILABLE) where that cannot be done: then nothing may be shown.
        """


class Door(Protocol):
    """Gives calls of tools their way out."""

    def call(self, owner: str, grant: ToolGrant, call: str) -> AbstractAsyncContextManager[CallDoor]:
        """A way out for one call.

        ``owner`` is the principal, who is part of what tells sandboxes apart (66); ``grant`` has at least one
        network rule; ``call`` is the request id, which the audit rows of the call's requests carry. Entering
        waits until the sidecar serves with this grant and accepts the token, and raises
        ClawboxError(SANDBOX_UNAVAILABLE) where none can be had. Leaving revokes the token, ends what is still
        under way with it, and forgets streams that have not ended, whichever way the call ended.
        """
