"""A history as months of use leave it: operations, ledgers, measurements, alerts, at past times.

Belongs here: rows for the tables of the pipeline. Does not: expectations about them.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from assetclass_pipeline_tests.market import Market

_SPACE = UUID("12345678-1234-4678-8234-567812345678")


def operation_id(name: str) -> str:
    """The correctionId of a seeded operation."""
    return str(uuid5(_SPACE, name))


@dataclass(frozen=True)
class Seed:
    """An ended operation: `seconds` long, with batches of `batch` rows one after the other."""

    name: str
    at: datetime
    kind: str = "correction"
    status: str = "succeeded"
    seconds: float | None = 60
    planned: int | None = 1000
    corrected: int = 1000
    failed: int = 0
    skipped: int = 0
    batch: int = 500
    waits: dict[str, float] = field(default_factory=dict)
    changes: tuple[tuple[str | None, str | None, str | None, int], ...] = ()
    dry_run: bool = False
    by: str = "ada"
    reason: str | None = None
    ticket: str | None = None
    error: str | None = None
    rollback_of: str | None = None
    rolled_back_by: str | None = None


def add_operations(market: Market, *seeds: Seed) -> None:
    """The operations with their ledgers, refused rows, waits and changes."""
    for seed in seeds:
        _add(market, seed)
    for seed in seeds:
        if seed.rolled_back_by:
            market.execute(
                "UPDATE assetclass.operation SET rolled_back_by = %s WHERE correction_id = %s",
                values=(operation_id(seed.rolled_back_by), operation_id(seed.name)),
            )


def _add(market: Market, seed: Seed) -> None:
    key = operation_id(seed.name)
    end = None if seed.seconds is None else seed.at + timedelta(seconds=seed.seconds)
    market.execute(
        "INSERT INTO assetclass.operation (correction_id, kind, status, phase, dry_run, options,"
        " requested_by, reason, ticket, requested_at, started_at, finished_at, records_planned,"
        " error, rollback_of) VALUES (%s, %s, %s, 'done', %s, '{{}}', %s, %s, %s, %s, %s, %s, %s,"
        " %s, %s)",
        values=(
            key,
            seed.kind,
            seed.status,
            seed.dry_run,
            seed.by,
            seed.reason,
            seed.ticket,
            seed.at,
            seed.at if end else None,
            end,
            seed.planned,
            json.dumps({"code": "X", "message": seed.error}) if seed.error else None,
            operation_id(seed.rollback_of) if seed.rollback_of else None,
        ),
    )
    left_alone = seed.failed + seed.skipped
    attempted = seed.corrected + left_alone
    starts = range(1, attempted + 1, seed.batch)
    each = 1000 * (seed.seconds or 0) / max(1, len(starts))
    for number, first in enumerate(starts):
        last = min(first + seed.batch - 1, attempted)
        left = left_alone if last == attempted else 0
        market.execute(
            "INSERT INTO assetclass.operation_batch (correction_id, first_seq, last_seq, epoch,"
            " worker, records_corrected, records_skipped, duration_ms, committed_at)"
            " VALUES (%s, %s, %s, 1, 0, %s, %s, %s, %s)",
            values=(
                key,
                first,
                last,
                last - first + 1 - left,
                left,
                round(each),
                seed.at + timedelta(milliseconds=(number + 1) * each),
            ),
        )
    for number in range(left_alone):
        reason = "quarantined" if number < seed.failed else "changed_by_others"
        market.execute(
            "INSERT INTO assetclass.operation_skipped_row VALUES (%s, %s, %s)",
            values=(key, attempted - number, reason),
        )
    for signal, seconds in seed.waits.items():
        market.execute(
            "INSERT INTO assetclass.operation_wait VALUES (%s, %s, %s)",
            values=(key, signal, seconds),
        )
    for symbol, old, new, records in seed.changes:
        market.execute(
            "INSERT INTO assetclass.operation_change"
            " (correction_id, symbol, old_class, new_class, records) VALUES (%s, %s, %s, %s, %s)",
            values=(key, symbol, old, new, records),
        )


def add_measurement(market: Market, at: datetime, **values: Any) -> None:
    """One measurement; scores are 100 and orphaned 0 unless told."""
    said = {
        "source": "quality_report",
        "total_records": 1000,
        "completeness": 100.0,
        "integrity": 100.0,
        "orphaned_percent": 0.0,
        "quality_score": 100.0,
        "correctable": 0,
        **values,
    }
    market.execute(
        "INSERT INTO assetclass.quality_measurement (measured_at, source, total_records,"
        " completeness, integrity, orphaned_percent, quality_score, correctable, report)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, '{{}}')",
        values=(at, *said.values()),
    )


def add_alert(market: Market, at: datetime, alert_type: str, **values: Any) -> None:
    """One alert; `acknowledged` and `resolved` are seconds after it opened."""
    acknowledged, resolved = values.get("acknowledged"), values.get("resolved")
    market.execute(
        "INSERT INTO assetclass.alert (cause, alert_type, severity, status, summary, opened_at,"
        " occurrences, times_reopened, acknowledged_at, resolved_at)"
        " VALUES (%s, %s, 'medium', %s, 'a test', %s, %s, %s, %s, %s)",
        values=(
            f"{alert_type} {at.isoformat()}",
            alert_type,
            "open" if resolved is None else "resolved",
            at,
            values.get("occurrences", 1),
            values.get("reopened", 0),
            None if acknowledged is None else at + timedelta(seconds=acknowledged),
            None if resolved is None else at + timedelta(seconds=resolved),
        ),
    )
