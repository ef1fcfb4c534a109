"""The program behind `make bench`: every group of benchmarks in one run, tables at the end.

Belongs here: options, order, exit status. Does not: measuring.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from assetclass_pipeline.database.embedded import exit_on_termination
from benchmarks import (
    analysis,
    api,
    baselines,
    concurrency,
    correction,
    growth,
    guide,
    storage,
    ticks,
    undo,
    watching,
)
from benchmarks.bench import Bench
from benchmarks.databases import databases
from benchmarks.measures import Findings, Progress, table

# The largest template comes last, and is dropped at once.
GROUPS: dict[str, Callable[[Bench], Findings]] = {
    "correction": correction.measure,
    "undo": undo.measure,
    "storage": storage.measure,
    "analysis": analysis.measure,
    "watching": watching.measure,
    "ticks": ticks.measure,
    "api": api.measure,
    "baselines": baselines.measure,
    "writers": concurrency.measure,
    "guide": guide.measure,
    "growth": growth.measure,
}
# It starts everything and waits for Dagster's runs.
ONLY_WHEN_NAMED = {"guide"}
QUICK_ROWS = 100_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or with --strict 1 when a limit is missed."""
    options = _parse(arguments)
    exit_on_termination()
    progress = Progress()
    found: list[Findings] = []
    try:
        with databases() as server:
            bench = Bench(server, progress, options.rounds, options.rows, options.quick)
            for name in options.only or [name for name in GROUPS if name not in ONLY_WHEN_NAMED]:
                progress(f"Group {name}")
                found.append(GROUPS[name](bench))
    finally:
        # What the groups before an error have found took minutes.
        missed = _print(found)
    return 1 if options.strict and missed else 0


def _print(found: list[Findings]) -> int:
    """Print everything; returns the number of missed limits."""
    measures = [measure for part in found for measure in part.measures]
    missed = sum(measure.verdict == "NO" for measure in measures)
    print("\n\n".join([table(measures), *(text for part in found for text in part.tables)]))
    print(f"\n{missed} of {sum(measure.limit is not None for measure in measures)} limits missed.")
    return missed


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Ratios against baselines of the same run, on a PostgreSQL of its own.",
    )
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, metavar="GROUP", help=", ".join(GROUPS)
    )
    parser.add_argument(
        "--rows", type=_positive, help="rows of every group; unset: each group has its own number"
    )
    parser.add_argument("--rounds", type=_positive, default=3, help="runs of each contestant")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_ROWS:,} rows, everything once and briefly: to see that it works",
    )
    parser.add_argument("--strict", action="store_true", help="status 1 when a limit is missed")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rows, options.rounds = options.rows or QUICK_ROWS, 1
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
