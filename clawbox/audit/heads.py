"""Signed heads: what makes a rewritten log show.

The chain has no key, so whoever can write the folder can make another from any row on. A row of kind
``audit_head`` holds the sequence and hash of a row before it, and an Ed25519 signature (RFC 8032) of both by
a key that this process never sees: up to there, nobody without that key can have made or changed a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from clawbox.signed_text import audit_head_text

if TYPE_CHECKING:
    from clawbox.audit.rows import AuditRow

KIND = "audit_head"
KEY_BYTES = 32


class SignerGoneError(Exception):
    """Nothing can be signed now; it is tried again."""


class Signer(Protocol):
    """Signs heads: the keeper, as control sees it."""

    async def sign(self, sequence: int, digest: str) -> bytes:
        """The signature of :func:`~clawbox.signed_text.audit_head_text`, 64 bytes. Raises SignerGoneError."""


@dataclass(frozen=True, slots=True)
class Head:
    """One signed head."""

    sequence: int
    hash: str
    signature: bytes

    @classmethod
    def of(cls, row: AuditRow) -> Head | None:
        """What a row of the kind ``audit_head`` says; None when it makes no sense."""
        match row.fields:
            case {"sequence": int(sequence), "head": str(digest), "signature": str(text)}:
                try:
                    return cls(sequence, digest, bytes.fromhex(text))
                except ValueError:
                    return None
        return None

    def fields(self) -> dict[str, Any]:
        """As a row has it."""
        return {"sequence": self.sequence, "head": self.hash, "signature": self.signature.hex()}

    def is_signed_with(self, key: Ed25519PublicKey) -> bool:
        """Whether the signature is one of that key's."""
        try:
            key.verify(self.signature, audit_head_text(self.sequence, self.hash))
        except InvalidSignature:
            return False
        return True


def public_key_of(raw: bytes) -> Ed25519PublicKey:
    """The key of 32 bytes. Raises ValueError."""
    if len(raw) != KEY_BYTES:
        raise ValueError(f"a public key has {KEY_BYTES} bytes")
    return Ed25519PublicKey.from_public_bytes(raw)
