"""Handshakes in memory: clawbox's sessions with each other, and with the standard library's."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from tests.egress_world.ca import client_context

if TYPE_CHECKING:
    from clawbox.egress.tls.session import TlsSession


class Program:
    """A TLS client of the standard library, as a program in a sandbox is one."""

    def __init__(self, context: ssl.SSLContext, name: str | None, session: ssl.SSLSession | None = None):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name, session=session)

    def shake(self, server: TlsSession) -> None:
        """Until both are done. Raises what either raises; the client has then heard the server's alert."""
        done = False
        while not (done and server.handshake_done):
            try:
                self.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            finally:
                flight = self.outgoing.read()
                try:
                    if flight:
                        server.receive(flight)
                finally:
                    self.incoming.write(server.pending())

    def heard(self) -> str:
        """Why the handshake failed, in OpenSSL's words; empty where it did not."""
        try:
            self.tls.do_handshake()
        except ssl.SSLError as error:
            return str(error)
        return ""

    def read(self) -> bytes:
        try:
            return self.tls.read(1 << 16)
        except ssl.SSLWantReadError:
            return b""


def program(pem: str, name: str, *, alpn: tuple[str, ...] = ("http/1.1",), strict: bool = False) -> Program:
    """A client that trusts ``pem`` alone."""
    context = client_context(pem, alpn=alpn)
    if strict:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    return Program(context, name)


def shake(client: TlsSession, server: TlsSession) -> None:
    """Until both are done; raises what either raises."""
    while not (client.handshake_done and server.handshake_done):
        server.receive(client.pending())
        client.receive(server.pending())
