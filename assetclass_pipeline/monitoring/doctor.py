"""Examining the pipeline thoroughly: each finding in a sentence, and how to mend it.

Belongs here: what is worth a look beyond health, and advice. Does not: probes (health.py), and
what only a command can do, such as loading the definitions (cli/doctor.py).
"""

import stat
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.indexes import missing_indexes
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.database.schema import status as schema_status
from assetclass_pipeline.engine.analysis import quality_history
from assetclass_pipeline.engine.backups import backup_of, find_unregistered, registered
from assetclass_pipeline.engine.preflight import check_market
from assetclass_pipeline.errors import AssetClassError, MarketTablesError
from assetclass_pipeline.model.alert import Severity
from assetclass_pipeline.model.backup import BackupState
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.preflight import Severity as Weight
from assetclass_pipeline.model.wire import Moment, WireModel
from assetclass_pipeline.monitoring.channels import understood
from assetclass_pipeline.monitoring.health import Health
from assetclass_pipeline.settings import Settings, settings_in_effect, unknown_variables

NEWEST_TESTED: Final = 18
_SKEW_MENTIONED: Final = 2.0
_SKEW_WRONG: Final = 30.0


class Verdict(StrEnum):
    """How bad a finding is."""

    FINE = "fine"
    NOTE = "note"
    TROUBLE = "trouble"


class Finding(WireModel):
    """What was found about one subject; `mend` is what to do about it: a command, mostly."""

    subject: str
    verdict: Verdict
    message: str
    mend: str | None = None


class Examination(WireModel):
    """All findings; healthy when none is trouble."""

    is_healthy: bool
    examined_at: Moment
    findings: list[Finding]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> "Examination":
        """The whole of some findings, the worst first."""
        order = [Verdict.TROUBLE, Verdict.NOTE, Verdict.FINE]
        ranked = sorted(findings, key=lambda finding: order.index(finding.verdict))
        healthy = not any(finding.verdict is Verdict.TROUBLE for finding in ranked)
        return cls(is_healthy=healthy, examined_at=datetime.now(UTC), findings=ranked)


_MENDS: Final = {
    "database": "start the server, or correct ASSETCLASS_DATABASE_URL; with the embedded one: "
    "assetclass up",
    "marketTables": "run the GRANT that is named, or correct ASSETCLASS_MARKET_TABLE and "
    "ASSETCLASS_SYMBOLS_TABLE",
    "schema": "assetclass db upgrade",
    "disk": "assetclass backups cleanup --dry-run shows what may go; else make the disk larger",
    "operation": "assetclass status shows it; assetclass resume ID or assetclass cancel ID",
    "requests": "start the daemon: assetclass up; or take the request back: assetclass cancel ID",
    "qualityReport": "launch data_quality_job in the Dagster UI, and switch on the schedule "
    "daily_data_quality",
    "notifications": "assetclass alerts test; then correct ASSETCLASS_ALERTS__CHANNELS",
    "daemon": "assetclass up; elsewhere restart the service that runs dagster-daemon",
    "codeLocation": "see the finding definitions; then restart assetclass up",
    "sensors": "Dagster UI, Automation: switch it on, or read its last tick; on purpose: "
    "ASSETCLASS_HEALTH__MAY_BE_OFF",
    "schedules": "Dagster UI, Automation: switch it on, or read its last tick; on purpose: "
    "ASSETCLASS_HEALTH__MAY_BE_OFF",
    "ticks": "Dagster UI, Automation, the name, Ticks: read the error; see "
    "docs/runbooks/tick-failed.md",
}


def findings_of(health: Health) -> Iterator[Finding]:
    """The components of a health check, each with how to mend it."""
    for name, component in health.components.items():
        if component.is_healthy:
            yield Finding(subject=name, verdict=Verdict.FINE, message=component.message)
        else:
            yield Finding(
                subject=name,
                verdict=Verdict.TROUBLE,
                message=component.message,
                mend=_MENDS.get(name),
            )


def examine_database(
    connection: Connection[TupleRow], dsn: str, settings: Settings
) -> Iterator[Finding]:
    """What only the database knows; reads, and changes nothing.

    A part that cannot be examined is a finding too.
    """
    examinations: dict[str, Callable[[], Iterable[Finding]]] = {
        "postgresVersion": lambda: _version(connection),
        "clock": lambda: _clock(connection, settings),
        "migrations": lambda: _migrations(dsn, settings),
        "indexes": lambda: _indexes(connection, settings),
        "backups": lambda: _backups(connection, settings),
        "nextCorrection": lambda: _next_correction(connection, settings),
    }
    for subject, examine in examinations.items():
        try:
            yield from examine()
        except (AssetClassError, psycopg.Error) as error:
            yield Finding(
                subject=subject,
                verdict=Verdict.TROUBLE,
                message=f"It cannot be examined: {_said(error)}",
            )


