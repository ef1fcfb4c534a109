"""Rows that another server holds: corrected through postgres_fdw, as safely as rows of ours."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from assetclass_pipeline.database.connections import connect, set_local, transaction
from assetclass_pipeline.database.indexes import IndexOutcome, ensure_indexes
from assetclass_pipeline.database.queries import Statement, query
from assetclass_pipeline.engine import by_key
from assetclass_pipeline.engine.analysis import any_correctable, correctable_months
from assetclass_pipeline.engine.by_key import (
    ForeignRows,
    Nulls,
    by_id,
    candidates,
    keys_restrict,
)
from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.engine.holding import hold
from assetclass_pipeline.engine.planned_months import PlannedMonth, planned_months
from assetclass_pipeline.engine.preview import preview
from assetclass_pipeline.errors import CorrectionFailedError
from assetclass_pipeline.model.operation import Operation, Phase, SkipReason, Status
from assetclass_pipeline.settings import SessionLimits
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.oracle import Ask, Oracle
from assetclass_pipeline_tests.engine.runs import (
    correct_now,
    operation_of,
    options_of,
    plan_now,
    proof_of,
    report_of,
    request_of,
    tables_of,
)
from assetclass_pipeline_tests.engine.test_correction_states import guide_update
from assetclass_pipeline_tests.engine.test_traps import first_batch, late_worker, plan_nodes
from assetclass_pipeline_tests.market import (
    FOREIGN_PARTITIONINGS,
    Bar,
    Market,
    MarketConnection,
)

REFERENCE = (("AAPL", "STOCK"), ("MSFT", "STOCK"), ("BTC", "CRYPTO"), ("EUR", "FOREX"))
TIMES = ("2023-05-01 00:00:00", "2024-05-01 00:00:00", "2025-05-01 00:00:00")
SHAPES = sorted(FOREIGN_PARTITIONINGS)
each_shape = pytest.mark.parametrize("partitioning", SHAPES)
# All rows of one table, and some rows of a tree.
both_extremes = pytest.mark.parametrize("partitioning", ["foreign", "mixed nested"])


@pytest.fixture
def make_far(make_market: MakeMarket, another_database_url: str) -> MakeMarket:
    """Market tables of which parts stand in another database; all rows do unless told."""

    def make(partitioning: str = "foreign", **shape: Any) -> Market:
        return make_market(partitioning=partitioning, remote_dsn=another_database_url, **shape)

    return make


@pytest.fixture
def far(make_far: MakeMarket) -> Market:
    """All of twelve missing rows stand in another database; ids 1..12, three of each symbol."""
    return small(make_far())


def small(market: Market, records: int = 12) -> Market:
    """Missing rows of every symbol and every partition."""
    market.list_symbols(*REFERENCE)
    return market.add(Bar(n, REFERENCE[n % 4][0], TIMES[n % 3]) for n in range(1, records + 1))


def right(records: int = 12) -> dict[Any, str | None]:
    """What every row of `small` should become."""
    return {n: REFERENCE[n % 4][1] for n in range(1, records + 1)}


def assert_accounted(market: Market, operation: Operation) -> None:
    """Every planned row is corrected or left with a reason."""
    proof = proof_of(market, operation.correction_id)
    assert (proof.unaccounted, proof.open) == (0, 0)


def attempts_left(market: Market) -> int:
    """Announced rows whose fate is unknown."""
    return int(market.value("SELECT count(*) FROM assetclass.operation_attempt"))


def events(market: Market) -> list[tuple[str, dict[str, Any]]]:
    """What the operations had to tell."""
    return [
        (event, details)
        for event, details in market.rows(
            "SELECT event, details FROM assetclass.operation_event ORDER BY id"
        )
    ]


def announce(market: Market, request: CorrectionRequest, seqs: str) -> None:
    """What a try leaves behind of which nobody knows whether the other server committed it."""
    market.execute(
        "INSERT INTO assetclass.operation_attempt (correction_id, seqs) VALUES (%s, %s)",
        values=(request.correction_id, seqs),
    )


def stored(market: Market, number: int) -> list[tuple[Any, ...]]:
    """One row, whole."""
    return market.execute(
        "SELECT m::text FROM {} m WHERE id = %s", market.market_identifier, values=(number,)
    ).fetchall()


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again until it is so."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def hasty(make_far: MakeMarket, monkeypatch: pytest.MonkeyPatch) -> Market:
    """As `far`, for tests that hold rows locked: it waits half a second for them."""
    monkeypatch.setattr(by_key, "ANSWER_SECONDS", 0.4)
    return make_far(session=SessionLimits(lock_timeout=0.1))


@contextmanager
def row_locked(market: Market, number: int = 1) -> Iterator[MarketConnection]:
    """A session of the other server that holds a row."""
    assert market.remote_dsn is not None
    with psycopg.connect(market.remote_dsn) as other:
        other.execute("SELECT FROM market_data WHERE id = %s FOR UPDATE", [number])
        yield other


class TestWholeCorrections:
    @pytest.mark.every_postgres
    @each_shape
    def test_every_kind_of_damage(self, make_far: MakeMarket, partitioning: str) -> None:
        market = make_far(partitioning)
        listed = [*REFERENCE, ("EUR", None), ("DUP", "A"), ("DUP", "B"), ("NIL", " ")]
        oracle, symbols = Oracle(listed), ["AAPL", "MSFT", "BTC", "EUR", "DUP", "NIL", "?"]
        bars = [
            Bar(n, symbols[n % 7], TIMES[n % 3], (None, "", "STOCK", "FOREX")[n % 4])
            for n in range(1, 169)
        ]
        market.list_symbols(*listed).add(bars)
        correctable = {bar.id for bar in bars if oracle.correctable(bar, Ask(overwrite=True))}

        operation = correct_now(market, overwrite_existing_values=True)

        assert operation.status is Status.SUCCEEDED
        assert market.classes() == {
            bar.id: oracle.expected(bar) if bar.id in correctable else bar.asset_class
            for bar in bars
        }
        stamped = market.rows(
            "SELECT id FROM {} WHERE updated_at > now() - interval '1 hour'",
            market.market_identifier,
        )
        assert {number for (number,) in stamped} == correctable
        assert operation.records_corrected == operation.records_planned == len(correctable)
        changed = Counter(
            (bar.symbol, bar.asset_class, oracle.expected(bar))
            for bar in bars
            if bar.id in correctable
        )
        assert {(c.symbol, c.from_, c.to): c.records for c in operation.changes} == changed
        backup = sql.Identifier(market.schema, str(operation.backup_table))
        kept = market.rows(
            'SELECT id, symbol, "timestamp"::text, asset_class, corrected_asset_class FROM {}',
            backup,
        )
        assert {row[0]: row[1:] for row in kept} == {
            bar.id: (bar.symbol, f"{bar.timestamp}+00", bar.asset_class, oracle.expected(bar))
            for bar in bars
            if bar.id in correctable
        }
        report = report_of(market)
        assert (report.correctable, report.mismatched, report.total_records) == (0, 0, 168)
        assert_accounted(market, operation)
        assert attempts_left(market) == 0
        assert correct_now(market, overwrite_existing_values=True).records_planned == 0

    @both_extremes
    def test_the_guides_manual_recovery_restores_every_value(
        self, make_far: MakeMarket, partitioning: str
    ) -> None:
        market = small(make_far(partitioning))
        operation = correct_now(market)
        assert operation.records_corrected == 12
        guide_update(market, str(operation.backup_table))
        assert set(market.classes().values()) == {None}

    @pytest.mark.parametrize(
        ("id_type", "key"),
        [
            ("uuid", "PRIMARY KEY (id)"),
            ("text", 'PRIMARY KEY (id, "timestamp")'),
            ("varchar(40)", 'PRIMARY KEY (symbol, "timestamp")'),
            ("numeric", 'UNIQUE (id, symbol, "timestamp")'),
        ],
    )
    def test_keys_of_every_kind(self, make_far: MakeMarket, id_type: str, key: str) -> None:
        market = make_far("mixed", id_type=id_type, key=key).list_symbols(*REFERENCE)
        prefix = "00000000-0000-0000-0000-0000000000" if id_type == "uuid" else ""
        market.add(Bar(f"{prefix}{n}", REFERENCE[n % 4][0], f"2024-01-{n}") for n in range(10, 30))
        operation = correct_now(market)
        assert operation.records_corrected == 20
        assert [*market.classes().values()].count("STOCK") == 10
        assert_accounted(market, operation)

    @pytest.mark.parametrize("class_type", ["varchar(6)", "char(10)", "kind"])
    def test_classes_of_every_kind(
        self, make_far: MakeMarket, database_url: str, another_database_url: str, class_type: str
    ) -> None:
        for url in (database_url, another_database_url):
            with psycopg.connect(url) as connection:
                connection.execute("CREATE TYPE kind AS ENUM ('STOCK', 'CRYPTO', 'FOREX')")
        market = small(make_far("mixed nested", class_type=class_type))
        correct_now(market)
        assert {n: str(c).rstrip() for n, c in market.classes().items()} == right()

    def test_a_short_time_and_no_updated_at(self, make_far: MakeMarket) -> None:
        market = small(make_far(timestamp_type="date", has_updated_at=False))
        assert correct_now(market).records_corrected == 12
        assert market.classes() == right()

    @pytest.mark.parametrize("validate", [True, False])
    def test_without_a_key_every_row_is_found(self, make_far: MakeMarket, validate: bool) -> None:
        """NULL ids, NULL times, and rows alike in everything: each planned row takes one."""
        market = make_far(key="").list_symbols(*REFERENCE)
        bars = [Bar(i, "AAPL", t) for i in (None, 7) for t in (None, TIMES[0]) for _ in range(6)]
        market.add([*bars, Bar(7, "AAPL", TIMES[0], "STOCK")])
        operation = correct_now(market, batch_size=5, workers=1, validate_after_each_batch=validate)
        assert operation.skipped_by_reason == {}
        assert operation.records_corrected == 24
        assert market.rows(
            "SELECT asset_class, count(*), count(updated_at) FROM {} GROUP BY 1",
            market.market_identifier,
        ) == [("STOCK", 25, 24)]
        assert_accounted(market, operation)

    @pytest.mark.parametrize("moved", [False, True])
    def test_of_rows_alike_only_as_many_as_were_planned(
        self, make_far: MakeMarket, moved: bool
    ) -> None:
        market = make_far(key="").list_symbols(*REFERENCE)
        market.add(Bar(7, "AAPL") for _ in range(8))
        request = request_of(max_records_to_process=6)
        plan_now(market, request)
        if moved:
            market.remote("UPDATE {} SET close = 2", market.market_identifier)
        assert correct_now(market, request).records_corrected == 6
        classes = market.rows("SELECT asset_class FROM {}", market.market_identifier)
        assert Counter(classes) == {("STOCK",): 6, (None,): 2}

    @both_extremes
    def test_a_resume_does_what_is_left(self, make_far: MakeMarket, partitioning: str) -> None:
        market = small(make_far(partitioning), 60)
        request = request_of(batch_size=7, workers=1)
        plan_now(market, request)
        with (
            hold(market.dsn, market.settings, request) as holder,
            late_worker(market, holder, request) as (worker, work),
        ):
            worker.correct(first_batch(work))
        assert [*market.classes().values()].count(None) == 53
        stamped: LiteralString = "SELECT id, updated_at FROM {} WHERE updated_at IS NOT NULL"
        before = set(market.rows(stamped, market.market_identifier))
        operation = correct_now(market, request)
        assert operation.records_corrected == 60
        assert market.classes() == right(60)
        assert before < set(market.rows(stamped, market.market_identifier))
        assert_accounted(market, operation)


class TestOthersChangeRows:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ("UPDATE {} SET asset_class = 'THEIRS' WHERE id = 5", SkipReason.CHANGED_BY_OTHERS),
            ("UPDATE {} SET asset_class = 'STOCK' WHERE id = 5", SkipReason.CHANGED_BY_OTHERS),
            ("UPDATE {} SET symbol = 'UNKNOWN' WHERE id = 5", SkipReason.CHANGED_BY_OTHERS),
            ("DELETE FROM {} WHERE id = 5", SkipReason.DELETED),
        ],
    )
    def test_between_plan_and_batch(
        self, far: Market, change: LiteralString, reason: SkipReason
    ) -> None:
        request = request_of(batch_size=4)
        plan_now(far, request)
        far.remote(change, far.market_identifier)
        theirs = stored(far, 5)
        operation = correct_now(far, request)
        assert operation.skipped_by_reason == {reason: 1}
        assert stored(far, 5) == theirs
        assert {**far.classes(), 5: None} == {**right(), 5: None}
        assert sum(change.records for change in operation.changes) == 11
        assert_accounted(far, operation)

    def test_rows_that_moved_there_are_found(self, far: Market) -> None:
        request = request_of(batch_size=4)
        plan_now(far, request)
        far.remote("UPDATE {} SET close = 2 WHERE id % 2 = 0", far.market_identifier)
        far.remote("VACUUM FULL {}", far.market_identifier)
        assert correct_now(far, request).records_corrected == 12
        assert far.classes() == right()

    def test_locked_rows_are_left_and_named(self, hasty: Market) -> None:
        """Guard: what waits too long is halved; only the locked row itself is left."""
        with row_locked(small(hasty, 4), 3):
            operation = correct_now(hasty)
        assert operation.skipped_by_reason == {SkipReason.LOCKED: 1}
        assert hasty.classes() == {**right(4), 3: None}
        assert_accounted(hasty, operation)

    def test_rows_that_are_locked_for_a_moment_are_written_by_the_sweep(
        self, hasty: Market
    ) -> None:
        with row_locked(small(hasty)) as other:
            written = []

            def release(operation: Operation) -> None:
                if operation.phase is Phase.SWEEPING:
                    written.append(operation.records_corrected)
                    other.rollback()

            operation = correct(hasty.dsn, hasty.settings, request_of(), observe=release)
        assert written[0] == 11
        assert operation.skipped_by_reason == {}
        assert hasty.classes() == right()

    @pytest.mark.parametrize("detached", ["far", "near"])
    def test_rows_that_moved_between_the_servers_are_found(
        self, make_far: MakeMarket, detached: str
    ) -> None:
        market = small(make_far("mixed"), 60)
        number, bounds = (2, "2024") if detached == "far" else (1, "2023")
        request = request_of()
        plan_now(market, request)
        move_part(market, number, bounds)
        operation = correct_now(market, request)
        assert operation.skipped_by_reason == {}
        assert market.classes() == right(60)
        assert_accounted(market, operation)

    @pytest.mark.parametrize("rows_stay", [True, False], ids=["detached", "dropped"])
    @pytest.mark.parametrize("number", [1, 2], ids=["near", "far"])
    def test_a_part_that_goes_in_mid_run_is_left_alone(
        self, make_far: MakeMarket, number: int, *, rows_stay: bool
    ) -> None:
        """Guard: batches and sweep ask whether a leaf is still a part of the table."""
        market = small(make_far("mixed"))
        part, taken = market.part(number), list[object]()

        def take_away(operation: Operation) -> None:
            if operation.phase is Phase.CORRECTING and not taken:
                taken.append(part)
                market.execute("ALTER TABLE {} DETACH PARTITION {}", market.market_identifier, part)
                if not rows_stay:
                    kind = sql.SQL("FOREIGN TABLE" if number == 2 else "TABLE")
                    market.execute("DROP {} {}", kind, part)

        request = request_of()
        operation = correct(market.dsn, market.settings, request, observe=take_away)
        assert operation.status is Status.SUCCEEDED
        assert operation.skipped_by_reason == {SkipReason.DELETED: 4}
        assert operation.records_corrected == 8
        if rows_stay:
            assert market.value("SELECT count(asset_class) FROM {}", part) == 0
        assert attempts_left(market) == 0
        assert_accounted(market, operation)

    def test_rows_that_come_during_the_run_are_corrected_too(self, make_far: MakeMarket) -> None:
        market = small(make_far("mixed"))

        def feed(operation: Operation) -> None:
            if operation.phase is Phase.SWEEPING and 100 not in market.classes():
                market.add(Bar(n, "BTC", TIMES[n % 3]) for n in range(100, 140))

        operation = correct(market.dsn, market.settings, request_of(), observe=feed)
        assert operation.records_corrected == 52
        assert report_of(market).correctable == 0
        assert_accounted(market, operation)

    @both_extremes
    def test_a_class_that_symbols_no_longer_holds_is_not_written(
        self, make_far: MakeMarket, partitioning: str
    ) -> None:
        market = small(make_far(partitioning))
        request = request_of(batch_size=4)
        plan_now(market, request)
        market.execute(
            "UPDATE {} SET asset_class = 'ETF' WHERE ticker = 'EUR'", market.symbols_identifier
        )
        operation = correct_now(market, request)
        assert operation.skipped_by_reason == {SkipReason.CLASS_CHANGED: 3}
        assert market.classes() == {n: None if c == "FOREX" else c for n, c in right().items()}
        assert_accounted(market, operation)

    def test_a_foreign_table_that_is_locked_here_is_waited_for(self, make_far: MakeMarket) -> None:
        """Guard: that lock is asked for first, and not for each half of the batch."""
        market = make_far("mixed").list_symbols(*REFERENCE)
        market.add(Bar(n, "AAPL", TIMES[1]) for n in range(12))
        with psycopg.connect(market.dsn) as other:

            def lock(operation: Operation) -> None:
                if operation.phase is Phase.CORRECTING and not operation.records_corrected:
                    # Others still read all partitions, and lock no row of any.
                    other.execute("LOCK TABLE market_data IN EXCLUSIVE MODE")

            with released_when(market, "Waits for a lock of another session", other.commit):
                correct(market.dsn, market.settings, request_of(), observe=lock)
        skipped = "SELECT sum(records_skipped) FROM assetclass.operation_batch"
        assert market.value(skipped) == 0
        assert set(market.classes().values()) == {"STOCK"}


def move_part(market: Market, number: int, year: str) -> None:
    """A partition's rows change servers: from the other one to this one, or back."""
    part, parent = market.part(number), market.market_identifier
    rows = market.rows('SELECT id, symbol, "timestamp"::text FROM {}', part)
    was_foreign = number == 2
    market.execute("ALTER TABLE {} DETACH PARTITION {}", parent, part)
    bounds = f"FOR VALUES FROM ('{year}-01-01') TO ('{int(year) + 1}-01-01')"
    if was_foreign:
        market.execute("DROP FOREIGN TABLE {}", part)
        statement = sql.SQL("CREATE TABLE {} PARTITION OF {} (PRIMARY KEY (id)) ")
        market.connection.execute(statement.format(part, parent) + sql.SQL(bounds))
    else:
        market.execute("DROP TABLE {}", part)
        market.remote(
            "CREATE TABLE {} (id bigint PRIMARY KEY, symbol text, timestamp timestamptz,"
            " close numeric, asset_class text, updated_at timestamptz)",
            part,
        )
        statement = sql.SQL("CREATE FOREIGN TABLE {} PARTITION OF {} ")
        market.connection.execute(
            statement.format(part, parent) + sql.SQL(bounds) + sql.SQL(" SERVER far_away")
        )
    market.add(Bar(*row) for row in rows)


