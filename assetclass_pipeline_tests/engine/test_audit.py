"""The audit log: what stands in it, that nobody can rewrite it, and that whoever does is seen."""

import csv
import io
import json
import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine import audit
from assetclass_pipeline.engine.audit_export import ExportFormat, write_entries
from assetclass_pipeline.engine.claiming import refuse_while_active
from assetclass_pipeline.engine.control import ask_to_cancel, ask_to_pause, ask_to_resume, tune
from assetclass_pipeline.errors import (
    AuditTamperedError,
    CorrectionFailedError,
    MarketTablesError,
    OperationInProgressError,
    OperationStateError,
)
from assetclass_pipeline.model.audit import Actor, ActorKind, AuditEntry, AuditRecord, Head
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline.model.tuning import Tuning
from assetclass_pipeline.settings import Settings
from assetclass_pipeline_tests.engine.runs import correct_now, keep_alive, plan_now, request_of
from assetclass_pipeline_tests.market import Market

SETTINGS = Settings()
Connection = psycopg.Connection[TupleRow]

every_postgres = pytest.mark.every_postgres


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """A database with our schema: its first entry is that of the upgrade."""
    schema.upgrade(database_url, SETTINGS, by="grace")
    with connect(database_url, SETTINGS, purpose="test") as opened:
        yield opened


def entry(number: int = 0, **values: Any) -> AuditEntry:
    said = AuditEntry(Actor.os_user("ada"), "drop_backup", "done", {"n": number, "why": "é\n\"'"})
    return replace(said, **values)


def add(connection: Connection, entries: int) -> None:
    for number in range(entries):
        with transaction(connection, SETTINGS) as cursor:
            audit.record(cursor, entry(number))


def add_in_vain(connection: Connection) -> int:
    """The number of an entry that is rolled back."""
    with connection.transaction(force_rollback=True), connection.cursor() as cursor:
        return audit.record(cursor, entry())


def entries_of(connection: Connection, **chosen: Any) -> list[AuditRecord]:
    """Oldest first."""
    wanted = audit.AuditFilter(**chosen)
    return audit.newest_entries(connection, SETTINGS, wanted, most=1000)[::-1]


