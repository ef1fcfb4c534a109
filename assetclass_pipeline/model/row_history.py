"""How a row came by its value, as every surface tells it: events, what it holds, the way back.

Belongs here: the shapes, and what follows from a row's events. Does not: finding the events.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import Field

from assetclass_pipeline.model.operation import ACTIVE, Kind, Status
from assetclass_pipeline.model.wire import Moment, WireModel

_AT_LAST = datetime.max.replace(tzinfo=UTC)


class RowOutcome(StrEnum):
    """What an operation did to a row."""

    CHANGED = "changed"
    SKIPPED = "skipped"
    QUARANTINED = "quarantined"
    CONFLICT = "conflict"
    PENDING = "pending"


class RowSource(StrEnum):
    """Where it is written down: with the backup table, a row can be put back."""

    TABLE = "table"
    ARCHIVE = "archive"
    LEDGER = "ledger"


class RowEvent(WireModel):
    """What one operation did to the row, or meant to do.

    `from` and `to` are the values before and after; of one that did not change the row, what it
    would have changed (`from` is null where only the intention is known). `happened_at` is when its
    batch was committed; where a sweep may have written it later, it was `not_after` that.
    `changed_by_others_before` says that `from` is not what the event before had left.
    """

    happened_at: Moment | None
    not_after: Moment | None = None
    correction_id: str
    kind: Kind
    status: Status
    outcome: RowOutcome
    why: str | None
    from_: str | None = Field(alias="from")
    to: str | None
    requested_by: str
    reason: str | None
    ticket: str | None
    run_id: str | None
    rollback_of: str | None = None
    undone_by: str | None = None
    undone_at: Moment | None = None
    changed_by_others_before: bool = False
    source: RowSource
    table: str | None = None

    @property
    def has_changed(self) -> bool:
        """Whether the row got `to`."""
        return self.outcome is RowOutcome.CHANGED

    @property
    def left(self) -> str | None:
        """The value that the row had after it, an undoing without a write of its own included."""
        is_undone = self.kind is Kind.CORRECTION and self.undone_by is not None
        return self.from_ if is_undone else self.to


class RowNow(WireModel):
    """What the market table holds."""

    asset_class: str | None
    updated_at: str | None


class WayBack(WireModel):
    """Whether the row can be put back, to which value, by which command; or why not."""

    possible: bool
    asset_class: str | None = None
    command: str | None = None
    why: str


class RowTrail(WireModel):
    """One row: its events, the oldest first, and what it holds now.

    `exists` and `changed_by_others_since` are null where it could not be looked up.
    """

    symbol: str | None
    timestamp: str | None
    exists: bool | None
    now: RowNow | None
    events: list[RowEvent]
    changed_by_others_since: bool | None
    way_back: WayBack


class GoneRows(WireModel):
    """An operation whose rows are gone, though its summary shows rows of this symbol."""

    correction_id: str
    kind: Kind
    finished_at: Moment | None
    records: int
    why: str


class RowHistory(WireModel):
    """All rows with this id: one, where the id is the table's key.

    `operations_without_rows` counts operations whose rows stand nowhere any more, so that nobody
    can tell whether this one was among them; `gone` are those that changed rows of its symbol.
    `archives_not_read` counts files that were not looked into.
    """

    id: str
    rows: list[RowTrail]
    operations_without_rows: int
    gone: list[GoneRows]
    archives_not_read: int


@dataclass(frozen=True)
class Present:
    """A look at the market table: `row` is None where there is none, or where it failed."""

    row: RowNow | None
    looked: bool = True


def make_trail(
    key: str,
    symbol: str | None,
    timestamp: str | None,
    events: Sequence[RowEvent],
    present: Present,
) -> RowTrail:
    """Put a row's events in order and draw the conclusions; `key` is its id."""
    ordered = _in_order(events)
    changed = [event for event in ordered if event.has_changed]
    since = None
    if present.looked and changed:
        since = present.row is None or present.row.asset_class != changed[-1].left
    return RowTrail(
        symbol=symbol,
        timestamp=timestamp,
        exists=present.row is not None if present.looked else None,
        now=present.row,
        events=ordered,
        changed_by_others_since=since,
        way_back=_way_back(key, ordered, present),
    )


def _in_order(events: Sequence[RowEvent]) -> list[RowEvent]:
    """The oldest first, each with whether others changed the row in between."""
    ordered: list[RowEvent] = []
    last: RowEvent | None = None
    for event in sorted(events, key=lambda event: event.happened_at or _AT_LAST):
        if not event.has_changed:
            ordered.append(event)
            continue
        # Undone, the one before had left its old value by then, unless this very one undid it.
        left = last and (last.to if last.undone_by == event.correction_id else last.left)
        foreign = last is not None and event.from_ != left
        last = event.model_copy(update={"changed_by_others_before": foreign})
        ordered.append(last)
    return ordered


def _way_back(key: str, events: Sequence[RowEvent], present: Present) -> WayBack:
    corrections = [e for e in events if e.has_changed and e.kind is Kind.CORRECTION]
    standing = [event for event in corrections if event.undone_by is None]
    if not standing:
        undone = f"{corrections[-1].undone_by} undid it already" if corrections else None
        return WayBack(possible=False, why=undone or "no operation that is known here changed it")
    last = standing[-1]
    refusal = _refusal(last, present)
    if refusal is not None:
        return WayBack(possible=False, asset_class=last.from_, why=refusal)
    command = f"assetclass rollback {last.correction_id} --reason TEXT --row-id {shlex.quote(key)}"
    is_changed = present.row is not None and present.row.asset_class != last.to
    was_conflict = any(
        event.outcome is RowOutcome.CONFLICT and event.rollback_of == last.correction_id
        for event in events
    )
    if is_changed or was_conflict:
        changed = "somebody changed it since" if is_changed else "a rollback found it changed once"
        return WayBack(
            possible=True,
            asset_class=last.from_,
            command=f"{command} --take-backup-value",
            why=f"{changed}: a rollback leaves it alone as a conflict, unless told to take the "
            "value of the backup",
        )
    return WayBack(
        possible=True,
        asset_class=last.from_,
        command=command,
        why=f"the backup of {last.correction_id} holds its old value",
    )


def _refusal(last: RowEvent, present: Present) -> str | None:
    if last.status in ACTIVE:
        return f"operation {last.correction_id} is still {last.status}"
    if present.looked and present.row is None:
        return "the row was deleted"
    if present.row is not None and present.row.asset_class == last.from_:
        return "it holds its old value again"
    if last.source is not RowSource.TABLE:
        return (
            f"the backup table of {last.correction_id} is gone: only a statement by hand can set "
            "the old value"
        )
    return None
