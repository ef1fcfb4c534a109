"""Whether a correction can be undone: each refusal, with the way on, before anything is written.

Belongs here: the correction that a rollback names, its backup, what came after it. Does not: the
rollback itself (rollback.py), and its plan (undo_plan.py).
"""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from psycopg import Connection, Cursor, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import scan, set_local
from assetclass_pipeline.database.queries import Statement, query
from assetclass_pipeline.engine.backups import content_of, registered, was_altered
from assetclass_pipeline.engine.conditions import Condition, in_scope
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.engine.plan import PlanState
from assetclass_pipeline.errors import (
    AlreadyRolledBackError,
    BackupDamagedError,
    BackupExpiredError,
    InvalidOptionsError,
    LaterCorrectionError,
    NotUndoableError,
    OperationInProgressError,
    OperationNotFoundError,
    OperationStateError,
)
from assetclass_pipeline.model.backup import BY_HAND
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.model.operation import ACTIVE, Kind
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.settings import Settings

# The only join left to statements that read a whole backup: their estimates are poor.
HASH_JOINS = {"enable_nestloop": "off", "enable_mergejoin": "off"}


@dataclass(frozen=True)
class Undone:
    """The correction that a rollback undoes, and which of its rows are asked about.

    `plan` is the correction's. Once the rollback itself `is_planned`, the backup is needed no more.
    """

    correction_id: UUID
    rollback_id: UUID
    plan: PlanState
    is_chosen: Condition
    is_planned: bool = False

    @property
    def key(self) -> dict[str, object]:
        """What every statement about both operations is bound to."""
        return {"undone": self.correction_id, "correction_id": self.rollback_id}

    @property
    def values(self) -> dict[str, object]:
        """The same, and what the chosen rows are told by."""
        return {**self.key, **self.is_chosen.values}

    def chosen(self, *more: sql.Composable) -> Statement:
        """SELECT of the chosen rows that still stand, from the backup table."""
        return query(
            "rollback",
            "chosen",
            backup=self.plan.identifier,
            standing_seqs=standing("undone", besides="correction_id"),
            is_chosen=sql.SQL(" AND ").join([self.is_chosen.text, *more]),
        )


@dataclass(frozen=True)
class Survey:
    """What the chosen rows are: how many get which value back, and whether keys lack a part.

    The backup `lacks` rows that the correction planned and somebody removed; None: not looked at.
    """

    records_by_class: dict[str | None, int] = field(default_factory=dict)
    has_nulls: bool = False
    lacks: int | None = None

    @property
    def records(self) -> int:
        """Rows that are asked about."""
        return sum(self.records_by_class.values())


def changed(operation: str) -> Statement:
    """The seqs that the operation bound as `operation` has written."""
    return query("rollback", "changed_seqs", operation=sql.Placeholder(operation))


def standing(operation: str, *, besides: str | None = None) -> Statement:
    """The same without those that were put back, by rollbacks `besides` the one bound so."""
    placeholder = sql.SQL("NULL") if besides is None else sql.Placeholder(besides)
    return query(
        "rollback",
        "standing_seqs",
        changed_seqs=changed(operation),
        operation=sql.Placeholder(operation),
        **{"except": placeholder},
    )


