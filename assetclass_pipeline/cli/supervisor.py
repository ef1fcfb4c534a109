"""Starts services in order, keeps them alive, stops them in reverse order; nothing is left behind.

Belongs here: processes, their logs, their restarts, signals. Does not: which services there are and
what they need, which `up` says; a new service is one more `Service` in its list.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from assetclass_pipeline.cli.marked_processes import (
    MARK_VARIABLE,
    end_processes,
    marked_processes,
)
from assetclass_pipeline.errors import ServicesError

Report = Callable[[str], None]

_POLL_SECONDS = 0.2
_STOP_POLL_SECONDS = 0.05
_LONGEST_WAIT = 30.0
# A service that lived this long starts with a clean record: only repeated crashes give up.
_FORGIVEN_AFTER = 300.0
_LOG_LINES = 15


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """Ctrl-C, SIGTERM or SIGHUP arrived; raised only at places where stopping is safe."""


@dataclass
class StopSignals:
    """Counts requests to stop; a second one means: do not wait any longer."""

    count: int = 0

    @contextlib.contextmanager
    def installed(self) -> Iterator["StopSignals"]:
        """Signals of this process are counted instead of ending it."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        # With `nohup` it is ignored already, and is to be: the end of the terminal ends nothing.
        if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._received) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raises StopRequested once a signal has arrived."""
        if self.count:
            raise StopRequested

    def sleep(self, seconds: float = _POLL_SECONDS) -> None:
        """Sleep, in slices; raises StopRequested as soon as a signal has arrived."""
        deadline = time.monotonic() + seconds
        while (rest := deadline - time.monotonic()) > 0:
            self.check()
            time.sleep(min(rest, _POLL_SECONDS))
        self.check()

    def _received(self, _number: int, _frame: FrameType | None) -> None:
        # Nothing but counting: a handler that raises would tear apart whatever runs just now.
        self.count += 1


@dataclass(frozen=True)
class Service:
    """One process that the supervisor keeps alive.

    `is_ready` is asked until it is true; `before_stop` runs while everything that was started
    earlier still lives. Times are seconds.
    """

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[], bool]
    start_timeout: float = 120
    stop_timeout: float = 10
    before_start: Callable[[], None] | None = None
    before_stop: Callable[[], None] | None = None


@dataclass
class _Running:
    service: Service
    process: subprocess.Popen[bytes]
    since: float
    crashes: int = 0
    ready: bool = False
    restart_at: float | None = None


@dataclass
class Supervisor:
    """Runs `stages` of services: those of a stage start together, when the stage before is ready.

    Every process gets the mark in its environment and a session of its own, so that Ctrl-C in the
    terminal reaches the supervisor alone, which then stops them in order. A service that ends is
    started again up to `restarts` times, first after `first_wait` seconds, then after twice as long
    each time. A log that grows beyond `largest_log` bytes is moved aside. `look_around` is called
    again and again meanwhile, for what is watched and is no service.
    """

    stages: Sequence[Sequence[Service]]
    environment: Mapping[str, str]
    mark: str
    logs: Path
    signals: StopSignals
    report: Report
    restarts: int = 5
    first_wait: float = 1.0
    largest_log: int = 50_000_000
    look_around: Callable[[], None] = lambda: None
    _running: list[_Running] = field(default_factory=list)

    def start(self) -> None:
        """Start all stages; returns when every service is ready.

        Raises ServicesError when one ends or does not get ready in time, StopRequested on a signal.
        """
        for stage in self.stages:
            fresh = [self._launch(service) for service in stage]
            self._running.extend(fresh)
            for running in fresh:
                self._wait_until_ready(running)

    def watch(self) -> None:
        """Restart services that end; returns when a signal asks to stop.

        Raises ServicesError when a service crashed again and again.
        """
        with contextlib.suppress(StopRequested):
            while True:
                self.signals.sleep()
                self.look_around()
                for running in self._running:
                    self._look_after(running)

    def stop(self) -> None:
        """Stop the stages in reverse order, then whatever else carries the mark."""
        for stage in reversed(self.stages):
            names = {service.name for service in stage}
            self._end([one for one in self._running if one.service.name in names])
        self._running.clear()
        left = end_processes(marked_processes(self.mark), patience=self._patience(5))
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            self.report(f"These processes could not be ended: {pids}")

    def log_path(self, service: Service) -> Path:
        """Where this service's output goes; what was before it is beside it (.1.log)."""
        return self.logs / f"{service.name}.log"

    def _launch(self, service: Service, *, fresh_log: bool = True) -> _Running:
        path = self.log_path(service)
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh_log and path.exists():
            path.replace(self._log_before(service))
        if service.before_start is not None:
            service.before_start()
        with path.open("ab") as log:
            process = subprocess.Popen(
                service.command,
                env={**os.environ, **self.environment, MARK_VARIABLE: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return _Running(service, process, since=time.monotonic())

    def _wait_until_ready(self, running: _Running) -> None:
        service = running.service
        while not service.is_ready():
            status = running.process.poll()
            if status is not None:
                raise ServicesError(
                    f"The {service.name} {_how_it_ended(status)} while starting. "
                    f"{self._log_tail(service)}"
                )
            if time.monotonic() - running.since > service.start_timeout:
                raise ServicesError(
                    f"The {service.name} was not ready within {service.start_timeout:.0f} seconds. "
                    f"{self._log_tail(service)}"
                )
            self.signals.sleep()
        running.ready = True

    def _look_after(self, running: _Running) -> None:
        self._limit_log(running.service)
        now = time.monotonic()
        if running.restart_at is not None:
            if now >= running.restart_at:
                self._restart(running)
            return
        status = running.process.poll()
        if status is None:
            self._confirm_restart(running, now)
            return
        if now - running.since > _FORGIVEN_AFTER:
            running.crashes = 0
        running.crashes += 1
        running.ready = False
        name = running.service.name
        if running.crashes > self.restarts:
            raise ServicesError(
                f"The {name} {_how_it_ended(status)} after {self.restarts} restarts; giving up. "
                f"{self._log_tail(running.service)}"
            )
        wait = min(self.first_wait * 2 ** (running.crashes - 1), _LONGEST_WAIT)
        running.restart_at = now + wait
        self.report(
            f"The {name} {_how_it_ended(status)}; starting it again in {wait:.0f} s "
            f"(restart {running.crashes} of {self.restarts}). {self._log_tail(running.service)}"
        )

    def _restart(self, running: _Running) -> None:
        again = self._launch(running.service, fresh_log=False)
        running.process, running.since, running.restart_at = again.process, again.since, None

    def _confirm_restart(self, running: _Running, now: float) -> None:
        if running.ready:
            return
        if running.service.is_ready():
            running.ready = True
            self.report(f"The {running.service.name} is back.")
        elif now - running.since > running.service.start_timeout:
            # It lives but does not answer: ending it makes it a crash like any other.
            running.process.kill()

    def _end(self, together: list[_Running]) -> None:
        living = [running for running in together if running.process.poll() is None]
        for running in living:
            self._prepare_stop(running.service)
            running.process.terminate()
        asked = time.monotonic()
        for running in living:
            while running.process.poll() is None:
                patience = self._patience(running.service.stop_timeout)
                if time.monotonic() - asked > patience:
                    running.process.kill()
                    running.process.wait()
                time.sleep(_STOP_POLL_SECONDS)

    def _prepare_stop(self, service: Service) -> None:
        if service.before_stop is None:
            return
        try:
            service.before_stop()
        except Exception as error:  # noqa: BLE001 - whatever it is, the others must be stopped
            self.report(f"Before the {service.name} is stopped: {type(error).__name__}: {error}")

    def _limit_log(self, service: Service) -> None:
        """Move a log aside that has grown too large; nothing stops because that cannot be done."""
        path = self.log_path(service)
        # Somebody may have removed it: then the service writes where nobody can see it.
        with contextlib.suppress(OSError):
            if path.stat().st_size <= self.largest_log:
                return
            # Copied, not moved: the service keeps writing to the file that it was given. On a full
            # disk what cannot be copied goes all the same, which makes room.
            try:
                shutil.copyfile(path, self._log_before(service))
            finally:
                os.truncate(path, 0)

    def _log_before(self, service: Service) -> Path:
        return self.log_path(service).with_suffix(".1.log")

    def _patience(self, seconds: float) -> float:
        return 1 if self.signals.count > 1 else seconds

    def _log_tail(self, service: Service) -> str:
        path = self.log_path(service)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        except OSError as error:
            return f"Its log {path} cannot be read: {error.strerror}."
        return "\n".join([f"The end of {path}:", *(f"  {line}" for line in lines)])


def python_module(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module with the interpreter that runs us.

    With -P, so that no file in the current directory stands in for a module of the same name.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def _how_it_ended(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