@contextmanager
def released_when(market: Market, reason: str, release: Callable[[], object]) -> Iterator[None]:
    """Call `release` once an operation tells that it waits for this reason."""
    ended, seen = threading.Event(), threading.Event()

    def watch() -> None:
        with psycopg.connect(market.dsn, autocommit=True) as connection:
            for _ in range(600):
                told = connection.execute(
                    "SELECT coalesce(string_agg(throttle::text, ''), '')"
                    " FROM assetclass.operation_heartbeat"
                ).fetchone()
                if told is not None and reason in told[0]:
                    seen.set()
                    break
                if ended.wait(0.05):
                    break
        release()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    assert seen.is_set()


@contextmanager
def writing(market: Market, ids: range) -> Iterator[dict[int, str]]:
    """Another session changes rows all the while; what became of those that it changed."""
    ended, theirs = threading.Event(), dict[int, str]()
    draw = random.Random(1)  # noqa: S311 - which row a test changes is no secret
    changes: dict[str, LiteralString] = {
        "THEIRS": "UPDATE market_data SET asset_class = 'THEIRS' WHERE id = %s",
        "DELETED": "DELETE FROM market_data WHERE id = %s",
        "MOVED": "UPDATE market_data SET close = close + 1 WHERE id = %s",
    }

    def write() -> None:
        with psycopg.connect(market.dsn, autocommit=True) as connection:
            while not ended.wait(0.01):
                number, what = draw.choice(ids), draw.choice([*changes])
                with suppress(psycopg.errors.SerializationFailure):
                    changed = connection.execute(changes[what], (number,)).rowcount
                    if changed and what != "MOVED":
                        theirs[number] = what

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield theirs
    finally:
        ended.set()
        writer.join()


