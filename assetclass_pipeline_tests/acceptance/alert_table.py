"""The table of alerts: how long people waited for each, printed when the tests end.

Belongs here: one line of the table, how tests hand it in, how it is printed. Does not: provoking
and watching (watched.py).
"""

from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields

import pytest

from assetclass_pipeline.model.alert import AlertType

_PROPERTY = "alert told"


@dataclass(frozen=True)
class Told:
    """From the moment at which the condition came true to the arrival of the message (seconds)."""

    alert: str
    condition: str
    provoked: str
    seconds: float


def lines_of(told: Iterable[Told]) -> list[str]:
    """The table as text in the order of the types, a heading first."""
    order = list(AlertType)
    rows = sorted(told, key=lambda one: (order.index(AlertType(one.alert)), one.condition))
    cells = [[field.name for field in fields(Told)]]
    for alert, condition, provoked, seconds in map(astuple, rows):
        cells.append([alert, condition, provoked, f"{seconds:.1f}"])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def hand_in(node: pytest.Item, told: Told) -> None:
    """Put a line into the test's report, which reaches the table from any process."""
    node.user_properties.append((_PROPERTY, asdict(told)))


def print_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table when tests handed something in."""
    told = [
        Told(**value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == _PROPERTY
    ]
    if told:
        terminalreporter.section("alerts")
        for line in lines_of(told):
            terminalreporter.write_line(line)
