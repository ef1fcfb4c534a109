"""A straight line through a history that a few odd days cannot bend, and where it leads.

Belongs here: pure arithmetic. Does not: what is measured.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

# With fewer points any line would do.
LEAST_POINTS = 5
# Of a normal distribution, for a range that holds the true slope nine times out of ten.
_NINE_OF_TEN = 1.645
# From a median absolute deviation to a standard deviation, of a normal distribution.
_TO_DEVIATION = 1.4826


@dataclass(frozen=True)
class Line:
    """Theil-Sen's line: the median slope of all pairs, and the range that holds it at 90 %.

    Sen, "Estimates of the regression coefficient based on Kendall's tau" (1968). That range comes
    from how much the pairs disagree and knows nothing of a change of habit, so it is widened to
    the slope of the last third, where that is another one. `scatter` is how far nine of ten points
    are from the line at most, by their median distance.
    """

    slope: float
    low: float
    high: float
    scatter: float


def robust_line(points: Sequence[tuple[float, float]]) -> Line | None:
    """The line through (x, y), x ascending; None of fewer than five points or of one x alone."""
    if len(points) < LEAST_POINTS:
        return None
    slopes = _slopes(points)
    if not slopes:
        return None
    slope = statistics.median(slopes)
    count, pairs = len(points), len(slopes)
    spread = _NINE_OF_TEN * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    lowest = max(0, math.floor((pairs - spread) / 2))
    highest = min(pairs - 1, math.ceil((pairs + spread) / 2))
    recent = _recent(points)
    recent = slope if recent is None else recent
    intercept = statistics.median(y - slope * x for x, y in points)
    distance = statistics.median(abs(y - intercept - slope * x) for x, y in points)
    return Line(
        slope,
        min(slopes[lowest], recent),
        max(slopes[highest], recent),
        distance * _TO_DEVIATION * _NINE_OF_TEN,
    )


def _recent(points: Sequence[tuple[float, float]]) -> float | None:
    """Slope of the last third; None where it has too few points."""
    last = points[-(len(points) // 3) :]
    slopes = _slopes(last) if len(last) >= LEAST_POINTS else []
    return statistics.median(slopes) if slopes else None


def _slopes(points: Sequence[tuple[float, float]]) -> list[float]:
    return sorted(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for earlier, later in combinations(points, 2)
        if later[0] != earlier[0]
    )