class TestAppending:
    @every_postgres
    def test_an_entry_says_who_did_what_from_where(
        self, connection: Connection, database_url: str
    ) -> None:
        correction_id = str(uuid4())
        with transaction(connection, SETTINGS) as cursor:
            said = entry(1, correction_id=correction_id, correlation_id="c-1", origin="10.0.0.7")
            assert audit.record(cursor, said) == 2
        first, second = entries_of(connection)
        assert (first.actor, first.actor_kind) == ("grace", ActorKind.OS_USER)
        assert (first.action, first.outcome) == ("upgrade_schema", "done")
        assert first.parameters == {"from": None, "to": schema.status(database_url, SETTINGS).head}
        assert (second.number, second.previous_hash) == (2, first.hash)
        assert second.parameters == {"n": 1, "why": "é\n\"'"}
        assert (second.correction_id, second.correlation_id) == (correction_id, "c-1")
        assert (second.origin, first.origin != "") == ("10.0.0.7", True)
        assert audit.verify(connection, SETTINGS).head == Head(2, second.hash)

    def test_what_is_rolled_back_leaves_no_gap(self, connection: Connection) -> None:
        assert add_in_vain(connection) == 2
        add(connection, 1)
        assert [found.number for found in entries_of(connection)] == [1, 2]
        assert audit.verify(connection, SETTINGS).entries == 2

    def test_number_and_hashes_are_not_the_writers_to_choose(self, connection: Connection) -> None:
        connection.execute(
            "INSERT INTO assetclass.audit_log (number, happened_at, actor, actor_kind, action,"
            " origin, parameters, outcome, previous_hash, hash) VALUES (77, 'epoch', 'eve',"
            " 'system', 'x', 'x', '{}', 'x', 'x', 'x')"
        )
        _, forged = entries_of(connection)
        assert (forged.number, forged.happened_at.year > 2000) == (2, True)
        audit.verify(connection, SETTINGS)

    @every_postgres
    def test_eight_writers_at_once_make_one_chain(
        self, connection: Connection, database_url: str
    ) -> None:
        together, failed = threading.Barrier(8), list[Exception]()

        def write() -> None:
            try:
                with connect(database_url, SETTINGS, purpose="test") as own:
                    together.wait()
                    for number in range(25):
                        with transaction(own, SETTINGS) as cursor:
                            audit.record(cursor, entry(number))
                            if number % 5 == 0:
                                own.execute("SELECT pg_sleep(0.01)")
                        add_in_vain(own)
            except Exception as error:  # noqa: BLE001 - shown by the assertion below
                failed.append(error)

        writers = [threading.Thread(target=write) for _ in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert failed == []
        assert [found.number for found in entries_of(connection)] == [*range(1, 202)]
        assert audit.verify(connection, SETTINGS).entries == 201


class TestAppendOnly:
    @every_postgres
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE assetclass.audit_log SET actor = 'eve'",
            "UPDATE assetclass.audit_log SET actor = 'eve' WHERE false",
            "DELETE FROM assetclass.audit_log",
            "TRUNCATE assetclass.audit_log",
            "SET session_replication_role = replica; DELETE FROM assetclass.audit_log",
        ],
    )
    def test_entries_stay_as_they_are(
        self, connection: Connection, statement: LiteralString
    ) -> None:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is append-only") as refused:
            connection.execute(statement)
        assert "an entry of its own" in str(refused.value.diag.message_hint)
        assert len(entries_of(connection)) == 1

    def test_forgetting_all_operations_forgets_no_entry(self, connection: Connection) -> None:
        connection.execute("TRUNCATE assetclass.operation CASCADE")
        assert len(entries_of(connection)) == 1

    @every_postgres
    def test_an_auditor_needs_to_read_and_cannot_write(
        self, connection: Connection, database_url: str
    ) -> None:
        add(connection, 3)
        name = f"auditor {connection.info.dbname}"
        role = sql.Identifier(name)
        connection.execute(
            sql.SQL(
                "CREATE ROLE {0} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA assetclass TO {0};"
                "GRANT SELECT ON assetclass.audit_log, assetclass.alembic_version TO {0}"
            ).format(role)
        )
        try:
            dsn = make_conninfo(database_url, user=name, password="x")
            with connect(dsn, SETTINGS, purpose="test") as auditor:
                schema.require_schema(auditor)
                assert audit.verify(auditor, SETTINGS).entries == 4
                assert len(entries_of(auditor)) == 4
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
                    add(auditor, 1)
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="must be owner"):
                    auditor.execute("ALTER TABLE assetclass.audit_log DISABLE TRIGGER refuse")
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))

    @every_postgres
    def test_who_corrects_need_not_own_the_log(self, market: Market) -> None:
        name = f"corrector {market.connection.info.dbname}"
        role = sql.Identifier(name)
        market.execute(
            "CREATE ROLE {0} LOGIN PASSWORD 'x'; GRANT USAGE, CREATE ON SCHEMA public TO {0};"
            "GRANT SELECT ON symbols, market_data TO {0};"
            "GRANT UPDATE (asset_class, updated_at) ON market_data TO {0};"
            "GRANT USAGE, CREATE ON SCHEMA assetclass TO {0};"
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA assetclass TO {0};"
            "REVOKE UPDATE, DELETE ON assetclass.audit_log FROM {0}",
            role,
        )
        market.fill(20)
        try:
            dsn = make_conninfo(market.dsn, user=name, password="x")
            done = correct_now(replace(market, dsn=dsn))
            assert done.status is Status.SUCCEEDED
            with connect(dsn, SETTINGS, purpose="test") as corrector:
                assert audit.verify(corrector, SETTINGS).entries == 3
                for statement in FORBIDDEN:
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        corrector.execute(statement)
        finally:
            market.execute("DROP OWNED BY {0}; DROP ROLE {0}", role)


