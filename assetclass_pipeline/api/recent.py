"""One read for the many who ask within a moment.

Belongs here: who is answered from which read, and when a change is seen by all of them. Does not:
what is read.
"""

import asyncio
import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio.to_thread

T = TypeVar("T")


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

    def __init__(self, longest_age: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_age = longest_age
        self._clock = clock
        self._found: dict[Hashable, _Found[T]] = {}
        self._at_work: dict[Hashable, asyncio.Task[_Found[T]]] = {}
        self._not_before = -math.inf

    async def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """What `read` returned, in a thread; raises what it raises."""
        asked = self._clock()
        oldest = max(self._not_before, asked - self._longest_age)
        found = self._found.get(key)
        if found is not None and found.began >= oldest:
            if asked - found.began > self._longest_age / 2:
                self._read_anew(key, read)
            return found.value
        while True:
            # One that began long ago may be at work: then its successor is what is waited for. And
            # one client that goes away does not end the read of the others.
            found = await asyncio.shield(self._read_anew(key, read))
            if found.began >= oldest:
                return found.value

    def forget(self) -> None:
        """Whoever asks from now on gets what is read from now on."""
        self._not_before = self._clock()

    async def seen_by_all(self) -> None:
        """Return when what was changed before is in all answers, those of other processes too."""
        await asyncio.sleep(self._longest_age)

    def _read_anew(self, key: Hashable, read: Callable[[], T]) -> asyncio.Task[_Found[T]]:
        task = self._at_work.get(key)
        if task is None:
            task = self._at_work[key] = asyncio.create_task(self._read(key, read))
            task.add_done_callback(_look_at)
        return task

    async def _read(self, key: Hashable, read: Callable[[], T]) -> _Found[T]:
        began = self._clock()
        try:
            found = _Found(await anyio.to_thread.run_sync(read), began)
        except BaseException:
            # Who asks next is told so at once, and not when the last good answer is too old.
            self._found.pop(key, None)
            raise
        finally:
            del self._at_work[key]
        # What nobody has asked for lately is not kept.
        self._found = {
            other: known
            for other, known in self._found.items()
            if began - known.began <= self._longest_age
        }
        self._found[key] = found
        return found


def _look_at(task: asyncio.Task[_Found[T]]) -> None:
    """Its error is raised where it is awaited, if anybody still does."""
    if not task.cancelled():
        task.exception()