class TestTriggersAndConstraintsThere:
    def trigger(self, market: Market, moment: LiteralString, body: LiteralString) -> None:
        market.remote(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            + body
            + " END $$"
        )
        market.remote(
            "CREATE TRIGGER meddle " + moment + " UPDATE ON {} FOR EACH ROW "
            "EXECUTE FUNCTION meddle()",
            market.market_identifier,
        )

    def test_one_that_rewrites_the_value_stops_the_correction(self, far: Market) -> None:
        self.trigger(far, "BEFORE", "new.asset_class := 'other'; RETURN new;")
        with pytest.raises(CorrectionFailedError, match="trigger"):
            correct_now(far, request := request_of())
        assert set(far.classes().values()) == {None}
        assert operation_of(far, request.correction_id).status is Status.FAILED

    def test_one_that_writes_after_us_stops_the_correction(self, far: Market) -> None:
        self.trigger(
            far,
            "AFTER",
            "IF pg_trigger_depth() = 1 THEN UPDATE public.market_data "
            "SET asset_class = 'other' WHERE id = new.id; END IF; RETURN NULL;",
        )
        with pytest.raises(CorrectionFailedError, match="trigger"):
            correct_now(far)
        assert set(far.classes().values()) == {None}

    def test_one_that_vetoes_leaves_rows_with_their_reason(self, far: Market) -> None:
        self.trigger(far, "BEFORE", "IF new.id = 5 THEN RETURN NULL; END IF; RETURN new;")
        operation = correct_now(far)
        assert operation.skipped_by_reason == {SkipReason.VETOED: 1}
        assert far.classes() == {**right(), 5: None}
        assert_accounted(far, operation)

    def test_a_poison_row_is_quarantined(self, make_far: MakeMarket) -> None:
        market = small(make_far(), 60)
        market.remote(
            "ALTER TABLE {} ADD CHECK (id <> 5 OR asset_class IS NULL)", market.market_identifier
        )
        operation = correct_now(market)
        assert operation.records_failed == 1
        assert market.classes() == {**right(60), 5: None}
        kept = market.rows("SELECT id, error_code FROM assetclass.operation_quarantined_row")
        assert kept == [("5", "23514")]
        assert_accounted(market, operation)