FORBIDDEN: tuple[LiteralString, ...] = (
    "UPDATE assetclass.audit_log SET actor = 'eve'",
    "ALTER TABLE assetclass.audit_log DISABLE TRIGGER refuse",
    (
        "CREATE OR REPLACE FUNCTION assetclass.audit_refuse() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NULL; END'"
    ),
    "SET session_replication_role = replica",
)

# What the owner of the schema can do to entries 1 to 6, and what is said of it.
TAMPERING: dict[str, tuple[LiteralString, str]] = {
    "changed": (
        "UPDATE assetclass.audit_log SET actor = 'bob' WHERE number = 3",
        "entry 3 was changed",
    ),
    "parameters changed": (
        "UPDATE assetclass.audit_log SET parameters = parameters || '{\"n\": 9}' WHERE number = 6",
        "entry 6 was changed",
    ),
    "time changed by a microsecond": (
        (
            "UPDATE assetclass.audit_log SET happened_at = happened_at + interval '1 microsecond'"
            " WHERE number = 2"
        ),
        "entry 2 was changed",
    ),
    "hash changed": (
        "UPDATE assetclass.audit_log SET hash = repeat('a', 64) WHERE number = 4",
        "entry 4 was changed",
    ),
    "changed, its hash too": (
        (
            "UPDATE assetclass.audit_log SET outcome = 'x', hash = encode(sha256(convert_to("
            "previous_hash || E'\\n' || jsonb_build_array(number, to_char(happened_at AT TIME ZONE"
            " 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), actor, actor_kind, action, origin,"
            " parameters, 'x', correction_id, correlation_id)::text, 'UTF8')), 'hex')"
            " WHERE number = 3"
        ),
        "entry 4 does not follow entry 3",
    ),
    "removed": ("DELETE FROM assetclass.audit_log WHERE number = 3", "entry 3 was removed"),
    "first removed": ("DELETE FROM assetclass.audit_log WHERE number = 1", "entry 1 was removed"),
    "removed and renumbered": (
        (
            "DELETE FROM assetclass.audit_log WHERE number = 3;"
            "UPDATE assetclass.audit_log SET number = number - 1 WHERE number = 4;"
            "UPDATE assetclass.audit_log SET number = number - 1 WHERE number = 5;"
            "UPDATE assetclass.audit_log SET number = number - 1 WHERE number = 6"
        ),
        "entry 3 does not follow entry 2",
    ),
    "exchanged": (
        (
            "UPDATE assetclass.audit_log SET number = 99 WHERE number = 3;"
            "UPDATE assetclass.audit_log SET number = 3 WHERE number = 4;"
            "UPDATE assetclass.audit_log SET number = 4 WHERE number = 99"
        ),
        "entry 3 does not follow entry 2",
    ),
    "inserted": (
        (
            "UPDATE assetclass.audit_log SET number = 7 WHERE number = 6;"
            "INSERT INTO assetclass.audit_log SELECT 6, now(), 'eve', 'system', 'x', 'x', '{}',"
            " 'x', NULL, NULL, repeat('b', 64), repeat('c', 64)"
        ),
        "entry 6 does not follow entry 5",
    ),
    "copied": (
        (
            "ALTER TABLE assetclass.audit_log DROP CONSTRAINT audit_log_pkey;"
            "INSERT INTO assetclass.audit_log SELECT * FROM assetclass.audit_log WHERE number = 4"
        ),
        "entry 4 does not follow entry 3",
    ),
    "appended": (
        (
            "INSERT INTO assetclass.audit_log SELECT 7, now(), 'eve', 'system', 'x', 'x', '{}',"
            " 'x', NULL, NULL, hash, repeat('c', 64) FROM assetclass.audit_log WHERE number = 6"
        ),
        "entry 7 was changed",
    ),
}


