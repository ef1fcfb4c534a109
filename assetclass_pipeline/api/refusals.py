"""Refused callers in the audit log: all of them, and yet no flood of them.

Belongs here: counting refusals and writing them now and then. Does not: refusing.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

from assetclass_pipeline.api.connections import Connections
from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.engine.audit import record
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.model.audit import Actor, AuditEntry

ACTION = "call_api"

# Seconds.
_WRITE_EVERY = 1.0
_SUM_UP_EVERY = 60.0
# Different ones of a minute; what comes on top is counted as one of its kind.
_MOST_KINDS = 100
_ELSEWHERE = "many addresses"


@dataclass(frozen=True)
class _Kind:
    """What is counted into one entry."""

    actor: Actor
    code: str
    origin: str


@dataclass
class _Count:
    """How often it came since it was written last, and what the first of those was."""

    call: str
    message: str
    correlation_id: str
    times: int = 0
    written_at: float | None = None


@dataclass
class Refusals:
    """The first of a kind is written within a second, those after it once a minute, as a number.

    A kind is an actor, an error code and an address. While the database is away they are kept.
    """

    connections: Connections
    now: Callable[[], float] = time.monotonic
    _counts: dict[_Kind, _Count] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def note(
        self, actor: Actor, error: AssetClassError, address: str, call: str, correlation_id: str
    ) -> None:
        """Somebody was refused; takes no time and fails never."""
        with self._guard:
            kind = _Kind(actor, error.code, address)
            if kind not in self._counts and len(self._counts) >= _MOST_KINDS:
                kind = _Kind(Actor.token("(many)"), error.code, _ELSEWHERE)
            found = self._counts.get(kind)
            if found is None:
                found = self._counts[kind] = _Count(call, str(error), correlation_id)
            found.times += 1

    def write(self, *, everything: bool = False) -> int:
        """Write what is due, or all there is; returns the number of entries.

        Raises DatabaseUnavailableError and the like; nothing is lost then.
        """
        due = self._due(everything=everything)
        if due:
            with (
                self.connections.borrowed() as connection,
                transaction(connection, self.connections.settings) as cursor,
            ):
                for kind, count, times in due:
                    record(cursor, _entry(kind, count, times))
            self._settle(due)
        return len(due)

    async def keep_writing(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(_WRITE_EVERY)
            try:
                await asyncio.to_thread(self.write)
            except (AssetClassError, psycopg.Error):
                continue

    def _due(self, *, everything: bool) -> list[tuple[_Kind, _Count, int]]:
        now = self.now()
        with self._guard:
            for kind, count in [*self._counts.items()]:
                if not count.times and now - (count.written_at or 0) > _SUM_UP_EVERY:
                    del self._counts[kind]
            return [
                (kind, count, count.times)
                for kind, count in self._counts.items()
                if count.times
                and (
                    everything or count.written_at is None or now - count.written_at > _SUM_UP_EVERY
                )
            ]

    def _settle(self, written: list[tuple[_Kind, _Count, int]]) -> None:
        with self._guard:
            for _, count, times in written:
                count.times -= times
                count.written_at = self.now()


def _entry(kind: _Kind, count: _Count, times: int) -> AuditEntry:
    said: dict[str, object] = {"call": count.call, "message": count.message}
    if times > 1:
        said["times"] = times
    return AuditEntry(
        kind.actor,
        ACTION,
        kind.code,
        said,
        correlation_id=count.correlation_id,
        origin=kind.origin,
    )
