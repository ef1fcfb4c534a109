"""`make bench` works: a small run measures everything and judges it, whatever the numbers are.

What the benchmark claims about correctness (same rows by all contestants, writers respected, no
wait left out) is broken here on purpose, and has to be noticed.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.model.options import CorrectionOptions
from benchmarks.bench import Bench
from benchmarks.concurrency import percentile
from benchmarks.contest import (
    Contestant,
    PhaseClock,
    Written,
    bare_update,
    compete,
    correct_all,
    engine,
)
from benchmarks.databases import Databases
from benchmarks.measures import Measure, Progress, limited_ratio, seconds, table
from benchmarks.respect import require_respect
from benchmarks.writers import PATTERN, Load, Report, writers

_CLONE = Path(__file__).parents[1]
_ROWS = 2000


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture(scope="module")
def bench(postgres_server: EmbeddedServer) -> Iterator[Bench]:
    bench = Bench(Databases(postgres_server), Progress())
    bench.template(_ROWS)
    yield bench
    bench.forget(_ROWS)


def test_quick_run_measures_everything(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks", "--quick"],
        cwd=_CLONE,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    tables = [
        [_cells(line) for line in part.splitlines() if line.startswith("|")]
        for part in done.stdout.split("\n\n")
    ]
    rows = tables[0]
    assert rows[0] == ["measure", "value", "baseline", "ratio", "limit", "ok?"]
    assert [row[0].partition(",")[0] for row in rows[2:]] == [
        *["correction"] * 3,
        "write-ahead log",
        "rollback under balanced",
        "rollback under fast",
        "verify of a backup",
        "history of a row",
        "backup",
        "ledger",
        "analysis",
        "nightly question",
        *["scrape"] * 2,
        *["health"] * 3,
        "tick of asset_check_alerts",
        "tick of run_failure_alerts",
        *["tick of operation_alerts"] * 2,
        "status",
        "health",
        "metrics",
        "100 callers beside a correction",
        "failed requests",
        "analyze over HTTP",
        *["baseline"] * 3,
        *["writers' p99", "writers' longest wait"] * 3,
        *["growth"] * 3,
        *["client memory of a correction"] * 2,
        "client memory",
    ]
    for row in rows[2:]:
        assert re.search(r"\d", row[1]), row
        assert row[5] in {"yes", "NO"} or not row[4], row
    settings = tables[1]
    assert settings[0][:4] == ["batch size", "workers", "pause", "rows/s"]
    assert [row[:3] for row in settings[2:]] == [["500", "1", "none"], ["5,000", "4", "gentle's"]]
    assert not list(tmp_path.glob("assetclass-bench-*")), "the server's directory is left behind"


def test_only_the_named_groups_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--rows", "1000", "--only", "storage"],
        cwd=_CLONE,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    lines = [_cells(line)[0] for line in done.stdout.splitlines() if line.startswith("|")]
    assert [line.partition(",")[0] for line in lines[2:]] == ["backup", "ledger"]
    assert all("1,000 rows" in line for line in lines[2:])


@pytest.mark.parametrize(
    ("value", "limit", "verdict"), [(0.9, 0.9, "yes"), (0.91, 0.9, "NO"), (5.0, None, "")]
)
def test_a_limit_is_kept_up_to_its_value(value: float, limit: float | None, verdict: str) -> None:
    assert limited_ratio("x", value, 1.0, limit, seconds).verdict == verdict


@pytest.mark.parametrize(("judged", "verdict"), [(1.05, "yes"), (1.06, "NO")])
def test_a_tolerance_widens_its_limit_and_is_shown(judged: float, verdict: str) -> None:
    measure = Measure("growth", "0.9", judged=judged, limit=1.0, tolerance=0.05)

    assert (measure.verdict, measure.shown_limit) == (verdict, "<= 1 + 0.05")


def test_a_measure_without_a_ratio_is_judged_by_its_own_number() -> None:
    measure = Measure("memory", "+160 MB", judged=160, limit=150, unit=" MB")

    assert measure.verdict == "NO"
    assert _cells(table([measure]).splitlines()[2]) == [
        "memory", "+160 MB", "", "", "<= 150 MB", "NO"
    ]  # fmt: skip


def test_a_percentile_is_one_of_the_values() -> None:
    taken = [float(number) for number in range(1, 201)]

    assert percentile(taken, 50) == 100
    assert percentile(taken, 99) == 198
    assert percentile([7.0], 99) == 7


@pytest.mark.parametrize(
    ("change", "of_a_row"),
    [
        ("asset_class = 'WRONG'", "updated_at <> created_at"),
        ("asset_class = ''", "symbol LIKE 'UNKNOWN%' AND asset_class IS NULL"),
        # The right class, written without need.
        ("updated_at = now()", "symbol LIKE 'SYM%' AND updated_at = created_at"),
    ],
)
def test_who_writes_other_rows_cannot_win(bench: Bench, change: str, of_a_row: str) -> None:
    def write(dsn: str) -> Written:
        written = bare_update().write(dsn)
        with psycopg.connect(dsn) as connection:
            chosen = f"SELECT min(id) FROM market_data WHERE {of_a_row}"  # noqa: S608 - ours
            extra = f"UPDATE market_data SET {change} WHERE id = ({chosen})"  # noqa: S608 - ours
            assert connection.execute(extra.encode()).rowcount == 1
        return written

    with pytest.raises(RuntimeError, match="did not write the same rows"):
        compete(bench, _ROWS, [bare_update(), Contestant("wrong", write)], rounds=1)


def test_contestants_take_turns_and_slow_ones_run_once(bench: Bench) -> None:
    order = []

    def noted(name: str, most_rounds: int | None = None) -> Contestant:
        def write(dsn: str) -> Written:
            order.append(name)
            return bare_update().write(dsn)

        return Contestant(name, write, most_rounds)

    runs = compete(bench, _ROWS, [noted("a"), noted("b", most_rounds=1), noted("c")], rounds=3)

    assert order == ["a", "b", "c", "c", "a", "c", "a"]
    assert {name: len(found) for name, found in runs.items()} == {"a": 3, "b": 1, "c": 3}


def test_the_engine_writes_what_the_bare_update_writes(bench: Bench) -> None:
    runs = compete(bench, _ROWS, [bare_update(), engine("ours", CorrectionOptions())], rounds=1)

    assert "correcting" in runs["ours"][0].written.phases
    assert all(run.wal_bytes > 0 for found in runs.values() for run in found)


def test_a_stall_counts_for_every_transaction_that_comes_due_in_it(bench: Bench) -> None:
    per_second = 100.0
    with (
        bench.databases.clone(bench.template(_ROWS)) as dsn,
        psycopg.connect(dsn) as connection,
        writers(Load(dsn, per_second=per_second, connections=2)) as writing,
    ):
        connection.execute("LOCK market_data IN ACCESS EXCLUSIVE MODE")
        locked = time.monotonic()
        time.sleep(0.8)
        released = time.monotonic()
        connection.commit()
        _wait_for_commits(dsn, than=per_second)
        report = writing.stop()

    stalled = [commit for commit in report.commits if locked <= commit.due < released - 0.1]
    assert len(stalled) >= per_second * (released - 0.1 - locked) - 1
    assert min(commit.latency for commit in stalled) >= 0.1


def _wait_for_commits(dsn: str, *, than: float) -> None:
    """Until a transaction of a higher number than that wrote: a new bar's price is its number."""
    newest = "SELECT coalesce(max(close), 0) FROM market_data WHERE volume = 1"
    _wait_until(dsn, newest, lambda number: number > than)


