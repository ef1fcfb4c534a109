"""Looking for trouble: facts from the database, and what a look at them does to the alerts.

Belongs here: bounded reading, and one transaction for findings and how far was looked. Does not:
the rules (model/*_rules.py), rows of the alert tables (alert_store.py), Dagster (defs/sensors).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.silence import is_abandoned, silence, silence_limits
from assetclass_pipeline.model.alert import Alert, Finding
from assetclass_pipeline.model.alert_rules import AlertLimits, newest_of_each, only_news
from assetclass_pipeline.model.baseline import class_range
from assetclass_pipeline.model.operation import Kind, Status
from assetclass_pipeline.model.operation_rules import (
    OperationFacts,
    judge_active,
    judge_ended,
)
from assetclass_pipeline.model.quality import Category
from assetclass_pipeline.model.quality_rules import QualityFacts, judge_quality
from assetclass_pipeline.monitoring.alert_store import judge, move, position
from assetclass_pipeline.settings import Settings

FIRST_LOOK_BACK: Final = 86_400.0
"""Seconds of the past that a watcher looks at when it looks for the first time."""

MOST_EVENTS: Final = 200
"""Events of one transaction."""

LONGEST_LOOK: Final = 2.0
"""Seconds after which a look leaves the rest to the next one."""

AUDIT_LOG: Final = "audit_log"
QUALITY_MEASUREMENT: Final = "quality_measurement"

_WORST: Final = 5
# A window wider than the baseline, because only measurements of the same size count.
_MEASUREMENTS_PER_RUN: Final = 10


@dataclass(frozen=True)
class Batch:
    """Findings of some events in their order; `position` is that of the last one looked at."""

    findings: Sequence[Finding]
    position: int
    events: int
    is_full: bool = False


@dataclass(frozen=True)
class Look:
    """What a look came to: how many events it saw, which alerts stand otherwise now."""

    events: int
    changed: tuple[Alert, ...] = ()
    position: int | None = None

    def __str__(self) -> str:
        """As a tick says it to people."""
        changed = ", ".join(f"{alert.alert_type} {alert.status}" for alert in self.changed)
        seen = f"Looked at {self.events} events" if self.events else "Nothing new"
        return f"{seen}; {changed}." if changed else f"{seen}."


def limits_of(settings: Settings) -> AlertLimits:
    """The limits that the settings set."""
    thresholds, alerts = settings.thresholds, settings.alerts
    return AlertLimits(
        duration=thresholds.duration,
        pickup=alerts.pickup,
        error_rate=alerts.error_rate,
        quality_score=thresholds.quality_score,
        degradation=thresholds.degradation,
        orphaned=alerts.orphaned,
        baseline_least=alerts.baseline_least,
        baseline_deviations=alerts.baseline_deviations,
        slower_by_at_least=alerts.slower_by_at_least,
    )


def look_through(
    connection: Connection[TupleRow],
    settings: Settings,
    *,
    watcher: str,
    source: str,
    read: Callable[[Cursor[TupleRow], int | None], Batch],
) -> Look:
    """Judge events in batches until none is left, or the time for one look is over.

    `read` is given the position behind which it reads, None at the first look ever. Each batch is
    one transaction with its position: whatever ends this process, no event is lost or judged twice.
    """
    started = time.monotonic()
    events, changed = 0, []
    while True:
        with transaction(connection, settings) as cursor:
            batch = read(cursor, position(cursor, watcher, source))
            move(cursor, watcher, source, batch.position)
            # Last, because others who judge wait for its COMMIT.
            changed += _judge(cursor, settings, batch.findings)
        events += batch.events
        if not batch.is_full or time.monotonic() - started > LONGEST_LOOK:
            return Look(events, tuple(changed), batch.position)


def judge_now(
    connection: Connection[TupleRow],
    settings: Settings,
    find: Callable[[Cursor[TupleRow], frozenset[str]], Sequence[Finding]],
) -> Look:
    """Judge how things stand; `find` is given the causes of alerts that are open."""
    with transaction(connection, settings) as cursor:
        findings = find(cursor, frozenset(unresolved(cursor)))
        return Look(0, tuple(_judge(cursor, settings, findings)))


def unresolved(cursor: Cursor[TupleRow]) -> dict[str, str | None]:
    """Causes of alerts that are open, with the incident that each tells of."""
    return dict(cursor.execute(query("watch", "unresolved")).fetchall())


def _judge(
    cursor: Cursor[TupleRow], settings: Settings, findings: Sequence[Finding]
) -> list[Alert]:
    news = only_news(newest_of_each(findings), unresolved(cursor)) if findings else []
    return judge(cursor, settings, news) if news else []


def look_at_operations(
    connection: Connection[TupleRow], settings: Settings, *, watcher: str
) -> Look:
    """Judge what ended since the last look, whoever started it, and what is active now.

    Then the newest measurement, if it is new.
    """
    ended = look_through(
        connection, settings, watcher=watcher, source=AUDIT_LOG, read=_ended_reader(settings)
    )
    limits = limits_of(settings)
    active = judge_now(
        connection,
        settings,
        lambda cursor, _: judge_active(active_operation(cursor, settings), limits),
    )
    measured = look_through(
        connection,
        settings,
        watcher=watcher,
        source=QUALITY_MEASUREMENT,
        read=_measurement_reader(settings),
    )
    return Look(
        ended.events + measured.events,
        ended.changed + active.changed + measured.changed,
        ended.position,
    )


def _ended_reader(settings: Settings) -> Callable[[Cursor[TupleRow], int | None], Batch]:
    limits = limits_of(settings)

    def read(cursor: Cursor[TupleRow], after: int | None) -> Batch:
        if after is None:
            row = cursor.execute(
                query("watch", "audit_start"), {"look_back": FIRST_LOOK_BACK}
            ).fetchone()
            after = int(row[0]) if row else 0
        most = {"after": after, "most": MOST_EVENTS}
        row = cursor.execute(query("watch", "audit_horizon"), most).fetchone()
        if row is None or row[0] is None:
            return Batch([], after, 0)
        horizon, entries = int(row[0]), int(row[1])
        ended = ended_operations(cursor, settings, after=after, horizon=horizon)
        findings = [finding for facts in ended for finding in judge_ended(facts, limits)]
        return Batch(findings, horizon, len(ended), is_full=entries == MOST_EVENTS)

    return read


def ended_operations(
    cursor: Cursor[TupleRow], settings: Settings, *, after: int, horizon: int
) -> list[OperationFacts]:
    """Operations whose end the audit log tells of between these two numbers, in its order."""
    statement = query(
        "watch",
        "ended",
        running_seconds=query("watch", "running_seconds", until=query("watch", "end_of_try")),
        work_seconds=query("watch", "work_seconds", until=query("watch", "end_of_try")),
    )
    with cursor.connection.cursor(row_factory=dict_row) as rows:
        found = rows.execute(statement, {"after": after, "horizon": horizon}).fetchall()
    # What is usual for its size is asked for the newest of a kind only: it decides, and after a
    # long time without a look there may be hundreds.
    newest = {row["kind"]: row for row in found if _tells_speed(row)}.values()
    return [
        _ended(row, _past_speeds(cursor, settings, row) if row in newest else ()) for row in found
    ]


def _tells_speed(row: dict[str, Any]) -> bool:
    is_done = row["status"] == Status.SUCCEEDED and not row["dry_run"]
    return bool(is_done and row["records_planned"] and row["attempted"])


def _past_speeds(
    cursor: Cursor[TupleRow], settings: Settings, row: dict[str, Any]
) -> tuple[float, ...]:
    from_rows, below_rows = class_range(row["records_planned"])
    work_seconds = query("watch", "work_seconds", until=sql.SQL("o.finished_at"))
    speeds = cursor.execute(
        query("watch", "past_speeds", work_seconds=work_seconds),
        {
            "kind": row["kind"],
            "from_rows": from_rows,
            "below_rows": below_rows,
            "ended_at": row["finished_at"],
            "most": settings.alerts.baseline_runs,
        },
    )
    return tuple(speed for (speed,) in speeds.fetchall())


def _ended(row: dict[str, Any], past: tuple[float, ...]) -> OperationFacts:
    known = {
        name: value for name, value in row.items() if name not in {"records_planned", "finished_at"}
    }
    known |= {
        "status": Status(row["status"]),
        "kind": Kind(row["kind"]),
        "worst_symbols": tuple(row["worst_symbols"]),
    }
    return OperationFacts(**known, past_seconds_per_row=past)


def active_operation(cursor: Cursor[TupleRow], settings: Settings) -> OperationFacts | None:
    """The active operation as it stands; None when there is none."""
    statement = query(
        "watch",
        "active",
        is_abandoned=is_abandoned(),
        silence=silence(),
        running_seconds=query("watch", "running_seconds", until=sql.SQL("clock_timestamp()")),
    )
    with cursor.connection.cursor(row_factory=dict_row) as rows:
        row = rows.execute(statement, silence_limits(settings)).fetchone()
    if row is None:
        return None
    return OperationFacts(
        **{**row, "status": Status(row["status"]), "kind": Kind(row["kind"])},
    )


def explained_runs(cursor: Cursor[TupleRow], run_ids: Sequence[str]) -> dict[str, str]:
    """Of these runs, those whose failure their operation explains, and how."""
    if not run_ids:
        return {}
    return dict(
        cursor.execute(query("watch", "explained_runs"), {"run_ids": list(run_ids)}).fetchall()
    )


@dataclass(frozen=True)
class Measurement:
    """The newest measurement of `quality_report`: its facts, and correctable rows."""

    facts: QualityFacts
    correctable: int

    @property
    def correctable_percent(self) -> float:
        """Share of all rows that a correction could fill, 0..100."""
        total = self.facts.total_records
        return 100 * self.correctable / total if total else 0.0


def newest_measurement(cursor: Cursor[TupleRow], *, after: int = 0) -> Measurement | None:
    """The newest measurement with a higher id than `after`; None when there is none."""
    with cursor.connection.cursor(row_factory=dict_row) as rows:
        row = rows.execute(query("watch", "newest_measurement"), {"after": after}).fetchone()
    if row is None:
        return None
    symbols, months = row.pop("symbols") or [], row.pop("months") or []
    correctable = row.pop("correctable")
    damaged = [one for one in symbols if one["missing"] + one["mismatched"]]
    facts = QualityFacts(
        **row,
        worst_symbols=tuple(damaged[:_WORST]),
        worst_months=_worst_months(months),
        orphaned_symbols=tuple(
            [one for one in symbols if one["category"] == Category.ORPHANED][:_WORST]
        ),
    )
    return Measurement(facts, correctable)


def _worst_months(months: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    def damage(month: dict[str, Any]) -> int:
        return int(month["missing"] + month["mismatched"])

    damaged = [month for month in months if damage(month)]
    return tuple(sorted(damaged, key=damage, reverse=True)[:_WORST])


def _measurement_reader(settings: Settings) -> Callable[[Cursor[TupleRow], int | None], Batch]:
    limits = limits_of(settings)

    def read(cursor: Cursor[TupleRow], after: int | None) -> Batch:
        # Only the newest one counts, however old: what an earlier one said is overtaken.
        measurement = newest_measurement(cursor, after=after or 0)
        if measurement is None:
            return Batch([], after or 0, 0)
        facts = measurement.facts
        same_size, last = _past_scores(cursor, settings, facts)
        findings = judge_quality(facts, same_size, limits, last=last)
        return Batch(findings, facts.measurement_id, 1)

    return read


def _past_scores(
    cursor: Cursor[TupleRow], settings: Settings, facts: QualityFacts
) -> tuple[list[float], float | None]:
    """Scores before this measurement: those of its size class, and the last one of any size."""
    from_rows, below_rows = class_range(facts.total_records)
    runs = settings.alerts.baseline_runs
    found = cursor.execute(
        query("watch", "past_scores"),
        {
            "before": facts.measurement_id,
            "from_rows": from_rows,
            "below_rows": below_rows,
            "most": runs * _MEASUREMENTS_PER_RUN,
        },
    ).fetchall()
    same_size = [score for is_same_size, score in found if is_same_size]
    return same_size[:runs], found[0][1] if found else None
