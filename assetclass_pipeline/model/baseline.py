"""What is usual, judged robustly: the median of past runs and how far they scatter around it.

Belongs here: size classes, the baseline, the verdict on a new value. Does not: which values are
compared (alert_rules.py), and where past ones come from.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

# Makes the median absolute deviation of normally distributed values their standard deviation:
# 1 / (the 75th percentile of the standard normal distribution).
MAD_SCALE: Final = 1.4826

Worse = Literal["higher", "lower"]


def size_class(rows: int) -> int:
    """Order of magnitude, within which runs are compared: 0 of no rows, 1 of 1..9, 2 of 10..99."""
    return len(str(rows)) if rows > 0 else 0


def class_range(rows: int) -> tuple[int, int]:
    """First number of rows of the size class of `rows`, and the first one of the next class."""
    power = size_class(rows)
    return (10 ** (power - 1), 10**power) if power else (0, 1)


@dataclass(frozen=True)
class Judgement:
    """A value against the baseline, with every number that led to it (all in the value's unit).

    `limit` is the last value that would still have been usual; `mad` is scaled by MAD_SCALE.
    """

    value: float
    median: float
    mad: float
    limit: float
    runs: int
    is_unusual: bool

    @property
    def numbers(self) -> dict[str, object]:
        """For the details of an alert."""
        return {
            "value": _rounded(self.value),
            "limit": _rounded(self.limit),
            "baseline": {
                "median": _rounded(self.median),
                "mad": _rounded(self.mad),
                "runs": self.runs,
            },
        }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def judge(
    value: float,
    past: Sequence[float],
    *,
    worse: Worse,
    least: int,
    deviations: float,
    floor: float,
) -> Judgement | None:
    """Whether `value` lies further on the `worse` side of the past ones than they scatter.

    It is unusual when it is beyond the median by more than `deviations` scaled median absolute
    deviations and by more than `floor`: where all past values are equal, any difference would be
    infinitely many deviations. None when there are fewer than `least` past values.
    """
    if len(past) < least:
        return None
    median = statistics.median(past)
    mad = MAD_SCALE * statistics.median(abs(one - median) for one in past)
    margin = max(deviations * mad, floor)
    limit = median + margin if worse == "higher" else median - margin
    beyond = value > limit if worse == "higher" else value < limit
    return Judgement(value, median, mad, limit, len(past), beyond)
