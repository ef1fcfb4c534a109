"""What is around every request: its correlation id, its line in the log, its headers, its end.

Belongs here: pure ASGI, before anything is known of the request but its first lines. Does not: the
body (bodies.py) and the caller (authentication.py).
"""

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assetclass_pipeline.api.authentication import UNKNOWN
from assetclass_pipeline.api.envelope import Rendered, render
from assetclass_pipeline.api.limits import Limits
from assetclass_pipeline.api.refusals import Refusals
from assetclass_pipeline.errors import (
    AssetClassError,
    HeadTooLargeError,
    InvalidOptionsError,
    ServerBusyError,
    TooManyRequestsError,
)
from assetclass_pipeline.model.audit import Source, source

CORRELATION_HEADER = "X-Correlation-ID"

_LOG = logging.getLogger(__name__)
_CORRELATION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
_LONGEST_PATH = 500

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Pages bring their own style; nothing is ever loaded from elsewhere, and no script runs.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
}
"""Of every answer that does not say otherwise."""


@dataclass
class Framing:
    """The outermost middleware; `most` requests may be open at once."""

    app: ASGIApp
    limits: Limits
    refusals: Refusals
    most: int
    header_limit: int
    _open: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer whatever happens."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        said = Headers(scope=scope).get(CORRELATION_HEADER)
        own = said if said and _CORRELATION_ID.fullmatch(said) else str(uuid.uuid4())
        scope.setdefault("state", {})["correlation_id"] = own
        reset = source.set(Source(_address(scope), own))
        answered = _Answered(send, own)
        self._open += 1
        try:
            self._admit(scope, said)
            await self.app(scope, receive, answered)
        except AssetClassError as error:
            await answered.refuse(scope, receive, render(error))
        except asyncio.CancelledError:
            answered.outcome = "cancelled"
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, callers get an envelope
            _LOG.exception("unexpected error")
            await answered.refuse(scope, receive, render(error))
        finally:
            self._open -= 1
            _log(scope, answered)
            source.reset(reset)

    def _admit(self, scope: Scope, said: str | None) -> None:
        if self._open > self.most:
            raise ServerBusyError(f"{self.most} requests are open already: try again in a moment.")
        self._count(scope)
        if said is not None and _CORRELATION_ID.fullmatch(said) is None:
            raise InvalidOptionsError(
                f"{CORRELATION_HEADER}: write up to 128 letters, digits, and . _ : / + = @ -"
            )
        if _head_size(scope) > self.header_limit:
            raise HeadTooLargeError(
                f"Address and headers are larger than {self.header_limit:,} bytes."
            )
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
            raise InvalidOptionsError("A path and its query cannot hold the character NUL")

    def _count(self, scope: Scope) -> None:
        address = _address(scope)
        try:
            self.limits.count_address(address)
        except TooManyRequestsError as error:
            call, own = f"{scope['method']} {scope['path'][:200]}", scope["state"]["correlation_id"]
            self.refusals.note(UNKNOWN, error, address, call, own)
            raise


class _Answered:
    """Sends, adds our headers, and remembers what was sent."""

    def __init__(self, send: Send, own_id: str) -> None:
        self._send = send
        self._own_id = own_id
        self.started_at = time.perf_counter()
        self.status: int | None = None
        self.outcome = ""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers[CORRELATION_HEADER] = self._own_id
        await self._send(message)

    async def refuse(self, scope: Scope, receive: Receive, rendered: Rendered) -> None:
        """Answer with the error, where no answer was begun; a begun one is left cut off."""
        if self.status is None:
            await rendered.response(Request(scope, receive))(scope, receive, self)
        else:
            self.outcome = "cut off"


def _head_size(scope: Scope) -> int:
    # The server counts only what arrives in several parts.
    headers = sum(len(name) + len(value) for name, value in scope["headers"])
    return headers + len(scope["path"]) + len(scope["query_string"])


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _log(scope: Scope, answered: _Answered) -> None:
    """One line for each request; never headers, queries or bodies."""
    state: dict[str, Any] = scope["state"]
    fields = {
        "method": scope["method"],
        "path": scope["path"][:_LONGEST_PATH],
        "status": answered.status,
        "milliseconds": round((time.perf_counter() - answered.started_at) * 1000, 1),
        "caller": state.get("caller"),
        "address": _address(scope),
    }
    if answered.outcome:
        fields["outcome"] = answered.outcome
    _LOG.info("request", extra={"fields": fields})
