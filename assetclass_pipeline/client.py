"""A typed client of the REST API, for scripts and for the command with `--api`.

Belongs here: requests, answers as models, refusals as the same typed errors that the engine raises.
Does not: anything that needs the database; only httpx and the model are imported.
"""

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from assetclass_pipeline import errors
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.model.alert import Alert
from assetclass_pipeline.model.operation import Operation, OperationStatus
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.preview import Preview
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.model.row_history import RowHistory
from assetclass_pipeline.model.validation import Validation

BASE_PATH: Final = "/api/etl/asset-class-correction"

# The API may hold a question about a big table for as long as its scan takes.
_SCAN_SECONDS = 660.0
_ANSWER_SECONDS = 30.0
# Longer, the API would refuse to wait.
_LONGEST_WAIT = 30
_TRIES = 6
_LONGEST_PAUSE = 30.0

Model = TypeVar("Model", bound=BaseModel)
Progress = Callable[[Operation], None]


class ApiUnavailableError(AssetClassError):
    """The API cannot be reached, or something else answers at its address."""

    code = "API_UNAVAILABLE"
    http_status = 503


class ApiError(AssetClassError):
    """The API refused for a reason that this version of the client has no class for.

    `api_code` is the answer's errorCode, `status` its HTTP status.
    """

    code = "API_REFUSED"

    def __init__(self, message: str, *, api_code: str, status: int) -> None:
        super().__init__(message)
        self.api_code = api_code
        self.status = status