class TestTwoServersCommit:
    """The other server commits first: what it has and our ledger lacks is ours all the same."""

    def lose(self, market: Market, session: str, *, seconds: float) -> None:
        """At the next COMMIT there, end our session here; commit, perhaps later than its next try.

        Which of both databases a session belongs to does not matter: they share their server.
        """
        market.remote("CREATE TABLE to_lose (session text, seconds float8)")
        market.remote(
            "INSERT INTO to_lose VALUES ({}, {})", sql.Literal(session), sql.Literal(seconds)
        )
        market.remote(
            "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$"
            " DECLARE lost record; BEGIN"
            " DELETE FROM public.to_lose RETURNING * INTO lost;"
            " IF FOUND THEN"
            "   PERFORM pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            "   WHERE application_name = 'assetclass: ' || lost.session;"
            "   PERFORM pg_sleep(lost.seconds);"
            " END IF; RETURN NULL; END $$"
        )
        market.remote(
            "CREATE CONSTRAINT TRIGGER lose AFTER UPDATE ON {} DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION lose()",
            market.market_identifier,
        )

    @pytest.mark.every_postgres
    @pytest.mark.parametrize("seconds", [0, 1])
    def test_a_batch_that_only_the_other_server_committed(
        self, far: Market, seconds: float
    ) -> None:
        """Guard: announced rows with the planned class are counted, by the sweep at the latest."""
        self.lose(far, "worker 1", seconds=seconds)
        operation = correct_now(far, batch_size=5, workers=1)
        assert far.remote("SELECT * FROM to_lose") == []
        assert operation.skipped_by_reason == {}
        assert operation.records_corrected == 12
        assert far.classes() == right()
        told = [details for event, details in events(far) if event == "found_committed_elsewhere"]
        assert told == [{"table": "public.market_data", "records": 5}]
        assert sum(change.records for change in operation.changes) == 12
        assert attempts_left(far) == 0
        assert_accounted(far, operation)

    @pytest.mark.parametrize("seconds", [0, 1])
    def test_a_sweep_that_only_the_other_server_committed(
        self, hasty: Market, seconds: float
    ) -> None:
        with row_locked(small(hasty)) as other:

            def release(operation: Operation) -> None:
                if operation.phase is Phase.SWEEPING:
                    other.rollback()
                    self.lose(hasty, "correction", seconds=seconds)

            operation = correct(hasty.dsn, hasty.settings, request_of(), observe=release)
        assert hasty.remote("SELECT * FROM to_lose") == []
        assert operation.records_corrected == 12
        assert operation.skipped_by_reason == {}
        assert_accounted(hasty, operation)

    def test_what_a_dead_process_left_is_found_by_the_resume(self, far: Market) -> None:
        request = request_of(batch_size=5, workers=1, retry={"tries": 1})
        self.lose(far, "worker 1", seconds=0)
        with pytest.raises(CorrectionFailedError):
            correct_now(far, request)
        wait_until(lambda: [*far.classes().values()].count(None) == 7)
        assert operation_of(far, request.correction_id).records_corrected == 0
        operation = correct_now(far, request)
        assert (operation.records_corrected, operation.skipped_by_reason) == (12, {})
        assert_accounted(far, operation)

    def test_each_batch_settles_its_part_of_an_older_one(self, far: Market) -> None:
        request = request_of(batch_size=5)
        plan_now(far, request)
        announce(far, request, "{[1,13)}")
        assert correct_now(far, request).records_corrected == 12
        assert attempts_left(far) == 0

    def test_a_try_that_never_asked_for_commit_leaves_no_doubt(self, hasty: Market) -> None:
        """Guard: else the row that another gave the same class meanwhile would be ours."""
        market = small(hasty, 20)
        market.remote(
            "ALTER TABLE {} ADD CHECK (id <> 5 OR asset_class IS NULL)", hasty.market_identifier
        )
        with row_locked(market, 16) as other:
            other.execute("UPDATE market_data SET asset_class = 'STOCK' WHERE id = 16")

            def release(operation: Operation) -> None:
                if operation.phase is Phase.SWEEPING:
                    other.commit()

            request = request_of(batch_size=20)
            operation = correct(market.dsn, market.settings, request, observe=release)
        assert operation.skipped_by_reason[SkipReason.CHANGED_BY_OTHERS] == 1
        assert (operation.records_corrected, operation.records_failed) == (18, 1)
        assert_accounted(market, operation)

    @both_extremes
    def test_many_lost_commits_among_writers(self, make_far: MakeMarket, partitioning: str) -> None:
        """No row is lost, counted twice, or overwritten against its writer."""
        market = small(make_far(partitioning, session=SessionLimits(lock_timeout=0.1)), 600)
        market.remote("CREATE TABLE lost (id bigint)")
        market.remote(
            "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF new.id % 50 = 0 AND NOT EXISTS (SELECT FROM public.lost l WHERE l.id = new.id)"
            " THEN"
            "   INSERT INTO public.lost VALUES (new.id);"
            "   PERFORM pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            "   WHERE application_name LIKE 'assetclass: worker%';"
            "   PERFORM pg_sleep(new.id / 6000.0);"
            " END IF; RETURN NULL; END $$"
        )
        for leaf in tables_of(market).foreign_leaves:
            market.remote(
                "CREATE CONSTRAINT TRIGGER lose AFTER UPDATE ON {} DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION lose()",
                leaf.identifier,
            )
        request = request_of(
            batch_size=20, workers=2, retry={"tries": 20, "first_wait": 0.01, "longest_wait": 0.1}
        )
        plan_now(market, request)
        with writing(market, range(1, 601)) as theirs:
            operation = correct_now(market, request)

        kept = {n: c for n, c in right(600).items() if theirs.get(n) != "DELETED"}
        assert market.classes() == kept | {n: c for n, c in theirs.items() if c == "THEIRS"}
        told = [
            details for event, details in events(market) if event == "found_committed_elsewhere"
        ]
        assert sum(details["records"] for details in told) > 0
        assert_accounted(market, operation)
        backup = sql.Identifier(market.schema, str(operation.backup_table))
        left = market.rows(
            "SELECT b.id FROM {} b JOIN assetclass.operation_skipped_row USING (seq)", backup
        )
        assert {number for (number,) in left} <= theirs.keys()

    def test_a_server_that_is_away_for_a_moment_is_waited_for(self, far: Market) -> None:
        """Guard: it counts no tries."""
        assert far.remote_dsn is not None
        remote = sql.Identifier(str(conninfo_to_dict(far.remote_dsn)["dbname"]))

        def let_in(allowed: LiteralString) -> None:
            far.execute("ALTER DATABASE {} ALLOW_CONNECTIONS " + allowed, remote)

        def shut(operation: Operation) -> None:
            if operation.phase is Phase.CORRECTING and not operation.records_corrected:
                let_in("false")
                far.execute(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                    " WHERE datname = %s",
                    values=(conninfo_to_dict(str(far.remote_dsn))["dbname"],),
                )

        with released_when(far, "The server of a foreign table is away", lambda: let_in("true")):
            operation = correct(far.dsn, far.settings, request_of(workers=1), observe=shut)
        assert operation.skipped_by_reason == {}
        assert far.classes() == right()
        assert_accounted(far, operation)


