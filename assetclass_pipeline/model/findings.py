"""What the counts of an analysis mean, in sentences: issues and recommendations.

Belongs here: pure rules from counts to words. Does not: counting.
"""

from collections.abc import Mapping

from assetclass_pipeline.model.quality import Issue, ThresholdResult

_ISSUES = (
    ("correctable", "MISSING_ASSET_CLASS", "high", "rows have no asset_class, yet symbols has it"),
    ("mismatched", "MISMATCHED_ASSET_CLASS", "medium", "rows carry a class unlike their symbol's"),
    ("orphaned", "ORPHANED_SYMBOL", "medium", "rows have a symbol that symbols does not know"),
    ("unclassified", "UNCLASSIFIED_SYMBOL", "low", "rows have a symbol without a class in symbols"),
    ("ambiguous", "AMBIGUOUS_TICKER", "medium", "rows have a ticker of several classes"),
)  # fmt: skip


def find_issues(totals: Mapping[str, int]) -> list[Issue]:
    """One issue for each kind of damage that touches any row."""
    return [
        Issue(code=code, severity=severity, message=message, records=totals[name])
        for name, code, severity, message in _ISSUES
        if totals[name]
    ]


def recommend(totals: Mapping[str, int], thresholds: Mapping[str, ThresholdResult]) -> list[str]:
    """What a person should do next, most useful first."""
    advice = []
    if totals["correctable"]:
        advice.append(
            f"Run a correction: {totals['correctable']:,} missing rows can be filled from symbols."
        )
    if totals["mismatched"]:
        advice.append(
            f"Preview with overwriteExistingValues: {totals['mismatched']:,} rows differ from "
            "their symbol; decide which side is right first."
        )
    if totals["ambiguous"]:
        advice.append("List ambiguous tickers under one class, or give market_data venue symbols.")
    if totals["unclassified"]:
        advice.append("Give the unclassified tickers a class in symbols.")
    if totals["orphaned"]:
        advice.append("Add the orphaned symbols to symbols, or remove their rows.")
    if not advice and all(result.passed for result in thresholds.values()):
        advice.append("Nothing to do: every threshold is met.")
    return advice
