"""How much memory the correcting process needs beyond an interpreter with Dagster loaded.

Run as a program (`python -m benchmarks.memory`, the DSN on standard input) it is that process.
Does not belong here: memory of the server.
"""

import importlib
import importlib.util
import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import psutil

from assetclass_pipeline.model.options import CorrectionOptions
from benchmarks.contest import Contestant, PhaseClock, Written, correct_all

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


def own_process() -> Contestant:
    """The default options in a process of its own, which tells its time and its memory."""
    return Contestant(f"{CorrectionOptions().pace} (default) in a process of its own", _write)


def _write(dsn: str) -> Written:
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory"],
        input=dsn,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Written(**json.loads(child.stdout))


def correct_and_watch(dsn: str) -> Written:
    """Bytes of resident memory before a correction of this process, and how far it grew."""
    for name in _LOADED_FIRST:
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
    peak, clock = _Peak(), PhaseClock()
    base = peak.bytes
    peak.start()
    started = time.perf_counter()
    try:
        operation = correct_all(dsn, CorrectionOptions(), clock)
    finally:
        taken = time.perf_counter() - started
        peak.end()
    return Written(operation.records_corrected, clock.seconds(), taken, base, peak.bytes - base)


if __name__ == "__main__":
    print(json.dumps(asdict(correct_and_watch(sys.stdin.read()))))
