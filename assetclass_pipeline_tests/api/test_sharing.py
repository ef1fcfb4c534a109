"""Reads that are shared: few of them, none that began before somebody asked for it."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from assetclass_pipeline.api.sharing import SharedReads


class Reads:
    """Numbers its reads; each waits until it may go on."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = threading.Event()

    def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        assert self.go_on.wait(10)
        return number


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def test_who_comes_while_one_is_read_shares_the_next() -> None:
    async def ask() -> tuple[int, list[int]]:
        reads, shared = Reads(), SharedReads[int]()
        first = asyncio.create_task(shared.get("key", reads))
        await until(lambda: reads.begun == 1)
        # What is being read may be older than their question.
        later = [asyncio.create_task(shared.get("key", reads)) for _ in range(50)]
        await asyncio.sleep(0)
        reads.go_on.set()
        return await first, await asyncio.gather(*later)

    assert asyncio.run(ask()) == (1, [2] * 50)


def test_another_key_waits_for_nobody() -> None:
    async def ask() -> int:
        reads, shared = Reads(), SharedReads[int]()
        slow = asyncio.create_task(shared.get("key", reads))
        await until(lambda: reads.begun == 1)
        found = await shared.get("other", lambda: 7)
        reads.go_on.set()
        await slow
        return found

    assert asyncio.run(ask()) == 7


def test_an_error_is_for_all_who_wait_for_it_and_for_nobody_else() -> None:
    def fail() -> int:
        raise LookupError("away")

    async def ask() -> int:
        shared = SharedReads[int]()
        asked = await asyncio.gather(
            *(shared.get("key", fail) for _ in range(3)), return_exceptions=True
        )
        assert [type(found) for found in asked] == [LookupError] * 3
        return await shared.get("key", lambda: 1)

    assert asyncio.run(ask()) == 1


def test_who_goes_away_leaves_the_read_to_the_others() -> None:
    async def ask() -> int:
        reads, shared = Reads(), SharedReads[int]()
        one, other = (asyncio.create_task(shared.get("key", reads)) for _ in range(2))
        await until(lambda: reads.begun == 1)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        reads.go_on.set()
        return await other

    assert asyncio.run(ask()) == 1