class TestWhatTheOtherServerReads:
    """Only rows of the batch: their keys are sent there, and not the whole table here."""

    @pytest.mark.every_postgres
    @pytest.mark.parametrize(
        ("id_type", "symbol_type", "nulls"),
        [
            ("bigint", "text", Nulls(in_id=False, in_time=False)),
            ("uuid", "char(8)", Nulls(in_id=False, in_time=True)),
            ("varchar(40)", 'varchar(20) COLLATE "C"', Nulls(in_id=False, in_time=False)),
            ("numeric", "text", Nulls(in_id=True, in_time=False)),
        ],
    )
    def test_keys_restrict_it(
        self, make_far: MakeMarket, id_type: str, symbol_type: str, nulls: Nulls
    ) -> None:
        market = make_far(id_type=id_type, symbol_type=symbol_type, key="")
        market.list_symbols(*REFERENCE)
        number = "00000000-0000-0000-0000-000000000001" if id_type == "uuid" else "7"
        market.add([Bar(number, "AAPL", TIMES[0])])
        request = request_of()
        plan_now(market, request)
        with (
            hold(market.dsn, market.settings, request) as holder,
            late_worker(market, holder, request) as (_, work),
        ):
            rows = ForeignRows(work, work.tables.leaves[0])
            columns = ["symbol"] if nulls.in_id else ["id", "symbol"]
            columns += [] if nulls.in_time else ["timestamp"]
            by_key = keys_restrict(work.tables, nulls)
            for value in ("as_planned", "as_corrected"):
                (asked,) = asked_there(market, rows.find(by_key, value))
                assert asked.count("= ANY (") == len(columns), asked
            planned = query("by_key", "by_planned_address")
            for statement in (
                rows.find(planned, "as_planned"), rows.lock(), rows.correct(), rows.read_back(),
            ):  # fmt: skip
                (asked,) = asked_there(market, statement)
                assert "ctid = ANY (" in asked
            assert "FOR UPDATE" in asked_there(market, rows.lock())[0]
            looked_at = candidates(work, work.tables.leaves[0].identifier, by_id(work))
            assert "id = ANY (" in asked_there(market, looked_at)[0]