class Undoing:
    """Looks at what a rollback names, first without and then within the claim.

    What takes long is done once, before: `looked_at` are the later corrections that were compared.
    """

    def __init__(
        self, settings: Settings, rollback_id: str, rollback_of: str, options: RollbackOptions
    ) -> None:
        self._settings = settings
        self._id, self._of = as_uuid(rollback_id), as_uuid(rollback_of)
        self._options = options
        self._looked_at: set[str] = set()
        self._epoch: int | None = None
        self.is_chosen = chosen_by(options, settings)

    @property
    def key(self) -> dict[str, object]:
        """What every statement about both operations is bound to."""
        return {"undone": self._of, "correction_id": self._id}

    def look(self, connection: Connection[TupleRow]) -> Undone:
        """What can be undone. Raises each refusal as its own error."""
        with scan(connection, self._settings) as cursor:
            return self._check(cursor, locked=False)

    def check(self, cursor: Cursor[TupleRow]) -> None:
        """The same in the transaction of the claim, which locks the backup against cleanups."""
        self._check(cursor, locked=True)

    def survey(self, connection: Connection[TupleRow], undone: Undone) -> Survey:
        """Read the backup once. Raises BackupDamagedError where somebody altered it."""
        with scan(connection, self._settings) as cursor:
            rows = cursor.execute(
                query("rollback", "survey", chosen=undone.chosen()), undone.values
            ).fetchall()
            content = content_of(cursor, undone.plan.identifier)
            noted = registered(cursor, self._of)
        lacks = undone.plan.planned - content.records
        # Where rows were removed the rest can still be restored; added ones nobody planned.
        if noted and (lacks < 0 or (not lacks and was_altered(noted[0].checksum, content))):
            raise BackupDamagedError(
                f"The backup of correction {self._of}, {noted[0].name}, does not hold what was "
                "written into it: somebody altered its rows, and a rollback would restore wrong "
                f"values. Look at it (`assetclass backups verify {self._of}`), and bring the table "
                "back from a backup of the database."
            )
        return Survey(
            {name: int(records) for name, records, _, _ in rows},
            any(without_id or without_time for _, _, without_id, without_time in rows),
            lacks,
        )

    def _check(self, cursor: Cursor[TupleRow], *, locked: bool) -> Undone:
        row = cursor.execute(query("rollback", "correction"), self.key).fetchone()
        if row is None:
            raise OperationNotFoundError(
                f"No operation has the correctionId {self._of}. `assetclass status` lists the "
                "recent ones."
            )
        kind, status, dry_run, backup_table, plan, rollback_of, rolled_back_by, *rest = row
        epoch, has_changed = rest
        self._refuse_what_is_no_ended_correction(kind, status, rollback_of)
        self._refuse_what_changed_nothing(dry_run, has_changed, backup_table)
        self._refuse_what_went_on(epoch)
        begun = cursor.execute(query("rollback", "begun"), self.key).fetchone()
        undo, is_planned = begun or (None, False)
        own_plan = PlanState.model_validate(plan)
        undone = Undone(self._of, self._id, own_plan, self.is_chosen, is_planned)
        if not is_planned:
            self._refuse_without_backup(cursor, undone, locked=locked)
        if undo is None:
            self._refuse_done(cursor, rolled_back_by)
        else:
            self._refuse_overtaken(cursor)
        left = self._unwritten(cursor, undo) if is_planned else undone.chosen()
        if left is not None:
            self._refuse_before_later_ones(cursor, undone, left)
        return undone

    def _refuse_what_is_no_ended_correction(
        self, kind: str, status: str, rollback_of: str | None
    ) -> None:
        if kind == Kind.ROLLBACK:
            raise NotUndoableError(
                f"Operation {self._of} is itself the rollback of correction {rollback_of}, and a "
                "rollback is not rolled back: to correct those rows again, run a new correction. "
                f"To undo more of the correction, roll back {rollback_of}."
            )
        if status in ACTIVE:
            raise OperationInProgressError(
                f"Correction {self._of} is {status}; it can be rolled back once it has ended. Wait "
                f"for it (`assetclass status {self._of}`), or cancel it and then roll it back.",
                correction_id=str(self._of),
            )

    def _refuse_what_went_on(self, epoch: int) -> None:
        """Of a correction that was resumed since the first look, other rows stand now."""
        if self._epoch is None:
            self._epoch = epoch
        elif self._epoch != epoch:
            raise OperationStateError(
                f"Correction {self._of} was resumed and went on meanwhile. Nothing was undone; "
                "look at it again, then roll it back."
            )

    def _refuse_what_changed_nothing(
        self, dry_run: bool, has_changed: bool, backup_table: str | None
    ) -> None:
        if dry_run:
            raise NotUndoableError(
                f"Operation {self._of} was a dry run: it changed nothing, so there is nothing to "
                "undo. `assetclass status` lists the operations that changed rows."
            )
        if not has_changed:
            raise NotUndoableError(
                f"Correction {self._of} changed no rows, so there is nothing to undo. `assetclass "
                "status` lists the operations that changed rows."
            )
        if backup_table is None:
            raise NotUndoableError(
                f"Correction {self._of} was made without a backup (createBackup: false), so it is "
                f"not rolled back. {_by_hand(self._of)} Its summary by symbol stays in any case "
                f"(`assetclass status {self._of}`)."
            )

    def _refuse_without_backup(
        self, cursor: Cursor[TupleRow], undone: Undone, *, locked: bool
    ) -> None:
        lock = sql.SQL("FOR SHARE" if locked else "")
        row = cursor.execute(query("rollback", "backup", lock=lock), undone.key).fetchone()
        # What was dropped by hand may have been brought back: the survey proves what it holds.
        if row is not None and row[0] is not None and row[2] != BY_HAND:
            raise BackupExpiredError(_dropped(self._of, *row))
        if not _exists(cursor, undone.plan):
            raise BackupExpiredError(
                f"The backup of correction {self._of}, table {undone.plan.schema_name}."
                f"{undone.plan.table_name}, is gone, and not by our own cleanup: somebody dropped "
                "or renamed it. Bring that table back from a backup of the database, then roll "
                "back again."
            )

    def _refuse_overtaken(self, cursor: Cursor[TupleRow]) -> None:
        """A rollback that was cut off does not go on once another one has begun."""
        row = cursor.execute(
            query("operation", "begun_rollback"), {"correction_id": self._of}
        ).fetchone()
        if row is not None and row[0] != str(self._id):
            raise OperationStateError(
                f"Rollback {self._id} cannot go on: rollback {row[0]} of the same correction has "
                "begun since. For the rows that are left start a new rollback."
            )

    def _refuse_done(self, cursor: Cursor[TupleRow], rolled_back_by: str | None) -> None:
        if rolled_back_by is None:
            return
        standing_seqs = standing("undone")
        row = cursor.execute(
            query("rollback", "is_standing", standing_seqs=standing_seqs), {"undone": self._of}
        ).fetchone()
        left = row is not None and bool(row[0])
        if left and self._options.take_backup_value:
            return
        conflicts = (
            " It left rows alone that were changed since, its conflicts; to overwrite these with "
            "their old values too, ask for takeBackupValue."
            if left
            else ""
        )
        raise AlreadyRolledBackError(
            f"Correction {self._of} was rolled back by {rolled_back_by} already.{conflicts} To "
            "correct its rows again, run a new correction."
        )

    def _unwritten(self, cursor: Cursor[TupleRow], undo: object) -> Statement | None:
        """What a rollback that was cut off has yet to restore; None where its plan is lost.

        A later correction may have written the very class that the rollback expects there.
        """
        plan = PlanState.model_validate(undo)
        if not _exists(cursor, plan):
            return None
        written = changed("correction_id")
        return query("rollback", "unwritten", undo=plan.identifier, changed_seqs=written)

    def _refuse_before_later_ones(
        self, cursor: Cursor[TupleRow], undone: Undone, left: Statement
    ) -> None:
        """`left` are the rows that are to be restored."""
        later = cursor.execute(query("rollback", "later_corrections"), undone.key).fetchall()
        if {found for found, _ in later} <= self._looked_at:
            return
        limits = {"statement_timeout": f"{round(self._settings.session.scan_timeout * 1000)}ms"}
        set_local(cursor, self._settings, **HASH_JOINS, **limits)
        for correction_id, plan in later:
            if correction_id in self._looked_at:
                continue
            later_plan = PlanState.model_validate(plan)
            records = _overlap(cursor, undone, left, correction_id, later_plan)
            if records:
                raise LaterCorrectionError(
                    f"Correction {correction_id} came after {self._of} and changed {records:,} of "
                    "the same rows, so it must be undone first: `assetclass rollback "
                    f"{correction_id}`, then this one again.",
                    correction_id=correction_id,
                )
            self._looked_at.add(correction_id)


