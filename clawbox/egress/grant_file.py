"""The file that says what one sandbox may do outside, for ``clawbox egress``; a server makes grants itself.

TOML, checked like the settings: every problem at once, with key, what was found and what is accepted.
"""

from __future__ import annotations

import ipaddress
import ssl
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from clawbox.config.explain import translate
from clawbox.config.fields import (
    Accepts,
    Bytes,
    Count,
    CountOrZero,
    Fault,
    FilePath,
    Milliseconds,
    Name,
    Network,
    Rule,
    Settings,
    refuse,
)
from clawbox.config.load import read_file
from clawbox.config.problems import ConfigError, Problem
from clawbox.egress.addresses import AddressPolicy
from clawbox.egress.messages import Grant, Limits
from clawbox.network_rules import MAX_RULES, NetworkRule, ShapeAction

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from clawbox.egress.addresses import Address

_MAX_CREDENTIALS = 64
_MAX_NETWORKS = 256
_PER_SECOND = 2**20
_DEFAULTS = Limits()


def _at_most(most: int) -> AfterValidator:
    def check(values: tuple[object, ...]) -> tuple[object, ...]:
        if len(values) > most:
            raise refuse([Fault("", f"a list of {len(values)}", f"at most {most}")])
        return values

    return AfterValidator(check)


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise refuse([Fault("", f'"{twice}" twice', "each name once")])
    return names


AtOnce = Annotated[int, Field(strict=True, ge=1, le=2**16), Accepts("a whole number, 1 to 65536")]
Rated = Annotated[
    int, Field(strict=True, ge=1, le=_PER_SECOND), Accepts(f"a whole number, 1 to {_PER_SECOND}")
]


class GrantTable(Settings):
    """What may be reached, with what."""

    network: Annotated[tuple[Rule, ...], _at_most(MAX_RULES)] = ()
    """Network rules. Empty: nothing may be reached."""
    credentials: Annotated[tuple[Name, ...], AfterValidator(_distinct), _at_most(_MAX_CREDENTIALS)] = ()
    """Names of credentials (``clawbox creds``) that are attached to the requests that they are for."""
    on_shape: Literal["block", "redact", "report"] = "block"
    """What happens when something credential-shaped leaves, where a rule does not say."""
    trusted_networks: Annotated[tuple[Network, ...], _at_most(_MAX_NETWORKS)] = ()
    """Internal networks that rules may reach although they are not public."""
    deny_addresses: Annotated[tuple[Network, ...], _at_most(_MAX_NETWORKS)] = ()
    """Addresses that nothing may reach, whatever else says so."""
    upstream_ca: tuple[FilePath, ...] = ()
    """PEM files with private authorities that upstream certificates may come from."""


class LimitsTable(Settings):
    """How much may be done. Times are milliseconds, sizes bytes."""

    requests_per_second: Rated = _DEFAULTS.requests_per_second
    """Requests per second in the long run."""
    burst: Rated = _DEFAULTS.burst
    """Requests that may come at once before the rate applies."""
    max_concurrent: AtOnce = _DEFAULTS.max_concurrent
    """Requests under way at once."""
    max_tunnels: CountOrZero = _DEFAULTS.max_tunnels
    """Tunnels open at once."""
    max_connections: AtOnce = _DEFAULTS.max_connections
    """Connections from the sandbox at once."""
    head_timeout_ms: Milliseconds = _DEFAULTS.head_timeout_ms
    """Time for the head of a request to come."""
    connect_timeout_ms: Milliseconds = _DEFAULTS.connect_timeout_ms
    """Time to connect upstream."""
    idle_timeout_ms: Milliseconds = _DEFAULTS.idle_timeout_ms
    """Time without a byte either way after which a connection ends."""
    max_request_bytes: Bytes | None = _DEFAULTS.max_request_bytes
    """Largest body of a request. Absent: any."""
    max_response_bytes: Bytes | None = _DEFAULTS.max_response_bytes
    """Largest body of an answer. Absent: any."""
    call_max_response_bytes: Count = _DEFAULTS.call_max_response_bytes
    """Largest body of an answer to ``POST /proxy``, which answers with whole bodies."""
    call_timeout_ms: Milliseconds = _DEFAULTS.call_timeout_ms
    """Time for one ``POST /proxy``."""


class GrantFile(Settings):
    """A whole grant file. Made by :func:`load_grant`."""

    grant: GrantTable
    limits: LimitsTable = Field(default_factory=LimitsTable)

    def for_sandbox(self, sandbox: str, owner: str) -> Grant:
        """The grant as processes are told it."""
        return Grant(
            sandbox=sandbox,
            owner=owner,
            rules=self.rules,
            credentials=self.grant.credentials,
            on_shape=ShapeAction(self.grant.on_shape),
            limits=Limits(**self.limits.model_dump()),
        )

    @property
    def rules(self) -> tuple[NetworkRule, ...]:
        """The network rules, numbered as they stand in the file."""
        return self.grant.network

    def address_policy(
        self, *, own: frozenset[Address] = frozenset(), listeners: Iterable[tuple[Address, int]] = ()
    ) -> AddressPolicy:
        """What it says about addresses; ``own`` are this machine's, ``listeners`` this program's."""
        return AddressPolicy(
            trusted=tuple(map(ipaddress.ip_network, self.grant.trusted_networks)),
            denied=tuple(map(ipaddress.ip_network, self.grant.deny_addresses)),
            own=own,
            listeners=frozenset(listeners),
        )


def load_grant(path: Path) -> GrantFile:
    """Read a grant file. Raises ConfigError with every problem at once."""
    file = path.absolute()
    values = read_file(file)
    try:
        return GrantFile.model_validate(values, context={"folder": file.parent})
    except ValidationError as error:
        problems = translate(error, lambda _: str(file), root=GrantFile)
    raise ConfigError(problems)


def read_authorities(grant_file: GrantFile, path: Path) -> tuple[str, ...]:
    """The PEM texts of ``grant.upstream_ca``. ``path``, the grant file's, is for ConfigError alone."""
    texts, problems = [], []
    accepted = "a file with certificates in PEM"
    for index, file in enumerate(grant_file.grant.upstream_ca):
        key = f"grant.upstream_ca[{index}]"
        try:
            text = file.read_text("ascii")
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
        except OSError as error:  # ssl.SSLError is one
            found = error.strerror if error.filename else "no certificate in it"
            problems.append(Problem(str(path), key, f"{file}: {found}", accepted))
        except ValueError:
            problems.append(Problem(str(path), key, f"{file}: no text", accepted))
        else:
            texts.append(text)
    if problems:
        raise ConfigError(problems)
    return tuple(texts)