def _wait_until(dsn: str, question: LiteralString, answered: Callable[[int], bool]) -> None:
    deadline = time.monotonic() + 30
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not answered(connection.execute(question).fetchall()[0][0]):
            assert time.monotonic() < deadline, question
            time.sleep(0.05)


def test_writers_stop_by_themselves(bench: Bench) -> None:
    others = """SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()"""
    with (
        bench.databases.clone(bench.template(_ROWS)) as dsn,
        writers(Load(dsn, connections=1, most_seconds=0.2)) as writing,
    ):
        _wait_until(dsn, others, lambda number: number == 0)
        with pytest.raises(RuntimeError, match="by themselves"):
            writing.stop()


def test_a_failed_transaction_of_a_writer_is_no_result(bench: Bench) -> None:
    with bench.databases.clone(bench.template(_ROWS)) as dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute("ALTER TABLE market_data ADD CHECK (asset_class <> 'BY_HAND')")
        with writers(Load(dsn, connections=1)) as writing:
            _wait_for_commits(dsn, than=len(PATTERN) + 1)
            with pytest.raises(RuntimeError, match="transactions of the writers failed"):
                writing.stop()


@pytest.fixture(scope="module")
def written_beside(bench: Bench) -> Iterator[tuple[str, Report, Operation]]:
    """Name of a database corrected beside writers, what they did, and the operation."""
    with bench.databases.clone(bench.template(_ROWS)) as dsn:
        with writers(Load(dsn, connections=3)) as writing:
            _wait_for_commits(dsn, than=2 * len(PATTERN))
            operation = correct_all(dsn, CorrectionOptions(batch_size=50), PhaseClock())
            _wait_for_commits(dsn, than=6 * len(PATTERN))
            report = writing.stop()
        yield str(conninfo_to_dict(dsn)["dbname"]), report, operation


