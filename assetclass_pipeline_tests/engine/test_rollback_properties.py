"""Any sequence of corrections, foreign writes and rollbacks ends as a simple model says.

The model is a dictionary of rows and a list of corrections, in plain Python; the tables are real.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any

import pytest

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.errors import (
    AlreadyRolledBackError,
    AssetClassError,
    LaterCorrectionError,
    NotUndoableError,
)
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline_tests.conftest import fresh_database
from assetclass_pipeline_tests.engine.oracle import Ask, Oracle
from assetclass_pipeline_tests.engine.runs import correct_now, operation_of, undo_now
from assetclass_pipeline_tests.market import Bar, Market, open_market

SYMBOLS = ("AAPL", "BTC", "EUR", "?")
CLASSES = (None, "", "STOCK", "CRYPTO", "OTHER")
TIMES = ("2022-07-01 00:00:00", "2023-05-01 00:00:00", "2024-05-01 00:00:00")
MONTHS = ("2023-01-01", "2023-05-01", "2024-05-01")
IDS = range(1, 25)
EXAMPLES = 12
LEAST_OF_A_KIND = 3
KINDS_OF_REFUSALS = ("AlreadyRolledBackError", "LaterCorrectionError", "NotUndoableError")

Key = tuple[int, str, str]
# What the examples came to: such as come to nothing would agree with any engine.
SEEN: Counter[str] = Counter()


@dataclass
class Corrected:
    """One correction: what it changed, and what became of that."""

    correction_id: str
    changed: dict[Key, tuple[str | None, str | None]]
    undone: set[Key] = field(default_factory=set)
    in_conflict: set[Key] = field(default_factory=set)
    is_rolled_back: bool = False

    @property
    def standing(self) -> set[Key]:
        """Rows that were not put back yet."""
        return {*self.changed} - self.undone


@dataclass
class World:
    """The model: rows, the reference, and all corrections so far."""

    rows: dict[Key, str | None]
    reference: dict[str, str]
    corrections: list[Corrected] = field(default_factory=list)

    def correct(self, correction_id: str, ask: Ask) -> None:
        """Every row that the ask means gets its symbol's class."""
        oracle = Oracle([*self.reference.items()])
        changed = {}
        for (number, symbol, time), asset_class in self.rows.items():
            bar = Bar(number, symbol, time, asset_class)
            if oracle.correctable(bar, ask):
                changed[number, symbol, time] = (asset_class, oracle.expected(bar))
        self.rows |= {key: after for key, (_, after) in changed.items()}
        self.corrections.append(Corrected(correction_id, changed))

    def refusal(
        self, one: Corrected, chosen: set[Key], *, take: bool
    ) -> type[AssetClassError] | None:
        """Why it cannot be rolled back."""
        if not one.changed:
            return NotUndoableError
        if one.is_rolled_back and not (take and one.standing):
            return AlreadyRolledBackError
        later = self.corrections[self.corrections.index(one) + 1 :]
        return LaterCorrectionError if any(chosen & each.standing for each in later) else None

    def roll_back(self, one: Corrected, chosen: set[Key], *, take: bool) -> tuple[int, int]:
        """(rows restored, rows in conflict)."""
        restored, in_conflict = set(), set()
        for key in chosen:
            before, after = one.changed[key]
            if key not in self.rows:
                in_conflict.add(key)
            elif take or self.rows[key] in (before, after):
                self.rows[key] = before
                restored.add(key)
            else:
                in_conflict.add(key)
        one.undone |= restored
        one.in_conflict |= in_conflict
        one.is_rolled_back |= not one.standing - one.in_conflict
        return len(restored), len(in_conflict)


Step = Callable[[Market, World], None]


def _correction(overwrite: bool, symbols: list[str] | None) -> Step:
    def step(market: Market, world: World) -> None:
        operation = correct_now(
            market, overwrite_existing_values=overwrite, target_symbols=symbols, batch_size=4
        )
        ask = Ask(overwrite, None if symbols is None else tuple(symbols))
        world.correct(operation.correction_id, ask)
        assert operation.records_corrected == len(world.corrections[-1].changed)

    return step


