"""The gate in front of every step of an operation: closed while something forbids to start one.

Belongs here: who may start a step, and waiting until nobody is in one. Does not: why it is closed
(pause, throttle, a server that is away), and how an operation ends.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from assetclass_pipeline.errors import AssetClassError

# A stop does not notify the gate, so whoever waits looks again.
_LOOK_AGAIN = 0.1


class Stop(threading.Event):
    """Set once, with the error that everybody who checks shall raise."""

    def __init__(self) -> None:
        super().__init__()
        self.cause: AssetClassError | None = None
        self._too_late = False
        self._guard = threading.Lock()

    def because(self, cause: AssetClassError) -> None:
        """Ask all workers to stop between two batches; the first cause stays."""
        with self._guard:
            if self._too_late:
                return
            if self.cause is None:
                self.cause = cause
            self.set()

    def comes_too_late(self) -> None:
        """The operation has ended: who asks it to stop, or asked it just now, is not heard."""
        with self._guard:
            self._too_late = True
            self.cause = None
            self.clear()

    def check(self) -> None:
        """Raise the cause once there is one."""
        if self.is_set() and self.cause is not None:
            raise self.cause


class Gate:
    """Open unless somebody closed it; several may close it, each for its own reasons.

    A closer stops every step, or only those that write to the market tables: an operation that is
    paused does nothing at all, one that is throttled may still measure and end.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._reasons: dict[str, tuple[str, ...]] = {}
        self._closed_to_all: set[str] = set()
        self._closed_to_writers: set[str] = set()
        self._inside = 0
        self._changed = threading.Condition()
        self._mine = threading.local()

    @property
    def reasons(self) -> list[str]:
        """Why steps are not started now, or wait for others."""
        with self._changed:
            return [reason for reasons in self._reasons.values() for reason in reasons]

    @property
    def is_empty(self) -> bool:
        """Whether nobody is in a step; with the gate closed to all it stays so."""
        with self._changed:
            return self._inside == 0

    def close(self, closer: str, reasons: Sequence[str], *, to_writers_only: bool = False) -> None:
        """Let nobody in until `closer` opens again; who is inside finishes its step."""
        with self._changed:
            self._reasons[closer] = tuple(reasons)
            (self._closed_to_writers if to_writers_only else self._closed_to_all).add(closer)

    def open(self, closer: str) -> None:
        """Take back what `closer` closed or told."""
        with self._changed:
            self._reasons.pop(closer, None)
            self._closed_to_all.discard(closer)
            self._closed_to_writers.discard(closer)
            self._changed.notify_all()

    def tell(self, teller: str, reasons: Sequence[str]) -> None:
        """Name what a step waits for although the gate is open."""
        with self._changed:
            self._reasons[teller] = tuple(reasons)

    def _is_closed(self, *, to_writer: bool) -> bool:
        return bool(self._closed_to_all or (to_writer and self._closed_to_writers))

    @contextmanager
    def entered(self, *, to_write: bool = False) -> Iterator[None]:
        """One step; waits while the gate is closed to it. Raises the cause of a stop.

        A step within a step passes: otherwise the two would wait for each other.
        """
        depth = getattr(self._mine, "depth", 0)
        if not depth:
            with self._changed:
                while self._is_closed(to_writer=to_write) and not self._stop.is_set():
                    self._changed.wait(_LOOK_AGAIN)
                self._stop.check()
                self._inside += 1
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            self._mine.depth = depth
            if not depth:
                with self._changed:
                    self._inside -= 1
