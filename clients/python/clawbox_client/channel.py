"""Channels that put the bearer token on every call, whoever makes it: this package or a user of the stubs.

gRPC's own call credentials refuse plaintext channels, where a local server is reached; its interceptors
cost a task for each call in asyncio. This wraps what a channel makes instead, the same for both kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio

if TYPE_CHECKING:
    from clawbox_client.connection import Connection, TokenSource


def open_channel(connection: Connection) -> grpc.Channel:
    """A blocking channel. Raises OSError and ValueError for TLS files that cannot be used."""
    if connection.tls is None:
        return grpc.insecure_channel(connection.address.target, options=connection.options)
    return grpc.secure_channel(
        connection.address.target, connection.tls.credentials(), options=connection.options
    )


def open_aio_channel(connection: Connection) -> grpc.aio.Channel:
    """An asyncio channel. Raises OSError and ValueError for TLS files that cannot be used."""
    if connection.tls is None:
        return grpc.aio.insecure_channel(connection.address.target, options=connection.options)
    return grpc.aio.secure_channel(
        connection.address.target, connection.tls.credentials(), options=connection.options
    )


def authorized(channel: grpc.Channel, token: TokenSource | None) -> grpc.Channel:
    """The channel as stubs should see it."""
    return channel if token is None else cast("grpc.Channel", _Authorized(channel, token))


def authorized_aio(channel: grpc.aio.Channel, token: TokenSource | None) -> grpc.aio.Channel:
    """The channel as stubs should see it."""
    return channel if token is None else cast("grpc.aio.Channel", _Authorized(channel, token))


class _Authorized:
    """Stands in for a channel towards generated stubs, which call these four methods and no other."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel, token: TokenSource) -> None:
        self._channel = channel
        self._token = token

    def unary_unary(self, *args: Any, **kwargs: Any) -> _WithToken:
        return _WithToken(self._channel.unary_unary(*args, **kwargs), self._token)

    def unary_stream(self, *args: Any, **kwargs: Any) -> _WithToken:
        return _WithToken(self._channel.unary_stream(*args, **kwargs), self._token)

    def stream_unary(self, *args: Any, **kwargs: Any) -> _WithToken:
        return _WithToken(self._channel.stream_unary(*args, **kwargs), self._token)

    def stream_stream(self, *args: Any, **kwargs: Any) -> _WithToken:
        return _WithToken(self._channel.stream_stream(*args, **kwargs), self._token)


class _WithToken:
    """A multi-callable of either kind; ``with_call`` and ``future`` exist on blocking ones."""

    def __init__(self, call: Any, token: TokenSource) -> None:
        self._call = call
        self._token = token

    def __call__(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        return self._call(*args, metadata=self._metadata(metadata), **kwargs)

    def with_call(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        return self._call.with_call(*args, metadata=self._metadata(metadata), **kwargs)

    def future(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        return self._call.future(*args, metadata=self._metadata(metadata), **kwargs)

    def _metadata(self, given: Any) -> tuple[tuple[str, str | bytes], ...]:
        return (*(given or ()), ("authorization", f"Bearer {self._token()}"))