def _exists(cursor: Cursor[TupleRow], plan: PlanState) -> bool:
    names = {"schema": plan.schema_name, "table": plan.table_name}
    row = cursor.execute(query("plan", "table_exists"), names).fetchone()
    return row is not None and bool(row[0])


def _overlap(
    cursor: Cursor[TupleRow], undone: Undone, left: Statement, correction_id: str, plan: PlanState
) -> int:
    """Rows `left` that a later correction changed too and that still stand; 0 without its backup.

    What it changed is then not known by row, and the comparison with the present values decides.
    """
    if not _exists(cursor, plan):
        return 0
    statement = query(
        "rollback",
        "overlap",
        chosen=left,
        later=plan.identifier,
        later_seqs=standing("later"),
    )
    row = cursor.execute(statement, {**undone.values, "later": as_uuid(correction_id)}).fetchone()
    return int(row[0]) if row else 0


def _dropped(correction: UUID, at: datetime, by: str | None, reason: str | None) -> str:
    who = f" by {by}" if by else ""
    why = f" ({reason})" if reason else ""
    return (
        f"The backup of correction {correction} was dropped on {at:%Y-%m-%d %H:%M} UTC{who}{why}, "
        f"so it is not rolled back any more. {_by_hand(correction)}"
    )


def _by_hand(correction: UUID) -> str:
    return (
        f"`assetclass backups restore-archive {correction}` makes a table of its archived rows, as "
        "long as the archive has not expired too; how they are put back from that by hand, the "
        "runbook of manual recovery says."
    )


