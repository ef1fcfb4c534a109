"""The fault table: what each fault did to the rows, printed when the tests end.

Belongs here: one line of the table, how tests hand it in, how it is printed, how often a fault is
tried. Does not: how a line is computed (verification.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass, fields, replace

import pytest

_PROPERTY = "fault outcome"


@dataclass(frozen=True)
class Outcome:
    """How the rows of a fault's tries fared; the last three are rows and must be 0.

    Lost: correctable rows that are neither corrected nor listed with a reason, or a ledger that
    says another sum than was changed. Doubled: written twice by us. Overwritten: another's change
    was replaced by ours.
    """

    fault: str
    tries: int
    rows_at_risk: int
    lost: int
    doubled: int
    overwritten: int

    @property
    def is_clean(self) -> bool:
        """Whether no row came to harm."""
        return (self.lost, self.doubled, self.overwritten) == (0, 0, 0)


def add_up(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """One line a fault, in the order of their first tries."""
    sums: dict[str, Outcome] = {}
    for one in outcomes:
        before = sums.get(one.fault, Outcome(one.fault, 0, 0, 0, 0, 0))
        sums[one.fault] = replace(
            before,
            tries=before.tries + one.tries,
            rows_at_risk=before.rows_at_risk + one.rows_at_risk,
            lost=before.lost + one.lost,
            doubled=before.doubled + one.doubled,
            overwritten=before.overwritten + one.overwritten,
        )
    return [*sums.values()]


def lines_of(outcomes: Iterable[Outcome]) -> list[str]:
    """The table as text, a heading first."""
    heading = [field.name.replace("_", " ") for field in fields(Outcome)]
    cells = [heading]
    for outcome in outcomes:
        fault, *numbers = astuple(outcome)
        cells.append([fault, *(f"{number:,}" for number in numbers)])
    widths = [max(len(row[column]) for row in cells) for column in range(len(heading))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]


@dataclass(frozen=True)
class Tries:
    """How often a fault is tried: always `full` by `make faults`, fewer times by `make test`."""

    in_full: bool

    def __call__(self, full: int, quick: int) -> int:
        """The number that this run asks for."""
        return full if self.in_full else quick


def hand_in(node: pytest.Item, outcome: Outcome) -> None:
    """Put a test's outcome into its report, which reaches the table from any process."""
    node.user_properties.append((_PROPERTY, asdict(outcome)))


def add_option(parser: pytest.Parser) -> None:
    """`--fault-tries full`, as `make faults` says."""
    parser.addoption(
        "--fault-tries",
        choices=("quick", "full"),
        default="quick",
        help="how often the tests under faults/ try each fault",
    )


def print_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table when tests handed something in."""
    outcomes = [
        Outcome(**value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == _PROPERTY
    ]
    if not outcomes:
        return
    terminalreporter.section("faults")
    outcomes.sort(key=lambda outcome: outcome.fault)
    for line in lines_of(add_up(outcomes)):
        terminalreporter.write_line(line)


HandIn = Callable[[Outcome], None]
