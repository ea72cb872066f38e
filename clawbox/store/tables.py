"""The tables as the newest migration leaves them; the columns' meaning."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, String, Table

METADATA: Final = MetaData()

CONTAINERS: Final = Table(
    "containers",
    METADATA,
    Column("container_id", String(64), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("state", String(32), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
)
"""One row a container that is not forgotten; ``document`` is the lifecycle's own, opaque here."""

REQUEST_IDS: Final = Table(
    "request_ids",
    METADATA,
    Column("principal", String(128), primary_key=True),
    Column("method", String(128), primary_key=True),
    Column("request_id", String(256), primary_key=True),
    Column("body_sha256", LargeBinary(32), nullable=False),
    Column("result", LargeBinary, nullable=True),  # NULL: it was begun, and nobody said that it ended
    Column("created_ms", BigInteger, nullable=False, index=True),
)

RESERVE: Final = Table("reserve", METADATA, Column("filler", LargeBinary, nullable=False))
"""Always empty but for an instant: see :mod:`clawbox.store.reserve`."""
