"""Takes away what earlier demos left, so that the next one starts clean.

Belongs here: our operations and their backup tables, and the Dagster history in our own embedded
server. Does not: the two market tables (`load.py`), and anything that no demo has made.
"""

import shutil

import psycopg
from psycopg import sql

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.defs.dagster_home import dagster_home
from assetclass_pipeline.errors import DemoDataError
from assetclass_pipeline.settings import Settings


def clear_earlier_demos(dsn: str, settings: Settings) -> None:
    """Drop all operations with their backup tables, and make the schema anew.

    For a database whose market tables are the demo's own: call it after `load_demo`, which
    refuses any other. On a server that is not ours Dagster's history stays. Raises
    DemoDataError, OperationInProgressError, DatabaseUnavailableError and SchemaNotReadyError.
    """
    if schema.status(dsn, settings).current is not None:
        _drop_plan_tables(dsn, settings)
        schema.downgrade(dsn, settings, "base")
    schema.upgrade(dsn, settings)
    if settings.database_url is None and settings.dagster_database_url is None:
        _drop_dagster_history(dsn, settings)


def _drop_plan_tables(dsn: str, settings: Settings) -> None:
    with (
        connect(dsn, settings, purpose="demo") as connection,
        transaction(connection, settings) as cursor,
    ):
        for schema_name, table_name in cursor.execute(
            query("demo_clearing", "plan_tables")
        ).fetchall():
            table = sql.Identifier(schema_name, table_name)
            cursor.execute(query("demo_clearing", "drop_plan_table", table=table))


def _drop_dagster_history(dsn: str, settings: Settings) -> None:
    database = sql.Identifier(settings.dagster_database)
    with connect(dsn, settings, purpose="demo") as connection:
        try:
            connection.execute(query("demo_clearing", "drop_dagster_database", database=database))
        except psycopg.errors.ObjectInUse:
            raise DemoDataError(
                f"Something still uses Dagster's database {settings.dagster_database!r}, which "
                "the demo makes anew. End it (`assetclass up`, `assetclass execute`, an SQL "
                "client), then try again."
            ) from None
    shutil.rmtree(dagster_home(settings) / "storage", ignore_errors=True)
