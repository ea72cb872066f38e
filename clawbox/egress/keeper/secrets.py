"""What the keeper sends a sidecar: frames of :mod:`clawbox.children.channel`, each with all it may know.

A later frame replaces the earlier one; see :meth:`clawbox.egress.credentials.SandboxSecrets.after`. Nothing
is ever sent the other way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from clawbox.egress.credentials import (
    Attachment,
    BasicAttachment,
    Budget,
    Credential,
    HeaderAttachment,
    QueryAttachment,
    SandboxSecrets,
    Secret,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from clawbox.egress.tls.authority import Authority

MAX_SECRETS_BYTES: Final = 16 << 20
"""Largest frame that a sidecar accepts of the keeper: a whole credential file, and as much again of retired
values."""


class _Header(msgspec.Struct, frozen=True, tag="header"):
    name: str
    prefix: str


class _Basic(msgspec.Struct, frozen=True, tag="basic"):
    username: str


class _Query(msgspec.Struct, frozen=True, tag="query"):
    parameter: str


class _Budget(msgspec.Struct, frozen=True):
    requests: int | None
    bytes: int | None
    window_seconds: int


class _Credential(msgspec.Struct, frozen=True):
    name: str
    value: str
    hosts: tuple[str, ...]
    attachment: _Header | _Basic | _Query
    ports: tuple[int, ...]
    path_prefixes: tuple[str, ...]
    methods: tuple[str, ...]
    plain_http: bool
    budget: _Budget | None
    env: str | None
    short: bool

    def __repr__(self) -> str:
        return "_Credential(…)"


class Secrets(msgspec.Struct, frozen=True):
    """Everything that one sidecar may know; shows nothing of it."""

    _credentials: tuple[_Credential, ...]
    broken: dict[str, str]
    """Names of the grant without a usable credential, and why."""
    _retired: tuple[tuple[str, str], ...]
    _authority: bytes
    """The sandbox's CA: key and certificate."""

    def __repr__(self) -> str:
        return "Secrets(…)"

    @classmethod
    def of(
        cls,
        credentials: Iterable[Credential],
        broken: Mapping[str, str],
        retired: Iterable[tuple[str, str]],
        authority: bytes,
    ) -> Secrets:
        """Ready to be sent. ``authority`` is what ``Authority.to_bytes`` gives."""
        return cls(tuple(map(_packed, credentials)), dict(broken), tuple(retired), authority)

    def sandbox_secrets(self) -> SandboxSecrets:
        """As values. Raises InvalidCredentialError where the keeper sent what cannot be."""
        credentials = [_unpacked(one) for one in self._credentials]
        return SandboxSecrets({one.name: one for one in credentials}, self.broken, self._retired)

    def authority(self) -> Authority:
        """The sandbox's own CA."""
        from clawbox.egress.tls.authority import Authority  # noqa: PLC0415 - not where only messages are read

        return Authority.from_bytes(self._authority)


def _packed(one: Credential) -> _Credential:
    attachment: _Header | _Basic | _Query
    match one.attachment:
        case HeaderAttachment(name, prefix):
            attachment = _Header(name, prefix)
        case BasicAttachment(username):
            attachment = _Basic(username)
        case QueryAttachment(parameter):
            attachment = _Query(parameter)
    budget = one.budget
    return _Credential(
        name=one.name,
        value=one.value.reveal(),
        hosts=one.hosts,
        attachment=attachment,
        ports=one.ports,
        path_prefixes=one.path_prefixes,
        methods=one.methods,
        plain_http=one.plain_http,
        budget=None if budget is None else _Budget(budget.requests, budget.bytes, budget.window_seconds),
        env=one.env,
        short=one.short,
    )


def _unpacked(one: _Credential) -> Credential:
    attachment: Attachment
    match one.attachment:
        case _Header(name, prefix):
            attachment = HeaderAttachment(name, prefix)
        case _Basic(username):
            attachment = BasicAttachment(username)
        case _Query(parameter):
            attachment = QueryAttachment(parameter)
    budget = one.budget
    return Credential(
        name=one.name,
        value=Secret(one.value),
        hosts=one.hosts,
        attachment=attachment,
        ports=one.ports,
        path_prefixes=one.path_prefixes,
        methods=one.methods,
        plain_http=one.plain_http,
        budget=None if budget is None else Budget(budget.requests, budget.bytes, budget.window_seconds),
        env=one.env,
        short=one.short,
    )
