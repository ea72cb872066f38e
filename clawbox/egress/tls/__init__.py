"""TLS on both sides of a sidecar: each sandbox's own authority, verified upstreams, what a client asks for.

Nothing here does input or output. A sidecar can open no file, and no memory of it is ever made executable, so
whatever would need either is done by :func:`preload` in the process that it is forked from.
"""

from __future__ import annotations

__all__ = ["preload"]


def preload() -> None:
    """Do what a confined process cannot: read the system's store, make callbacks, load what is loaded late.

    A whole handshake is made, good and bad, since libraries load codecs and modules at first use.
    No key of any sandbox is made here; what children share by it is public.
    """
    from clawbox.egress.tls import authority, session, upstream  # noqa: PLC0415

    upstream.preload()
    for trusted in (True, False):
        throwaway = authority.derive_authority(b"\0" * 32, "preload")
        other = authority.derive_authority(b"\1" * 32, "preload")
        trust = upstream.UpstreamTls([(throwaway if trusted else other).ca_pem], system=False)
        client, server = trust.session("preload.example", 443), throwaway.session("preload.example")
        try:
            while not (client.handshake_done and server.handshake_done):
                server.receive(client.pending())
                client.receive(server.pending())
        except session.TlsError:
            continue
        server.receive(client.send(b"x"))
        client.receive(server.close())