class TestTampering:
    def tamper(self, connection: Connection, statements: LiteralString) -> None:
        """As the owner of the table, who can switch its triggers off."""
        connection.execute("ALTER TABLE assetclass.audit_log DISABLE TRIGGER ALL")
        connection.execute(statements)
        connection.execute("ALTER TABLE assetclass.audit_log ENABLE TRIGGER ALL")

    @pytest.mark.parametrize("kind", TAMPERING)
    def test_each_kind_is_found_and_named(self, connection: Connection, kind: str) -> None:
        add(connection, 5)
        assert audit.verify(connection, SETTINGS).entries == 6
        statements, says = TAMPERING[kind]
        self.tamper(connection, statements)
        with pytest.raises(AuditTamperedError, match=says):
            audit.verify(connection, SETTINGS)
        # What comes later does not heal it.
        add(connection, 1)
        with pytest.raises(AuditTamperedError, match=says):
            audit.verify(connection, SETTINGS)

    @every_postgres
    def test_a_tail_that_was_cut_off_shows_against_a_noted_head(
        self, connection: Connection
    ) -> None:
        add(connection, 5)
        noted = audit.verify(connection, SETTINGS).head
        assert noted is not None
        self.tamper(connection, "DELETE FROM assetclass.audit_log WHERE number > 4")
        assert audit.verify(connection, SETTINGS).entries == 4
        with pytest.raises(AuditTamperedError, match="entry 5 and all after it are gone"):
            audit.verify(connection, SETTINGS, noted)
        add(connection, 2)
        assert audit.verify(connection, SETTINGS).entries == 6
        with pytest.raises(AuditTamperedError, match="entry 6 is not the one whose hash was noted"):
            audit.verify(connection, SETTINGS, noted)

    def test_an_older_head_still_holds(self, connection: Connection) -> None:
        add(connection, 2)
        noted = audit.verify(connection, SETTINGS).head
        add(connection, 2)
        assert audit.verify(connection, SETTINGS, noted).entries == 5

    def test_an_empty_log_against_a_noted_head(self, connection: Connection) -> None:
        noted = audit.verify(connection, SETTINGS).head
        self.tamper(connection, "DELETE FROM assetclass.audit_log")
        assert audit.verify(connection, SETTINGS).head is None
        with pytest.raises(AuditTamperedError, match="entry 1 and all after it"):
            audit.verify(connection, SETTINGS, noted)


def told(connection: Connection) -> list[tuple[str, str, str]]:
    return [(found.actor, found.action, found.outcome) for found in entries_of(connection)[1:]]