def _rollback(which: int, options: dict[str, Any]) -> Step:
    def step(market: Market, world: World) -> None:
        if not world.corrections:
            return
        one = world.corrections[which % len(world.corrections)]
        chosen = {key for key in one.standing if _is_chosen(key, options)}
        take = bool(options.get("take_backup_value"))
        refusal = world.refusal(one, chosen, take=take)
        SEEN[refusal.__name__ if refusal else "rolled back"] += 1
        if refusal is not None:
            with pytest.raises(refusal):
                undo_now(market, one.correction_id, **options)
            return
        dry = undo_now(market, one.correction_id, **options, dry_run=True)
        rollback = undo_now(market, one.correction_id, **options, batch_size=4)
        is_partial = 0 < len(chosen) < len(one.standing)
        told = (rollback.records_restored, rollback.records_conflicting)
        assert told == world.roll_back(one, chosen, take=take)
        SEEN["restored"] += bool(told[0])
        SEEN["in conflict"] += bool(told[1])
        SEEN["partial"] += is_partial
        assert (dry.records_planned or 0) + (dry.records_restored or 0) == told[0]
        assert dry.records_conflicting == told[1]
        stored = operation_of(market, one.correction_id)
        assert (stored.rolled_back_by is not None) == one.is_rolled_back

    return step


def _is_chosen(key: Key, options: dict[str, Any]) -> bool:
    number, symbol, time = key
    calendar = Calendar(date(2023, 1, 1), date(2025, 1, 1))
    month = calendar.key_of(datetime.fromisoformat(time))
    return (
        symbol in options.get("target_symbols", [symbol])
        and str(number) in options.get("row_ids", [str(number)])
        and month in options.get("partitions", [month])
    )


def _set_class(ids: set[int], asset_class: str | None) -> Step:
    def step(market: Market, world: World) -> None:
        market.execute(
            "UPDATE {} SET asset_class = %s WHERE id = ANY (%s)",
            market.market_identifier,
            values=(asset_class, [*ids]),
        )
        world.rows |= {key: asset_class for key in world.rows if key[0] in ids}

    return step


def _delete(ids: set[int]) -> Step:
    def step(market: Market, world: World) -> None:
        market.execute(
            "DELETE FROM {} WHERE id = ANY (%s)", market.market_identifier, values=([*ids],)
        )
        world.rows = {key: value for key, value in world.rows.items() if key[0] not in ids}

    return step


def _insert(rows: list[tuple[Key, str | None]]) -> Step:
    def step(market: Market, world: World) -> None:
        taken = {number for number, _, _ in world.rows}
        for key, asset_class in rows:
            if key[0] not in taken:
                market.add([Bar(*key, asset_class)])
                world.rows[key] = asset_class
                taken.add(key[0])

    return step


def _move(ids: set[int], time: str | None) -> Step:
    """To another place of the table; with a time it is another row to every backup."""

    def step(market: Market, world: World) -> None:
        market.execute(
            'UPDATE {} SET close = close + 1, "timestamp" = coalesce(%s, "timestamp")'
            " WHERE id = ANY (%s)",
            market.market_identifier,
            values=(time, [*ids]),
        )
        world.rows = {
            (key[0], key[1], time if time and key[0] in ids else key[2]): value
            for key, value in world.rows.items()
        }

    return step


def _rewrite(market: Market, _: World) -> None:
    market.execute("VACUUM FULL {}", market.market_identifier)


def _rename_class(symbol: str, asset_class: str) -> Step:
    def step(market: Market, world: World) -> None:
        market.execute(
            "UPDATE {} SET asset_class = %s WHERE ticker = %s",
            market.symbols_identifier,
            values=(asset_class, symbol),
        )
        world.reference[symbol] = asset_class

    return step


