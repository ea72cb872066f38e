"""The append-only, hash-chained record of what was allowed, refused and done, and its verifier."""

from clawbox.audit.heads import Signer, SignerGoneError
from clawbox.audit.log import AuditLog
from clawbox.audit.record import Audit, Record, recorded
from clawbox.audit.rows import AuditRow
from clawbox.audit.signing import signed_heads
from clawbox.audit.verify import BadRow, Verdict, verify

__all__ = [
    "Audit",
    "AuditLog",
    "AuditRow",
    "BadRow",
    "Record",
    "Signer",
    "SignerGoneError",
    "Verdict",
    "recorded",
    "signed_heads",
    "verify",
]
