"""How many cases of the OpenAPI document are sent, and how many were, told when the tests end.

Belongs here: the option and the line. Does not: the cases (test_description.py).
"""

import pytest

_PROPERTY = "cases of the document"
_OPTION = "--schema-cases"
_QUICK, _FULL = 5, 80


def most_cases(config: pytest.Config) -> int:
    """Cases of one caller and call at most; calls that take nothing know few."""
    return _FULL if config.getoption(_OPTION) == "full" else _QUICK


def hand_in(node: pytest.Item, cases: int) -> None:
    """Put the number into the test's report, which reaches the line from any process."""
    node.user_properties.append((_PROPERTY, cases))


def add_option(parser: pytest.Parser) -> None:
    """`--schema-cases full`, as `make conformance` says."""
    parser.addoption(
        _OPTION,
        choices=("quick", "full"),
        default="quick",
        help="how many cases of the OpenAPI document are sent",
    )


def print_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the line when tests handed something in."""
    cases = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == _PROPERTY
    ]
    if cases:
        terminalreporter.section("OpenAPI document")
        terminalreporter.write_line(f"{sum(cases):,} cases, {len(cases)} pairs of call and caller")
