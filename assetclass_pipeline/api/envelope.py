"""The envelope that every answer comes in, and how an error becomes one.

Belongs here: the one place where errors are rendered for HTTP. Does not: raising them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import psycopg
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from psycopg import errors
from starlette.exceptions import HTTPException

from assetclass_pipeline.errors import (
    AssetClassError,
    DatabaseUnavailableError,
    DeadlineExceededError,
    InvalidOptionsError,
    MarketTablesError,
    MethodNotAllowedError,
    PathNotFoundError,
    SchemaNotReadyError,
)
from assetclass_pipeline.model.refused_values import own_words
from assetclass_pipeline.model.wire import Moment, WireModel

JSON = "application/json"

T = TypeVar("T")

# Seconds after which trying again is worth while; a database that restarts needs about so long.
_TRY_AGAIN_AFTER = 5
_INTERNAL = "INTERNAL_ERROR"

# The first that fits. A standby refuses the one at a statement, the other one at BEGIN.
_REFUSED_BY_DATABASE: tuple[
    tuple[tuple[type[psycopg.Error], ...], type[AssetClassError], str], ...
] = (
    (
        (errors.QueryCanceled,),
        DeadlineExceededError,
        "The database took longer than a request may: try again later",
    ),
    (
        (errors.UndefinedTable, errors.UndefinedColumn),
        SchemaNotReadyError,
        "A table or a column is missing: `assetclass db status` and `assetclass analyze` say which",
    ),
    (
        (errors.InsufficientPrivilege,),
        MarketTablesError,
        "The API's role lacks a right: {reason}. `assetclass doctor` beside the API says more",
    ),
    (
        (errors.FeatureNotSupported, errors.ReadOnlySqlTransaction),
        DatabaseUnavailableError,
        "The database takes no changes, like a standby before it is promoted: try again later",
    ),
    (
        (psycopg.OperationalError, psycopg.InterfaceError),
        DatabaseUnavailableError,
        "The database went away or could not do this just now: try again in a moment",
    ),
    (
        (psycopg.DataError,),
        InvalidOptionsError,
        "A value of the request cannot be stored in the database",
    ),
)


class Envelope(WireModel, Generic[T]):
    """What every answer looks like; `errorCode` is null when all is well."""

    success: bool
    message: str
    data: T | None
    error_code: str | None
    timestamp: Moment
    correlation_id: str


# Made once: a generic model that nobody keeps is made anew each time it is named.
_AnyEnvelope = Envelope[Any]


class Refusal(Envelope[dict[str, Any]]):
    """An answer that says what is wrong and what to do next."""


@dataclass(frozen=True)
class Written:
    """Data as JSON already, because many answers hold the same."""

    content: str


def answer(
    request: Request,
    data: object,
    message: str = "",
    *,
    status: int = HTTPStatus.OK,
    headers: Mapping[str, str] | None = None,
    success: bool = True,
    error_code: str | None = None,
) -> Response:
    """The envelope around `data`, a model, what JSON can hold, or what is written already.

    The route says by `response_model=Envelope[...]` what `data` is; it is not validated again.
    """
    made = _AnyEnvelope(
        success=success,
        message=message,
        data=None if isinstance(data, Written) else data,
        error_code=error_code,
        timestamp=datetime.now(UTC),
        correlation_id=correlation_id_of(request),
    )
    content = made.model_dump_json(by_alias=True)
    if isinstance(data, Written):
        # No text can hold this: its quotes would be escaped.
        content = content.replace('"data":null', f'"data":{data.content}', 1)
    return Response(content, status, headers, media_type=JSON)


def correlation_id_of(request: Request) -> str:
    """The id under which logs, audit entries and operations of this request are found."""
    return str(request.scope.get("state", {}).get("correlation_id", ""))


@dataclass(frozen=True)
class Rendered:
    """An error as HTTP says it."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, object] | None = None

    def response(self, request: Request) -> Response:
        """The whole answer."""
        return answer(
            request,
            self.data,
            self.message,
            status=self.status,
            headers=self.headers,
            success=False,
            error_code=self.code,
        )


def render(error: Exception) -> Rendered:
    """What a caller is told about an error: of unexpected ones nothing but that it happened."""
    known = _typed(error)
    if known is None:
        return Rendered(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            _INTERNAL,
            "Something went wrong that nobody expected; nothing about it is shown here. Whoever "
            "runs the API finds it in its log under this answer's correlationId.",
        )
    return Rendered(
        known.http_status, known.code, str(known), _headers(known, error), _further(known)
    )


def _typed(error: Exception) -> AssetClassError | None:
    """The error as one of ours; None for those that are nobody's fault but ours."""
    if isinstance(error, AssetClassError):
        return error if error.code != _INTERNAL else None
    if isinstance(error, RequestValidationError):
        return InvalidOptionsError(_problems(error))
    if isinstance(error, HTTPException):
        return _of_framework(error)
    return _of_database(error)


def _of_framework(error: HTTPException) -> AssetClassError | None:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return PathNotFoundError("There is nothing at this path; /openapi.json lists what there is")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another one")
        return MethodNotAllowedError(f"This path does not take this method: use {allowed}")
    if error.status_code == HTTPStatus.BAD_REQUEST:
        return InvalidOptionsError("The body of the request cannot be read as JSON")
    return None


def _of_database(error: Exception) -> AssetClassError | None:
    """What PostgreSQL refuses, in words that hold nothing of the statement."""
    for refused, kind, said in _REFUSED_BY_DATABASE:
        if isinstance(error, refused):
            return kind(said.format(reason=str(error).partition("\n")[0]))
    return None


def _headers(known: AssetClassError, error: Exception) -> dict[str, str]:
    headers = dict(getattr(error, "headers", None) or {})
    if known.http_status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="assetclass"'
    if known.http_status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        wait = getattr(known, "retry_after", _TRY_AGAIN_AFTER)
        headers["Retry-After"] = str(max(1, math.ceil(wait)))
    return headers


def _further(known: AssetClassError) -> dict[str, object] | None:
    correction_id = getattr(known, "correction_id", None)
    return {"correctionId": correction_id} if correction_id else None


def _problems(error: RequestValidationError) -> str:
    """One clause for each field, without echoing what was sent."""
    lines = []
    for problem in error.errors():
        place, *path = [str(part) for part in problem["loc"]]
        name = ".".join(path) or place
        message = own_words(str(problem["msg"]))
        if problem["type"] == "extra_forbidden":
            message = "unknown option; see /openapi.json"
        # A contradiction belongs to the whole body and names its fields itself.
        lines.append(message if name == "body" else f"{name[:100]}: {message}")
    return "; ".join(lines)[:2000]
