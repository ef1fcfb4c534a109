"""What an operation has to tell beside its ledger: events, and how long it waited for what.

Belongs here: collecting from all threads, writing in one go. Does not: the events of people, which
their commands write themselves (control.py).
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.queries import query

Event = tuple[str, dict[str, str | float | None]]


class Journal:
    """Entries wait here until the next heartbeat writes them: a worker never waits for them."""

    def __init__(self, correction_id: UUID, actor: str) -> None:
        self._correction_id = correction_id
        self._actor = actor
        self._events: list[Event] = []
        self._waits: dict[str, float] = {}
        self._waiting: Counter[str] = Counter()
        self._waiting_since: dict[str, float] = {}
        self._writing: tuple[int, dict[str, float]] = (0, {})
        self._guard = threading.Lock()

    def tell(self, event: str, **details: str | float | None) -> None:
        """Something happened, and what is worth knowing of it."""
        with self._guard:
            self._events.append((event, details))

    @property
    def seconds_unwritten(self) -> float:
        """Seconds of waiting that the database does not know; for two signals at once, twice."""
        with self._guard:
            return sum(self._waits.values())

    def waited(self, signal: str, seconds: float) -> None:
        """The operation was held by `signal` for so many seconds."""
        with self._guard:
            self._add(signal, seconds)

    @contextmanager
    def waiting(self, signal: str) -> Iterator[None]:
        """The time in here is held by `signal`; of several threads at once it counts once."""
        with self._guard:
            if not self._waiting[signal]:
                self._waiting_since[signal] = time.monotonic()
            self._waiting[signal] += 1
        try:
            yield
        finally:
            with self._guard:
                self._waiting[signal] -= 1
                if not self._waiting[signal]:
                    self._add(signal, time.monotonic() - self._waiting_since[signal])

    def _add(self, signal: str, seconds: float) -> None:
        self._waits[signal] = self._waits.get(signal, 0.0) + seconds

    def write(self, cursor: Cursor[TupleRow]) -> None:
        """Write all entries in the open transaction; `written` forgets them once it committed."""
        events, waits = self._pending()
        for event, details in events:
            cursor.execute(
                query("control", "remember"),
                {
                    "correction_id": self._correction_id,
                    "event": event,
                    "actor": self._actor,
                    "details": Jsonb(details),
                },
            )
        if waits:
            cursor.execute(
                query("control", "add_waits"),
                {
                    "correction_id": self._correction_id,
                    "signals": [*waits],
                    "seconds": [*waits.values()],
                },
            )

    def _pending(self) -> tuple[list[Event], dict[str, float]]:
        with self._guard:
            self._writing = (len(self._events), dict(self._waits))
            return list(self._events), dict(self._waits)

    def written(self) -> None:
        """Forget what the last `write` has written."""
        events, waits = self._writing
        with self._guard:
            del self._events[:events]
            for signal, seconds in waits.items():
                self._waits[signal] -= seconds
                if self._waits[signal] <= 0:
                    del self._waits[signal]