class Draw(random.Random):
    """Everything that an example is made of; the same for the same number."""

    def rows(self) -> list[tuple[Key, str | None]]:
        """A row of most ids."""
        ids = self.sample(IDS, k=20)
        return [((n, self.choice(SYMBOLS), self.choice(TIMES)), self.choice(CLASSES)) for n in ids]

    def ids(self) -> set[int]:
        """Some of all ids."""
        return {*self.sample(IDS, k=self.randint(3, 12))}

    def correction(self) -> Step:
        """Of everything, mostly."""
        symbols = self.choice((None, None, None, self.sample(SYMBOLS, k=2)))
        return _correction(self.random() < 0.6, symbols)

    def rollback(self) -> Step:
        """Of one of the newest corrections, in whole or in part."""
        parts = {
            "target_symbols": self.sample(SYMBOLS, k=2),
            "row_ids": [str(number) for number in self.ids()],
            "partitions": self.sample(MONTHS, k=2),
        }
        names = self.sample([*parts], k=self.choice((0, 0, 1, 1, 2)))
        options: dict[str, Any] = {name: parts[name] for name in names}
        if self.random() < 0.25:
            options["take_backup_value"] = True
        return _rollback(self.choice((-1, -1, -2, -3)), options)

    def foreign_write(self) -> Step:
        """What an application, or an administrator, does in between."""
        kinds: list[Callable[[], Step]] = [
            lambda: _set_class(self.ids(), self.choice(CLASSES)),
            lambda: _set_class(self.ids(), None),
            lambda: _delete(self.ids()),
            lambda: _insert(self.rows()),
            lambda: _move(self.ids(), self.choice((None, *TIMES))),
            lambda: _rewrite,
            lambda: _rename_class(self.choice(SYMBOLS[:3]), self.choice(CLASSES[2:])),
        ]
        return self.choice(kinds)()

    def steps(self) -> list[Step]:
        """Corrections, what happens to their rows, and rollbacks."""
        made = [self.correction()]
        for _ in range(self.randint(2, 3)):
            made.append(self.foreign_write())
            made.append(self.choice((self.correction, self.rollback))())
            made.append(self.rollback())
        return made


@pytest.fixture(scope="module")
def market(postgres_server: EmbeddedServer) -> Iterator[Market]:
    """One database for all examples: each makes its tables anew."""
    with fresh_database(postgres_server, with_schema=True) as url, open_market(url) as market:
        yield market


@pytest.mark.parametrize("number", range(EXAMPLES))
def test_any_sequence_ends_as_the_model_says(market: Market, number: int) -> None:
    draw = Draw(number)
    partitioning = draw.choice(("plain", "range", "hash"))
    market = replace(market, partitioning=partitioning, key="PRIMARY KEY (id)").create()
    reference = {"AAPL": "STOCK", "BTC": "CRYPTO", "EUR": "FOREX"}
    market.list_symbols(*reference.items())
    world = World({}, reference)
    _insert(draw.rows())(market, world)
    for step in draw.steps():
        step(market, world)
        assert _stored(market) == world.rows
    market.drop()
    SEEN["examples"] += 1


def _stored(market: Market) -> dict[Key, str | None]:
    rows = market.rows(
        "SELECT id, symbol, to_char(\"timestamp\", 'YYYY-MM-DD HH24:MI:SS'), asset_class FROM {}",
        market.market_identifier,
    )
    return {(number, symbol, time): asset_class for number, symbol, time, asset_class in rows}


def test_the_examples_came_to_something() -> None:
    if SEEN["examples"] < EXAMPLES:
        pytest.skip("the examples ran elsewhere")
    kinds = ("restored", "in conflict", "partial", *KINDS_OF_REFUSALS)
    assert {kind: SEEN[kind] for kind in kinds if SEEN[kind] < LEAST_OF_A_KIND} == {}