def _said(error: Exception) -> str:
    if isinstance(error, psycopg.Error):
        return error.diag.message_primary or type(error).__name__
    return str(error)


def _version(connection: Connection[TupleRow]) -> Iterator[Finding]:
    major = connection.info.server_version // 10_000
    subject = "postgresVersion"
    if major > NEWEST_TESTED:
        yield Finding(
            subject=subject,
            verdict=Verdict.NOTE,
            message=f"The server is PostgreSQL {major}; tested are 14 to {NEWEST_TESTED}.",
            mend="assetclass execute --dry-run first, and look for a newer version of this program",
        )
    else:
        yield Finding(
            subject=subject, verdict=Verdict.FINE, message=f"PostgreSQL {major} is supported."
        )


def _clock(connection: Connection[TupleRow], settings: Settings) -> Iterator[Finding]:
    """The server's clock against this machine's, at the middle of the question."""
    with transaction(connection, settings, read_only=True) as cursor:
        before = time.time()
        row = cursor.execute(query("health", "clock")).fetchone()
        after = time.time()
    skew = float(row[0]) - (before + after) / 2 if row else 0.0
    off = abs(skew)
    said = f"The server's clock is {off:.1f} s {'ahead of' if skew > 0 else 'behind'} this one's."
    mend = "synchronise both machines: timedatectl set-ntp true"
    if off > _SKEW_WRONG:
        said += " Ages of heartbeats of Dagster's, and expiry of tokens, are off by as much."
        yield Finding(subject="clock", verdict=Verdict.TROUBLE, message=said, mend=mend)
    elif off > _SKEW_MENTIONED:
        yield Finding(subject="clock", verdict=Verdict.NOTE, message=said, mend=mend)
    else:
        yield Finding(subject="clock", verdict=Verdict.FINE, message=said)


def _migrations(dsn: str, settings: Settings) -> Iterator[Finding]:
    found = schema_status(dsn, settings)
    if found.at_head:
        message = f"Schema assetclass is at the newest revision, {found.head}."
        yield Finding(subject="migrations", verdict=Verdict.FINE, message=message)
    else:
        yield Finding(
            subject="migrations",
            verdict=Verdict.TROUBLE,
            message=f"Schema assetclass is at {found.current or 'nothing'}; pending: "
            f"{', '.join(found.pending)}.",
            mend="assetclass db upgrade",
        )


def _indexes(connection: Connection[TupleRow], settings: Settings) -> Iterator[Finding]:
    lacks = missing_indexes(connection, settings)
    for lack in lacks:
        yield Finding(
            subject="indexes",
            verdict=Verdict.NOTE,
            message=f"{lack.message[0].upper()}{lack.message[1:]}.",
            mend="assetclass db indexes",
        )
    if not lacks:
        message = "The indexes that are wanted on the market tables are there and valid."
        yield Finding(subject="indexes", verdict=Verdict.FINE, message=message)


def _backups(connection: Connection[TupleRow], settings: Settings) -> Iterator[Finding]:
    with transaction(connection, settings, read_only=True, snapshot=True) as cursor:
        found = [backup_of(entry) for entry in registered(cursor)]
        unknown = find_unregistered(cursor, settings)
    there = [
        one for one in found if one.state not in (BackupState.DROPPED, BackupState.DROPPED_BY_HAND)
    ]
    damaged = [one for one in there if one.verification and one.verification.get("passed") is False]
    for one in damaged:
        yield Finding(
            subject="backups",
            verdict=Verdict.TROUBLE,
            message=f"{one.table_name} failed its last verification: it may not restore.",
            mend=f"assetclass backups verify {one.correction_id}; see "
            "docs/runbooks/recovery-drill-failed.md",
        )
    expired = [one for one in there if one.state is BackupState.EXPIRED]
    if expired:
        yield Finding(
            subject="backups",
            verdict=Verdict.NOTE,
            message=f"{len(expired)} expired backups were not cleaned up.",
            mend="assetclass backups cleanup --dry-run, then without it",
        )
    if unknown:
        yield Finding(
            subject="backups",
            verdict=Verdict.NOTE,
            message=f"{len(unknown)} tables look like backups and nobody registered them: "
            f"{', '.join(one.table_name for one in unknown[:3])}.",
            mend="drop them by hand, if they are nobody's",
        )
    if not (damaged or expired or unknown):
        message = f"{len(there)} backups can undo corrections; none failed its verification."
        yield Finding(subject="backups", verdict=Verdict.FINE, message=message)


