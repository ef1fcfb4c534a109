"""Bodies of requests: small, soon here, and strict JSON, before anything else looks at them.

Belongs here: bytes and JSON. Does not: what a field may be, which the models say.
"""

import asyncio
import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assetclass_pipeline.api.envelope import JSON, render
from assetclass_pipeline.errors import (
    AssetClassError,
    BodyTooLargeError,
    InvalidOptionsError,
    SlowClientError,
    UnsupportedMediaTypeError,
)

# `curl -d` declares a form, and the examples of the operations guide rely on it.
_READ_AS_JSON = {"", JSON, "application/x-www-form-urlencoded"}
# Not the parser of e-mails, which stumbles over a name that is continued and is not.
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]*)", re.IGNORECASE)
_UTF8 = {"", "utf-8", "utf8", "us-ascii"}
_DEEPEST = 32
# Seconds for which the rest of a body that is too large is read and dropped: a client that is cut
# off while it writes would never see the answer.
_PATIENCE_WITH_TOO_MUCH = 1.0


@dataclass
class Bodies:
    """A middleware: whoever comes after it sees a whole body of JSON, or no body."""

    app: ASGIApp
    limit: int
    timeout: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, look, and hand on."""
        if scope["type"] != "http" or not _announces_body(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
            if body:
                require_json_type(Headers(scope=scope).get("content-type", ""))
                read_strictly(body)
        except AssetClassError as error:
            await _refuse_and_close(scope, receive, send, error)
            return
        if body is None:  # the client has gone
            return
        await self.app(_declared_as_json(scope), _replayed(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self.limit:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.timeout):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self.limit:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise SlowClientError(
                f"The body of the request did not arrive within {self.timeout:g} seconds."
            ) from None

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The body of the request is larger than {self.limit:,} bytes, the limit of the API."
        )


def require_json_type(content_type: str) -> None:
    """Return when a body of this type is read as JSON. Raises UnsupportedMediaTypeError."""
    kind = content_type.partition(";")[0].strip().lower()
    named = _CHARSET.search(content_type)
    charset = "" if named is None else named[1].lower()
    if kind not in _READ_AS_JSON or charset not in _UTF8:
        raise UnsupportedMediaTypeError(
            f"A body of type {content_type[:100]!r} is not read: send JSON in UTF-8 with "
            f"Content-Type: {JSON}, or without Content-Type."
        )


def read_strictly(body: bytes) -> object:
    """The JSON document. Raises InvalidOptionsError for what is no JSON or cannot be meant.

    Each name once in its object; numbers that a float can hold; no NUL and no half of a surrogate
    pair, which no text of the database can hold; at most 32 levels deep.
    """
    try:
        content: object = json.loads(
            body.decode(),
            object_pairs_hook=_without_repeats,
            parse_constant=_no_such_number,
            parse_float=_finite,
        )
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = {UnicodeDecodeError: "it is not UTF-8", RecursionError: "it is nested too deeply"}
        said = reason.get(type(error)) or str(error)
        raise InvalidOptionsError(
            f"The body of the request cannot be read as JSON: {said[:200]}"
        ) from None
    _require_plain(content)
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        # Before anybody is known to call, and while all others wait: one look at each name.
        repeated = next(
            name for name, times in Counter(name for name, _ in pairs).items() if times > 1
        )
        raise ValueError(f"the name {repeated[:60]!r} stands twice in one object")
    return made


def _no_such_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _require_plain(content: object) -> None:
    level = [content]
    for _ in range(_DEEPEST):
        if not level:
            return
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not _can_be_stored(value):
                raise InvalidOptionsError(
                    "A text in the body holds NUL or half of a surrogate pair, which no database "
                    "can store"
                )
        level = below
    raise InvalidOptionsError(f"The body of the request is nested deeper than {_DEEPEST} levels")


def _can_be_stored(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _announces_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _declared_as_json(scope: Scope) -> Scope:
    kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*kept, (b"content-type", JSON.encode())]}


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body at once, then whatever comes after it, such as the client going away."""
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return rest.pop() if rest else await receive()

    return again


async def _refuse_and_close(
    scope: Scope, receive: Receive, send: Send, error: AssetClassError
) -> None:
    """Answer, then close: nobody knows where in its body the client is."""
    response = render(error).response(Request(scope))
    response.headers["Connection"] = "close"
    start: Message = {
        "type": "http.response.start",
        "status": response.status_code,
        "headers": response.raw_headers,
    }
    await send(start)
    body = bytes(response.body)
    await send({"type": "http.response.body", "body": body, "more_body": True})
    # Asked for more, the server would tell a client that waits for leave to send it.
    if isinstance(error, BodyTooLargeError) and "expect" not in Headers(scope=scope):
        await _drop_rest(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop_rest(receive: Receive) -> None:
    try:
        async with asyncio.timeout(_PATIENCE_WITH_TOO_MUCH):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        return
