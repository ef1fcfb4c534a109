"""What a benchmark found: one line of the table, and the table itself.

Belongs here: judging against a limit, printing. Does not: measuring.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

# Seconds after which no further call is timed.
_LONGEST = 10.0

Verdict = Literal["yes", "NO", ""]


@dataclass(frozen=True)
class Measure:
    """One line of the table; `judged` is the number that may be at most `limit`.

    `tolerance` is what two equal runs may differ by on a noisy machine, on top of the limit.
    """

    what: str
    value: str
    baseline: str = ""
    ratio: float | None = None
    judged: float | None = None
    limit: float | None = None
    unit: str = ""
    tolerance: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """Whether the limit is kept; empty where there is none."""
        if self.judged is None or self.limit is None:
            return ""
        return "yes" if self.judged <= self.limit + self.tolerance else "NO"

    @property
    def shown_limit(self) -> str:
        """The limit as the table prints it; empty where there is none."""
        if self.limit is None:
            return ""
        allowed = f" + {self.tolerance:g}" if self.tolerance else ""
        return f"<= {self.limit:g}{allowed}{self.unit}"


@dataclass(frozen=True)
class Findings:
    """What one group found: lines of the common table, and tables of its own."""

    measures: list[Measure]
    tables: list[str] = field(default_factory=list)


def limited_ratio(
    what: str, value: float, baseline: float, limit: float | None, show: Callable[[float], str]
) -> Measure:
    """A measure whose ratio to its baseline is limited."""
    ratio = value / baseline
    judged = None if limit is None else ratio
    return Measure(what, show(value), show(baseline), ratio, judged, limit)


def median_seconds(action: Callable[[], object], times: int) -> float:
    """Median wall time of `times` calls after one that is not counted; fewer if they are slow."""
    action()
    taken: list[float] = []
    while len(taken) < times and sum(taken) < _LONGEST:
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def seconds(value: float) -> str:
    """As a person reads a duration of seconds or minutes."""
    return f"{value:.2f} s"


def milliseconds(value: float) -> str:
    """A short duration, given in seconds."""
    return f"{value * 1000:.1f} ms"


def megabytes(value: float) -> str:
    """A size, given in bytes."""
    return f"{value / 1e6:,.0f} MB"


def table(measures: Iterable[Measure]) -> str:
    """All measures as a Markdown table, aligned for the terminal."""
    return grid(
        ("measure", "value", "baseline", "ratio", "limit", "ok?"),
        (
            (
                measure.what,
                measure.value,
                measure.baseline,
                "" if measure.ratio is None else f"{measure.ratio:.2f}",
                measure.shown_limit,
                measure.verdict,
            )
            for measure in measures
        ),
    )


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ("-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])))
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


class Progress:
    """Says on standard error what goes on, with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def __call__(self, text: str) -> None:
        """Print one line."""
        elapsed = time.perf_counter() - self._started
        print(f"[{elapsed:6.1f} s] {text}", file=sys.stderr, flush=True)
