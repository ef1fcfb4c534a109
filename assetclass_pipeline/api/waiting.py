"""Waiting for an operation within a request: short questions now and then, no connection held.

Belongs here: how long and how often. Does not: what is answered then.
"""

import asyncio
import re
import time

import anyio.to_thread
from fastapi import Request

from assetclass_pipeline.api.connections import Connections
from assetclass_pipeline.engine.operations import get_operation
from assetclass_pipeline.model.operation import Operation

LONGEST_WAIT = 60
"""Seconds; a proxy gives up on a silent answer after about so long."""

# Seconds between two questions: soon at first, for what is done at once.
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 1.0

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
    pause = _FIRST_PAUSE
    while True:
        operation = await look(request, correction_id)
        left = deadline - time.monotonic()
        if not operation.is_active or left <= 0 or await request.is_disconnected():
            return operation
        await asyncio.sleep(min(pause, left))
        pause = min(_LONGEST_PAUSE, pause * 1.5)
