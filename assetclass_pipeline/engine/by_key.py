"""Rows that another server holds: found through postgres_fdw, locked there, then written.

Belongs here: batches and sweeps on foreign leaves, and what two servers' commits can leave behind.
Does not: the plan's scan (plan.py) and rows of this server (batches.py, sweeping.py).

Behind a foreign leaf stands one plain table (market_tables.py refuses all else), so an address
there names one row: a batch finds its rows where the plan saw them, the sweep finds the rest by
key. Rows are compared whole, locked, and written by address; postgres_fdw itself writes no other
way.

postgres_fdw commits on the other server just before we commit here. When the client, the network
or our server dies in between, rows are written there that our ledger lacks. So a batch first
commits, by itself, which of its rows it sees unchanged (`trying`); a later try that finds such a
row with exactly the planned class counts it as corrected, and an event says how many. A row stays
in doubt until a try could lock it unchanged, or found it written: the lost COMMIT may be on its way
while the next try looks. A row that an application gave the same class, after it was announced and
before it could be locked, by a try whose end nobody saw, is taken for ours, and so may be a row
alike in everything of a table without a key: nothing on either server could tell them apart.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
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
SETTINGS = {"enable_nestloop": "off"}
_TIMED_OUT = (errors.QueryCanceled, errors.LockNotAvailable)
_HELD_BY_OTHERS = (*_TIMED_OUT, errors.SerializationFailure, errors.DeadlockDetected)


@dataclass(frozen=True)
class Nulls:
    """Whether some rows lack an id, a time: then that column cannot restrict what is read."""

    in_id: bool
    in_time: bool


@dataclass(frozen=True)
class Written:
    """What became of a batch's rows: `rewritten` got another value than planned.

    `own` were written by an earlier try whose commit arrived on the other server only; `refused`
    were locked by us and yet not written, so a trigger there said no.
    """

    seqs: list[int]
    own: list[int]
    refused: list[int]
    rewritten: int

    @property
    def corrected(self) -> list[int]:
        """Rows that now have the planned class by our doing."""
        return [*self.seqs, *self.own]


@dataclass(frozen=True)
class Announced:
    """Rows that are about to be tried: the address there by seq, and which seqs are in doubt."""

    addresses: dict[int, str]
    in_doubt: frozenset[int]


@dataclass(frozen=True)
class ForeignRows:
    """Planned rows as they stand in one foreign leaf."""

    work: Work
    leaf: Leaf

    def write(
        self,
        cursor: Cursor[TupleRow],
        seqs: Sequence[int],
        announced: Announced,
        stale_symbols: Sequence[str],
    ) -> Written:
        """Write what has its planned old value and is not held by others, in the open transaction.

        Raises psycopg.Error for whatever the other server refuses.
        """
        set_local(cursor, self.work.holder.settings, **SETTINGS)
        cursor.execute(query("by_key", "enter", leaf=self.leaf.identifier))
        found = {seq: announced.addresses[seq] for seq in seqs if seq in announced.addresses}
        locked = self._lock(cursor, found, stale_symbols)
        versions = self._correct(cursor, locked)
        written = [seq for seq, as_planned, _ in versions if as_planned]
        addresses = [address for _, _, address in versions]
        rewritten = len(versions) - len(written) + self._written_again(cursor, addresses)
        # What could be locked had its old value still: no earlier try has written that.
        doubtful = sorted(announced.in_doubt & {*seqs} - {*locked})
        own = self._own(cursor, doubtful)
        # An earlier try may be committing there this very moment: its other rows stay in doubt.
        _settle(cursor, self.work, sorted({*seqs} - {*doubtful} | {*own}))
        refused = sorted({*locked} - {seq for seq, _, _ in versions})
        return Written(written, own, refused, rewritten)

    def tell(self, written: Written) -> None:
        """What of it an earlier try had done, once all is committed."""
        if written.own:
            self.work.holder.journal.tell(
                "found_committed_elsewhere",
                table=f"{self.leaf.schema}.{self.leaf.table}",
                records=len(written.own),
            )

    def _lock(
        self, cursor: Cursor[TupleRow], found: dict[int, str], stale_symbols: Sequence[str]
    ) -> dict[int, str]:
        """The rows that are locked for us now; those that others hold are left out."""
        seconds = self.work.holder.settings.session.lock_timeout + ANSWER_SECONDS
        limits = {**SETTINGS, "statement_timeout": f"{round(seconds * 1000)}ms"}
        lock, locked, timeouts = self.lock(), list[tuple[int, str]](), 0
        waiting = [[*found.items()]] if found else []
        while waiting and timeouts < MOST_TIMEOUTS:
            part = waiting.pop()
            try:
                with cursor.connection.transaction():
                    set_local(cursor, self.work.holder.settings, **limits)
                    locked += cursor.execute(lock, _at(part, stale_symbols)).fetchall()
            except _HELD_BY_OTHERS as error:
                self.work.holder.stop.check()
                timeouts += isinstance(error, _TIMED_OUT)
                if len(part) > 1:
                    half = len(part) // 2
                    waiting += [part[half:], part[:half]]
        set_local(cursor, self.work.holder.settings, **SETTINGS)
        return dict(locked)

    def _correct(
        self, cursor: Cursor[TupleRow], locked: dict[int, str]
    ) -> list[tuple[int, bool, str]]:
        """(seq, whether its class is the planned one, new address) of each row written."""
        if not locked:
            return []
        return cursor.execute(self.correct(), _at(locked.items())).fetchall()

    def _written_again(self, cursor: Cursor[TupleRow], addresses: list[str]) -> int:
        """How many of the new versions are no longer the visible ones: a trigger replaced them."""
        if not addresses or not self.work.options.validate_after_each_batch:
            return 0
        row = cursor.execute(self.read_back(), {"addresses": addresses}).fetchone()
        return len(addresses) - (row[0] if row else 0)

    def _own(self, cursor: Cursor[TupleRow], doubtful: list[int]) -> list[int]:
        if not doubtful:
            return []
        find = self.find(by_key(cursor, self.work, doubtful), "as_corrected")
        values = {"seqs": doubtful, "stale_symbols": []}
        return [seq for seq, _ in cursor.execute(find, values)]

    def find(self, restricted: sql.Composable, value: str) -> Statement:
        """Seq and address of rows; `value` says which class is compared with that of the plan."""
        return self._statement("find", restricted=restricted, value=query("by_key", value))

    def lock(self) -> Statement:
        """Locks rows at their addresses there, where they are still as planned."""
        return self._statement("lock", wanted="found")

    def correct(self) -> Statement:
        """Writes rows at their addresses there."""
        return self._statement(
            "correct",
            wanted="found",
            as_corrected=query("by_key", "as_corrected"),
            set_updated_at=set_updated_at(self.work.tables),
        )

    def read_back(self) -> Statement:
        """Counts the visible rows at some addresses there."""
        return query("by_key", "read_back", leaf=self.leaf.identifier)

    def _statement(
        self, name: str, *, wanted: str = "wanted", **parts: sql.Composable
    ) -> Statement:
        shared = {
            "wanted": query("by_key", wanted, backup=self.work.plan.identifier),
            "leaf": self.leaf.identifier,
            "same_row": query("by_key", "same_row"),
            "value": query("by_key", "as_planned"),
        }
        return query("by_key", name, **{**shared, **parts})


def _at(found: Iterable[tuple[int, str]], stale_symbols: Sequence[str] = ()) -> dict[str, object]:
    seqs, addresses = zip(*found, strict=True)
    return {
        "seqs": [*seqs],
        "addresses": [*addresses],
        "stale_symbols": list(stale_symbols),
    }


def by_address(_cursor: Cursor[TupleRow], _work: Work, _seqs: Sequence[int]) -> Statement:
    """Rows are where they were when they were planned: needs no index there."""
    return query("by_key", "by_planned_address")


def by_key(cursor: Cursor[TupleRow], work: Work, seqs: Sequence[int]) -> sql.Composable:
    """Rows are wherever their key is."""
    row = cursor.execute(
        query("by_key", "holds_nulls", backup=work.plan.identifier), {"seqs": list(seqs)}
    ).fetchone()
    return keys_restrict(work.tables, Nulls(*row) if row else Nulls(in_id=True, in_time=True))


def keys_restrict(tables: MarketTables, nulls: Nulls) -> sql.Composable:
    """Arrays of the key's columns, as far as all rows have a value there."""
    restricting = ["by_symbol"]
    restricting += [] if nulls.in_id else ["by_id"]
    restricting += [] if nulls.in_time else ["by_time"]
    blocks = (
        query(
            "by_key",
            block,
            id_cast=_array_cast(tables.id_type),
            symbol_cast=_array_cast(tables.symbol_type),
        )
        for block in restricting
    )
    return sql.SQL(" AND ").join(blocks)


