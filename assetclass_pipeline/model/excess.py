"""Why a threshold is not met: how many rows are too many, and which symbols and months hold them.

Belongs here: pure arithmetic on an integrity report. Does not: what a check makes of it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, NamedTuple

from assetclass_pipeline.model.quality import (
    Category,
    IntegrityReport,
    PartitionCount,
    SymbolCount,
    ThresholdResult,
)


class _Damage(NamedTuple):
    """Which rows count against a threshold: in all, of how many, of a symbol, of a month."""

    records: Callable[[IntegrityReport], int]
    of: Callable[[IntegrityReport], int]
    of_symbol: Callable[[SymbolCount], int]
    of_month: Callable[[PartitionCount], int]


def _all(report: IntegrityReport) -> int:
    return report.total_records


# What months lack: of rows that cannot be mapped, they know the orphaned ones only.
_DAMAGES: Final = {
    "completeness": _Damage(
        lambda report: report.missing, _all, lambda each: each.missing, lambda each: each.missing
    ),
    "integrity": _Damage(
        lambda report: report.total_records - report.mappable,
        _all,
        lambda each: each.records if each.category is not Category.MAPPABLE else 0,
        lambda each: each.orphaned,
    ),
    "orphanedPercent": _Damage(
        lambda report: report.orphaned,
        _all,
        lambda each: each.records if each.category is Category.ORPHANED else 0,
        lambda each: each.orphaned,
    ),
    "qualityScore": _Damage(
        lambda report: report.correctable + report.mismatched,
        lambda report: report.mappable,
        lambda each: each.missing + each.mismatched if each.category is Category.MAPPABLE else 0,
        lambda each: each.correctable + each.mismatched,
    ),
    "correctablePercent": _Damage(
        lambda report: report.correctable,
        _all,
        lambda each: each.missing if each.category is Category.MAPPABLE else 0,
        lambda each: each.correctable,
    ),
}


class Share(NamedTuple):
    """Rows of one symbol or month that count against a threshold, of all its rows."""

    name: str | None
    damaged: int
    records: int


@dataclass(frozen=True)
class Excess:
    """Rows that count against a threshold; `over` of them must be mended to meet it."""

    damaged: int
    over: int
    worst_symbols: list[Share]
    worst_months: list[Share]


def excess(report: IntegrityReport, threshold: str, *, most: int) -> Excess:
    """What stands against a threshold's violated limit, with the `most` worst symbols and months.

    Symbols are those that the report holds. Raises KeyError for another threshold.
    """
    damage, result = _DAMAGES[threshold], report.thresholds[threshold]
    damaged, of = damage.records(report), damage.of(report)
    symbols = (
        Share(each.symbol, damage.of_symbol(each), each.records) for each in report.by_symbol
    )
    months = (
        Share(each.partition, damage.of_month(each), each.records) for each in report.by_partition
    )
    return Excess(
        damaged=damaged,
        over=max(0, damaged - _allowed(result, of)),
        worst_symbols=_worst(symbols, most),
        worst_months=_worst(months, most),
    )


def _allowed(result: ThresholdResult, of: int) -> int:
    """Damaged rows with which the limit is just kept, of `of` rows."""
    # As it is written, for 4.35 is none as a binary fraction, and 10 % of 421 rows is not 42.
    limit = Fraction(str(result.violated_limit))
    share = 100 - limit if result.comparison == ">=" else limit
    allowed = of * share / 100
    return math.ceil(allowed) - 1 if result.comparison == "<" else math.floor(allowed)


def _worst(shares: Iterable[Share], most: int) -> list[Share]:
    damaged = [share for share in shares if share.damaged]
    return sorted(damaged, key=lambda share: share.damaged, reverse=True)[:most]
