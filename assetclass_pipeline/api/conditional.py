"""Conditional GET: an answer that the caller has already is not sent again.

Belongs here: entity tags. Does not: what is tagged.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import Request, Response

from assetclass_pipeline.api.envelope import Written, answer
from assetclass_pipeline.model.wire import WireModel


@dataclass(frozen=True)
class Tagged:
    """Data that are written already, for however many ask for them, and their tag."""

    data: Written
    message: str
    tag: str

    def answer(self, request: Request) -> Response:
        """The envelope around them with its ETag, or 304 for a caller that names this tag."""
        headers = {"ETag": self.tag, "Cache-Control": "private, no-cache"}
        if _names(request.headers.get("if-none-match", ""), self.tag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return answer(request, self.data, self.message, headers=headers)


def tagged(data: WireModel, message: str, *, apart_from: Collection[str] = ()) -> Tagged:
    """`data` as JSON and their tag.

    The tag is weak and of the data alone, without its fields `apart_from`, which say when and how
    fast it was measured: time and correlation id of an envelope are never the same.
    """
    content = data.model_dump_json(by_alias=True)
    compared = content
    if apart_from:
        compared = data.model_dump_json(by_alias=True, exclude=set(apart_from))
    tag = f'W/"{hashlib.sha256(compared.encode()).hexdigest()[:32]}"'
    return Tagged(Written(content), message, tag)


def _names(said: str, tag: str) -> bool:
    """Whether a caller has it; weak and strong tags are compared alike."""
    opaque = tag.removeprefix("W/")
    named = {part.strip().removeprefix("W/") for part in said.split(",")}
    return "*" in named or opaque in named
