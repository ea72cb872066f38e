"""Run by alembic: migrates the connection that clawbox.store.schema hands over, in the caller's transaction.

`alembic --sql` has no connection: it only writes down what would be done.
"""

from __future__ import annotations

from alembic import context

connection = context.config.attributes.get("connection")
# Alembic believes that SQLite's DDL cannot be rolled back, which is true of Python's own transactions alone.
if connection is None:
    context.configure(
        dialect_name=context.config.get_main_option("dialect"), transactional_ddl=True, literal_binds=True
    )
else:
    context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