def chosen_by(options: RollbackOptions, settings: Settings) -> Condition:
    """True for rows of a backup table, as `m`, that the options ask about.

    Raises InvalidOptionsError for a month that is none of the calendar's.
    """
    parts: list[sql.Composable] = [sql.SQL("true")]
    values: dict[str, object] = {}
    if options.target_symbols is not None:
        parts.append(query("plan", "is_target"))
        values["target_symbols"] = options.target_symbols
    if options.row_ids is not None:
        parts.append(query("rollback", "has_id"))
        values["row_ids"] = options.row_ids
    if options.partitions is not None:
        months = _in_months(options.partitions, Calendar.until_now(settings.first_month))
        parts.append(months.text)
        values |= months.values
    return Condition(sql.SQL(" AND ").join(parts), values)


def _in_months(keys: list[str], calendar: Calendar) -> Condition:
    """True for rows of these months; those that follow each other are one range."""
    places = {key: place for place, key in enumerate(calendar.keys)}
    if unknown := [key for key in keys if key not in places]:
        raise InvalidOptionsError(
            f"partitions: {unknown[0]} is no month of the calendar, which goes from "
            f"{calendar.keys[0]} to {calendar.keys[-1]}"
        )
    wanted = sorted({places[key] for key in keys})
    runs: list[list[int]] = []
    for place in wanted:
        if runs and runs[-1][1] == place - 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    ranges = [
        in_scope(calendar.range_of(calendar.keys[first], calendar.keys[last]), f"run_{number}")
        for number, (first, last) in enumerate(runs)
    ]
    either = sql.SQL(" OR ").join(sql.SQL("({})").format(part.text) for part in ranges)
    return Condition(
        sql.SQL("({})").format(either),
        {name: value for part in ranges for name, value in part.values.items()},
    )
