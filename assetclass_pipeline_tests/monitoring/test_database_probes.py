"""Each probe of the database, failing for real and well again."""

import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.errors import MarketTablesError
from assetclass_pipeline.monitoring.database_probes import database_probes
from assetclass_pipeline.monitoring.health import Component, Health, check_health
from assetclass_pipeline.settings import AlertSettings, Channel, HealthSettings, Settings
from assetclass_pipeline_tests.disks import fill, mounted
from assetclass_pipeline_tests.faults.proxy import Proxy
from assetclass_pipeline_tests.faults.victim import Victim
from assetclass_pipeline_tests.market import Market, open_market

# A busy machine is no failure here; what is slow on purpose says so.
PATIENT = HealthSettings(timeout=20)
OPERATION = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    with open_market(database_url) as made:
        made.list_symbols(("AAPL", "STOCK"))
        yield made


def ask(market: Market, **settings: object) -> Health:
    """One check; with every probe well unless `settings` say otherwise."""
    return ask_at(market.dsn, market.settings, **settings)


def ask_at(dsn: str, settings: Settings, **changes: object) -> Health:
    chosen = settings.model_copy(update={"health": PATIENT, **changes})
    with database_probes(dsn, chosen) as probes:
        return check_health(probes, seconds=30)


def only_failing(health: Health) -> tuple[str, Component]:
    assert len(health.failing) == 1, health.failing
    ((name, component),) = health.failing.items()
    return name, component


@pytest.mark.every_postgres
def test_all_is_well(market: Market) -> None:
    health = ask(market)
    assert health.is_healthy, health.failing
    messages = {name: part.message for name, part in health.components.items()}
    assert messages["marketTables"] == "public.market_data can be corrected from public.symbols."
    assert messages["operation"] == "No operation runs."
    assert messages["notifications"] == "No channel is configured: nobody is told of alerts."
    assert messages["qualityReport"].startswith("No quality report yet; the first is due")


def test_looking_writes_nothing(market: Market, tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = market.everything()
    assert ask(market, home=home, archive_directory=home / "archive").is_healthy
    assert market.everything() == before
    assert not home.exists()


def test_partitions_are_counted(database_url: str) -> None:
    with open_market(
        database_url, partitioning="range", key='PRIMARY KEY (id, "timestamp")'
    ) as market:
        message = ask(market).components["marketTables"].message
    assert message == "public.market_data in 3 partitions can be corrected from public.symbols."


def test_other_servers_are_not_asked(database_url: str, another_database_url: str) -> None:
    with open_market(
        database_url, partitioning="foreign", remote_dsn=another_database_url
    ) as market:
        market.execute("ALTER SERVER far_away OPTIONS (SET port '1')")
        assert ask(market).components["marketTables"].is_healthy
        with (
            connect(market.dsn, market.settings, purpose="test") as connection,
            pytest.raises(MarketTablesError, match="could not connect"),
        ):
            inspect_market_tables(connection, market.settings, for_writing=True)


def test_a_renamed_table(market: Market) -> None:
    market.execute("ALTER TABLE {} RENAME TO bars", market.market_identifier)
    name, component = only_failing(ask(market))
    assert name == "marketTables"
    assert component.message.startswith("Table public.market_data does not exist.")


@contextmanager
def clerk(market: Market) -> Iterator[tuple[str, sql.Identifier]]:
    """The DSN of a role that may do what is needed, and the role."""
    name = f"clerk_{uuid.uuid4().hex[:8]}"
    role = sql.Identifier(name)
    market.execute("CREATE ROLE {} LOGIN PASSWORD 'x'", role)
    try:
        market.execute(
            "GRANT USAGE, CREATE ON SCHEMA public TO {0}; GRANT USAGE ON SCHEMA assetclass TO {0};"
            "GRANT SELECT ON ALL TABLES IN SCHEMA assetclass, public TO {0};"
            "GRANT UPDATE (asset_class, updated_at) ON market_data TO {0}",
            role,
        )
        yield make_conninfo(market.dsn, user=name, password="x"), role
    finally:
        market.execute("DROP OWNED BY {0}; DROP ROLE {0}", role)


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    ("revoke", "failing", "said"),
    [
        ("REVOKE UPDATE (asset_class) ON market_data FROM {}", "marketTables", "GRANT UPDATE"),
        ("REVOKE SELECT ON symbols FROM {}", "marketTables", "GRANT SELECT"),
        ("REVOKE USAGE ON SCHEMA assetclass FROM {}", "schema", "may not read schema assetclass"),
        ("REVOKE SELECT ON assetclass.operation FROM {}", "operation", "permission denied"),
        ("REVOKE SELECT ON assetclass.notification FROM {}", "notifications", "permission denied"),
    ],
)
def test_rights_are_revoked(market: Market, revoke: str, failing: str, said: str) -> None:
    with clerk(market) as (dsn, role):
        assert ask_at(dsn, market.settings).is_healthy
        market.execute(sql.SQL(revoke).as_string(), role)
        health = ask_at(dsn, market.settings)
    assert said in health.components[failing].message
    assert not health.components[failing].is_healthy