def asked_there(market: Market, statement: sql.Composed) -> list[str]:
    """What a statement selects on the other server, one text for each time that it is asked."""
    values = {"seqs": [1], "addresses": ["(0,1)"], "stale_symbols": []}
    with (
        connect(market.dsn, market.settings, purpose="test") as connection,
        transaction(connection, market.settings) as cursor,
    ):
        set_local(cursor, market.settings, **by_key.SETTINGS)
        row = cursor.execute(
            Statement([sql.SQL("EXPLAIN (VERBOSE, FORMAT JSON) "), *statement]), values
        ).fetchone()
    assert row is not None
    nodes = list(plan_nodes(row[0][0]["Plan"]))
    assert "Nested Loop" not in {node["Node Type"] for node in nodes}
    return [
        node["Remote SQL"]
        for node in nodes
        if node["Node Type"] == "Foreign Scan" and "Remote SQL" in node
    ]


@both_extremes
class TestLooking:
    """What reads the market table works whatever server its rows are on."""

    def test_reports_and_previews(self, make_far: MakeMarket, partitioning: str) -> None:
        market = small(make_far(partitioning))
        with connect(market.dsn, market.settings, purpose="test") as connection:
            tables = tables_of(market)
            seen = preview(connection, tables, market.settings, options_of())
            assert (seen.records, len(seen.samples)) == (12, 12)
            assert any_correctable(connection, tables, market.settings)
            months = correctable_months(connection, tables, market.settings)
            assert months == ("2023-05-01", "2025-05-01")
            planned = plan_now(market, request_of())
            by_month = planned_months(connection, tables, market.settings, planned.correction_id)
        assert by_month == {time[:10]: PlannedMonth(4, 0) for time in TIMES}
        assert report_of(market).correctable == 12

    def test_a_dry_run_and_no_backup(self, make_far: MakeMarket, partitioning: str) -> None:
        market = small(make_far(partitioning))
        assert correct_now(market, dry_run=True).records_planned == 12
        assert set(market.classes().values()) == {None}
        operation = correct_now(market, create_backup=False)
        assert (operation.records_corrected, operation.backup_table) == (12, None)
        assert market.plan_tables() == []

    def test_indexes_are_built_where_the_rows_are_here(
        self, make_far: MakeMarket, partitioning: str
    ) -> None:
        market = small(make_far(partitioning))
        for expected in (IndexOutcome.CREATED, IndexOutcome.PRESENT):
            results = ensure_indexes(market.dsn, market.settings, lambda _: None)
            of_market = {r.outcome for r in results if r.table == "public.market_data"}
            assert of_market == {IndexOutcome.SKIPPED if partitioning == "foreign" else expected}
        invalid = market.rows(
            "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
        )
        assert invalid == []
        assert correct_now(market).records_corrected == 12


def test_what_is_announced_outlives_a_crash_whatever_the_role_defaults_to(far: Market) -> None:
    """Guard: the other server's commit is on its disk, so what tells of it must be on ours."""
    far.execute("CREATE TABLE seen (synchronous_commit text)")
    far.execute(
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO public.seen VALUES (current_setting('synchronous_commit')); RETURN NULL; "
        "END $$"
    )
    far.execute(
        "CREATE TRIGGER see AFTER INSERT ON assetclass.operation_attempt "
        "FOR EACH ROW EXECUTE FUNCTION see()"
    )
    database = sql.Identifier(far.connection.info.dbname)
    far.execute("ALTER DATABASE {} SET synchronous_commit = off", database)
    assert correct_now(far).records_corrected == 12
    assert set(far.rows("SELECT * FROM seen")) == {("on",)}
