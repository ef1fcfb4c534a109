"""One read for all who ask at once.

Belongs here: who shares which read. Does not: what is read.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import anyio.to_thread

T = TypeVar("T")


class SharedReads(Generic[T]):
    """However many ask for the same at once, one read is at work and one is next.

    Each caller gets a read that began after it asked: nobody sees less than with a read of its own.
    Keys are kept, so there must be few. For one event loop.
    """

    def __init__(self) -> None:
        self._at_work: defaultdict[Hashable, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._next: dict[Hashable, asyncio.Task[T]] = {}

    async def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """What `read` returns, in a thread; raises what it raises."""
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.create_task(self._read(key, read))
            task.add_done_callback(_look_at)
        # One client that goes away does not end the read of the others.
        return await asyncio.shield(task)

    async def _read(self, key: Hashable, read: Callable[[], T]) -> T:
        async with self._at_work[key]:
            # Who asks from now on would get what was read before: theirs is the next one.
            del self._next[key]
            return await anyio.to_thread.run_sync(read)


def _look_at(task: asyncio.Task[T]) -> None:
    """Its error is raised where it is awaited, if anybody still does."""
    if not task.cancelled():
        task.exception()
