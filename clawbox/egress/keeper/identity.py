"""What the identity key is good for: one key of its own for each purpose (HKDF-SHA256, RFC 5869)."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from clawbox.signed_text import audit_head_text, container_labels_text, installation_text

IDENTITY_BYTES: Final = 32


class Identity:
    """The installation's own key; shows nothing of it. Raises ValueError when made of another size."""

    __slots__ = ("_labels_key", "_signer", "ca_seed")

    def __init__(self, key: bytes) -> None:
        if len(key) != IDENTITY_BYTES:
            raise ValueError("an identity key has 32 bytes")
        self.ca_seed = _derive(key, b"clawbox sandbox authorities 1")
        """What every sandbox's own authority is derived from (docs/security.md, 73)."""
        self._signer = Ed25519PrivateKey.from_private_bytes(_derive(key, b"clawbox audit heads 1"))
        self._labels_key = _derive(key, b"clawbox container labels 1")

    def __repr__(self) -> str:
        return "Identity(…)"

    @property
    def public_key(self) -> bytes:
        """The 32 bytes with which anyone can check :meth:`sign_head`."""
        raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        return self._signer.public_key().public_bytes(*raw)

    def sign_head(self, sequence: int, digest: str) -> bytes:
        """The Ed25519 signature, 64 bytes, of a head of the audit log."""
        return self._signer.sign(audit_head_text(sequence, digest))

    def authenticate_labels(self, text: str) -> bytes:
        """HMAC-SHA-256 (RFC 2104), 32 bytes, over a container's labels in their one form as JSON."""
        return hmac.digest(self._labels_key, container_labels_text(text), "sha256")


def installation_of(public_key: bytes) -> str:
    """The name of the installation with that key, 32 hexadecimal digits: it is public, and stays the same."""
    return hashlib.sha256(installation_text(public_key)).hexdigest()[:32]


def _derive(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(key)