def test_a_correction_beside_writers_respects_them(
    bench: Bench, written_beside: tuple[str, Report, Operation]
) -> None:
    name, report, operation = written_beside

    require_respect(
        bench.databases.url(name), bench.databases.url(bench.template(_ROWS)), report, operation
    )
    kinds = {commit.kind for commit in report.commits}
    assert kinds == set(PATTERN)
    assert None in {asset_class for _, _, asset_class in report.inserted.values()}
    assert operation.records_corrected > 0


@pytest.mark.parametrize(
    ("tampering", "noticed"),
    [
        ("UPDATE market_data SET close = close + 1 WHERE id = %(price)s", "1 prices overwritten"),
        ("UPDATE market_data SET asset_class = 'X' WHERE id = %(class)s", "1 classes overwritten"),
        ("UPDATE market_data SET asset_class = 'X' WHERE id = %(inserted)s", "1 inserted bars"),
        ("DELETE FROM market_data WHERE id = %(untouched)s", "1 rows lost or doubled"),
        (
            """INSERT INTO market_data (id, symbol, "timestamp", close) OVERRIDING SYSTEM VALUE
               VALUES (%(deleted)s, 'SYM0001', now(), 1)""",
            "1 deleted rows that are back",
        ),
        (
            "UPDATE market_data SET asset_class = NULL WHERE id = %(untouched)s",
            "1 rows with a wrong class",
        ),
        (
            "UPDATE market_data SET volume = -1 WHERE id = %(untouched)s",
            "1 changes of rows that nobody touched",
        ),
        (
            "UPDATE market_data SET asset_class = 'X' WHERE id = %(orphaned)s",
            "1 changes of rows that nobody touched",
        ),
    ],
)
def test_disrespect_is_noticed(
    bench: Bench, written_beside: tuple[str, Report, Operation], tampering: str, noticed: str
) -> None:
    name, report, operation = written_beside
    touched = {*report.prices, *report.by_hand, *report.deleted}
    with bench.databases.clone(name) as dsn:
        with psycopg.connect(dsn) as connection:
            untouched = "SELECT min(id) FROM market_data WHERE id <> ALL (%s) AND symbol LIKE %s"
            victims = {
                "price": min(set(report.prices) - set(report.deleted)),
                "class": min(set(report.by_hand) - set(report.deleted)),
                "inserted": min(report.inserted),
                "deleted": min(report.deleted),
                **{
                    kind: connection.execute(untouched, ([*touched], symbols)).fetchall()[0][0]
                    for kind, symbols in (("untouched", "SYM%"), ("orphaned", "UNKNOWN%"))
                },
            }
            assert connection.execute(tampering, victims).rowcount == 1
        with pytest.raises(RuntimeError, match=noticed):
            require_respect(dsn, bench.databases.url(bench.template(_ROWS)), report, operation)
