"""Metrics: what they count, that counters never go down, and that only the database tells them."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine.analysis import remember_quality
from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.errors import CorrectionFailedError
from assetclass_pipeline.model.metrics import BATCH_BOUNDS, Metrics
from assetclass_pipeline.model.operation import Kind, Operation, Phase, Status
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.monitoring.exposition import daemon_ages, tick_ages
from assetclass_pipeline.monitoring.metrics import CachedMetrics, collect, exposition
from assetclass_pipeline.monitoring.watching import active_operation
from assetclass_pipeline_tests.engine.runs import (
    broken_after,
    correct_now,
    options_of,
    plan_now,
    report_of,
    request_of,
    undo_now,
)
from assetclass_pipeline_tests.market import Market, open_market

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    with open_market(database_url) as made:
        yield made


def metrics_of(market: Market) -> Metrics:
    """As a process that has just started sees them."""
    with connect(market.dsn, market.settings, purpose="test") as connection:
        return collect(connection, market.settings)


def series_of(metrics: Metrics, *, counters: bool = False) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition(metrics).decode())
        for sample in family.samples
        if not counters or family.type in {"counter", "histogram"}
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return series_of(metrics).get((name, frozenset(labels.items())))


def measure(market: Market) -> IntegrityReport:
    report = report_of(market)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        remember_quality(connection, market.settings, report, source="test")
    return report


def end_by_hand(market: Market, **columns: Any) -> str:
    """An operation that ended long ago, its total written by SQL."""
    correction_id = str(uuid4())
    market.execute(
        "INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run, options,"
        " requested_by, started_at, finished_at, rolled_back_by) VALUES (%s, 'correction',"
        " 'succeeded', 'done', false, '{{}}', 'x', now(), now(), NULL)",
        values=(correction_id,),
    )
    of = {"kind": "correction", "status": "succeeded", "ended": 0, "seconds": 1.0, **columns}
    market.execute(
        "INSERT INTO assetclass.operation_total VALUES (%s, %s, false, %s, 1,"
        " now(), now() - make_interval(secs => %s), 0, %s, 0, 0, 0, 0, 0,"
        " 10, 10, 0, 0, 0, 1, 10, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, NULL)",
        values=(correction_id, of["kind"], of["status"], of["ended"], of["seconds"]),
    )
    return correction_id


class TestWhatIsCounted:
    def test_an_empty_history_has_every_counter_at_zero_and_no_quality(
        self, market: Market
    ) -> None:
        found = metrics_of(market)
        assert set(series_of(found, counters=True).values()) == {0.0}
        assert found.quality is None
        assert value(found, "assetclass_data_quality_score") is None
        assert value(found, "assetclass_last_success_timestamp_seconds", kind="correction") is None
        assert [key.met for key in found.key_metrics] == [None] * 5

    def test_operations_and_their_rows(self, market: Market) -> None:
        market.fill(100)
        correct_now(market, dry_run=True)
        corrected = correct_now(market)
        market.execute("UPDATE market_data SET asset_class = 'MINE' WHERE id <= 3")
        undone = undo_now(market, corrected)
        with broken_after(market, 2), pytest.raises(CorrectionFailedError):
            correct_now(market, workers=1)

        found = metrics_of(market)

        counts = found.operations
        assert (counts.started, counts.completed, counts.failed) == (3, 2, 1)
        assert found.by_kind[Kind.ROLLBACK].completed == 1
        assert found.dry_runs.started == 1
        assert found.rolled_back == 1
        records = found.records
        ledger = market.value("SELECT sum(records_corrected) FROM assetclass.operation_batch")
        assert (records.corrected, records.restored, records.conflicting) == (120, 97, 3)
        assert records.corrected + records.restored == ledger
        assert found.batch_durations.count == market.value(
            "SELECT count(*) FROM assetclass.operation_batch"
        )
        assert found.batch_durations.total_seconds == pytest.approx(
            market.value("SELECT sum(duration_ms) FROM assetclass.operation_batch") / 1000
        )
        durations = found.operation_durations
        assert durations.count == counts.completed
        seconds = (corrected.duration_seconds or 0) + (undone.duration_seconds or 0)
        assert durations.total_seconds == pytest.approx(seconds, abs=0.002)
        assert durations.counts[-1] == 2
        week = next(w for w in found.windows if (w.window, w.kind) == ("7d", None))
        assert (week.ended, week.completed) == (3, 2)
        assert week.success_rate == pytest.approx(200 / 3)
        assert found.trend[-1].ended == 3
        assert found.trend[-1].records_corrected == 120
        assert len(found.trend) == 14
        assert {success.kind for success in found.last_successes} == set(Kind)

    def test_a_bucket_includes_its_bound(self, market: Market) -> None:
        for seconds in (0.2, 7200.0, 7200.001, 100_000.0):
            end_by_hand(market, seconds=seconds)
        found = metrics_of(market)
        assert value(found, "assetclass_operation_duration_seconds_bucket", le="1") == 1
        assert value(found, "assetclass_operation_duration_seconds_bucket", le="3600") == 1
        assert value(found, "assetclass_operation_duration_seconds_bucket", le="7200") == 2
        assert value(found, "assetclass_operation_duration_seconds_bucket", le="14400") == 3
        assert value(found, "assetclass_operation_duration_seconds_bucket", le="86400") == 3
        assert value(found, "assetclass_operation_duration_seconds_bucket", le="+Inf") == 4

    def test_the_bounds_of_batches_are_those_that_the_totals_count(self, market: Market) -> None:
        market.fill(30)
        corrected = correct_now(market, workers=1)
        edges = [round(bound * 1000) for bound in BATCH_BOUNDS]
        for milliseconds in (*edges, edges[-1] + 1):
            market.execute(
                "INSERT INTO assetclass.operation_batch SELECT correction_id, 1, %s, %s, epoch, 1,"
                " 0, 0, %s FROM assetclass.operation",
                values=(1000 + milliseconds, 1000 + milliseconds, milliseconds),
            )
        market.execute("UPDATE assetclass.operation_batch SET duration_ms = 1 WHERE pass = 0")
        market.execute("DELETE FROM assetclass.operation_total")
        found = metrics_of(market).batch_durations
        assert found.counts == tuple(
            corrected.batches_done + place for place in range(1, len(edges) + 1)
        )
        assert found.count == corrected.batches_done + len(edges) + 1

    def test_windows_of_time_look_back_as_far_as_they_say(self, market: Market) -> None:
        for days in (0.5, 3, 20, 40):
            end_by_hand(market, ended=days * 86_400, seconds=days)
        end_by_hand(market, status="failed", ended=2 * 86_400)
        end_by_hand(market, status="planned", ended=0)
        found = {w.window: w for w in metrics_of(market).windows if w.kind is None}
        assert [(w.ended, w.completed) for w in found.values()] == [(1, 1), (3, 2), (4, 3)]
        assert found["30d"].longest_seconds == 20
        assert found["30d"].mean_seconds == pytest.approx(23.5 / 3)

    def test_what_was_measured_last(self, market: Market) -> None:
        market.fill(100, missing_every=5)
        market.execute("INSERT INTO market_data (id, symbol) VALUES (1000, 'NOBODY')")
        measure(market)
        market.execute("UPDATE market_data SET asset_class = 'CLASS_0' WHERE id = 1000")
        report = measure(market)
        found = metrics_of(market)
        assert found.quality is not None
        assert value(found, "assetclass_data_quality_score") == report.quality_score
        assert value(found, "assetclass_data_completeness_percent") == report.completeness
        assert value(found, "assetclass_data_orphaned_percent") == report.orphaned_percent
        assert value(found, "assetclass_data_correctable_records") == report.correctable == 20
        assert found.quality.correctable_percent == pytest.approx(2000 / 101)
        assert (
            value(found, "assetclass_correction_estimate_seconds", bound="high")
            == report.effort.estimated_seconds.high
        )

    def test_alerts_messages_backups_and_waits(self, market: Market) -> None:
        market.fill(30)
        correct_now(market)
        market.execute(
            "INSERT INTO assetclass.operation_wait SELECT correction_id, s, 2.5"
            " FROM assetclass.operation, unnest(ARRAY['replication_lag', 'next_process']) s"
        )
        market.execute(
            "INSERT INTO assetclass.alert (cause, alert_type, severity, status, summary) VALUES"
            " ('a', 'SLA_VIOLATION', 'high', 'open', ''),"
            " ('b', 'SLA_VIOLATION', 'high', 'acknowledged', ''),"
            " ('c', 'SLA_VIOLATION', 'high', 'resolved', '')"
        )
        market.execute(
            "INSERT INTO assetclass.notification"
            " (occasion, channel, delivered_at, dropped_at, last_error, attempts) VALUES"
            " ('1', 'x', NULL, NULL, NULL, 0), ('2', 'x', now(), NULL, 'once', 2),"
            " ('3', 'x', NULL, now(), 'gone', 10), ('4', 'x', NULL, now(), NULL, 0),"
            # Its alert ended before the next try: nobody gave it up.
            " ('5', 'x', NULL, now(), 'once', 1)"
        )
        found = metrics_of(market)
        waited = {
            labels: seconds
            for (name, labels), seconds in series_of(found).items()
            if name == "assetclass_throttle_seconds_total"
        }
        assert waited.pop(frozenset({("reason", "replication_lag")})) == 2.5
        assert set(waited.values()) == {0.0}
        assert frozenset({("reason", "pause")}) in waited
        labels = {"alert_type": "SLA_VIOLATION", "severity": "high"}
        assert value(found, "assetclass_alerts_open", **labels) == 2
        labels = {"alert_type": "OPERATION_FAILED", "severity": "high"}
        assert value(found, "assetclass_alerts_open", **labels) == 0
        assert value(found, "assetclass_notifications_waiting") == 1
        assert value(found, "assetclass_notifications_failed_total") == 1
        assert value(found, "assetclass_backup_tables") == 1
        assert value(found, "assetclass_backup_bytes") == market.value(
            "SELECT bytes FROM assetclass.backup"
        )
        market.execute("DROP TABLE {}", sql.Identifier(*market.backup_tables()))
        assert value(metrics_of(market), "assetclass_backup_tables") == 0

    @pytest.mark.parametrize(
        ("created", "due", "last_error", "expected"),
        [
            ("3 hours", "-1 hour", None, 0),  # snoozed, or in a maintenance window
            ("3 hours", "1 hour", None, 3600),
            ("2 hours", "-5 minutes", "refused", 7200),
        ],
    )
    def test_a_message_that_shall_not_be_sent_yet_is_not_stuck(
        self, market: Market, created: str, due: str, last_error: str | None, expected: float
    ) -> None:
        market.execute(
            "INSERT INTO assetclass.notification"
            " (occasion, channel, created_at, due_at, last_error)"
            " VALUES ('1', 'x', now() - %s::interval, now() - %s::interval, %s)",
            values=(created, due, last_error),
        )
        waits = value(metrics_of(market), "assetclass_notification_oldest_waiting_seconds")
        assert waits == pytest.approx(expected, abs=60)

    def test_ages_that_only_a_caller_knows(self, market: Market) -> None:
        text = exposition(
            metrics_of(market), [daemon_ages({"SENSOR": 3.5}), tick_ages({"alerts": 31})]
        ).decode()
        assert 'assetclass_daemon_heartbeat_age_seconds{daemon="SENSOR"} 3.5' in text
        assert 'assetclass_sensor_tick_age_seconds{sensor="alerts"} 31.0' in text


class TestCountersNeverGoDown:
    def test_through_failures_resumes_and_rollbacks(self, market: Market) -> None:
        """Scraped before, within and after every try, by a process that knows nothing."""
        market.fill(200)
        market.execute("ALTER TABLE market_data ADD CONSTRAINT sour CHECK (id <> 7) NOT VALID")
        seen: list[Series] = []

        def scrape(_: Operation | None = None) -> None:
            seen.append(series_of(metrics_of(market), counters=True))

        def work(request: CorrectionRequest) -> None:
            correct(market.dsn, market.settings, request, observe=scrape)
            scrape()

        scrape()
        request = request_of(workers=1)
        for batches in (4, 9):
            with broken_after(market, batches), suppress(CorrectionFailedError):
                work(request)
            scrape()

        def scrape_and_die(operation: Operation) -> None:
            scrape()
            if operation.phase is Phase.VERIFYING:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            correct(market.dsn, market.settings, request, observe=scrape_and_die)
        scrape()
        assert metrics_of(market).records.failed == 1
        market.execute("ALTER TABLE market_data DROP CONSTRAINT sour")
        work(request)
        undo_now(market, request.correction_id)
        scrape()

        for earlier, later in itertools.pairwise(seen):
            assert earlier.keys() <= later.keys()
            fell = {key: (old, later[key]) for key, old in earlier.items() if later[key] < old}
            assert fell == {}
        last = metrics_of(market)
        counts = last.operations
        assert (counts.started, counts.completed, counts.failed) == (2, 2, 2)
        assert (last.records.corrected, last.records.restored, last.records.failed) == (200, 200, 1)
        assert any(
            0 < each["assetclass_records_corrected_total", frozenset()] < 200 for each in seen
        ), "counted while it ran"

    def test_an_end_without_total_counts_all_the_same(self, market: Market) -> None:
        """A process of an older version may be at work while the schema is brought up."""
        market.fill(50)
        correct_now(market)
        before = series_of(metrics_of(market), counters=True)
        market.execute("DELETE FROM assetclass.operation_total")
        assert series_of(metrics_of(market), counters=True) == before

    def test_sums_do_not_depend_on_the_order_of_rows(self, market: Market) -> None:
        """As floats do; Prometheus takes the smallest step down for a restart."""
        for seconds in (1.7, 1.3, 1.2, 1.6):
            end_by_hand(market, seconds=seconds)
        before = series_of(metrics_of(market), counters=True)
        market.execute(
            "UPDATE assetclass.operation_total SET epoch = epoch + 1 WHERE duration_seconds > 1.65"
        )
        assert series_of(metrics_of(market), counters=True) == before
        assert before["assetclass_operation_duration_seconds_sum", frozenset()] == 5.8


class TestTheActiveOperation:
    def test_its_progress_comes_from_its_ledger(self, market: Market) -> None:
        seen: list[Metrics] = []

        def look(operation: Operation) -> None:
            if operation.phase is Phase.CORRECTING:
                seen.append(metrics_of(market))

        market.fill(300)
        request = CorrectionRequest(str(uuid4()), options_of(workers=1), requested_by="test")
        correct(market.dsn, market.settings, request, observe=look)
        assert seen
        for found in seen:
            active = found.active
            assert active is not None
            assert (active.correction_id, active.status) == (request.correction_id, Status.RUNNING)
            assert value(found, "assetclass_operation_active", kind="correction") == 1
            assert (found.operations.started, found.operations.completed) == (1, 0)
        progress = [found.active.progress_percent for found in seen if found.active]
        assert progress == sorted(progress)
        assert metrics_of(market).active is None

    def test_a_request_has_not_started(self, market: Market) -> None:
        market.execute(
            "INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run,"
            " options, requested_by, requested_at) VALUES (gen_random_uuid(), 'correction',"
            " 'requested', 'starting', false, '{{}}', 'x', now() - interval '90 s')"
        )
        found = metrics_of(market)
        assert found.operations.started == 0
        market.execute(
            "INSERT INTO assetclass.operation_request (correction_id, attempt, requested_by,"
            " requested_at) SELECT correction_id, 2, 'x', now() - interval '30 s'"
            " FROM assetclass.operation"
        )
        again = value(metrics_of(market), "assetclass_operation_active_seconds", status="requested")
        assert again == pytest.approx(30, abs=10), "since it was asked for again"
        age = value(found, "assetclass_operation_active_seconds", status="requested")
        assert age == pytest.approx(90, abs=10)

    def test_what_it_waits_for_its_own_window_is_no_duration(self, market: Market) -> None:
        """As SLA_VIOLATION counts it, which Prometheus judges once more by this number."""
        market.execute(
            "INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run,"
            " options, requested_by, started_at) VALUES (gen_random_uuid(), 'correction',"
            " 'running', 'correcting', false, '{{}}', 'x', now() - interval '3 hours')"
        )
        market.execute(
            "INSERT INTO assetclass.operation_wait SELECT correction_id, waited.*"
            " FROM assetclass.operation, (VALUES ('window', 10000), ('replication_lag', 500))"
            " AS waited"
        )
        found = metrics_of(market)
        assert found.active is not None
        assert found.active.seconds == pytest.approx(800, abs=300)
        [duration] = [one for one in found.key_metrics if one.name == "Operation Duration"]
        assert duration.met is True
        with (
            connect(market.dsn, market.settings, purpose="test") as connection,
            transaction(connection, market.settings, read_only=True) as cursor,
        ):
            judged = active_operation(cursor, market.settings)
        assert judged is not None
        assert judged.running_seconds == pytest.approx(found.active.seconds, abs=60)

    def test_a_planned_one_is_not_active(self, market: Market) -> None:
        plan_now(market.fill(20), request_of())
        found = metrics_of(market)
        assert (found.active, found.operations.started, found.operations.failed) == (None, 1, 0)


class TestCache:
    def test_one_reads_while_many_ask(self, market: Market) -> None:
        asked, may_go_on = [], threading.Event()
        known = metrics_of(market)

        def read() -> Metrics:
            asked.append(threading.get_ident())
            assert may_go_on.wait(10)
            return known

        cached, found = CachedMetrics(read), list[Metrics]()
        threads = [
            threading.Thread(target=lambda: found.append(cached.get()), daemon=True)
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        may_go_on.set()
        for thread in threads:
            thread.join(10)
        assert (len(asked), found) == (1, [known] * 5)
        assert cached.get() is known
        assert len(asked) == 1

    def test_what_is_too_old_is_read_again(self, market: Market) -> None:
        cached = CachedMetrics(lambda: metrics_of(market), longest_age=0)
        assert cached.get().generated_at < cached.get().generated_at

    def test_an_error_is_told_and_not_kept(self, market: Market) -> None:
        answers = iter([None, metrics_of(market)])

        def read() -> Metrics:
            answer = next(answers)
            if answer is None:
                raise ConnectionError("away")
            return answer

        cached = CachedMetrics(read)
        with pytest.raises(ConnectionError):
            cached.get()
        assert cached.get().operations.started == 0
