"""The running server process: recognising it, telling its state, ending it.

Belongs here: postmaster.pid and signals. Does not: starting, which the server module does.
"""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from assetclass_pipeline.errors import EmbeddedServerError

_POLL_INTERVAL = 0.05
_IMMEDIATE_STOP_TIMEOUT = 15.0
_KILL_TIMEOUT = 10.0
_LEFTOVER_PATIENCE = 5.0
# Between the start of a process and the moment that it writes its start time down.
_LATEST_RECORD = 120.0


@dataclass(frozen=True)
class Postmaster:
    """A living server: its process, and its port and status once it has written them down."""

    process: psutil.Process
    port: int | None
    status: str | None

    @property
    def ready(self) -> bool:
        """Whether it accepts connections, by its own account."""
        return self.status in {"ready", "standby"}

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked it to stop."""
        return self.status == "stopping"


def find_postmaster(data: Path) -> Postmaster | None:
    """The living server of this data directory, or None.

    A pid may have been reused since a crash: the process must be a postgres that works in this very
    directory. Where that cannot be read, its start time must fit the one on record.

    Raises OSError when postmaster.pid cannot be read.
    """
    fields = _read_postmaster_file(data)
    if fields is None:
        return None
    pid, started, port, status = fields
    try:
        process = psutil.Process(pid)
        if not (is_alive(process) and _is_postgres(process)):
            return None
        try:
            ours = _works_in(process, data)
        except psutil.AccessDenied:
            ours = -1 <= started - process.create_time() <= _LATEST_RECORD
    except psutil.NoSuchProcess:
        return None
    return Postmaster(process, port, status) if ours else None


def _read_postmaster_file(data: Path) -> tuple[int, int, int | None, str | None] | None:
    """Pid, start time, port and status; the latter two come when the server has got so far."""
    try:
        lines = (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    pid, _data, started, port, _sockets, _address, _memory, status = (
        [line.strip() for line in lines] + [""] * 8
    )[:8]
    # The sign marks a server in single-user mode.
    pid = pid.removeprefix("-")
    if not (pid.isdigit() and started.isdigit()):
        return None
    return int(pid), int(started), int(port) if port.isdigit() else None, status or None


def _leftovers(data: Path) -> list[psutil.Process]:
    """Server processes that still work in this data directory, whoever their parent is."""
    found = []
    for process in psutil.process_iter():
        try:
            if is_alive(process) and _is_postgres(process) and _works_in(process, data):
                found.append(process)
        except psutil.Error:
            continue
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether the process still runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def clear_stale_file(data: Path) -> None:
    """Remove what a crashed server left, so that the next one starts; only without a living one.

    PostgreSQL itself refuses to start when the recorded pid belongs to any living process of the
    same user by now, or when the file is empty. Its children may outlive it for a moment.

    Raises EmbeddedServerError when such a child does not go, OSError when the file cannot.
    """
    path = data / "postmaster.pid"
    if not path.exists():
        return
    if not _end_leftovers(data):
        raise EmbeddedServerError(
            f"Processes of a crashed PostgreSQL still use {data} and could not be ended. End them "
            "by hand and try again."
        )
    path.unlink(missing_ok=True)


def stop_postmaster(process: psutil.Process, data: Path, timeout: float) -> None:
    """End the server: fast, after `timeout` seconds immediately, at last by killing it.

    An interruption (Ctrl-C) while waiting goes straight to the immediate stop.
    Raises EmbeddedServerError when it survives even that.
    """
    steps = (("INT", timeout), ("QUIT", _IMMEDIATE_STOP_TIMEOUT), ("KILL", _KILL_TIMEOUT))
    try:
        stopped = any(_signal_and_wait(process, *step) for step in steps)
    except BaseException:
        _signal_and_wait(process, "QUIT", _IMMEDIATE_STOP_TIMEOUT)
        raise
    if not stopped:
        raise EmbeddedServerError(
            f"The embedded PostgreSQL (process {process.pid}, {data}) does not stop, not even "
            "when killed. Its disk may hang; look at the system's log."
        )
    if (data / "postmaster.pid").exists():
        clear_stale_file(data)


def _signal_and_wait(process: psutil.Process, name: str, patience: float) -> bool:
    _signal(process, name)
    return _gone([process], patience)


def _signal(process: psutil.Process, name: str) -> None:
    try:
        if sys.platform == "win32":
            # Windows has no signals; PostgreSQL has its own way to send them.
            program = Path(process.exe()).with_name("pg_ctl.exe")
            subprocess.run([program, "kill", name, str(process.pid)], check=False)
        elif is_alive(process):
            process.send_signal(getattr(signal, f"SIG{name}"))
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise EmbeddedServerError(
            f"The embedded PostgreSQL (process {process.pid}) belongs to another user, who alone "
            "can stop it."
        ) from None


def _end_leftovers(data: Path) -> bool:
    """Wait for the children of a crashed server, then end them; whether all are gone."""
    processes = _leftovers(data)
    for name in ("QUIT", "KILL"):
        if _gone(processes, _LEFTOVER_PATIENCE):
            return True
        for process in processes:
            _signal(process, name)
    return _gone(processes, _LEFTOVER_PATIENCE)


def _gone(processes: list[psutil.Process], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while any(is_alive(process) for process in processes):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_INTERVAL)
    return True


def _is_postgres(process: psutil.Process) -> bool:
    return process.name().removesuffix(".exe") in {"postgres", "postmaster"}


def _works_in(process: psutil.Process, data: Path) -> bool:
    try:
        return Path(process.cwd()).samefile(data)
    except OSError:
        return False
