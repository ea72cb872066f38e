"""Brings a database to this program's schema, in one transaction of the caller's: wholly or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
import structlog

from clawbox.errors import ClawboxError, Reason

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_log = structlog.stdlib.get_logger("clawbox.store")

MIGRATIONS: Final = Path(__file__).parent / "migrations"
_VERSION: Final = re.compile(r"r([0-9]{4})_[a-z0-9_]+\.py")
"""Of a migration's file: its revision, each of which follows the one before."""
_RECORD: Final = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32)))
"""Where alembic keeps which revision it was that it ran last."""


def upgrade(connection: Connection, place: str) -> None:
    """Run the migrations that are missing.

    ``connection`` is in a transaction. Raises STATE_UNAVAILABLE where a newer clawbox wrote, or where the
    tables are another program's: then nothing is changed.
    """
    if _is_newest(connection):
        return
    # Only now: it is 10 MB and 100 ms, and as a rule there is nothing to migrate.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    # Interpolated by configparser: a % in the path is written twice.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    found = set(MigrationContext.configure(connection).get_current_heads())
    known = {script.revision for script in scripts.walk_revisions()}
    if found - known:
        raise ClawboxError(
            Reason.STATE_UNAVAILABLE,
            "the state in {place} is that of a newer clawbox (schema {found}; this one knows {known}): use "
            "that version, or put back the state from before it; nothing was changed",
            place=place,
            found=", ".join(sorted(found)),
            known=", ".join(sorted(scripts.get_heads())),
        )
    if not found and sa.inspect(connection).get_table_names():
        raise ClawboxError(
            Reason.STATE_UNAVAILABLE,
            "{place} has tables that are not clawbox's: name another place in state.url; nothing was changed",
            place=place,
        )
    if found != set(scripts.get_heads()):
        command.upgrade(config, "head")
        _log.info(
            "the state's tables were brought up to date", place=place, schema=", ".join(scripts.get_heads())
        )


def _is_newest(connection: Connection) -> bool:
    """Whether the newest migration, and nothing but it and those before, was run."""
    if not sa.inspect(connection).has_table(_RECORD.name):
        return False
    found = connection.execute(_RECORD.select()).scalars().all()
    known = [
        matched[1]
        for path in (MIGRATIONS / "versions").iterdir()
        if (matched := _VERSION.fullmatch(path.name))
    ]
    return found == [max(known, default="")]
