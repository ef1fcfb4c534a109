"""Any tables, any options: after a correction the tables are exactly what the oracle says.

The oracle is plain Python (oracle.py); the tables are real, small, and as odd as they may be.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

import pytest
from psycopg import sql

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.engine.plan import VISITS
from assetclass_pipeline.model.months import EVERYTHING, Calendar, TimeRange
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline_tests.conftest import fresh_database
from assetclass_pipeline_tests.engine.oracle import Ask, Listing, Oracle, moment_of
from assetclass_pipeline_tests.engine.runs import correct_now, proof_of, report_of, request_of
from assetclass_pipeline_tests.market import (
    FOREIGN_PARTITIONINGS,
    PARTITIONINGS,
    Bar,
    Market,
    open_market,
)

COMPOSED, COMBINING = "Caf\u00e9", "Cafe\u0301"
TICKERS = (
    *("AAPL", "aapl", " AAPL", "AAPL ", "MSFT", "O'Neil", 'say "x"', "back\\slash", "100%", "{x}"),
    *(COMPOSED, COMBINING, "\u00a0", "", "\U0001f4c8", "%(blanks)s", "\u0130STANBUL", "-- x; /*"),
)
CLASSES = (
    *("STOCK", "stock", "STOCK ", " STOCK", "CRYPTO", "FX'", 'FX"', COMPOSED, COMBINING),
    *("%s", "{}", "\u00a0STOCK", "\u200bzero width is no blank"),
)
NO_CLASSES = (None, "", " ", "\t\n", "\u00a0", "\u3000 \u2009")
TIMES = (
    *(None, "-infinity", "infinity", "0044-03-15 00:00:00 BC", "0001-01-01 00:00:00"),
    *("9999-12-31 23:59:59.999999", "12000-01-01 00:00:00", "2022-12-31 23:59:59.999999"),
    *("2023-01-01 00:00:00", "2023-01-31 23:59:59.999999", "2023-02-01 00:00:00"),
    *("2024-02-29 12:00:00", "2024-12-31 23:59:59.999999", "2025-01-01 00:00:00"),
)
NAMES = (
    ("public", "market_data", "symbols"),
    ("Odd Schema", 'Market "Data"', "Sym;bols {x}"),
    ("public", "select", "Symbols"),
    ("50%", "100%s %(id)s %%", "%(blanks)s"),
)


@dataclass(frozen=True)
class Asked:
    """Options of one example, and what they mean to the oracle."""

    ask: Ask
    scope: TimeRange
    options: dict[str, Any]


# What an ordinary reference looks like, so that there is something to correct in most examples.
SOUND_LISTINGS: tuple[list[Listing], ...] = (
    [("AAPL", "STOCK"), ("MSFT", "STOCK"), (COMPOSED, "CRYPTO"), ("O'Neil", COMBINING)],
    [("AAPL", "STOCK"), ("AAPL", None), ("AAPL", "STOCK"), ("aapl", "CRYPTO"), ("{x}", "%s")],
    [("AAPL", "STOCK"), ("MSFT", " "), ("MSFT", "FX'"), ("100%", "{}"), ("AAPL ", "STOCK ")],
    [],
)
SHAPES = sorted(PARTITIONINGS | FOREIGN_PARTITIONINGS)
EXAMPLES = 72


# Every column of every partitioning; ids come several times, and NULLs are all alike.
KEY = 'UNIQUE (id, symbol, "timestamp")'


class Draw(random.Random):
    """Everything that an example is made of; the same for the same number."""

    def odd_text(self) -> str:
        """Up to 4 characters from all over Unicode."""
        codes = [
            self.choice((self.randrange(33, 0xD800), self.randrange(0xE000, 0x110000)))
            for _ in range(self.randrange(5))
        ]
        return "".join(map(chr, codes))

    def market(self) -> tuple[list[Listing], list[Bar]]:
        """A reference, and rows most of whose symbols it lists; either may be empty."""
        odd: list[Listing] = [
            (self.choice((None, *TICKERS, self.odd_text())), self.choice((*NO_CLASSES, *CLASSES)))
            for _ in range(self.randrange(5))
        ]
        listed = [*self.choice(SOUND_LISTINGS), *odd]
        known = [ticker for ticker, _ in listed] or list(TICKERS[:2])
        bars = [self.bar(known) for _ in range(self.choice((0, 1, 20, 30, 40, 50)))]
        return listed, _with_keys(bars)

    def bar(self, known: list[str | None]) -> Bar:
        """One row."""
        return Bar(
            id=self.choice((self.randrange(1, 12), self.randrange(-(2**63), 2**63), None)),
            symbol=self.choice((*known, *known, self.choice(TICKERS), self.odd_text(), None)),
            timestamp=self.choice(TIMES),
            asset_class=self.choice(
                (None, "", None, "", "STOCK", *CLASSES, *NO_CLASSES, self.odd_text())
            ),
        )

    def scope(self) -> TimeRange:
        """All months or some; the edges hold what lies outside the calendar."""
        if self.random() < 0.7:
            return EVERYTHING
        calendar = Calendar(date(2023, 1, 1), date(2025, 1, 1))
        first, last = sorted(self.choices((0, 1, 12, 13, 24), k=2))
        return calendar.range_of(calendar.keys[first], calendar.keys[last])

    def asked(self) -> Asked:
        """Options and a range of months."""
        scope = self.scope()
        only_missing, overwrite = self.choice(((True, False), (False, True), (False, False)))
        targets = self.choice((None, None, None, [*self.choices(TICKERS[:6], k=3), "%"]))
        options = {
            "only_process_null_asset_class": only_missing,
            "overwrite_existing_values": overwrite,
            "target_symbols": targets,
            "max_records_to_process": self.choice((None, None, self.randint(1, 6))),
            "batch_size": self.randint(1, 7),
            "workers": self.randint(1, 3),
            "create_backup": self.random() < 0.7,
            "dry_run": self.random() < 0.15,
            "validate_after_each_batch": self.random() < 0.7,
        }
        asked_targets = None if targets is None else tuple(targets)
        return Asked(Ask(overwrite, asked_targets, scope.start, scope.end), scope, options)


def _with_keys(bars: list[Bar]) -> list[Bar]:
    """The bars without those that the key forbids."""
    keys: set[tuple[object, ...]] = set()
    kept = []
    for bar in bars:
        key = (bar.id, bar.symbol, bar.timestamp)
        if key not in keys or None in key:
            kept.append(bar)
        keys.add(key)
    return kept


@pytest.fixture(scope="module")
def market(postgres_server: EmbeddedServer) -> Iterator[Market]:
    """One database for all examples, and one for foreign parts: each makes its tables anew."""
    with (
        fresh_database(postgres_server, with_schema=True) as url,
        fresh_database(postgres_server) as remote_url,
        open_market(url, remote_dsn=remote_url) as market,
    ):
        yield market


@pytest.mark.parametrize("number", range(EXAMPLES))
def test_correction_does_exactly_what_the_oracle_says(market: Market, number: int) -> None:
    draw = Draw(number)
    listed, bars = draw.market()
    schema, table, symbols = draw.choice(NAMES)
    partitioning = SHAPES[number % len(SHAPES)]
    odd_market = replace(
        market, schema=schema, table=table, symbols=symbols, key=KEY, partitioning=partitioning
    )
    try:
        odd_market.create().list_symbols(*listed).add(bars)
        _check(odd_market, Oracle(listed), draw.asked())
    finally:
        odd_market.drop()


def test_most_examples_have_something_to_correct() -> None:
    """Examples without it would agree with any engine."""
    planned = []
    for number in range(EXAMPLES):
        draw = Draw(number)
        listed, bars = draw.market()
        draw.choice(NAMES)
        ask, oracle = draw.asked().ask, Oracle(listed)
        planned.append(sum(oracle.correctable(bar, ask) for bar in bars))
    assert sum(records >= 3 for records in planned) >= EXAMPLES / 3


def _check(market: Market, oracle: Oracle, asked: Asked) -> None:
    before, versions = _stored(market), market.versions()
    old = list(before.values())
    _agrees(report_of(market, worst=1000), oracle, old)

    operation = correct_now(market, request_of(scope=asked.scope, **asked.options))

    after = _stored(market)
    changed = _changed(before, after)
    correctable = [bar for bar in old if oracle.correctable(bar, asked.ask)]
    most = asked.options["max_records_to_process"]
    planned = min(len(correctable), most or len(correctable))

    # The rows: as many as may be, only correctable ones, each with its symbol's class, none other.
    wanted = 0 if asked.options["dry_run"] else planned
    assert len(changed) == wanted
    assert not Counter(bar for bar, _ in changed) - Counter(correctable)
    for bar, now in changed:
        assert now == replace(bar, asset_class=oracle.expected(bar))
    assert len(set(versions.items()) - set(market.versions().items())) == wanted
    assert _times_set(market) == wanted

    # What is told about them.
    _agrees(report_of(market, worst=1000), oracle, list(after.values()))
    _told(market, operation, planned, wanted)
    left = sum(oracle.mismatched(bar) and oracle.in_question(bar, asked.ask) for bar in old)
    neither = not (
        asked.options["only_process_null_asset_class"] or asked.options["overwrite_existing_values"]
    )
    reasons = {"mismatched_not_overwritten": left} if neither and left else {}
    assert operation.skipped_by_reason == reasons
    if most is None or asked.options["dry_run"] is False:
        told = Counter({(c.symbol, c.from_, c.to): c.records for c in operation.changes})
        pairs = changed or [(b, replace(b, asset_class=oracle.expected(b))) for b in correctable]
        expected = Counter((b.symbol, b.asset_class, now.asset_class) for b, now in pairs)
        assert told == (expected if planned else Counter())
    _kept(market, operation, asked, changed)


def _told(market: Market, operation: Operation, planned: int, wanted: int) -> None:
    assert operation.status is Status.SUCCEEDED
    assert operation.progress_percent == 100
    assert (operation.records_planned, operation.records_corrected) == (planned, wanted)
    assert operation.batches_total is not None
    assert operation.batches_done == (operation.batches_total if wanted else 0)
    proof = proof_of(market, operation.correction_id)
    done = 0 if not wanted else planned
    assert (proof.planned, proof.corrected, proof.open) == (planned, wanted, planned - done)
    assert proof.unaccounted == 0


def _kept(
    market: Market, operation: Operation, asked: Asked, changed: list[tuple[Bar, Bar]]
) -> None:
    """The backup table holds each changed row, before and after, and nothing else."""
    assert market.plan_tables() == []
    if not asked.options["create_backup"] or not changed:
        assert operation.backup_table is None
        assert market.backup_tables() == []
        return
    assert market.backup_tables() == [operation.backup_table]
    backup = sql.Identifier(market.schema, str(operation.backup_table))
    kept = market.rows(
        'SELECT id, symbol, "timestamp"::text, asset_class, corrected_asset_class FROM {}', backup
    )
    expected = [(b.id, b.symbol, b.timestamp, b.asset_class, now.asset_class) for b, now in changed]
    assert Counter(kept) == Counter(expected)
    assert [s for (s,) in market.rows("SELECT seq FROM {} ORDER BY seq", backup)] == list(
        range(1, len(kept) + 1)
    )
    # Physical order, but for the visits of densely damaged pages, each of which begins anew.
    backwards = (
        "SELECT count(*) FILTER (WHERE source_address < before) FROM ("
        "SELECT *, lag(source_address) OVER (PARTITION BY source_table ORDER BY seq) AS before "
        "FROM {}) numbered GROUP BY source_table"
    )
    assert all(count < VISITS for (count,) in market.rows(backwards, backup))


def _stored(market: Market) -> dict[object, Bar]:
    """Rows in the order of insertion: `close` numbers them, and no correction touches it."""
    if market.value("SELECT count(*) FROM {} WHERE close = 1.5", market.market_identifier):
        market.execute("CREATE TEMP SEQUENCE IF NOT EXISTS row_numbers")
        market.execute(
            "UPDATE {} SET close = 1000 + nextval('row_numbers')", market.market_identifier
        )
    rows = market.rows(
        'SELECT close, id, symbol, "timestamp"::text, asset_class FROM {}',
        market.market_identifier,
    )
    return {number: Bar(*rest) for number, *rest in rows}


def _changed(before: dict[object, Bar], after: dict[object, Bar]) -> list[tuple[Bar, Bar]]:
    assert before.keys() == after.keys()
    return [(before[n], after[n]) for n in before if before[n] != after[n]]


def _times_set(market: Market) -> int:
    """Rows whose updated_at was set; nothing else in a test sets it."""
    return int(market.value("SELECT count(updated_at) FROM {}", market.market_identifier))


def _agrees(report: IntegrityReport, oracle: Oracle, bars: list[Bar]) -> None:
    """Every count of the report is the oracle's."""
    for name, expected in oracle.totals(bars).items():
        assert getattr(report, name) == expected, name
    assert {(c.asset_class, c.records) for c in report.by_asset_class} == set(
        Counter(bar.asset_class for bar in bars).items()
    )
    by_symbol = {
        symbol: (
            len(group),
            sum(map(oracle.missing, group)),
            sum(map(oracle.mismatched, group)),
            oracle.category(symbol),
        )
        for symbol in {bar.symbol for bar in bars}
        if (group := [bar for bar in bars if bar.symbol == symbol])
    }
    assert by_symbol == {
        s.symbol: (s.records, s.missing, s.mismatched, s.category.value) for s in report.by_symbol
    }
    assert {p.partition: (p.records, p.correctable) for p in report.by_partition} == _months(
        oracle, bars
    )


def _months(oracle: Oracle, bars: list[Bar]) -> dict[str, tuple[int, int]]:
    calendar = Calendar.until_now(date(2023, 1, 1))
    groups: dict[str, list[Bar]] = {}
    for bar in bars:
        moment = datetime.min if bar.timestamp is None else moment_of(bar.timestamp)  # noqa: DTZ901
        groups.setdefault(calendar.key_of(moment), []).append(bar)
    return {
        key: (len(group), sum(oracle.correctable(bar, Ask()) for bar in group))
        for key, group in groups.items()
    }
