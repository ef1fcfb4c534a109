"""The history of one row: who changed it, when, why, and the way back."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import sql

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine import row_history as row_history_module
from assetclass_pipeline.engine.archive import (
    ArchivedRow,
    Source,
    find_rows,
    register_archive,
    write_archive,
)
from assetclass_pipeline.engine.correction import correct
from assetclass_pipeline.engine.row_history import (
    RECORDS_THAT_PAY,
    FindArchived,
    index_when_it_pays,
    row_history,
)
from assetclass_pipeline.errors import (
    AlreadyRolledBackError,
    InvalidOptionsError,
    RowNotFoundError,
)
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.model.row_history import RowHistory, RowTrail
from assetclass_pipeline_tests.conftest import fresh_database
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import correct_now, plan_now, request_of, undo_now
from assetclass_pipeline_tests.market import Bar, Market, open_market

every_postgres = pytest.mark.every_postgres


@pytest.fixture(scope="module")
def database_of_all(postgres_server: EmbeddedServer) -> Iterator[str]:
    with fresh_database(postgres_server, with_schema=True) as url:
        yield url


@pytest.fixture
def market(database_of_all: str) -> Iterator[Market]:
    """Tables of its own for each test, in one database, which takes longest to make."""
    with open_market(database_of_all) as made:
        yield made


def history_of(
    market: Market, key: object, *, find_archived: FindArchived | None = None, **narrowed: str
) -> RowHistory:
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return row_history(
            connection, market.settings, str(key), find_archived=find_archived, **narrowed
        )


def trail_of(market: Market, key: object, **narrowed: Any) -> RowTrail:
    (found,) = history_of(market, key, **narrowed).rows
    return found


def stocks(market: Market, *ids: object) -> Market:
    """Rows of AAPL without a class, which should be STOCK."""
    market.list_symbols(("AAPL", "STOCK"))
    return market.add(Bar(key, "AAPL") for key in ids)


def outcomes(trail: RowTrail) -> list[tuple[str, str, str | None, str | None]]:
    return [(e.kind, e.outcome, e.from_, e.to) for e in trail.events]


def roll_back(market: Market, undone: Operation, *, conflicts: Iterable[int] = ()) -> str:
    """What a rollback leaves behind, with the rows that it found changed in conflict."""
    rollback_id = str(uuid4())
    table = f"rollback_{undone.correction_id}"
    names = {"backup": sql.Identifier(str(undone.backup_table))}
    undo = sql.Identifier("assetclass", table)
    listed = [*conflicts]
    market.execute(
        "INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run, options,"
        " requested_by, reason, records_planned, rollback_of, started_at, finished_at, plan)"
        " VALUES (%s, 'rollback', 'succeeded', 'done', false, '{{}}', 'ben', 'wrong', 1, %s,"
        " clock_timestamp(), clock_timestamp(), %s)",
        values=(
            rollback_id,
            undone.correction_id,
            f'{{"schema_name": "assetclass", "table_name": "{table}"}}',
        ),
    )
    market.connection.execute(
        sql.SQL(
            "CREATE TABLE {undo} AS SELECT row_number() OVER () AS seq, id, symbol, timestamp,"
            " corrected_asset_class AS asset_class, asset_class AS corrected_asset_class,"
            " seq AS undone_seq FROM {backup} WHERE NOT seq = ANY (%s)"
        ).format(undo=undo, **names),
        (listed,),
    )
    market.execute(
        "UPDATE market_data m SET asset_class = u.corrected_asset_class FROM {} u"
        " WHERE m.id = u.id",
        undo,
    )
    market.execute(
        "INSERT INTO assetclass.operation_batch (correction_id, first_seq, last_seq, epoch, worker,"
        " records_corrected, records_skipped, duration_ms)"
        " SELECT %s, 1, greatest(max(seq), 1), 1, 1, count(*), 0, 1 FROM {}",
        undo,
        values=(rollback_id,),
    )
    market.execute(
        "INSERT INTO assetclass.operation_undone SELECT %s, %s, range_agg(int8range(undone_seq,"
        " undone_seq, '[]')) FROM {} HAVING count(*) > 0",
        undo,
        values=(undone.correction_id, rollback_id),
    )
    market.connection.execute(
        sql.SQL(
            "INSERT INTO assetclass.operation_conflict SELECT %s, b.seq, b.id::text, b.symbol,"
            " b.timestamp::text, b.asset_class, b.corrected_asset_class, m.asset_class,"
            " 'changed_by_others' FROM {backup} b LEFT JOIN market_data m USING (id)"
            " WHERE b.seq = ANY (%s)"
        ).format(**names),
        (rollback_id, listed),
    )
    return rollback_id


class TestWhatHappened:
    def test_what_a_dry_run_of_a_rollback_met_did_not_happen(self, market: Market) -> None:
        done = correct_now(stocks(market, 1, 2))
        market.execute("UPDATE market_data SET asset_class = 'BOND' WHERE id = 1")
        assert undo_now(market, done, dry_run=True).records_conflicting == 1
        assert outcomes(trail_of(market, 1)) == [("correction", "changed", None, "STOCK")]
        rollback = undo_now(market, done)
        assert [event.correction_id for event in trail_of(market, 1).events] == [
            done.correction_id,
            rollback.correction_id,
        ]

    @every_postgres
    def test_who_when_from_what_to_what_and_why(self, market: Market) -> None:
        began = datetime.now(UTC) - timedelta(seconds=1)
        request = replace(request_of(), reason="nightly", ticket="OPS-1", run_id="run-1")
        done = correct_now(stocks(market, 1, 2, 3), request)
        trail = trail_of(market, 2)
        (event,) = trail.events
        assert outcomes(trail) == [("correction", "changed", None, "STOCK")]
        assert event.correction_id == done.correction_id
        assert (event.requested_by, event.reason, event.ticket) == ("test", "nightly", "OPS-1")
        assert (event.run_id, event.status) == ("run-1", "succeeded")
        assert event.table == f"public.{done.backup_table}"
        committed = market.value("SELECT committed_at FROM assetclass.operation_batch")
        assert event.happened_at == committed > began
        assert event.not_after is None
        assert (trail.symbol, trail.exists) == ("AAPL", True)
        assert trail.now is not None
        assert trail.now.asset_class == "STOCK"
        assert trail.now.updated_at
        assert trail.changed_by_others_since is False

    def test_the_wire_form_is_camel_case(self, market: Market) -> None:
        correct_now(stocks(market, 1))
        shown = history_of(market, 1).model_dump(mode="json", by_alias=True)
        (row,) = shown["rows"]
        assert (row["events"][0]["from"], row["events"][0]["to"]) == (None, "STOCK")
        assert row["events"][0]["happenedAt"].endswith("Z")
        assert row["wayBack"]["possible"] is True
        assert (shown["operationsWithoutRows"], shown["archivesNotRead"]) == (0, 0)

    def test_nights_in_their_order_and_what_others_did_in_between(self, market: Market) -> None:
        correct_now(stocks(market, 1, 2))
        market.execute("UPDATE market_data SET asset_class = '' WHERE id = 1")
        correct_now(market)
        trail = trail_of(market, 1)
        assert outcomes(trail) == [
            ("correction", "changed", None, "STOCK"),
            ("correction", "changed", "", "STOCK"),
        ]
        assert [event.changed_by_others_before for event in trail.events] == [False, True]
        assert len(trail_of(market, 2).events) == 1

    def test_a_row_that_nobody_touched_has_no_events(self, market: Market) -> None:
        stocks(market, 1).add([Bar(2, "AAPL", asset_class="STOCK")])
        correct_now(market)
        trail = trail_of(market, 2)
        assert (trail.events, trail.changed_by_others_since) == ([], None)
        assert not trail.way_back.possible

    def test_dry_runs_touch_nothing(self, market: Market) -> None:
        correct_now(stocks(market, 1), dry_run=True)
        found = history_of(market, 1)
        assert (found.rows[0].events, found.operations_without_rows) == ([], 0)

    def test_a_plan_that_waits(self, market: Market) -> None:
        plan_now(stocks(market, 1), request_of())
        (event,) = trail_of(market, 1).events
        assert (event.outcome, event.happened_at) == ("pending", None)
        assert event.why == "planned, and the operation is planned"

    def test_skipped_because_somebody_was_quicker(self, market: Market) -> None:
        request = request_of()
        plan_now(stocks(market, 1, 2), request)
        market.execute("UPDATE market_data SET asset_class = 'BOND' WHERE id = 1")
        correct_now(market, request)
        trail = trail_of(market, 1)
        assert outcomes(trail) == [("correction", "skipped", None, "STOCK")]
        assert trail.events[0].why == "changed_by_others"
        assert trail_of(market, 2).events[0].outcome == "changed"

    @every_postgres
    def test_quarantined_with_what_the_database_said(self, market: Market) -> None:
        stocks(market, *range(1, 101))
        market.execute(
            "ALTER TABLE market_data ADD CONSTRAINT odd CHECK (id <> 7 OR asset_class IS NULL)"
        )
        correct_now(market)
        (event,) = trail_of(market, 7).events
        assert event.outcome == "quarantined"
        assert "odd" in str(event.why)
        (table,) = market.backup_tables()
        market.execute("DROP TABLE {}", sql.Identifier(table))
        # Its own list tells even without the plan.
        (event,) = trail_of(market, 7).events
        assert (event.outcome, event.to, event.source) == ("quarantined", "STOCK", "ledger")

    def test_a_row_that_a_sweep_wrote_says_until_when(self, market: Market) -> None:
        request = request_of(batch_size=10, workers=1)
        plan_now(stocks(market, *range(1, 11)), request)
        # It moves: an update of another column.
        market.execute("UPDATE market_data SET close = 2 WHERE id = 4")
        correct_now(market, request)
        (event,) = trail_of(market, 4).events
        assert event.outcome == "changed"
        assert event.happened_at is not None
        assert event.not_after is not None
        assert event.not_after >= event.happened_at


class TestUndone:
    @every_postgres
    def test_by_which_rollback_and_when(self, market: Market) -> None:
        done = correct_now(stocks(market, 1, 2))
        rollback_id = roll_back(market, done)
        trail = trail_of(market, 1)
        assert outcomes(trail) == [
            ("correction", "changed", None, "STOCK"),
            ("rollback", "changed", "STOCK", None),
        ]
        corrected, undone = trail.events
        assert (corrected.undone_by, undone.rollback_of) == (rollback_id, done.correction_id)
        assert corrected.undone_at is not None
        assert [event.changed_by_others_before for event in trail.events] == [False, False]
        assert (undone.requested_by, undone.reason) == ("ben", "wrong")
        assert trail.changed_by_others_since is False
        assert (trail.way_back.possible, rollback_id in trail.way_back.why) == (False, True)

    def test_corrected_again_after_it(self, market: Market) -> None:
        roll_back(market, correct_now(stocks(market, 1)))
        again = correct_now(market)
        trail = trail_of(market, 1)
        assert [event.changed_by_others_before for event in trail.events] == [False] * 3
        assert again.correction_id in str(trail.way_back.command)

    def test_restored_by_hand_before_it(self, market: Market) -> None:
        """The rollback counted the row as restored and wrote nothing."""
        done = correct_now(stocks(market, 1))
        rollback_id = roll_back(market, done)
        market.execute(
            "DROP TABLE {}", sql.Identifier("assetclass", f"rollback_{done.correction_id}")
        )
        trail = trail_of(market, 1)
        assert outcomes(trail) == [("correction", "changed", None, "STOCK")]
        assert trail.events[0].undone_by == rollback_id
        assert trail.changed_by_others_since is False

    def test_in_conflict_and_what_it_held_then(self, market: Market) -> None:
        done = correct_now(stocks(market, 1, 2))
        market.execute("UPDATE market_data SET asset_class = 'BOND' WHERE id = 1")
        roll_back(market, done, conflicts=[1])
        trail = trail_of(market, 1)
        assert outcomes(trail) == [
            ("correction", "changed", None, "STOCK"),
            ("rollback", "conflict", "BOND", None),
        ]
        assert trail.events[1].why == "changed_by_others"
        assert trail.changed_by_others_since is True


class TestTheWayBack:
    def test_one_command_for_this_row(self, market: Market) -> None:
        done = correct_now(stocks(market, 1))
        back = trail_of(market, 1).way_back
        assert (back.possible, back.asset_class) == (True, None)
        assert back.command == (
            f"assetclass rollback {done.correction_id} --reason TEXT --row-id 1"
        )

    def test_over_somebody_elses_value_only_when_told_to(self, market: Market) -> None:
        correct_now(stocks(market, 1))
        market.execute("UPDATE market_data SET asset_class = 'BOND'")
        trail = trail_of(market, 1)
        assert trail.changed_by_others_since is True
        assert str(trail.way_back.command).endswith("--take-backup-value")

    def test_a_conflict_that_holds_our_class_again_wants_its_consent(self, market: Market) -> None:
        done = correct_now(stocks(market, 1))
        market.execute("UPDATE market_data SET asset_class = 'BOND'")
        assert undo_now(market, done).records_conflicting == 1
        market.execute("UPDATE market_data SET asset_class = 'STOCK'")
        command = str(trail_of(market, 1).way_back.command)
        assert command.endswith("--row-id 1 --take-backup-value")
        with pytest.raises(AlreadyRolledBackError):
            undo_now(market, done, row_ids=["1"])
        assert undo_now(market, done, row_ids=["1"], take_backup_value=True).records_restored == 1

    def test_none_for_a_deleted_row(self, market: Market) -> None:
        correct_now(stocks(market, 1))
        market.execute("DELETE FROM market_data")
        trail = trail_of(market, 1)
        assert (trail.exists, trail.now, trail.changed_by_others_since) == (False, None, True)
        assert (trail.way_back.possible, trail.way_back.why) == (False, "the row was deleted")

    def test_none_where_it_holds_its_old_value(self, market: Market) -> None:
        correct_now(stocks(market, 1))
        market.execute("UPDATE market_data SET asset_class = NULL")
        assert trail_of(market, 1).way_back.why == "it holds its old value again"


class TestWithoutTables:
    def test_dropped_by_hand_is_said(self, market: Market) -> None:
        done = correct_now(stocks(market, 1))
        market.execute("DROP TABLE {}", sql.Identifier(str(done.backup_table)))
        found = history_of(market, 1)
        (trail,) = found.rows
        assert (trail.events, found.operations_without_rows) == ([], 1)
        (gone,) = found.gone
        assert (gone.correction_id, gone.records) == (done.correction_id, 1)
        assert gone.why == "its table was dropped by hand"

    def test_a_correction_without_backup_is_known_from_its_archive(self, market: Market) -> None:
        correct_now(stocks(market, 1), create_backup=False)
        trail = trail_of(market, 1)
        assert outcomes(trail) == [("correction", "changed", None, "STOCK")]
        assert (trail.events[0].source, trail.way_back.possible) == ("archive", False)

    def test_of_other_symbols_only_the_number_is_told(self, market: Market) -> None:
        market.list_symbols(("MSFT", "STOCK")).add([Bar(9, "MSFT", asset_class="STOCK")])
        done = correct_now(stocks(market, 1))
        market.execute("DROP TABLE {}", sql.Identifier(str(done.backup_table)))
        found = history_of(market, 9)
        assert (found.operations_without_rows, found.gone) == (1, [])

    @every_postgres
    def test_an_archive_tells_what_a_dropped_table_told(self, market: Market) -> None:
        done = correct_now(stocks(market, 1, 2))
        archived(market, done)
        trail = trail_of(market, 2)
        assert outcomes(trail) == [("correction", "changed", None, "STOCK")]
        assert (trail.events[0].source, trail.events[0].table) == ("archive", None)
        assert trail.events[0].happened_at is not None
        assert not trail.way_back.possible
        assert done.correction_id in trail.way_back.why

    def test_archives_without_the_symbol_are_not_opened(self, market: Market) -> None:
        market.list_symbols(("MSFT", "STOCK")).add([Bar(9, "MSFT", asset_class="STOCK")])
        archived(market, correct_now(stocks(market, 1)))
        found, asked = asked_of(market, 9)
        assert (found.archives_not_read, asked) == (0, [])

    def test_the_newest_archives_are_read_and_the_rest_is_counted(
        self, market: Market, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archived(market, correct_now(stocks(market, 1)))
        market.execute("UPDATE market_data SET asset_class = NULL")
        newer = correct_now(market)
        archived(market, newer)
        monkeypatch.setattr(row_history_module, "_MOST_ARCHIVES", 1)
        found, asked = asked_of(market, 1)
        assert (len(found.rows[0].events), found.archives_not_read) == (1, 1)
        assert asked == [newer.correction_id]

    def test_an_archive_that_cannot_be_read_is_counted(self, market: Market) -> None:
        archived(market, correct_now(stocks(market, 1))).unlink()
        assert history_of(market, 1).archives_not_read == 1


def archived(market: Market, done: Operation) -> Path:
    """Its table is dropped as a clean-up does it; the file that keeps its rows."""
    settings, key = market.settings, UUID(done.correction_id)
    source = Source(key, done.kind, market.schema, str(done.backup_table))
    with connect(market.dsn, settings, purpose="test") as connection:
        file = write_archive(connection, settings, source)
        with transaction(connection, settings) as cursor:
            cursor.execute(query("plan", "drop_table", backup=source.identifier))
            cursor.execute(
                query("backups", "note_dropped"),
                {"correction_id": key, "by": "test", "reason": "expired"},
            )
            register_archive(cursor, settings, key, file)
    return settings.archive / file.file_name


def asked_of(market: Market, key: object) -> tuple[RowHistory, list[str]]:
    """The history, and the operations whose archives were opened for it."""
    asked: list[str] = []
    with connect(market.dsn, market.settings, purpose="archive of test") as connection:

        def find(correction_id: str, row_id: str) -> list[ArchivedRow]:
            asked.append(correction_id)
            return find_rows(market.settings, connection, correction_id, row_id)

        return history_of(market, key, find_archived=find), asked


class TestKeys:
    @pytest.mark.parametrize(
        ("id_type", "key"),
        [
            ("uuid", "6F9619FF-8B86-4D11-B42D-00C04FC964FF"),
            ("text", "100 %(id)s {x} '\""),
            ("varchar(12)", "a-b"),
            ("numeric(8,2)", "12.50"),
        ],
    )
    def test_every_type(self, make_market: MakeMarket, id_type: str, key: str) -> None:
        market = make_market(id_type=id_type)
        correct_now(stocks(market, key))
        trail = trail_of(market, key)
        assert outcomes(trail) == [("correction", "changed", None, "STOCK")]
        assert trail.changed_by_others_since is False

    @every_postgres
    def test_several_rows_with_one_id_are_told_apart(self, make_market: MakeMarket) -> None:
        market = make_market(key='PRIMARY KEY (id, symbol, "timestamp")', partitioning="range")
        market.list_symbols(("AAPL", "STOCK"), ("BTC", "CRYPTO"))
        market.add(
            [
                Bar(1, "AAPL", "2024-03-01 00:00:00+00"),
                Bar(1, "BTC", "2024-03-01 00:00:00+00"),
                Bar(1, "BTC", "2023-03-01 00:00:00+00"),
            ]
        )
        correct_now(market)
        found = history_of(market, 1)
        assert sorted((row.symbol or "", len(row.events)) for row in found.rows) == [
            ("AAPL", 1),
            ("BTC", 1),
            ("BTC", 1),
        ]
        assert {row.changed_by_others_since for row in found.rows} == {False}
        assert len(history_of(market, 1, symbol="BTC").rows) == 2
        trail = trail_of(market, 1, symbol="BTC", timestamp="2023-03-01T03:00+03:00")
        assert trail.timestamp == "2023-03-01 00:00:00+00"

    def test_a_row_whose_symbol_was_renamed_keeps_its_history(self, market: Market) -> None:
        correct_now(stocks(market, 1))
        market.execute("UPDATE market_data SET symbol = 'APPL'")
        trail = trail_of(market, 1)
        assert (trail.symbol, len(trail.events)) == ("APPL", 1)

    def test_what_cannot_be_a_key_and_what_is_none(self, make_market: MakeMarket) -> None:
        market = stocks(make_market(id_type="varchar(3)"), "abc")
        with pytest.raises(RowNotFoundError, match="holds no row 'abcd'"):
            history_of(market, "abcd")
        with pytest.raises(InvalidOptionsError, match=r"^timestamp 'noon'"):
            history_of(market, "abc", timestamp="noon")
        other = stocks(make_market(), 1)
        with pytest.raises(InvalidOptionsError, match="is no bigint"):
            history_of(other, "one")

    def test_an_older_backup_with_another_type_of_id(self, market: Market) -> None:
        correct_now(stocks(market, 1))
        market.execute("ALTER TABLE market_data ALTER COLUMN id TYPE text")
        market.add([Bar("x", "AAPL")])
        correct_now(market)
        assert len(trail_of(market, "x").events) == 1
        assert len(trail_of(market, "1").events) == 1

    @pytest.mark.parametrize("old_type", ["timestamp", "date"])
    def test_what_happened_before_the_time_got_another_type(
        self, make_market: MakeMarket, tmp_path: Path, old_type: str
    ) -> None:
        """The same moment is written in another way then: in tables, archives and lists."""
        market = make_market(key='PRIMARY KEY (id, "timestamp")', timestamp_type=old_type)
        market.list_symbols(("AAPL", "STOCK"))
        market.add(Bar(1, "AAPL", f"2024-03-0{day}") for day in (1, 2))
        first = correct_now(market)
        market.execute("UPDATE market_data SET asset_class = NULL")
        settings = market.settings.model_copy(update={"archive_directory": tmp_path})
        correct(market.dsn, settings, request_of(create_backup=False))
        market.execute(
            "UPDATE market_data SET asset_class = 'THEIRS' WHERE timestamp = '2024-03-01'"
        )
        undo_now(market, first)
        market.execute('ALTER TABLE market_data ALTER "timestamp" TYPE timestamptz')

        with connect(market.dsn, settings, purpose="test") as connection:
            found = row_history(connection, settings, "1")
            one = row_history(connection, settings, "1", timestamp="2024-03-01")
        assert {row.timestamp: (row.exists, len(row.events)) for row in found.rows} == {
            "2024-03-01 00:00:00+00": (True, 3),
            "2024-03-02 00:00:00+00": (True, 3),
        }
        (trail,) = one.rows
        assert [event.outcome for event in trail.events] == ["changed", "changed", "conflict"]

    def test_without_an_index_on_the_id(self, make_market: MakeMarket) -> None:
        market = make_market(key='UNIQUE (symbol, "timestamp", id)')
        correct_now(stocks(market, 1, 2))
        trail = trail_of(market, 1)
        assert (len(trail.events), trail.exists) == (1, True)


class TestManyTables:
    def test_hundreds_of_nights(self, market: Market) -> None:
        """Registered tables, those that only their operation names, and one of a dropped table."""
        done = correct_now(stocks(market, 1))
        market.execute(
            "INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run,"
            " options, requested_by, records_planned, backup_table)"
            " SELECT md5(n::text)::uuid, 'correction', 'succeeded', 'done', false, '{{}}', 'test',"
            " 1, CASE WHEN n % 2 = 0 THEN 'market_data_backup_n' || n END"
            " FROM generate_series(1, 120) n"
        )
        market.execute(
            "INSERT INTO assetclass.backup (correction_id, schema_name, table_name, expires_at)"
            " SELECT md5(n::text)::uuid, 'public', 'market_data_backup_n' || n, now()"
            " FROM generate_series(1, 120) n WHERE n % 2 = 1"
        )
        for number in range(1, 120):
            market.execute(
                "CREATE TABLE {} AS TABLE {}",
                sql.Identifier(f"market_data_backup_n{number}"),
                sql.Identifier(str(done.backup_table)),
            )
        found = history_of(market, 1)
        assert len(found.rows[0].events) == 120
        assert found.operations_without_rows == 1

    @every_postgres
    def test_an_index_is_made_only_when_it_pays(self, market: Market) -> None:
        table = sql.Identifier("public", 'odd "%s" name')
        market.execute("CREATE TABLE {} (seq bigint, id bigint)", table)
        market.execute("INSERT INTO {} SELECT n, n FROM generate_series(1, 30000) n", table)
        market.execute("ANALYZE {}", table)
        with (
            connect(market.dsn, market.settings, purpose="test") as connection,
            transaction(connection, market.settings) as cursor,
        ):
            assert index_when_it_pays(cursor, table, RECORDS_THAT_PAY - 1) is False
            assert index_when_it_pays(cursor, table, RECORDS_THAT_PAY) is True
            assert index_when_it_pays(cursor, table, RECORDS_THAT_PAY) is False
        plan = market.rows("EXPLAIN SELECT FROM {} WHERE id = '77'::text::bigint", table)
        assert "Index" in plan[0][0]

    def test_a_table_that_vanishes_meanwhile(
        self, market: Market, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = correct_now(stocks(market, 1))
        table = sql.Identifier(str(done.backup_table))
        look = row_history_module._Look._in_tables

        def drop_first(self: Any, cursor: Any) -> Any:
            market.execute("DROP TABLE IF EXISTS {}", table)
            return look(self, cursor)

        monkeypatch.setattr(row_history_module._Look, "_in_tables", drop_first)
        assert history_of(market, 1).operations_without_rows == 1