def test_the_schema_is_older(market: Market) -> None:
    schema.downgrade(market.dsn, market.settings, "0005")
    health = ask(market)
    assert health.components["schema"].message.endswith("run `assetclass db upgrade`.")
    assert "notifications" in health.failing
    schema.upgrade(market.dsn, market.settings)
    assert ask(market).is_healthy


def test_the_disk_of_the_data_is_known(
    market: Market, postgres_server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / "postgres").symlink_to(postgres_server._files.directory)
    message = ask(market, home=tmp_path).components["disk"].message
    assert "for home" in message
    assert "for the data" in message


def test_too_little_room(market: Market) -> None:
    name, component = only_failing(
        ask(market, health=PATIENT.model_copy(update={"free_disk_bytes": 2**62}))
    )
    assert name == "disk"
    assert component.message.startswith("Too little room: ")


def test_a_full_disk_of_the_archive(market: Market, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", megabytes=2) as disk:
        limit = PATIENT.model_copy(update={"free_disk_bytes": 1_000_000})
        assert ask(market, health=limit, archive_directory=disk).is_healthy
        fill(disk / "filler")
        _, component = only_failing(ask(market, health=limit, archive_directory=disk))
    assert component.message == "Too little room: 0 bytes for archives; 977 KiB should be free."


def begin(market: Market, status: str = "running", phase: str = "correcting") -> None:
    """An operation whose process was heard of just now, begun two hours ago."""
    market.execute(
        """INSERT INTO assetclass.operation
               (correction_id, kind, status, phase, dry_run, options, requested_by, requested_at,
                started_at)
           VALUES (%s, 'correction', %s, %s, false, '{{}}', 'test', now() - interval '2 h',
                   now() - interval '2 h')""",
        values=(OPERATION, status, phase),
    )
    market.execute(
        """INSERT INTO assetclass.operation_heartbeat (correction_id, epoch, beat_at, holder)
           VALUES (%s, 0, now(), 'test')""",
        values=(OPERATION,),
    )


def commit_batch(market: Market, ago: str) -> None:
    market.execute(
        """INSERT INTO assetclass.operation_batch
               (correction_id, first_seq, last_seq, epoch, worker, records_corrected,
                records_skipped, duration_ms, committed_at)
           SELECT %s, coalesce(max(last_seq), 0) + 1, coalesce(max(last_seq), 0) + 1, 0, 0, 1, 0, 1,
                  now() - %s::interval FROM assetclass.operation_batch""",
        values=(OPERATION, ago),
    )


# Nobody beats here: the heart must be young enough by itself.
ALIVE = {"heartbeat_interval": 20.0, "heartbeat_stale_after": 60.0}


def test_an_operation_that_writes(market: Market) -> None:
    begin(market)
    commit_batch(market, "50 min")
    commit_batch(market, "1 min")
    message = ask(market, **ALIVE).components["operation"].message
    assert message == f"Correction {OPERATION} is correcting."


def test_an_operation_that_writes_nothing_any_more(market: Market) -> None:
    begin(market)
    commit_batch(market, "70 min")
    commit_batch(market, "50 min")
    name, component = only_failing(ask(market, **ALIVE))
    assert name == "operation"
    assert "has written nothing for 50 min" in component.message


def test_an_operation_that_waits_has_a_reason(market: Market) -> None:
    begin(market)
    commit_batch(market, "50 min")
    market.execute("UPDATE assetclass.operation_heartbeat SET throttle = ARRAY['standby lags']")
    message = ask(market, **ALIVE).components["operation"].message
    assert message.endswith("is correcting and waits: standby lags.")


def test_a_scan_writes_nothing_for_hours(market: Market) -> None:
    begin(market, phase="planning")
    assert ask(market, **ALIVE).is_healthy
    market.execute("UPDATE assetclass.operation SET started_at = now() - interval '3 h'")
    assert "is planning, but" in only_failing(ask(market, **ALIVE))[1].message


@pytest.mark.parametrize("status", ["running", "paused"])
def test_an_operation_whose_process_died(market: Market, status: str) -> None:
    begin(market, status=status)
    commit_batch(market, "1 min")
    market.execute("UPDATE assetclass.operation_heartbeat SET beat_at = now() - interval '1 h'")
    name, component = only_failing(ask(market, heartbeat_interval=0.01, heartbeat_stale_after=0.03))
    assert name == "operation"
    assert "its process was not heard of for" in component.message
    assert f"`assetclass resume {OPERATION}`" in component.message


def test_a_long_pause_is_mentioned_only(market: Market) -> None:
    begin(market, status="paused")
    market.execute(
        """INSERT INTO assetclass.operation_control
           VALUES (%s, 'pause', 'eve', now() - interval '9 d')""",
        values=(OPERATION,),
    )
    message = ask(market, **ALIVE).components["operation"].message
    assert message == f"Correction {OPERATION} is paused for 9 days and keeps others out."


def test_a_request_that_nobody_picks_up(market: Market) -> None:
    begin(market, status="requested", phase="starting")
    market.execute("UPDATE assetclass.operation SET requested_at = now() - interval '50 s'")
    assert ask(market).is_healthy
    market.execute("UPDATE assetclass.operation SET requested_at = now() - interval '70 s'")
    name, component = only_failing(ask(market))
    assert name == "requests"
    assert "nobody picks it up" in component.message


def measure(market: Market, source: str, ago: str) -> None:
    market.execute(
        """INSERT INTO assetclass.quality_measurement
               (measured_at, source, total_records, completeness, integrity, orphaned_percent,
                quality_score, correctable, report)
           VALUES (now() - %s::interval, %s, 1, 1, 1, 1, 1, 1, '{{}}')""",
        values=(ago, source),
    )


def test_an_old_quality_report(market: Market) -> None:
    measure(market, "quality_report", "30 h")
    measure(market, "integrity_report", "1 h")
    name, component = only_failing(ask(market))
    assert name == "qualityReport"
    assert component.message == "The newest quality report is 30 h old; one is due every 26 h."
    measure(market, "quality_report", "3 h")
    message = ask(market).components["qualityReport"].message
    assert message == "The newest quality report is 3 h old."


def test_never_a_quality_report(market: Market) -> None:
    impatient = PATIENT.model_copy(update={"quality_report": 0.001})
    name, component = only_failing(ask(market, health=impatient))
    assert name == "qualityReport"
    assert "since the schema was made" in component.message


PAGER = Channel(name="pager", url=SecretStr("json://localhost"))


def send(market: Market, **columns: object) -> None:
    values = {"occasion": "opened", "channel": "pager", **columns}
    names = sql.SQL(", ").join(map(sql.Identifier, values))
    times = [value if name.endswith("_at") else None for name, value in values.items()]
    holes = sql.SQL(", ").join(
        sql.SQL("now() - {}::interval").format(sql.Literal(time))
        if time is not None
        else sql.Literal(value)
        for time, value in zip(times, values.values(), strict=True)
    )
    market.execute("INSERT INTO assetclass.notification ({}) VALUES ({})", names, holes)


def test_messages_are_delivered(market: Market) -> None:
    alerts = AlertSettings(channels=(PAGER,))
    send(market, delivered_at="1 min", attempts=1)
    send(market, due_at="1 min")
    send(market, due_at="-1 h", attempts=2, last_error="busy")
    send(market, dropped_at="1 s", attempts=0)
    health = ask(market, alerts=alerts)
    assert health.is_healthy, health.failing
    message = health.components["notifications"].message
    assert message == "Channels: pager; nothing failed to be delivered."


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"due_at": "20 min"}, "A message on pager waits for 20 min: nobody delivers."),
        (
            {"due_at": "-5 min", "attempts": 3, "last_error": "503"},
            "refused a message 3 times (503)",
        ),
        (
            {"dropped_at": "1 h", "attempts": 10, "last_error": "no such host"},
            "was given up after all tries (no such host)",
        ),
    ],
)
def test_a_channel_that_does_not_deliver(
    market: Market, message: Mapping[str, object], said: str
) -> None:
    alerts = AlertSettings(channels=(PAGER,))
    send(market, delivered_at="2 h", attempts=1)
    send(market, **message)
    name, component = only_failing(ask(market, alerts=alerts))
    assert name == "notifications"
    assert said in component.message
    # A channel that is configured no more concerns nobody; one that works again is well.
    assert ask(market).is_healthy
    market.execute(
        "DELETE FROM assetclass.notification WHERE NOT (due_at > now()) AND attempts = 0"
    )
    market.execute(
        "UPDATE assetclass.notification SET delivered_at = now() WHERE dropped_at IS NULL"
    )
    send(market, delivered_at="0 s", attempts=1)
    assert ask(market, alerts=alerts).is_healthy


