"""Reads that many share: few of them, and none older than is allowed."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from assetclass_pipeline.api.recent import RecentReads

FOR_EVER = 3600.0
"""Longer than a test takes."""


@dataclass
class Clock:
    """Stands still but for the tests."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Reads:
    """Numbers its reads; each waits until it may go on."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_go_on = threading.Event()

    def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        assert self.may_go_on.wait(60)
        return number


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def test_all_who_ask_within_a_moment_share_one_read() -> None:
    async def ask() -> tuple[list[int], int]:
        reads, recent = Reads(), RecentReads[int](FOR_EVER)
        early = [asyncio.create_task(recent.get("key", reads)) for _ in range(50)]
        await until(lambda: reads.begun == 1)
        early += [asyncio.create_task(recent.get("key", reads)) for _ in range(50)]
        reads.may_go_on.set()
        found = await asyncio.gather(*early)
        return [*found, await recent.get("key", reads)], reads.begun

    assert asyncio.run(ask()) == ([1] * 101, 1)


def test_nobody_is_answered_from_a_read_that_is_too_old() -> None:
    async def ask() -> tuple[int, int, int]:
        clock = Clock()
        reads, recent = Reads(), RecentReads[int](1, clock)
        reads.may_go_on.set()
        first = await recent.get("key", reads)
        clock.now = 0.4
        same = await recent.get("key", reads)
        clock.now = 1.1
        return first, same, await recent.get("key", reads)

    assert asyncio.run(ask()) == (1, 1, 2)


def test_who_comes_long_after_the_read_at_work_began_waits_for_the_next() -> None:
    async def ask() -> tuple[int, list[int]]:
        clock = Clock()
        reads, recent = Reads(), RecentReads[int](1, clock)
        first = asyncio.create_task(recent.get("key", reads))
        await until(lambda: reads.begun == 1)
        clock.now = 1.1
        later = [asyncio.create_task(recent.get("key", reads)) for _ in range(50)]
        await asyncio.sleep(0)
        reads.may_go_on.set()
        return await first, await asyncio.gather(*later)

    assert asyncio.run(ask()) == (1, [2] * 50)


def test_the_next_read_begins_before_anybody_has_to_wait_for_it() -> None:
    async def ask() -> tuple[int, int]:
        clock = Clock()
        reads, recent = Reads(), RecentReads[int](1, clock)
        reads.may_go_on.set()
        await recent.get("key", reads)
        reads.may_go_on.clear()
        clock.now = 0.6
        at_once = await recent.get("key", reads)
        await until(lambda: reads.begun == 2)
        reads.may_go_on.set()
        return at_once, await recent.get("key", reads)

    assert asyncio.run(ask()) == (1, 1)


def test_what_was_changed_is_in_all_answers_once_it_is_said_to_be() -> None:
    """In those of a process that has read just before the change, too."""

    async def ask() -> list[str]:
        stored = ["before"]
        here, elsewhere = RecentReads[str](0.05), RecentReads[str](0.05)
        for recent in (here, elsewhere):
            await recent.get("key", lambda: stored[-1])
        stored.append("after")
        await here.seen_by_all()
        return [await recent.get("key", lambda: stored[-1]) for recent in (here, elsewhere)]

    assert asyncio.run(ask()) == ["after", "after"]


def test_another_key_waits_for_nobody() -> None:
    async def ask() -> int:
        reads, recent = Reads(), RecentReads[int](FOR_EVER)
        slow = asyncio.create_task(recent.get("key", reads))
        await until(lambda: reads.begun == 1)
        found = await recent.get("other", lambda: 7)
        reads.may_go_on.set()
        await slow
        return found

    assert asyncio.run(ask()) == 7


def test_an_error_is_for_all_who_wait_for_it_and_for_nobody_else() -> None:
    def fail() -> int:
        raise LookupError("away")

    async def ask() -> int:
        recent = RecentReads[int](FOR_EVER)
        asked = await asyncio.gather(
            *(recent.get("key", fail) for _ in range(3)), return_exceptions=True
        )
        assert [type(found) for found in asked] == [LookupError] * 3
        return await recent.get("key", lambda: 1)

    assert asyncio.run(ask()) == 1


def test_after_an_error_nobody_is_answered_from_the_read_before_it() -> None:
    def fail() -> int:
        raise LookupError("away")

    async def ask_until_it_fails() -> None:
        clock = Clock()
        recent = RecentReads[int](1, clock)
        assert await recent.get("key", lambda: 1) == 1
        clock.now = 0.6
        async with asyncio.timeout(60):
            # The first one begins the read that fails, and does not wait for it.
            while await recent.get("key", fail) == 1:
                await asyncio.sleep(0.001)

    with pytest.raises(LookupError):
        asyncio.run(ask_until_it_fails())


def test_who_goes_away_leaves_the_read_to_the_others() -> None:
    async def ask() -> int:
        reads, recent = Reads(), RecentReads[int](FOR_EVER)
        one, other = (asyncio.create_task(recent.get("key", reads)) for _ in range(2))
        await until(lambda: reads.begun == 1)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        reads.may_go_on.set()
        return await other

    assert asyncio.run(ask()) == 1