class AssetClassClient:
    """The calls of one API; a context manager, for it keeps connections.

    `url` is the server's, without the base path. What passes by itself (no connection, 429, 503)
    is tried again for a while; an `execute` or `rollback` cannot happen twice by that, for each
    carries an idempotency key. Every call raises the typed error that the API's errorCode names,
    ApiError for a code it does not know, and ApiUnavailableError.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        correlation_id: str | None = None,
        transport: httpx.BaseTransport | None = None,
        tries: int = _TRIES,
    ) -> None:
        headers = {"Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if correlation_id:
            headers["X-Correlation-ID"] = correlation_id
        self._tries = tries
        self._http = httpx.Client(
            base_url=url.rstrip("/") + BASE_PATH,
            headers=headers,
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=5),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    def analyze(self) -> IntegrityReport:
        """Measure the damage; may take as long as a scan of the table."""
        return self._get("analyze", IntegrityReport, timeout=_SCAN_SECONDS)

    def preview(self, options: CorrectionOptions | None = None) -> Preview:
        """What a correction would do."""
        return self._post("preview", Preview, _body(options), timeout=_SCAN_SECONDS)

    def validate(self) -> Validation:
        """Whether the thresholds are met, by a fresh scan."""
        return self._post("validate", Validation, {}, timeout=_SCAN_SECONDS)

    def execute(
        self,
        options: CorrectionOptions | None = None,
        *,
        reason: str | None = None,
        ticket: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Ask for a correction; returns its correctionId at once, before it has begun."""
        body = _body(options) | _said(reason=reason, ticket=ticket)
        return self._ask("execute", body, idempotency_key)

    def rollback(
        self,
        correction_id: str,
        options: RollbackOptions | None = None,
        *,
        reason: str | None = None,
        ticket: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Ask for a correction to be undone; returns the correctionId of the rollback."""
        body = _body(options) | _said(correctionId=correction_id, reason=reason, ticket=ticket)
        return self._ask("rollback", body, idempotency_key)

    def status(self, *, include_all: bool = False, most: int = 20) -> OperationStatus:
        """The active operation, and up to `most` ended ones: all, or those that changed rows."""
        said = {"limit": most} | ({"include": "all"} if include_all else {})
        return self._get("status", OperationStatus, said)

    def operation(self, correction_id: str, *, wait: int = 0) -> Operation:
        """One operation; with `wait` the answer comes when it has ended, after so many seconds."""
        path = f"status/{quote(correction_id, safe='')}"
        if not wait:
            return self._get(path, Operation)
        seconds = min(wait, _LONGEST_WAIT)
        return self._get(path, Operation, {"wait": seconds}, timeout=_ANSWER_SECONDS + seconds)

    def follow(self, correction_id: str, *, progress: Progress | None = None) -> Operation:
        """Wait until an operation has ended; `progress` hears of it every second or so."""
        while True:
            seen = self.operation(correction_id, wait=1)
            if progress is not None:
                progress(seen)
            if not seen.is_active:
                return seen

    def pause(self, correction_id: str | None = None) -> Operation:
        """Let the active operation stay between two batches."""
        return self._control("pause", correction_id)

    def resume(self, correction_id: str | None = None) -> Operation:
        """Let a paused operation go on, or one that was cut off."""
        return self._control("resume", correction_id)

    def cancel(self, correction_id: str | None = None) -> Operation:
        """Stop the active operation between two batches."""
        return self._control("cancel", correction_id)

    def health(self) -> dict[str, Any]:
        """`isHealthy` and the components, also when some fail."""
        return dict(self._data(self._send("GET", "health", also={503})))

    def metrics(self) -> dict[str, Any]:
        """The operational metrics."""
        return dict(self._data(self._send("GET", "metrics")))

    def alerts(self) -> list[Alert]:
        """Open and recent alerts, the newest first."""
        found = self._data(self._send("GET", "alerts"))
        return [_parsed(Alert, alert) for alert in found["alerts"]]

    def acknowledge(self, alert_id: int, *, note: str | None = None) -> Alert:
        """Say that somebody looks after an alert."""
        return self._post(f"alerts/{alert_id}/acknowledge", Alert, _said(note=note))

    def row_history(self, row_id: str) -> RowHistory:
        """How a row came by its class."""
        return self._get(f"audit/rows/{quote(row_id, safe='')}", RowHistory)

    def _control(self, what: str, correction_id: str | None) -> Operation:
        return self._post(what, Operation, _said(correctionId=correction_id))

    def _ask(self, what: str, body: Mapping[str, object], key: str | None) -> str:
        # Made once for all tries: the API answers each of them with the same operation.
        headers = {"Idempotency-Key": key or str(uuid4())}
        return str(self._data(self._send("POST", what, body=body, headers=headers))["correctionId"])

    def _get(
        self,
        path: str,
        model: type[Model],
        said: Mapping[str, str | int] | None = None,
        *,
        timeout: float = _ANSWER_SECONDS,
    ) -> Model:
        return _parsed(model, self._data(self._send("GET", path, said=said, timeout=timeout)))

    def _post(
        self,
        path: str,
        model: type[Model],
        body: Mapping[str, object],
        *,
        timeout: float = _ANSWER_SECONDS,
    ) -> Model:
        return _parsed(model, self._data(self._send("POST", path, body=body, timeout=timeout)))

    def _send(
        self,
        method: str,
        path: str,
        *,
        said: Mapping[str, str | int] | None = None,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = _ANSWER_SECONDS,
        also: frozenset[int] | set[int] = frozenset(),
    ) -> httpx.Response:
        """The answer, after some tries; an error status raises unless it is among `also`."""
        repeatable = method == "GET" or "Idempotency-Key" in (headers or {})

        def once() -> httpx.Response:
            try:
                answer = self._http.request(
                    method, path, params=said, json=body, headers=headers, timeout=timeout
                )
            except httpx.TransportError as error:
                # Without a connection nothing arrived, so nothing can happen twice.
                harmless = repeatable or isinstance(error, httpx.ConnectError)
                raise _Refused(self._unreachable(error), passes=harmless) from None
            if answer.is_success or answer.status_code in also:
                return answer
            raise _Refused(
                _refusal(answer),
                passes=answer.status_code == httpx.codes.TOO_MANY_REQUESTS
                or (answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and repeatable),
                retry_after=answer.headers.get("Retry-After"),
            )

        trying = Retrying(
            stop=stop_after_attempt(self._tries),
            retry=retry_if_exception(lambda error: isinstance(error, _Refused) and error.passes),
            wait=_pause,
            reraise=True,
        )
        try:
            return trying(once)
        except _Refused as refused:
            raise refused.error from None

    def _data(self, answer: httpx.Response) -> Any:  # noqa: ANN401 - what JSON holds
        try:
            return answer.json()["data"]
        except (ValueError, KeyError, TypeError):
            raise ApiUnavailableError(
                f"What answers at {self._http.base_url} is not the API of the AssetClass pipeline."
            ) from None

    def _unreachable(self, error: httpx.TransportError) -> ApiUnavailableError:
        return ApiUnavailableError(
            f"The API at {self._http.base_url} cannot be reached "
            f"({str(error) or type(error).__name__}): is `assetclass up` running there, and is the "
            "address right?"
        )


def _body(options: BaseModel | None) -> dict[str, Any]:
    """Only what was chosen, so that the API's own defaults hold for the rest."""
    if options is None:
        return {}
    return options.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


def _said(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


class _Refused(Exception):  # noqa: N818 - never seen outside
    """One try that did not work; it is worth another one when the reason passes by itself."""

    def __init__(
        self, error: AssetClassError, *, passes: bool, retry_after: str | None = None
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.passes = passes
        self.retry_after = retry_after


_grown = wait_random_exponential(multiplier=0.5, max=_LONGEST_PAUSE)


def _pause(state: RetryCallState) -> float:
    """Seconds: what the API asked for, else longer each time, and not all clients at once."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, _Refused) else None
    if asked and asked.isdigit():
        return min(_LONGEST_PAUSE, float(asked))
    return _grown(state)


def _parsed(model: type[Model], data: object) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ApiUnavailableError(
            f"The API's answer does not fit this client ({error.error_count()} fields): use the "
            "version of assetclass-pipeline that the API runs."
        ) from None


def _refusal(answer: httpx.Response) -> AssetClassError:
    """The typed error that the envelope of a refusal names."""
    try:
        envelope = answer.json()
        code, message = str(envelope["errorCode"]), str(envelope["message"])
    except (ValueError, KeyError, TypeError):
        return ApiUnavailableError(
            f"HTTP {answer.status_code} from {answer.url} is not an answer of the AssetClass API: "
            "is the address right, and is the proxy before it well?"
        )
    kind = _KINDS.get(code)
    further = envelope.get("data") or {}
    if kind is None:
        return ApiError(message, api_code=code, status=answer.status_code)
    if issubclass(kind, errors.OperationInProgressError | errors.LaterCorrectionError):
        return kind(message, correction_id=str(further.get("correctionId", "")))
    if issubclass(kind, errors.TooManyRequestsError):
        return kind(message, retry_after=float(answer.headers.get("Retry-After", 1)))
    return kind(message)


def _kinds(base: type[AssetClassError]) -> Iterator[type[AssetClassError]]:
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from _kinds(kind)


# A code that several classes share belongs to the first, the most general one.
_KINDS = {kind.code: kind for kind in reversed(list(_kinds(AssetClassError)))}