def test_a_refused_connection_answers_at_once(market: Market) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.monotonic()
    health = ask_at(make_conninfo(market.dsn, port=port), market.settings)
    assert time.monotonic() - began < PATIENT.timeout
    assert {*health.components} == {*health.failing}
    assert "cannot be reached" in health.components["database"].message
    assert "password" not in str(health).lower()


def test_a_server_that_says_nothing_does_not_hold_the_answer(market: Market) -> None:
    quick = HealthSettings(timeout=0.2)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as silent,
        database_probes(
            make_conninfo(market.dsn, port=silent.getsockname()[1]),
            market.settings.model_copy(update={"health": quick}),
        ) as probes,
    ):
        for _ in range(5):
            began = time.monotonic()
            health = check_health(probes, seconds=PATIENT.timeout)
            assert time.monotonic() - began < PATIENT.timeout
            assert {*health.components} == {*health.failing}
        assert len(_looking()) <= len(probes)
        # Who says nothing when somebody logs in is not waited for, however long that may take.
        _wait_until_nobody_looks()


def _looking() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("probe ")]


def _wait_until_nobody_looks() -> None:
    for thread in _looking():
        thread.join(10)
    assert _looking() == []


def test_connections_that_fall_silent_are_cut(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assetclass_pipeline.monitoring.database_probes._HANGING_AFTER", 1.2)
    quick = HealthSettings(timeout=1)
    with (
        Proxy(lambda: market.dsn) as proxy,
        database_probes(
            proxy.url(), market.settings.model_copy(update={"health": quick})
        ) as probes,
    ):
        _settle(probes)
        for link in proxy.links:
            link.stall()
        health = check_health(probes, seconds=PATIENT.timeout)
        assert "No answer within 1000 ms." in {part.message for part in health.components.values()}
        # The old connections stay silent for ever; new ones get through.
        _settle(probes)
    _wait_until_nobody_looks()


def _settle(probes: object) -> None:
    deadline = time.monotonic() + 60
    while not (health := check_health(probes, seconds=PATIENT.timeout)).is_healthy:  # type: ignore[arg-type]
        assert time.monotonic() < deadline, health.failing
        time.sleep(0.05)


def test_a_server_that_stops_and_comes_back(tmp_path: Path) -> None:
    with Victim(tmp_path / "postgres") as victim, open_market(victim.url()) as market:
        settings = market.settings.model_copy(update={"health": PATIENT})
        with database_probes(victim.url(), settings) as probes:
            assert check_health(probes, seconds=30).is_healthy
            port = conninfo_to_dict(victim.url())["port"]
            victim.stop_fast()
            health = check_health(probes, seconds=30)
            assert {*health.components} == {*health.failing}
            victim.start()
            assert conninfo_to_dict(victim.url())["port"] == port
            health = check_health(probes, seconds=30)
            assert health.is_healthy, health.failing


def test_sessions_ended_by_the_server_are_replaced(market: Market) -> None:
    settings = market.settings.model_copy(update={"health": PATIENT})
    with database_probes(market.dsn, settings) as probes:
        assert check_health(probes, seconds=30).is_healthy
        ours = """SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
                  WHERE application_name = 'assetclass: health' AND datname = current_database()"""
        assert 1 <= market.value(ours) <= 3
        health = check_health(probes, seconds=30)
        assert health.is_healthy, health.failing


def test_a_standby_is_not_well(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "assetclass_pipeline.monitoring.database_probes._row", lambda *_: ("18.1", True)
    )
    assert "is a standby" in ask(market).components["database"].message


def test_a_table_that_is_locked_does_not_hold_the_answer(market: Market) -> None:
    quick = market.settings.model_copy(update={"health": HealthSettings(timeout=0.3)})
    with (
        psycopg.connect(market.dsn) as migration,
        database_probes(market.dsn, quick) as probes,
    ):
        migration.execute("LOCK TABLE assetclass.notification IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        health = check_health(probes, seconds=PATIENT.timeout)
        assert time.monotonic() - began < PATIENT.timeout
        assert "notifications" in health.failing
        migration.rollback()
    _wait_until_nobody_looks()
