"""How much memory the correcting process needs beyond an interpreter with Dagster loaded.

Run as a program (`python -m benchmarks.memory CORRECTION_ID`, the DSN on standard input) it is that
process. Does not belong here: memory of the server.
"""

import importlib
import importlib.util
import json
import subprocess
import sys
import threading
import uuid

import psutil

from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.model.options import CorrectionOptions
from benchmarks.databases import settings_for
from benchmarks.measures import Measure, Progress, megabytes

MOST_MEGABYTES = 150.0
_INTERVAL = 0.01
_LOADED_FIRST = ("dagster", "assetclass_pipeline.definitions")


class _Peak(threading.Thread):
    """Watches this process's resident memory, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process()
        self._ended = threading.Event()
        self.bytes = self.now()

    def now(self) -> int:
        return int(self._process.memory_info().rss)

    def run(self) -> None:
        while not self._ended.wait(_INTERVAL):
            self.bytes = max(self.bytes, self.now())

    def end(self) -> None:
        self._ended.set()
        self.join()


def measure_memory(dsn: str, correction_id: str, rows: int, progress: Progress) -> list[Measure]:
    """Peak over base of a process that corrects the database with default options."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", correction_id],
        input=dsn,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(child.stdout)
    grown = found["peak"] - found["base"]
    progress(f"{rows:,} rows, client memory: {grown / 1e6:.1f} MB over {found['base'] / 1e6:.0f}")
    return [
        Measure(
            f"client memory of a correction, {rows:,} rows, over Dagster loaded",
            f"+{megabytes(grown)}",
            megabytes(found["base"]),
            judged=grown / 1e6,
            limit=MOST_MEGABYTES,
            unit=" MB",
        )
    ]


def correct_and_watch(dsn: str, correction_id: str) -> dict[str, int]:
    """Bytes of resident memory before and at most during a correction of this process."""
    for name in _LOADED_FIRST:
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
    request = CorrectionRequest(correction_id, CorrectionOptions(), requested_by="benchmark")
    peak = _Peak()
    base = peak.bytes
    peak.start()
    try:
        correct(dsn, settings_for(dsn), request)
    finally:
        peak.end()
    return {"base": base, "peak": peak.bytes}


if __name__ == "__main__":
    print(json.dumps(correct_and_watch(sys.stdin.read(), str(uuid.UUID(sys.argv[1])))))
