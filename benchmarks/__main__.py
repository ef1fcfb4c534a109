"""The program behind `make bench`: every benchmark in one run, one table at the end.

Belongs here: options, order, exit status. Does not: measuring.
"""

import argparse
import sys
import uuid
from collections.abc import Sequence

from assetclass_pipeline.database.embedded import exit_on_termination
from benchmarks import analysis, correction, data, memory, storage
from benchmarks.databases import Databases, databases
from benchmarks.measures import Measure, Progress, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or with --strict 1 when a limit is missed."""
    options = _parse(arguments)
    exit_on_termination()
    progress = Progress()
    measures: list[Measure] = []
    with databases() as server:
        for rows in options.rows:
            measures += _measure(server, rows, options, progress)
    print(table(measures))
    missed = sum(measure.verdict == "NO" for measure in measures)
    print(f"\n{missed} of {sum(measure.limit is not None for measure in measures)} limits missed.")
    return 1 if options.strict and missed else 0


def _measure(
    server: Databases, rows: int, options: argparse.Namespace, progress: Progress
) -> list[Measure]:
    progress(f"Making {rows:,} rows")
    template = data.build(server, rows)
    measures = correction.compare(
        server, template, rows, options.rounds, progress, only_default=options.quick
    )
    correction_id = str(uuid.uuid4())
    with server.clone(template) as dsn:
        measures += analysis.measure_analysis(dsn, rows, progress)
        measures += memory.measure_memory(dsn, correction_id, rows, progress)
        measures += storage.measure_storage(dsn, correction_id, rows)
        measures += analysis.measure_nightly_question(dsn, rows, progress)
    server.drop(template)
    return measures


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Ratios against baselines of the same run, on a PostgreSQL of its own.",
    )
    parser.add_argument("--rows", type=_positive, nargs="+", default=[1_000_000, 3_000_000])
    parser.add_argument("--rounds", type=_positive, default=3, help="runs of each contestant")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="100,000 rows, the default options once: to see that it works",
    )
    parser.add_argument("--strict", action="store_true", help="status 1 when a limit is missed")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rows, options.rounds = [100_000], 1
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
