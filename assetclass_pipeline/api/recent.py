"""One read for the many who ask within a moment.

Belongs here: who is answered from which read, and when a change is seen by all of them. Does not:
what is read.
"""

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import anyio.to_thread

T = TypeVar("T")

LONGEST_AGE: Final = 0.25
"""Seconds."""


@dataclass(frozen=True)
class _Found(Generic[T]):
    """What a read found, and when it began (monotonic seconds)."""

    value: T
    began: float


class RecentReads(Generic[T]):
    """However many ask for the same, one read is at work and a few a second are enough.

    Each caller gets what a read found that began at most `longest_age` seconds before it asked.
    Half of that later the next one begins, so that hardly anybody waits. For one event loop.
    """

    def __init__(
        self, longest_age: float = LONGEST_AGE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._longest_age = longest_age
        self._clock = clock
        self._found: dict[Hashable, _Found[T]] = {}
        self._at_work: dict[Hashable, asyncio.Task[None]] = {}

    async def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """What `read` returned, in a thread; raises what it raises."""
        asked = self._clock()
        while True:
            found = self._found.get(key)
            age = None if found is None else asked - found.began
            if found is not None and age is not None and age <= self._longest_age:
                if age > self._longest_age / 2:
                    self._read_anew(key, read)
                return found.value
            # One that began long ago may be at work: then its successor is what is waited for. And
            # one client that goes away does not end the read of the others.
            await asyncio.shield(self._read_anew(key, read))

    async def seen_by_all(self) -> None:
        """Return when what was changed before is in all answers, those of other processes too."""
        await asyncio.sleep(self._longest_age)

    def _read_anew(self, key: Hashable, read: Callable[[], T]) -> asyncio.Task[None]:
        task = self._at_work.get(key)
        if task is None:
            task = self._at_work[key] = asyncio.create_task(self._read(key, read))
            task.add_done_callback(_look_at)
        return task

    async def _read(self, key: Hashable, read: Callable[[], T]) -> None:
        began = self._clock()
        try:
            value = await anyio.to_thread.run_sync(read)
        except BaseException:
            # Who asks next is told so at once, and not when the last good answer is too old.
            self._found.pop(key, None)
            raise
        finally:
            del self._at_work[key]
        # What nobody has asked for lately is not kept.
        self._found = {
            other: found
            for other, found in self._found.items()
            if began - found.began <= self._longest_age
        }
        self._found[key] = _Found(value, began)


def _look_at(task: asyncio.Task[None]) -> None:
    """Its error is raised where it is awaited, if anybody still does."""
    if not task.cancelled():
        task.exception()
