"""What the API refuses, as the same typed errors that the engine raises.

Belongs here: from an answer to an error. Does not: trying again (sending.py).
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from assetclass_pipeline import errors
from assetclass_pipeline.errors import AssetClassError


class ApiUnavailableError(AssetClassError):
    """The API cannot be reached, or something else answers at its address.

    `correction_id` is the operation that was followed when that happened; it goes on.
    """

    code = "API_UNAVAILABLE"
    http_status = 503

    def __init__(self, message: str, *, correction_id: str | None = None) -> None:
        super().__init__(message)
        self.correction_id = correction_id


class ApiError(AssetClassError):
    """The API refused for a reason that this version of the client has no class for.

    `code` is the answer's errorCode, `status` its HTTP status, `correlation_id` what the log of
    the API has it under.
    """

    def __init__(self, message: str, *, code: str, status: int, correlation_id: str | None) -> None:
        super().__init__(message)
        # The API's word for it, which only the answer knows.
        self.code = code  # type: ignore[misc]
        self.status = status
        self.correlation_id = correlation_id


def refusal(answer: httpx.Response) -> AssetClassError:
    """The error that an answer names; what is no answer of the API is an ApiUnavailableError."""
    envelope = _envelope(answer)
    if envelope is None:
        return ApiUnavailableError(_foreign(answer))
    code, message = str(envelope["errorCode"]), str(envelope["message"])
    kind = _KINDS.get(code)
    if kind is None:
        return _unknown(answer, envelope, code, message)
    if issubclass(kind, errors.OperationInProgressError | errors.LaterCorrectionError):
        data = envelope.get("data")
        further = data if isinstance(data, dict) else {}
        return kind(message, correction_id=str(further.get("correctionId") or ""))
    if issubclass(kind, errors.TooManyRequestsError):
        return kind(message, retry_after=seconds_asked(answer) or 1)
    return kind(message)


def error_code(answer: httpx.Response) -> str | None:
    """The errorCode of an answer that has one."""
    envelope = _envelope(answer)
    return None if envelope is None else str(envelope["errorCode"])


def seconds_asked(answer: httpx.Response) -> float | None:
    """How long `Retry-After` asks to wait, as seconds or as a date; None where it does not."""
    said = answer.headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        until = parsedate_to_datetime(said)
    except ValueError:
        return None
    # One without a zone is in UTC, by RFC 9110.
    aware = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


def _envelope(answer: httpx.Response) -> dict[str, object] | None:
    try:
        found = answer.json()
    except ValueError:
        return None
    if not isinstance(found, dict) or not found.get("errorCode") or "message" not in found:
        return None
    return found


def _foreign(answer: httpx.Response) -> str:
    # Without the query, and without what stands in an address beside host and path.
    address = f"{answer.url.scheme}://{answer.url.netloc.decode()}{answer.url.path}"
    if answer.is_redirect:
        return (
            f"{address} answers with a redirect to {answer.headers.get('Location', '?')[:200]}: "
            "name the address that the API itself has."
        )
    return (
        f"HTTP {answer.status_code} from {address} is not an answer of the AssetClass API: is the "
        "address right, and is the proxy before it well?"
    )


def _unknown(
    answer: httpx.Response, envelope: dict[str, object], code: str, message: str
) -> ApiError:
    correlation_id = str(envelope.get("correlationId") or "") or None
    if answer.is_server_error and correlation_id:
        message += f" (correlationId {correlation_id})"
    return ApiError(message, code=code, status=answer.status_code, correlation_id=correlation_id)


def _kinds(base: type[AssetClassError]) -> Iterator[type[AssetClassError]]:
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from _kinds(kind)


# A code that several classes share belongs to the first, the most general one.
_KINDS = {kind.code: kind for kind in reversed(list(_kinds(AssetClassError)))}
