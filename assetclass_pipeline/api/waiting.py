"""Waiting for an operation within a request: short questions now and then, no connection held.

Belongs here: how long and how often. Does not: what is answered then.
"""

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta

import anyio.to_thread
from fastapi import Request

from assetclass_pipeline.api.conditional import Tagged
from assetclass_pipeline.api.connections import Connections
from assetclass_pipeline.api.recent import RecentReads
from assetclass_pipeline.engine.operations import get_operation
from assetclass_pipeline.model.operation import Operation

LONGEST_WAIT = 60
"""Seconds; a proxy gives up on a silent answer after about so long."""

# Seconds between two questions: soon at first, for what is done at once.
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 1.0

# No list is as old, even where the clocks of API and database differ by seconds.
_LATELY = timedelta(seconds=30)

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})", re.IGNORECASE)


def preferred_wait(request: Request) -> int | None:
    """Seconds that the header `Prefer: wait=N` (RFC 7240) asks for, 60 at most; None without it."""
    found = _WAIT.search(request.headers.get("prefer", ""))
    return None if found is None else min(LONGEST_WAIT, int(found[1]))


async def look(request: Request, correction_id: str) -> Operation:
    """The operation as it stands. Raises OperationNotFoundError."""
    connections: Connections = request.app.state.connections

    def ask() -> Operation:
        with connections.borrowed() as connection:
            return get_operation(connection, connections.settings, correction_id)

    return await anyio.to_thread.run_sync(ask)


async def wait_for_end(request: Request, correction_id: str, seconds: float) -> Operation:
    """The operation once it is active no more, or as it stands after so many seconds.

    It ends early when the client has gone. Raises OperationNotFoundError.
    """
    deadline = time.monotonic() + seconds
    pause, has_waited = _FIRST_PAUSE, False
    while True:
        operation = await look(request, correction_id)
        left = deadline - time.monotonic()
        if not operation.is_active:
            await list_its_end(request, operation, was_awaited=has_waited)
            return operation
        if left <= 0 or await request.is_disconnected():
            return operation
        has_waited = True
        await asyncio.sleep(min(pause, left))
        pause = min(_LONGEST_PAUSE, pause * 1.5)


async def list_its_end(request: Request, operation: Operation, *, was_awaited: bool) -> None:
    """Return when who hears of the end of `operation` finds it in the list of ended ones.

    On every process where somebody waited for it, on this one where somebody just looked.
    """
    recent: RecentReads[Tagged] = request.app.state.status_reads
    ended = operation.finished_at
    if was_awaited:
        await recent.seen_by_all()
    elif ended is not None and datetime.now(UTC) - ended < _LATELY:
        recent.forget()
