"""`make bench` works: a small run measures everything and judges it, whatever the numbers are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measures import Measure, limited_ratio, seconds, table

_CLONE = Path(__file__).parents[1]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


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
    rows = [_cells(line) for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows[0] == ["measure", "value", "baseline", "ratio", "limit", "ok?"]
    found = {row[0].partition(",")[0]: row for row in rows[2:]}
    assert set(found) == {
        "correction",
        "write-ahead log",
        "analysis",
        "client memory of a correction",
        "backup",
        "ledger",
        "nightly question",
    }
    for row in found.values():
        assert re.search(r"\d", row[1]), row
        assert row[5] in {"yes", "NO"} or not row[4], row
    assert not list(tmp_path.glob("assetclass-bench-*")), "the server's directory is left behind"


@pytest.mark.parametrize(
    ("value", "limit", "verdict"), [(0.9, 0.9, "yes"), (0.91, 0.9, "NO"), (5.0, None, "")]
)
def test_a_limit_is_kept_up_to_its_value(value: float, limit: float | None, verdict: str) -> None:
    assert limited_ratio("x", value, 1.0, limit, seconds).verdict == verdict


def test_a_measure_without_a_ratio_is_judged_by_its_own_number() -> None:
    measure = Measure("memory", "+160 MB", judged=160, limit=150, unit=" MB")

    assert measure.verdict == "NO"
    assert _cells(table([measure]).splitlines()[2]) == [
        "memory", "+160 MB", "", "", "<= 150 MB", "NO"
    ]  # fmt: skip
