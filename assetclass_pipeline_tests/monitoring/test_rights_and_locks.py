"""Watching by a role with few rights, and beside whoever holds the market tables.

Belongs here: what the watchers may ask of a database. Does not: what they find.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.model.alert import AlertType, Finding
from assetclass_pipeline.monitoring import alert_store
from assetclass_pipeline.monitoring.database_probes import database_probes
from assetclass_pipeline.monitoring.delivery import deliver_due
from assetclass_pipeline.monitoring.health import check_health
from assetclass_pipeline.monitoring.metrics import collect
from assetclass_pipeline.monitoring.reminders import remind
from assetclass_pipeline.monitoring.watching import judge_now, look_at_operations
from assetclass_pipeline.settings import HealthSettings, Settings
from assetclass_pipeline_tests.market import Market, open_market
from assetclass_pipeline_tests.monitoring.outbox import Outbox, alert_settings
from assetclass_pipeline_tests.receiver import Receiver

pytestmark = pytest.mark.every_postgres

PATIENCE = 30.0
_PASSWORD = "a password of tests"


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    with open_market(database_url) as made:
        yield made


@contextmanager
def role(market: Market, *grants: str) -> Iterator[str]:
    """The DSN of a new role with these rights, {role} being its name."""
    name = sql.Identifier(f"watcher {market.connection.info.dbname}")
    market.execute("CREATE ROLE {} LOGIN PASSWORD {}", name, sql.Literal(_PASSWORD))
    try:
        for grant in grants:
            market.connection.execute(sql.SQL(grant).format(role=name))
        yield make_conninfo(
            market.dsn, user=f"watcher {market.connection.info.dbname}", password=_PASSWORD
        )
    finally:
        market.execute("DROP OWNED BY {} CASCADE", name)
        market.execute("DROP ROLE {}", name)


def whole_watch(dsn: str, settings: Settings) -> None:
    """Everything that sensors and the API do with the database, once."""
    finding = Finding("a cause", AlertType.OPERATION_FAILED, holds=True, summary="It broke")
    with connect(dsn, settings, purpose="test", to_write=True) as connection:
        schema.require_schema(connection)
        look_at_operations(connection, settings, watcher="a watcher")
        judge_now(connection, settings, lambda _, __: [finding])
        with transaction(connection, settings) as cursor:
            remind(cursor, settings)
        deliver_due(connection, settings, most=9, seconds=5)
        [alert] = alert_store.list_alerts(connection, settings)
        alert_store.acknowledge(connection, settings, alert.id, by="ann")
        collect(connection, settings)
    patient = settings.model_copy(update={"health": HealthSettings(timeout=PATIENCE)})
    with database_probes(dsn, patient) as probes:
        health = check_health(probes, seconds=PATIENCE)
    assert {name: one.message for name, one in health.failing.items()} == {}


def test_the_least_privileges_of_the_readme(market: Market, receiver: Receiver) -> None:
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    market.execute("DROP SCHEMA assetclass CASCADE")
    database = sql.Identifier(market.connection.info.dbname).as_string()
    grants = (
        f"GRANT CREATE ON DATABASE {database} TO {{role}}",
        "GRANT USAGE, CREATE ON SCHEMA public TO {role}",
        "GRANT SELECT ON symbols TO {role}",
        "GRANT SELECT, UPDATE (asset_class, updated_at) ON market_data TO {role}",
        "GRANT pg_monitor TO {role}",
    )
    with role(market, *grants) as dsn:
        schema.upgrade(dsn, outbox.settings)
        whole_watch(dsn, outbox.settings)
    assert len(receiver.titles) == 1


def test_a_role_that_does_not_own_the_schema(market: Market, receiver: Receiver) -> None:
    """The grants of docs/audit.md, for a role that shall not be able to switch the trigger off."""
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    grants = (
        "GRANT USAGE, CREATE ON SCHEMA public TO {role}",
        "GRANT SELECT ON symbols TO {role}",
        "GRANT SELECT, UPDATE (asset_class, updated_at) ON market_data TO {role}",
        "GRANT USAGE, CREATE ON SCHEMA assetclass TO {role}",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA assetclass TO {role}",
        "REVOKE UPDATE, DELETE ON assetclass.audit_log FROM {role}",
    )
    with role(market, *grants) as dsn:
        whole_watch(dsn, outbox.settings)
    assert len(receiver.titles) == 1


def test_nobody_waits_for_who_holds_the_market_tables(market: Market, receiver: Receiver) -> None:
    """Who waited would get an error in the end, or take longer than all of this together."""
    outbox = Outbox(market, alert_settings(receiver.channel("pager")))
    limits = outbox.settings.session.model_copy(update={"lock_timeout": 2 * PATIENCE})
    settings = outbox.settings.model_copy(update={"session": limits})
    with psycopg.connect(market.dsn) as holder:
        holder.execute("LOCK TABLE market_data, symbols IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        whole_watch(market.dsn, settings)
        assert time.monotonic() - began < PATIENCE
