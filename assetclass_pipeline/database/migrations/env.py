"""Runs the steps on the connection, in the transaction, that `database/schema.py` hands over.

Alembic loads this file by its path. Run `assetclass db`, not `alembic`: the lock, the time-outs
and the clear errors are there.
"""

from alembic import context

from assetclass_pipeline.database.schema import SCHEMA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=None,
    version_table_schema=SCHEMA,
)
with context.begin_transaction():
    context.run_migrations()