class TestWhatIsRecorded:
    @pytest.fixture
    def connection(self, market: Market) -> Iterator[Connection]:
        with connect(market.dsn, market.settings, purpose="test") as opened:
            yield opened

    def test_a_correction_from_claim_to_end(self, market: Market, connection: Connection) -> None:
        request = replace(
            request_of(target_symbols=["S1", "S2"]),
            requested_by="schedule nightly_correction",
            reason="nightly",
            ticket="OPS-1",
            run_id="run-1",
        )
        done = correct_now(market.fill(100), request)
        begun, ended = entries_of(connection)[1:]
        assert (begun.actor, begun.actor_kind) == ("nightly_correction", ActorKind.SCHEDULE)
        assert (begun.action, begun.outcome) == ("claim_operation", "begun")
        assert begun.correction_id == ended.correction_id == done.correction_id
        assert begun.correlation_id == "run-1"
        said = begun.parameters
        assert said["options"]["targetSymbols"] == ["S1", "S2"]
        assert {name: said[name] for name in ("kind", "reason", "ticket", "runId", "epoch")} == {
            "kind": "correction",
            "reason": "nightly",
            "ticket": "OPS-1",
            "runId": "run-1",
            "epoch": 1,
        }
        assert (ended.action, ended.outcome) == ("end_operation", "succeeded")
        sums = ("recordsPlanned", "recordsCorrected", "recordsSkipped", "recordsFailed")
        assert [ended.parameters[name] for name in sums] == [10, 10, 0, 0]
        assert ended.parameters["backupTable"] == done.backup_table
        audit.verify(connection, market.settings)

    def test_parked_then_resumed_by_somebody_else(
        self, market: Market, connection: Connection
    ) -> None:
        request = request_of()
        plan_now(market.fill(10), request)
        correct_now(market, replace(request, requested_by="ben"))
        assert told(connection) == [
            ("test", "claim_operation", "begun"),
            ("test", "end_operation", "planned"),
            ("ben", "claim_operation", "resumed"),
            ("ben", "end_operation", "succeeded"),
        ]

    def test_a_failure_with_what_was_skipped_and_refused(
        self, market: Market, connection: Connection
    ) -> None:
        market.fill(40)
        market.execute("ALTER TABLE market_data ADD CHECK (asset_class <> 'CLASS_1')")
        with pytest.raises(CorrectionFailedError):
            correct_now(market)
        ended = entries_of(connection)[-1]
        assert (ended.action, ended.outcome) == ("end_operation", "failed")
        assert ended.parameters["recordsFailed"] > 0
        assert ended.parameters["error"]["code"] == "ERROR_RATE_EXCEEDED"

    def test_refusals_name_what_stood_in_the_way(
        self, market: Market, connection: Connection
    ) -> None:
        active = request_of()
        plan_now(market.fill(10), active, park=False)
        market.execute(
            "UPDATE assetclass.operation_heartbeat SET holder = 'elsewhere:1', "
            "beat_at = now() + interval '1 hour'"
        )
        refused = replace(request_of(), requested_by="token ci", reason="deploy")
        with pytest.raises(OperationInProgressError):
            correct_now(market, refused)
        found = entries_of(connection)[-1]
        assert (found.actor, found.actor_kind) == ("ci", ActorKind.TOKEN)
        assert (found.action, found.outcome) == ("claim_operation", "OPERATION_IN_PROGRESS")
        assert found.correction_id == refused.correction_id
        assert found.parameters["otherOperation"] == active.correction_id
        assert found.parameters["reason"] == "deploy"
        market.execute("DROP TABLE market_data")
        with pytest.raises(MarketTablesError):
            correct_now(market)
        assert entries_of(connection)[-1].outcome == "MARKET_TABLES_UNUSABLE"

    def test_one_whose_process_died_ends_by_itself(
        self, market: Market, connection: Connection
    ) -> None:
        dead = request_of()
        plan_now(market.fill(10), dead, park=False)
        market.execute(
            "UPDATE assetclass.operation_heartbeat SET beat_at = now() - interval '1 hour';"
            "UPDATE assetclass.operation_heartbeat SET holder = 'elsewhere:1'"
        )
        deadline = time.monotonic() + 30
        while (ended := told(connection)[1:]) == []:
            # The server of the tests may be younger than the silence that counts.
            assert time.monotonic() < deadline
            with suppress(OperationInProgressError):
                refuse_while_active(connection, market.settings)
            time.sleep(0.1)
        assert ended == [("assetclass", "end_operation", "interrupted")]

    def test_wishes_are_recorded_with_who_and_what(
        self, market: Market, connection: Connection
    ) -> None:
        request = request_of()
        plan_now(market.fill(10), request, park=False)
        keep_alive(market)
        named = request.correction_id
        before = len(entries_of(connection))
        ask_to_pause(connection, market.settings, named, by="anna")
        ask_to_resume(connection, market.settings, named, by="ben")
        tune(connection, market.settings, named, Tuning(workers=3), by="anna")
        ask_to_cancel(connection, market.settings, named, by="ben")
        asked = entries_of(connection)[before:]
        assert [(found.actor, found.action) for found in asked] == [
            ("anna", "pause_operation"),
            ("ben", "resume_operation"),
            ("anna", "tune_operation"),
            ("ben", "cancel_operation"),
        ]
        assert asked[2].parameters == {"workers": 3}
        with pytest.raises(OperationStateError):
            ask_to_resume(connection, market.settings, named, by="ben")
        assert len(entries_of(connection)) == before + 4

    def test_a_requested_one_is_cancelled_at_once(
        self, market: Market, connection: Connection
    ) -> None:
        named = str(uuid4())
        market.execute(
            "INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run,"
            " options, requested_by) VALUES (%s, 'correction', 'requested', 'starting', false,"
            " '{{}}', 'test')",
            values=(named,),
        )
        asked = ask_to_cancel(connection, market.settings, named, by="ben")
        assert asked.status is Status.CANCELLED
        assert told(connection) == [
            ("ben", "cancel_operation", "asked"),
            ("ben", "end_operation", "cancelled"),
        ]

    def test_upgrading_again_does_nothing_and_says_nothing(
        self, market: Market, connection: Connection
    ) -> None:
        schema.upgrade(market.dsn, market.settings, by="grace")
        assert told(connection) == []


