"""What the server's identity key signs and authenticates, by purpose.

By itself, so that the process with the key, which is forked and small, imports nothing of those who check.
"""

from __future__ import annotations

_AUDIT_HEAD = "clawbox audit head 1"
_CONTAINER_LABELS = "clawbox container labels 1"
_INSTALLATION = "clawbox installation 1"


def audit_head_text(sequence: int, digest: str) -> bytes:
    """The bytes that a signature is over. Domain-separated: the same key signs nothing else in this form."""
    return f"{_AUDIT_HEAD}\n{sequence}:{digest}".encode()


def container_labels_text(labels: str) -> bytes:
    """The bytes that the MAC of a container's labels is over; ``labels`` in their one form as JSON."""
    return f"{_CONTAINER_LABELS}\n{labels}".encode()


def installation_text(public_key: bytes) -> bytes:
    """The bytes whose digest is the installation's name; ``public_key`` is raw."""
    return f"{_INSTALLATION}\n{public_key.hex()}".encode()
