"""Conditional GET: an answer that the caller has already is not sent again.

Belongs here: entity tags. Does not: what is tagged.
"""

import hashlib
from collections.abc import Collection
from http import HTTPStatus

from fastapi import Request, Response

from assetclass_pipeline.api.envelope import answer
from assetclass_pipeline.model.wire import WireModel


def tagged(
    request: Request, data: WireModel, message: str, *, apart_from: Collection[str] = ()
) -> Response:
    """The envelope around `data` with its ETag, or 304 for a caller that names this tag.

    The tag is weak and of the data alone, without its fields `apart_from`, which say when and how
    fast it was measured: time and correlation id of an envelope are never the same.
    """
    content = data.model_dump_json(by_alias=True, exclude=set(apart_from))
    tag = f'W/"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if _names(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return answer(request, data, message, headers=headers)


def _names(said: str, tag: str) -> bool:
    """Whether a caller has it; weak and strong tags are compared alike."""
    opaque = tag.removeprefix("W/")
    named = {part.strip().removeprefix("W/") for part in said.split(",")}
    return "*" in named or opaque in named
