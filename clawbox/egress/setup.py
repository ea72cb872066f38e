"""What the operator's settings mean for every sandbox's way out: values for sidecars and the dialer."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from cryptography import x509

from clawbox.egress.dialer.messages import AddressPolicySpec
from clawbox.egress.messages import Limits
from clawbox.egress.supervisor import EgressSetup

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from clawbox.config import Config
    from clawbox.config.running import EgressSettings, ProxySettings

_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - nothing listens: it is what sandboxes do not reach


def egress_setup(config: Config) -> EgressSetup:
    """What all sandboxes' ways out share. Raises OSError for a file of authorities that cannot be used."""
    egress = config.egress
    return EgressSetup(
        store=config.credentials.store_path,
        addresses=AddressPolicySpec(
            trusted=tuple(map(str, egress.trusted_networks)), denied=tuple(map(str, egress.deny_addresses))
        ),
        upstream_ca=tuple(map(_authorities, egress.upstream_ca)),
    )


def sandbox_limits(egress: EgressSettings, proxy: ProxySettings) -> Limits:
    """How much one sandbox may do outside."""
    return Limits(
        requests_per_second=egress.requests_per_second,
        burst=egress.burst,
        max_concurrent=egress.max_concurrent,
        connect_timeout_ms=egress.connect_timeout_ms,
        idle_timeout_ms=egress.idle_timeout_ms,
        call_max_response_bytes=proxy.max_response_bytes,
        call_timeout_ms=proxy.default_timeout_ms,
    )


def listening_at(places: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Addresses and ports that no sandbox reaches, for hosts and ports where this program listens (15).

    A host that is a name may be any address of this machine, so all of them are meant.
    """
    found: list[tuple[str, int]] = []
    for host, port in places:
        try:
            found.append((str(ipaddress.ip_address(host)), port))
        except ValueError:
            found += ((everywhere, port) for everywhere in _EVERYWHERE)
    return tuple(dict.fromkeys(found))


def _authorities(path: Path) -> str:
    try:
        text = path.read_text("ascii")
        x509.load_pem_x509_certificates(text.encode())
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise OSError(f"egress.upstream_ca: {path} has no certificates in PEM") from error
    return text
