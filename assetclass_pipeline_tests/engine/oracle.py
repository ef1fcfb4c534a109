"""What a correction must do, in plain Python from the definitions of design.md section 2.

Knows nothing of the engine and its SQL, so that the two can only agree by both being right.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from assetclass_pipeline_tests.market import Bar

Listing = tuple[str | None, str | None]


@dataclass(frozen=True)
class Ask:
    """What the caller wants changed."""

    overwrite: bool = False
    targets: tuple[str, ...] | None = None
    start: datetime | None = None
    end: datetime | None = None


class Oracle:
    """Judges rows against a reference given as (ticker, asset_class) pairs."""

    def __init__(self, listings: Sequence[Listing]) -> None:
        self._classes: dict[str, set[str]] = {}
        for ticker, asset_class in listings:
            if ticker is not None:
                usable = {asset_class} if asset_class is not None and asset_class.strip() else set()
                self._classes.setdefault(ticker, set()).update(usable)

    @property
    def tickers(self) -> set[str]:
        """Everything that stands in the reference."""
        return set(self._classes)

    def category(self, symbol: str | None) -> str:
        """What the reference says about a symbol."""
        if symbol is None or symbol not in self._classes:
            return "orphaned"
        return {0: "unclassified", 1: "mappable"}.get(len(self._classes[symbol]), "ambiguous")

    def expected(self, bar: Bar) -> str | None:
        """The one class that can be derived; None where there is none."""
        if self.category(bar.symbol) != "mappable" or bar.symbol is None:
            return None
        return next(iter(self._classes[bar.symbol]))

    def missing(self, bar: Bar) -> bool:
        """NULL or empty."""
        return bar.asset_class is None or bar.asset_class == ""

    def mismatched(self, bar: Bar) -> bool:
        """It has a value, and its symbol has another."""
        expected = self.expected(bar)
        return expected is not None and not self.missing(bar) and bar.asset_class != expected

    def correctable(self, bar: Bar, ask: Ask) -> bool:
        """Whether this ask changes the row."""
        return (
            self.expected(bar) is not None
            and (self.missing(bar) or (ask.overwrite and self.mismatched(bar)))
            and self.in_question(bar, ask)
        )

    def in_question(self, bar: Bar, ask: Ask) -> bool:
        """Whether the row is of the months and symbols that are asked for."""
        targeted = ask.targets is None or bar.symbol in ask.targets
        if bar.timestamp is None:
            return targeted and ask.start is None
        moment = moment_of(bar.timestamp)
        late_enough = ask.start is None or moment >= ask.start
        return targeted and late_enough and (ask.end is None or moment < ask.end)

    def totals(self, bars: Sequence[Bar]) -> dict[str, float]:
        """The counts and scores of an integrity report."""
        categories = Counter(self.category(bar.symbol) for bar in bars)
        total, missing = len(bars), sum(self.missing(bar) for bar in bars)
        mappable, mismatched = categories["mappable"], sum(self.mismatched(bar) for bar in bars)
        correctable = sum(self.correctable(bar, Ask()) for bar in bars)
        equal = sum(
            1
            for bar in bars
            if self.expected(bar) is not None and bar.asset_class == self.expected(bar)
        )
        return {
            "total_records": total,
            "null_asset_class": sum(bar.asset_class is None for bar in bars),
            "empty_asset_class": sum(bar.asset_class == "" for bar in bars),
            "valid_asset_class": total - missing,
            "mismatched": mismatched,
            "orphaned": categories["orphaned"],
            "unclassified": categories["unclassified"],
            "ambiguous": categories["ambiguous"],
            "mappable": mappable,
            "correctable": correctable,
            "completeness": 100 * (total - missing) / total if total else 100,
            "integrity": 100 * mappable / total if total else 100,
            "orphaned_percent": 100 * categories["orphaned"] / total if total else 0,
            "quality_score": 100 * equal / mappable if mappable else 100,
            "symbols_referenced": len({bar.symbol for bar in bars} - {None}),
            "symbols_without_market_data": len(self.tickers - {bar.symbol for bar in bars}),
        }


def moment_of(timestamp: str) -> datetime:
    """A time as PostgreSQL's text writes it; what Python cannot hold is put at its end of time."""
    if timestamp == "-infinity" or timestamp.endswith("BC"):
        return datetime.min  # noqa: DTZ901 - naive UTC, as everywhere in the model
    if timestamp == "infinity" or len(timestamp.split("-", maxsplit=1)[0]) > 4:
        return datetime.max  # noqa: DTZ901
    return datetime.fromisoformat(timestamp).replace(tzinfo=None)
