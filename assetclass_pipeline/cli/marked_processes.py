"""Processes that carry the mark of one `assetclass up` in their environment: find them, end them.

Belongs here: what must be right whoever does the ending (`up`, its guard, the next `up`). A mark is
inherited by every descendant, survives the death of parents, and is never reused as a pid is.
Does not: anything of Dagster; the guard imports this module and has to stay small.
"""

import contextlib
import time
from collections.abc import Iterable

import psutil

MARK_VARIABLE = "ASSETCLASS_UP_MARK"

_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.05


def marked_processes(mark: str) -> list[psutil.Process]:
    """Every living process of this user that was started with the mark, except the caller."""
    caller = psutil.Process().pid
    return [
        process
        for process in psutil.process_iter()
        if process.pid != caller and _mark_of(process) == mark
    ]


def end_processes(processes: Iterable[psutil.Process], *, patience: float) -> list[psutil.Process]:
    """Ask them to end (SIGTERM), then kill those that are left after `patience` seconds.

    Returns the ones that even survived that, which is normally none.
    """
    living = list(processes)
    for process in living:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    living = _wait_until_gone(living, patience)
    for process in living:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return _wait_until_gone(living, _KILL_SECONDS)


def _wait_until_gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    # Not psutil.wait_procs: it waits for a zombie too, and in a container nobody may ever reap it.
    deadline = time.monotonic() + seconds
    living = [process for process in processes if _is_alive(process)]
    while living and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        living = [process for process in living if _is_alive(process)]
    return living


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK_VARIABLE)
    except (psutil.Error, OSError):
        return None  # ended meanwhile, or another user's


def is_run_worker(process: psutil.Process) -> bool:
    """Whether it executes a run or a step of one: Dagster starts those by multiprocessing."""
    try:
        return any("multiprocessing.spawn" in word for word in process.cmdline())
    except psutil.Error:
        return False