class TestReading:
    def test_entries_are_chosen_by_time_actor_action_and_operation(
        self, connection: Connection
    ) -> None:
        add(connection, 3)
        named = str(uuid4())
        with transaction(connection, SETTINGS) as cursor:
            said = entry(actor=Actor.sensor("x"), action="hold_backup", correction_id=named)
            audit.record(cursor, said)
        numbers = [found.happened_at for found in entries_of(connection)]
        assert [e.number for e in entries_of(connection, since=numbers[3])] == [4, 5]
        assert [e.number for e in entries_of(connection, until=numbers[3])] == [1, 2, 3]
        assert [e.number for e in entries_of(connection, actor="ada")] == [2, 3, 4]
        assert [e.number for e in entries_of(connection, action="hold_backup")] == [5]
        assert [e.number for e in entries_of(connection, operation=named)] == [5]
        newest = audit.newest_entries(connection, SETTINGS, audit.AuditFilter(), most=2)
        assert [e.number for e in newest] == [5, 4]


class TestExport:
    @pytest.mark.parametrize("form", ExportFormat)
    def test_rows_come_back_as_they_stand(self, connection: Connection, form: ExportFormat) -> None:
        add(connection, 3)
        with transaction(connection, SETTINGS) as cursor:
            odd = {"text": 'a;"b",\r\n=1+1', "none": None, "deep": [{"x": 1.5}]}
            audit.record(cursor, entry(actor=Actor.os_user("Zoë, x"), parameters=odd))
        out = io.StringIO(newline="")
        with audit.all_entries(connection, SETTINGS, audit.AuditFilter()) as found:
            assert write_entries(found, form, out) == 5
        rows = _parsed(out.getvalue(), form)
        assert [AuditRecord.model_validate(row) for row in rows] == entries_of(connection)

    @pytest.mark.parametrize("form", ExportFormat)
    def test_no_entry_is_a_document_too(self, connection: Connection, form: ExportFormat) -> None:
        out = io.StringIO(newline="")
        nobody = audit.AuditFilter(actor="nobody")
        with audit.all_entries(connection, SETTINGS, nobody) as found:
            assert write_entries(found, form, out) == 0
        assert _parsed(out.getvalue(), form) == []

    def test_all_rows_of_a_long_log_with_few_in_memory(self, connection: Connection) -> None:
        with transaction(connection, SETTINGS) as cursor:
            cursor.execute(
                "INSERT INTO assetclass.audit_log (actor, actor_kind, action, origin, parameters,"
                " outcome) SELECT 'ada', 'os_user', 'x', 'x', jsonb_build_object('n', n,"
                " 'filling', repeat('x', 1000)), 'x' FROM generate_series(1, 20000) n"
            )
        tracemalloc.start()
        try:
            with (
                audit.all_entries(connection, SETTINGS, audit.AuditFilter()) as found,
                Path(os.devnull).open("w", encoding="utf-8") as out,
            ):
                assert write_entries(found, ExportFormat.JSON, out) == 20_001
            assert audit.verify(connection, SETTINGS).entries == 20_001
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # All rows at once are more than 20 MB.
        assert peak < 10_000_000


def _parsed(text: str, form: ExportFormat) -> list[dict[str, Any]]:
    if form is ExportFormat.JSON:
        rows: list[dict[str, Any]] = json.loads(text)
        return rows
    return [
        {name: value or None for name, value in row.items()}
        | {"parameters": json.loads(row["parameters"])}
        for row in csv.DictReader(io.StringIO(text, newline=""))
    ]
