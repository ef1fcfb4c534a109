"""Rows that another server holds: found by key through postgres_fdw, locked there, then written.

Belongs here: batches and sweeps on foreign leaves, and what two servers' commits can leave behind.
Does not: the plan's scan (plan.py) and rows with a physical address (batches.py, sweeping.py).

postgres_fdw commits on the other server just before we commit here. When the client, the network
or our server dies in between, rows are written there that our ledger lacks. So a batch first
commits, by itself, which of its rows it sees unchanged (`announce`); a later try that finds such a
row with exactly the planned class counts it as corrected, and an event says how many. A row that
an application gave the same class, after it was announced and before it could be locked, in a batch
whose commit was then lost, is taken for ours: nothing on either server could tell them apart.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from psycopg import Connection, Cursor, errors, sql
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import set_local, transaction
from assetclass_pipeline.database.market_tables import Leaf, MarketTables
from assetclass_pipeline.database.queries import Statement, query
from assetclass_pipeline.engine.work import Work, set_updated_at
from assetclass_pipeline.model.operation import SkipReason

# The other server may be far away: beside our own lock time-out, time for its answer.
ANSWER_SECONDS = 1.5
# Each time-out halves what is tried next; after so many in one batch the rest is for the sweep.
MOST_TIMEOUTS = 12
# One remote answer for all rows: a nested loop would ask again for each.
_SETTINGS = {"enable_nestloop": "off"}
_HELD_BY_OTHERS = (
    errors.QueryCanceled,
    errors.LockNotAvailable,
    errors.SerializationFailure,
    errors.DeadlockDetected,
)


@dataclass(frozen=True)
class Written:
    """What became of a batch's rows: `rewritten` got another value than planned.

    `own` were written by an earlier try whose commit arrived on the other server only.
    """

    seqs: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    rewritten: int = 0

    @property
    def corrected(self) -> list[int]:
        """Rows that now have the planned class by our doing."""
        return [*self.seqs, *self.own]


@dataclass(frozen=True)
class ForeignRows:
    """Planned rows as they stand in one foreign leaf."""

    work: Work
    leaf: Leaf

    def announce(self, connection: Connection[TupleRow], seqs: Sequence[int]) -> list[int]:
        """Commit which rows are about to be tried; returns those that an earlier try announced."""
        if not seqs:
            return []
        key = {"correction_id": self.work.holder.correction_id, "seqs": list(seqs)}
        with transaction(connection, self.work.holder.settings) as cursor:
            set_local(cursor, self.work.holder.settings, **_SETTINGS)
            rows = cursor.execute(query("by_key", "in_doubt"), key).fetchall()
            nulls = self._nulls(cursor, seqs)
            find = self.statement("find", nulls, "as_planned")
            cursor.execute(query("by_key", "announce", find=find), {**key, "stale_symbols": []})
        return [row[0] for row in rows]

    def write(
        self,
        cursor: Cursor[TupleRow],
        seqs: Sequence[int],
        *,
        stale_symbols: Sequence[str],
        in_doubt: Sequence[int],
    ) -> Written:
        """Write what has its planned old value and is not held by others, in the open transaction.

        Raises psycopg.Error for whatever the other server refuses.
        """
        set_local(cursor, self.work.holder.settings, **_SETTINGS)
        nulls = self._nulls(cursor, seqs)
        stale = list(stale_symbols)
        locked = self._lock(cursor, list(seqs), nulls, stale)
        correct = self.statement("correct", nulls, "as_planned")
        found = _rows(cursor, correct, locked, stale)
        written = [seq for seq, as_planned in found if as_planned]
        rewritten = len(found) - len(written)
        if self.work.options.validate_after_each_batch and written:
            kept = _rows(cursor, self.statement("find", nulls, "as_corrected"), written)
            rewritten += len(written) - len(kept)
        doubtful = sorted({*in_doubt} - {*written})
        own = self._own(cursor, nulls, doubtful)
        cursor.execute(
            query("by_key", "settle"),
            {"correction_id": self.work.holder.correction_id, "seqs": list(seqs)},
        )
        refused = sorted({*locked} - {seq for seq, _ in found})
        return Written(written, own, refused, rewritten)

    def _own(
        self, cursor: Cursor[TupleRow], nulls: tuple[bool, bool], doubtful: list[int]
    ) -> list[int]:
        if not doubtful:
            return []
        find = self.statement("find", nulls, "as_corrected")
        own = [row[0] for row in _rows(cursor, find, doubtful)]
        if own:
            self.work.holder.journal.tell(
                "found_committed_elsewhere",
                table=f"{self.leaf.schema}.{self.leaf.table}",
                records=len(own),
            )
        return own

    def _lock(
        self, cursor: Cursor[TupleRow], seqs: list[int], nulls: tuple[bool, bool], stale: list[str]
    ) -> list[int]:
        """Rows that are locked for us now; those that others hold are left out."""
        seconds = self.work.holder.settings.session.lock_timeout + ANSWER_SECONDS
        limits = {**_SETTINGS, "statement_timeout": f"{round(seconds * 1000)}ms"}
        lock = self.statement("lock", nulls, "as_planned")
        locked: list[int] = []
        waiting, timeouts = [seqs], 0
        while waiting and timeouts < MOST_TIMEOUTS:
            part = waiting.pop()
            try:
                with cursor.connection.transaction():
                    set_local(cursor, self.work.holder.settings, **limits)
                    found = Counter(row[0] for row in _rows(cursor, lock, part, stale))
            except _HELD_BY_OTHERS as error:
                self.work.holder.stop.check()
                timeouts += isinstance(error, errors.QueryCanceled)
                if len(part) > 1:
                    half = len(part) // 2
                    waiting += [part[half:], part[:half]]
            else:
                # Of two rows alike in everything nobody knows which one was planned.
                locked += [seq for seq, rows in found.items() if rows == 1]
        set_local(cursor, self.work.holder.settings, **_SETTINGS)
        return locked

    def _nulls(self, cursor: Cursor[TupleRow], seqs: Sequence[int]) -> tuple[bool, bool]:
        """Whether some rows lack an id, a time: then that column cannot restrict what is read."""
        row = cursor.execute(
            query("by_key", "holds_nulls", backup=self.work.plan.identifier), {"seqs": list(seqs)}
        ).fetchone()
        return (bool(row[0]), bool(row[1])) if row else (True, True)

    def statement(self, name: str, nulls: tuple[bool, bool], value: str) -> Statement:
        """One step on these rows; `nulls`: whether some lack an id, a time; `value` is compared."""
        without_id, without_time = nulls
        restricting = ["by_symbol"]
        restricting += [] if without_id else ["by_id"]
        restricting += [] if without_time else ["by_time"]
        return query(
            "by_key",
            name,
            wanted=query("by_key", "wanted", backup=self.work.plan.identifier),
            leaf=self.leaf.identifier,
            restricted=sql.SQL(" AND ").join(
                query(
                    "by_key",
                    block,
                    id_cast=_array_cast(self.work.tables.id_type),
                    symbol_cast=_array_cast(self.work.tables.symbol_type),
                )
                for block in restricting
            ),
            same_row=query("by_key", "same_row"),
            value=query("by_key", value),
            as_corrected=query("by_key", "as_corrected"),
            set_updated_at=set_updated_at(self.work.tables),
        )


def _array_cast(column_type: str) -> sql.SQL:
    """An array of varchar is not sent to the other server, one of text is."""
    return sql.SQL("::text" if column_type.startswith("character varying") else "")


def _rows(
    cursor: Cursor[TupleRow],
    statement: Statement,
    seqs: list[int],
    stale_symbols: Sequence[str] = (),
) -> list[TupleRow]:
    if not seqs:
        return []
    return cursor.execute(
        statement, {"seqs": seqs, "stale_symbols": list(stale_symbols)}
    ).fetchall()


def candidates_statement(tables: MarketTables, backup: sql.Identifier, leaf: Leaf) -> Statement:
    """What one leaf holds under the ids of planned rows."""
    return query(
        "by_key",
        "candidates",
        wanted=query("by_key", "wanted", backup=backup),
        leaf=leaf.identifier,
        id_cast=_array_cast(tables.id_type),
        same_row=query("by_key", "same_row"),
        value=query("by_key", "as_planned"),
    )


def explain_left(
    cursor: Cursor[TupleRow],
    tables: MarketTables,
    backup: sql.Identifier,
    seqs: Sequence[int],
    stale_symbols: Sequence[str],
) -> dict[SkipReason, list[int]]:
    """Why rows could not be written, from every leaf that may hold them, here or elsewhere."""
    found: dict[int, tuple[bool, bool, bool]] = {}
    for leaf in tables.leaves:
        statement = candidates_statement(tables, backup, leaf)
        values = {"seqs": list(seqs), "stale_symbols": list(stale_symbols)}
        for seq, without_id, exists, unchanged in cursor.execute(statement, values):
            before = found.get(seq, (without_id, False, False))
            found[seq] = (without_id, before[1] or exists, before[2] or unchanged)
    reasons: dict[SkipReason, list[int]] = {}
    for seq in seqs:
        # Rows of stale symbols are not looked for.
        reason = _reason(*found[seq]) if seq in found else SkipReason.CLASS_CHANGED
        reasons.setdefault(reason, []).append(seq)
    return reasons


def _reason(without_id: bool, exists: bool, unchanged: bool) -> SkipReason:
    if without_id:
        return SkipReason.MOVED_OR_CHANGED
    if unchanged:
        return SkipReason.LOCKED
    return SkipReason.CHANGED_BY_OTHERS if exists else SkipReason.DELETED