_VERDICTS: Final = {
    Weight.REFUSE: Verdict.TROUBLE,
    Weight.WARN: Verdict.NOTE,
    Weight.INFO: Verdict.FINE,
}


def _next_correction(connection: Connection[TupleRow], settings: Settings) -> Iterator[Finding]:
    """What the next correction with default options would meet, its need of disk among it."""
    subject = "nextCorrection"
    try:
        tables = inspect_market_tables(connection, settings, for_writing=True)
    except MarketTablesError:
        yield Finding(
            subject=subject,
            verdict=Verdict.TROUBLE,
            message="It cannot begin before the market tables can be used.",
            mend=_MENDS["marketTables"],
        )
        return
    history = quality_history(connection, settings, most=1)
    records = history[-1].correctable if history else None
    found = check_market(
        connection, tables, settings, CorrectionOptions(), new_classes=None, records=records
    )
    for finding in found.findings:
        yield Finding(
            subject=subject,
            verdict=_VERDICTS[finding.severity],
            message=finding.message,
            mend="assetclass preview shows it with what else a correction would meet"
            if finding.severity is not Weight.INFO
            else None,
        )
    rows = "an unknown number of" if records is None else f"{records:,}"
    yield Finding(
        subject=subject,
        verdict=Verdict.FINE if records is not None else Verdict.NOTE,
        message=f"It would change {rows} rows, by the newest measurement.",
        mend=None
        if records is not None
        else "launch data_quality_job in the Dagster UI: it measures",
    )


def examine_channels(settings: Settings) -> Iterator[Finding]:
    """Whether each channel's URL is understood, and whether somebody hears of the worst."""
    channels = settings.alerts.channels
    mend = 'set ASSETCLASS_ALERTS__CHANNELS=[{"name": "NAME", "url": "URL"}], URL as Apprise has it'
    if not channels:
        yield Finding(
            subject="channels",
            verdict=Verdict.NOTE,
            message="No channel is configured: nobody is told of alerts.",
            mend=mend,
        )
        return
    for channel in channels:
        problem = understood(channel)
        if problem is not None:
            yield Finding(
                subject="channels", verdict=Verdict.TROUBLE, message=f"{problem}", mend=mend
            )
        else:
            heard = ", ".join(sorted(channel.severities))
            yield Finding(
                subject="channels",
                verdict=Verdict.FINE,
                message=f"{channel.name} hears of {heard}, on level {channel.level}.",
            )
    if not any(one.level == 1 and Severity.HIGH in one.severities for one in channels):
        yield Finding(
            subject="channels",
            verdict=Verdict.TROUBLE,
            message="No channel of level 1 hears of high severity: nobody is paged at once.",
            mend='add "level": 1, "severities": ["high"] to one in ASSETCLASS_ALERTS__CHANNELS',
        )


def examine_settings(settings: Settings) -> Iterator[Finding]:
    """Which settings differ from their defaults, and variables that set nothing."""
    for variable in unknown_variables():
        yield Finding(
            subject="settings",
            verdict=Verdict.TROUBLE,
            message=f"{variable} sets nothing: there is no such setting.",
            mend=f"correct its name, or: unset {variable}",
        )
    given = [one for one in settings_in_effect(settings) if one.variable is not None]
    for one in given:
        yield Finding(
            subject="settings",
            verdict=Verdict.FINE,
            message=f"{one.name} is {one.value}, from {one.variable}.",
        )
    if not given:
        yield Finding(
            subject="settings", verdict=Verdict.FINE, message="Every setting is at its default."
        )


_FOR_OTHERS_TO_READ: Final = stat.S_IRGRP | stat.S_IROTH
_FOR_OTHERS_TO_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def examine_files(settings: Settings) -> Iterator[Finding]:
    """Whether other users of this machine can read secrets or change what we rely on."""
    home = settings.home.absolute()
    rules = [
        (home / "postgres" / "password", _FOR_OTHERS_TO_READ | _FOR_OTHERS_TO_WRITE, "600"),
        (home, _FOR_OTHERS_TO_WRITE, "go-w"),
        (home / "dagster" / "dagster.yaml", _FOR_OTHERS_TO_WRITE, "go-w"),
        (settings.archive.absolute(), _FOR_OTHERS_TO_WRITE, "go-w"),
    ]
    problems = [
        Finding(
            subject="files",
            verdict=Verdict.TROUBLE,
            message=f"Other users of this machine may read or change {path}.",
            mend=f"chmod {mode} {path}",
        )
        for path, forbidden, mode in rules
        if _mode(path) & forbidden
    ]
    yield from problems
    if not problems:
        yield Finding(
            subject="files",
            verdict=Verdict.FINE,
            message=f"No other user may change what is in {home}, or read its passwords.",
        )


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:  # not there, or in a directory that we may not enter either
        return 0