Restriction = Callable[[Cursor[TupleRow], Work, Sequence[int]], sql.Composable]


@contextmanager
def trying(
    work: Work,
    connection: Connection[TupleRow],
    places: Sequence[ForeignRows],
    seqs: Sequence[int],
    restriction: Restriction,
) -> Iterator[tuple[Cursor[TupleRow], list[Announced]]]:
    """A transaction that may write in these places, and what was announced for each beforehand.

    What ends it before COMMIT ends it there too, so that nothing new is in doubt.
    """
    announced = _announce(work, connection, places, seqs, restriction)
    committing = False
    try:
        with transaction(connection, work.holder.settings) as cursor:
            yield cursor, announced
            committing = True
    except Exception:
        tried = {seq for place in announced for seq in {*place.addresses} - place.in_doubt}
        if tried and not committing and not connection.closed:
            with suppress(psycopg.Error), transaction(connection, work.holder.settings) as cursor:
                _settle(cursor, work, sorted(tried))
        raise


def _announce(
    work: Work,
    connection: Connection[TupleRow],
    places: Sequence[ForeignRows],
    seqs: Sequence[int],
    restriction: Restriction,
) -> list[Announced]:
    """Find the rows that are as planned, and commit that they are about to be tried.

    In doubt is what an earlier try announced whose end nobody knows.
    """
    if not places:
        return []
    # The other server's commit outlives a crash of ours: so must what tells of it.
    with transaction(connection, work.holder.settings) as cursor:
        set_local(cursor, work.holder.settings, **SETTINGS, synchronous_commit="on")
        values = {**work.holder.key, "seqs": list(seqs)}
        rows = cursor.execute(query("by_key", "in_doubt"), values).fetchall()
        in_doubt = frozenset(row[0] for row in rows)
        restricted = restriction(cursor, work, seqs)
        announced = []
        for place in places:
            find = place.find(restricted, "as_planned")
            found = cursor.execute(find, {**values, "stale_symbols": []}).fetchall()
            announced.append(Announced(dict(found), in_doubt))
            tried = {**values, "seqs": [seq for seq, _ in found]}
            cursor.execute(query("by_key", "announce"), tried)
    return announced


