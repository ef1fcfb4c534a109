"""Preflight: what a correction would meet on its way, looked up before anything is touched.

Belongs here: what catalogue and statistics say about the market table, in sentences. Does not: what
makes the tables unusable at all (market_tables.py), and whether to go on after a refusal.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow, class_row, dict_row

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.embedded.data_directory import DataDirectory
from assetclass_pipeline.database.market_tables import MarketTables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.class_fit import check_classes
from assetclass_pipeline.engine.disk_space import (
    RowBytes,
    disk_need,
    free_disk,
    judge_disk,
    row_bytes,
)
from assetclass_pipeline.engine.estimation import estimate_from_rehearsal
from assetclass_pipeline.engine.rehearsal import rehearse
from assetclass_pipeline.model.months import EVERYTHING, TimeRange
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.preflight import (
    Finding,
    Preflight,
    Severity,
    UpdateTrigger,
    ranked,
)
from assetclass_pipeline.settings import Settings

# Older than that it holds back more than the correction's own dead rows.
OLD_TRANSACTION_SECONDS = 300.0
MOST_NAMED = 5
MOST_LISTED = 100
_SCHEMAS_SINCE = 150_000


@dataclass(frozen=True)
class _Leaf:
    """A leaf as catalogue and statistics know it."""

    oid: int
    name: str
    pages: int
    records: int
    index_pages: int
    is_logged: bool
    replica_identity: str
    is_identified: bool
    autovacuum: bool


@dataclass(frozen=True)
class _Publication:
    """A publication, the leaves it carries, and what else of ours it would."""

    name: str
    of_all_tables: bool
    carries_updates: bool
    carries_backup: bool
    carries_own_tables: bool
    leaves: list[int]


@dataclass(frozen=True)
class _Facts:
    """What was looked up about the market table; statements see one snapshot of it."""

    session: dict[str, Any]
    leaves: list[_Leaf]
    indexes: list[tuple[str, bool]]
    triggers: list[UpdateTrigger]
    publications: list[_Publication]
    waiting: int
    holders: list[int]
    oldest_transaction: float | None
    rewrites: list[str]


def preflight(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    options: CorrectionOptions,
    *,
    new_classes: Mapping[str, int] | None,
    records: int | None,
    scope: TimeRange = EVERYTHING,
    history_rate: float | None = None,
    scan_seconds: float | None = None,
    pause_share: float = 0.0,
) -> Preflight:
    """Everything that can be known before: `check_market`, a rehearsal, and an estimate of both.

    `records` are the rows to change, by class in `new_classes`; `scan_seconds` is what one scan of
    the table took; workers pause for `pause_share` times a batch's duration after it. Writes
    nothing that stays. Raises psycopg.Error when the server goes away.
    """
    found = check_market(
        connection, tables, settings, options, new_classes=new_classes, records=records
    )
    if records == 0:
        return found
    rehearsed = rehearse(connection, tables, settings, options, scope)
    estimate = None
    if records is not None:
        estimate = estimate_from_rehearsal(
            records,
            rehearsed.rehearsal,
            options.worker_count,
            history_rate,
            scan_seconds=scan_seconds,
            pause_share=pause_share,
        )
    return found.model_copy(
        update={
            "findings": ranked([*found.findings, *rehearsed.findings]),
            "rehearsal": rehearsed.rehearsal,
            "estimated_seconds": estimate,
        }
    )


def check_market(
    connection: Connection[TupleRow],
    tables: MarketTables,
    settings: Settings,
    options: CorrectionOptions,
    *,
    new_classes: Mapping[str, int] | None,
    records: int | None,
) -> Preflight:
    """What catalogue and statistics say; no row of the market table is read, nothing is written.

    `new_classes` (rows by class) are tried against type and constraints; with `records` the disk is
    judged. Either may be None while it is not known. Works on a standby and for a role that may
    only read. Must be called outside a transaction.
    """
    with transaction(connection, settings, read_only=True) as cursor:
        facts = _look(cursor, tables)
        findings = [
            *_publication_findings(facts, tables, settings, options),
            *_trigger_findings(facts),
            *_index_findings(facts),
            *_traffic_findings(facts, tables),
            *_vacuum_findings(facts),
        ]
        if new_classes:
            findings += check_classes(cursor, tables, new_classes)
        needed = free = None
        if records is not None:
            needed = disk_need(
                records,
                _row_bytes(facts),
                reuses_space=not facts.indexes,
                keeps_wal=facts.session["max_wal_bytes"],
            )
            free = free_disk(cursor, DataDirectory(settings.home / "postgres").data)
            findings += [judge_disk(needed, free)] if records else []
    return Preflight(
        checked_at=datetime.now(UTC),
        findings=ranked(findings),
        indexes_on_asset_class=[name for name, _ in facts.indexes][:MOST_LISTED],
        triggers=facts.triggers[:MOST_LISTED],
        replica_identity=_identities(facts),
        publications=[found.name for found in facts.publications if found.leaves],
        rows_to_change=records,
        disk_needed_bytes=needed and needed.data,
        disk_free_bytes=free and free.data,
        wal_bytes=needed and needed.wal,
        oldest_transaction_seconds=facts.oldest_transaction,
        waiting_locks=facts.waiting,
    )


def _look(cursor: Cursor[TupleRow], tables: MarketTables) -> _Facts:
    connection = cursor.connection
    leaves = [leaf.oid for leaf in tables.leaves]
    heap = [leaf.oid for leaf in tables.leaves if leaf.kind == "heap"]
    written = ["asset_class", *(["updated_at"] if tables.has_updated_at else [])]
    session = connection.cursor(row_factory=dict_row).execute(query("preflight", "session"))
    facts = session.fetchall()[0]
    of_market = {
        "market": tables.market_oid,
        "leaves": leaves,
        "relations": [tables.market_oid, *leaves],
        "written": written,
        "acts_as_replica": facts["acts_as_replica"],
    }
    locks = cursor.execute(query("preflight", "locks"), of_market).fetchall()[0]
    oldest = cursor.execute(query("preflight", "oldest_transaction")).fetchall()[0]
    rewrites = cursor.execute(query("preflight", "rewrites"), of_market).fetchall()
    indexes = cursor.execute(query("preflight", "indexes"), of_market).fetchall()
    return _Facts(
        session=facts,
        leaves=connection.cursor(row_factory=class_row(_Leaf))
        .execute(query("preflight", "leaves"), {"leaves": heap})
        .fetchall(),
        indexes=[(name, unique) for name, unique in indexes],
        triggers=connection.cursor(row_factory=class_row(UpdateTrigger))
        .execute(query("preflight", "triggers"), of_market)
        .fetchall(),
        publications=_publications(connection, tables, heap),
        waiting=locks[0],
        holders=sorted(locks[1]),
        oldest_transaction=oldest[0],
        rewrites=[command for (command,) in rewrites],
    )


def _publications(
    connection: Connection[TupleRow], tables: MarketTables, leaves: list[int]
) -> list[_Publication]:
    nowhere = sql.SQL("false")
    has_schemas = connection.info.server_version >= _SCHEMAS_SINCE
    schema = query("preflight", "schema_published", schema=sql.Literal(tables.market_schema))
    own = query("preflight", "schema_published", schema=sql.Literal("assetclass"))
    of_leaf = query("preflight", "leaf_schema_published")
    statement = query(
        "preflight",
        "publications",
        market_schema_published=schema if has_schemas else nowhere,
        own_schema_published=own if has_schemas else nowhere,
        leaf_schema_published=of_leaf if has_schemas else nowhere,
    )
    cursor = connection.cursor(row_factory=class_row(_Publication))
    return cursor.execute(statement, {"leaves": leaves}).fetchall()


def _row_bytes(facts: _Facts) -> RowBytes:
    known = [leaf for leaf in facts.leaves if leaf.records]
    return row_bytes(
        sum(leaf.pages for leaf in known),
        sum(leaf.index_pages for leaf in known),
        sum(leaf.records for leaf in known),
        facts.session["block_size"],
    )


def _identities(facts: _Facts) -> dict[str, int]:
    found: dict[str, int] = {}
    for leaf in facts.leaves:
        name = leaf.replica_identity if leaf.is_identified else "nothing"
        found[name] = found.get(name, 0) + 1
    return found


def _publication_findings(
    facts: _Facts, tables: MarketTables, settings: Settings, options: CorrectionOptions
) -> Iterator[Finding]:
    updating = [found for found in facts.publications if found.carries_updates and found.leaves]
    if updating:
        yield _finding(
            "PUBLISHED",
            Severity.INFO,
            f"Every corrected row is sent to subscribers, through {_named(updating)}: they need "
            "room and time for it, and a subscriber that stands still makes this server keep its "
            "WAL.",
        )
    yield from _identity_findings(facts, updating)
    if options.create_backup and not options.dry_run:
        backup = [found for found in facts.publications if found.carries_backup]
        yield from _backup_findings(backup, tables, settings)
    if own := [found for found in facts.publications if found.carries_own_tables]:
        yield _finding(
            "OWN_TABLES_PUBLISHED",
            Severity.WARN,
            f"The tables of schema assetclass are published, too, through {_named(own)}: "
            "subscribers that lack them stop replicating at the first row. Create them there "
            "before, or publish only the tables that are meant.",
        )


def _backup_findings(
    publications: list[_Publication], tables: MarketTables, settings: Settings
) -> Iterator[Finding]:
    if not publications:
        return
    allowed = settings.backup_in_publication == "allow"
    what = (
        f"New tables of schema {tables.market_schema} are published, through "
        f"{_named(publications)}: the backup table's rows are sent to subscribers, and those that "
        "lack the table stop replicating."
    )
    advice = (
        "ASSETCLASS_BACKUP_IN_PUBLICATION=allow says that subscribers get the table first."
        if allowed
        else "Choose: correct without a backup (createBackup: false; its plan is unlogged and "
        "never published), publish only the tables that are meant, or make sure that "
        "subscribers get the table first and set ASSETCLASS_BACKUP_IN_PUBLICATION=allow."
    )
    severity = Severity.INFO if allowed else Severity.REFUSE
    yield _finding("BACKUP_PUBLISHED", severity, f"{what} {advice}")


def _identity_findings(facts: _Facts, updating: list[_Publication]) -> Iterator[Finding]:
    published = {leaf for publication in updating for leaf in publication.leaves}
    logged = [leaf for leaf in facts.leaves if leaf.oid in published and leaf.is_logged]
    if nameless := [leaf.name for leaf in logged if not leaf.is_identified]:
        yield _finding(
            "NO_REPLICA_IDENTITY",
            Severity.REFUSE,
            f"PostgreSQL rejects every UPDATE of {_listed(nameless)}: updates are published, "
            f"through {_named(updating)}, but there is no replica identity. Add a primary key, or "
            "ALTER TABLE ... REPLICA IDENTITY USING INDEX or FULL.",
        )
    if full := [leaf.name for leaf in logged if leaf.replica_identity == "full"]:
        yield _finding(
            "REPLICA_IDENTITY_FULL",
            Severity.INFO,
            f"The replica identity of {_listed(full)} is FULL: each update writes the whole old "
            "row to the WAL, too, and subscribers without a fitting index search their table for "
            "it. A primary key as identity is faster.",
        )


def _trigger_findings(facts: _Facts) -> Iterator[Finding]:
    for trigger in facts.triggers:
        if not trigger.fires:
            continue
        where = f"Trigger {trigger.name} ({trigger.function}) on {trigger.table}"
        if trigger.tables > 1:
            where += f" and {trigger.tables - 1:,} more tables"
        if (trigger.timing, trigger.level) == ("BEFORE", "ROW"):
            yield _finding(
                "TRIGGER_BEFORE_UPDATE",
                Severity.WARN,
                f"{where} fires before each corrected row and could change or prevent it. The "
                "rehearsal tries that; values that come out otherwise than planned stop a "
                "correction.",
            )
            continue
        times = "for each corrected row" if trigger.level == "ROW" else "for each UPDATE"
        yield _finding(
            "TRIGGER_ON_UPDATE",
            Severity.INFO,
            f"{where} fires {times} ({trigger.timing}): what it does is done for the correction, "
            "too, and takes its time. Disable it for our role if that is not wanted.",
        )


def _index_findings(facts: _Facts) -> Iterator[Finding]:
    if not facts.indexes:
        return
    names = [name for name, _ in facts.indexes]
    yield _finding(
        "NO_HOT_UPDATES",
        Severity.INFO,
        f"Each corrected row gets a new entry in every index of its table, for about 30 % more "
        f"time, because of indexes that mention asset_class or updated_at: {_listed(names)}. Drop "
        "them for the correction if nothing needs them.",
    )
    if unique := [name for name, is_unique in facts.indexes if is_unique]:
        yield _finding(
            "UNIQUE_INDEX_ON_CLASS",
            Severity.WARN,
            f"Unique indexes hold asset_class: {_listed(unique)}. A row that would become equal to "
            "another one cannot be corrected; look for such rows first.",
        )


def _traffic_findings(facts: _Facts, tables: MarketTables) -> Iterator[Finding]:
    if facts.waiting:
        yield _finding(
            "LOCK_WAITS",
            Severity.WARN,
            f"{facts.waiting:,} sessions wait for a lock on {tables.market_name} now: batches "
            "would queue with them. See pg_blocking_pids(), and wait until they are gone.",
        )
    if facts.holders:
        pids = ", ".join(str(pid) for pid in facts.holders[:MOST_NAMED])
        yield _finding(
            "TABLE_LOCKED",
            Severity.WARN,
            f"A session (process {pids}) holds a lock on {tables.market_name} against writers, as "
            "ALTER TABLE or CREATE INDEX do: batches wait until it ends.",
        )
    for command in facts.rewrites:
        yield _finding(
            "TABLE_IS_REWRITTEN",
            Severity.WARN,
            f"{command} of {tables.market_name} is under way: it moves every row, and batches wait "
            "for it. Start the correction when it has ended.",
        )


def _vacuum_findings(facts: _Facts) -> Iterator[Finding]:
    oldest = facts.oldest_transaction
    if oldest is not None and oldest >= OLD_TRANSACTION_SECONDS:
        yield _finding(
            "OLD_TRANSACTION",
            Severity.WARN,
            f"A transaction is open for {oldest:,.0f} seconds: until it ends vacuum cannot remove "
            "what corrected rows leave behind, and the table grows. Look for it in "
            "pg_stat_activity (xact_start) and pg_prepared_xacts, and end it.",
        )
    switched_off = [leaf.name for leaf in facts.leaves if not leaf.autovacuum]
    if switched_off or not facts.session["autovacuum"]:
        where = (
            "on this server" if not facts.session["autovacuum"] else f"for {_listed(switched_off)}"
        )
        yield _finding(
            "AUTOVACUUM_OFF",
            Severity.INFO,
            f"Autovacuum is off {where}: VACUUM the market table after the correction, or the "
            "space of old row versions is not used again.",
        )


def _finding(code: str, severity: Severity, message: str) -> Finding:
    return Finding(code=code, severity=severity, message=message)


def _named(publications: list[_Publication]) -> str:
    word = "publication" if len(publications) == 1 else "publications"
    return f"{word} {_listed([publication.name for publication in publications])}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
