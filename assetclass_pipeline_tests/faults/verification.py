"""The verdict: replays the journal and compares it with what the operations say of themselves.

Belongs here: lost, doubled, overwritten, from the database alone. Does not: making faults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from psycopg import sql

from assetclass_pipeline_tests.faults.journal import COLUMNS, Change, Row, state_of
from assetclass_pipeline_tests.market import Market


@dataclass
class Verdict:
    """Rows that came to harm; all must be 0 but `changed`, the rows that we wrote."""

    changed: int = 0
    doubled: int = 0
    overwritten: int = 0
    wrong: int = 0
    lost: int = 0


@dataclass
class _Replay:
    """The rows as the journal has left them so far."""

    theirs: frozenset[int]
    reference: Mapping[str, str]
    rows: dict[str, Row]
    undoes: bool = False
    verdict: Verdict = field(default_factory=Verdict)
    # Ids whose latest class is ours, with the one before, or was given by the application since
    # the start.
    written: dict[str, str | None] = field(default_factory=dict)
    claimed: set[str] = field(default_factory=set)

    def add(self, change: Change) -> None:
        if change.xid in self.theirs:
            self._add_theirs(change)
        else:
            self._add_ours(change)
        if change.new is None:
            self.rows.pop(_id(change.old), None)
        else:
            self.rows[_id(change.new)] = change.new

    def _add_theirs(self, change: Change) -> None:
        if change.old is None or change.new is None or _meaning(change.old) != _meaning(change.new):
            key = _id(change.new or change.old)
            self.written.pop(key, None)
            self.claimed.add(key)

    def _add_ours(self, change: Change) -> None:
        self.verdict.changed += 1
        old, new = change.old, change.new
        if old is None or new is None or _others(old) != _others(new):
            self.verdict.overwritten += 1
            return
        key = _id(new)
        if self._is_put_back(key, old, new):
            del self.written[key]
            return
        if key in self.written:
            self.verdict.doubled += 1
        elif old["asset_class"] and key in self.claimed:
            self.verdict.overwritten += 1
        if new["asset_class"] != self.reference.get(str(new["symbol"])):
            self.verdict.wrong += 1
        self.written[key] = old["asset_class"]

    def _is_put_back(self, key: str, old: Row, new: Row) -> bool:
        """Whether a rollback gave a row that we had written the very class that it had before."""
        return (
            self.undoes
            and key in self.written
            and new["asset_class"] == self.written[key] != old["asset_class"]
        )


def judge(
    market: Market,
    start: Mapping[str, Row],
    changes: list[Change],
    theirs: set[int],
    *,
    undoes: bool = False,
) -> Verdict:
    """What was done to the rows, once every operation has ended and nobody writes any more.

    `theirs` are the transactions of the application; every other one is held to be ours. Where each
    correction was rolled back (`undoes`), what still has its class is lost, unless it is listed.
    """
    replay = _Replay(frozenset(theirs), _reference(market), dict(start), undoes)
    for change in changes:
        replay.add(change)
    verdict = replay.verdict
    verdict.lost = (
        verdict.wrong
        + _unlike(replay.rows, state_of(market))
        + len(({*replay.written} if undoes else _correctable(replay)) - _listed(market))
        + sum(abs(sum_ - verdict.changed) for sum_ in ledger_sums(market))
        + unaccounted(market)
    )
    return verdict


def ledger_sums(market: Market) -> tuple[int, int]:
    """Rows changed in all operations: as the batches say, and as the summaries say."""
    batches, summaries = market.rows(
        "SELECT (SELECT coalesce(sum(b.records_corrected), 0) FROM assetclass.operation_batch b),"
        # The summary of a dry run tells what would have been changed.
        " (SELECT coalesce(sum(c.records), 0) FROM assetclass.operation_change c"
        "  JOIN assetclass.operation o USING (correction_id) WHERE NOT o.dry_run)"
    )[0]
    return int(batches), int(summaries)


def unaccounted(market: Market) -> int:
    """Planned rows of operations that succeeded, of which they tell nothing, or tell it twice.

    The next operation would correct them, so the table alone may look right.
    """
    return int(
        market.value(
            "SELECT coalesce(sum(greatest(abs(o.records_planned - ledger.told),"
            "                abs(o.records_planned - ledger.corrected - skipped.records))), 0)"
            " FROM assetclass.operation o"
            " CROSS JOIN LATERAL ("
            "  SELECT coalesce(sum(last_seq - first_seq + 1) FILTER (WHERE pass = 0), 0) AS told,"
            "         coalesce(sum(records_corrected), 0) AS corrected"
            "  FROM assetclass.operation_batch b WHERE b.correction_id = o.correction_id) ledger"
            " CROSS JOIN LATERAL ("
            "  SELECT count(*) AS records FROM assetclass.operation_skipped_row s"
            "  WHERE s.correction_id = o.correction_id) skipped"
            " WHERE o.status = 'succeeded' AND NOT o.dry_run"
        )
    )


def rows_at_risk(market: Market) -> int:
    """Rows that the operations were to write."""
    return int(
        market.value(
            "SELECT coalesce(sum(records_planned), 0) FROM assetclass.operation WHERE NOT dry_run"
        )
    )


def _reference(market: Market) -> dict[str, str]:
    return dict(
        market.rows(
            "SELECT ticker, min(asset_class) FROM {} WHERE asset_class <> ''"
            " GROUP BY ticker HAVING count(DISTINCT asset_class) = 1",
            market.symbols_identifier,
        )
    )


def _correctable(replay: _Replay) -> set[str]:
    """Ids of rows that a correction could still correct."""
    return {
        key
        for key, row in replay.rows.items()
        if not row["asset_class"] and row["symbol"] in replay.reference
    }


def _listed(market: Market) -> set[str]:
    """Ids of rows that an operation left with a reason."""
    listed: set[str] = set()
    for correction_id, schema, table in market.rows(
        "SELECT correction_id::text, plan ->> 'schema_name', backup_table"
        " FROM assetclass.operation WHERE backup_table IS NOT NULL"
    ):
        listed |= {
            key
            for (key,) in market.rows(
                "SELECT b.id::text FROM {} b JOIN assetclass.operation_skipped_row s USING (seq)"
                " WHERE s.correction_id = {}",
                sql.Identifier(schema, table),
                sql.Literal(correction_id),
            )
        }
    return listed


def _unlike(replayed: Mapping[str, Row], stored: Mapping[str, Row]) -> int:
    """Rows that stand in the table otherwise than the journal has it."""
    return sum(replayed.get(key) != stored.get(key) for key in {*replayed, *stored})


def _id(row: Row | None) -> str:
    assert row is not None
    return str(row["id"])


def _meaning(row: Row) -> tuple[str | None, str | None]:
    """What a class is derived from and compared with."""
    return row["symbol"], row["asset_class"]


def _others(row: Row) -> list[str | None]:
    return [row[name] for name in COLUMNS if name != "asset_class"]