def _settle(cursor: Cursor[TupleRow], work: Work, seqs: list[int]) -> None:
    values = {**work.holder.key, "seqs": seqs}
    cursor.execute(query("by_key", "settle"), values)
    cursor.execute(query("by_key", "forget_settled"), values)


def _array_cast(column_type: str) -> sql.SQL:
    """An array of varchar is not sent to the other server, one of text is."""
    return sql.SQL("::text" if column_type.startswith("character varying") else "")


def explain_left(
    cursor: Cursor[TupleRow],
    work: Work,
    places: Iterable[sql.Composable],
    seqs: Sequence[int],
    stale_symbols: Sequence[str],
) -> dict[SkipReason, list[int]]:
    """Why rows could not be written, from every table that may hold them, here or elsewhere."""
    found: dict[int, tuple[bool, bool, bool]] = {}
    values = {"seqs": list(seqs), "stale_symbols": list(stale_symbols)}
    for place in places:
        statement = look_for(cursor, work, place, seqs)
        for seq, without_id, exists, unchanged in cursor.execute(statement, values):
            before = found.get(seq, (without_id, False, False))
            found[seq] = (without_id, before[1] or exists, before[2] or unchanged)
    reasons: dict[SkipReason, list[int]] = {}
    for seq in seqs:
        # Rows of stale symbols are not looked for.
        reason = _reason(*found[seq]) if seq in found else SkipReason.CLASS_CHANGED
        reasons.setdefault(reason, []).append(seq)
    return reasons


def look_for(
    cursor: Cursor[TupleRow], work: Work, place: sql.Composable, seqs: Sequence[int]
) -> Statement:
    """What one table holds under the ids of planned rows, or where no index knows ids their keys.

    Without an index each batch of a sweep would read the whole table.
    """
    by_ids = work.tables.ids_are_indexed
    return candidates(work, place, by_id(work) if by_ids else by_key(cursor, work, seqs))


def by_id(work: Work) -> Statement:
    """Rows that have the id, whatever became of the rest of their key."""
    return query("by_key", "by_id", id_cast=_array_cast(work.tables.id_type))


def candidates(work: Work, place: sql.Composable, restricted: sql.Composable) -> Statement:
    """What one table holds under the ids, or the keys, of planned rows."""
    return query(
        "by_key",
        "candidates",
        wanted=query("by_key", "wanted", backup=work.plan.identifier),
        leaf=place,
        restricted=restricted,
        same_row=query("by_key", "same_row"),
        value=query("by_key", "as_planned"),
    )


def _reason(without_id: bool, exists: bool, unchanged: bool) -> SkipReason:
    if without_id:
        return SkipReason.MOVED_OR_CHANGED
    if unchanged:
        return SkipReason.LOCKED
    return SkipReason.CHANGED_BY_OTHERS if exists else SkipReason.DELETED
