"""The calls of the REST API as methods, with what they answer as models.

Belongs here: which call, which model. Does not: tries (sending.py), errors (refusals.py).
"""

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from assetclass_pipeline.client.refusals import ApiUnavailableError
from assetclass_pipeline.client.sending import ANSWER_SECONDS, BASE_PATH, Connection, visible
from assetclass_pipeline.errors import (
    AssetClassError,
    OperationNotFoundError,
    RowNotFoundError,
)
from assetclass_pipeline.model.alert import Alert
from assetclass_pipeline.model.health import Health
from assetclass_pipeline.model.metrics import Metrics
from assetclass_pipeline.model.operation import Operation, OperationStatus
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.preview import Preview
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.model.row_history import RowHistory
from assetclass_pipeline.model.validation import Validation

__all__ = ["BASE_PATH", "AssetClassClient"]

# The API may hold a question about a big table for as long as its scan takes.
_SCAN_SECONDS: Final = 660.0
# Longer, the API would refuse to wait.
_LONGEST_WAIT: Final = 60
_BETWEEN_LOOKS: Final = 1
_UNHEALTHY: Final = frozenset({"SERVICE_UNHEALTHY"})
_PASSING: Final = {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}

Model = TypeVar("Model", bound=BaseModel)
Progress = Callable[[Operation], None]


class AssetClassClient:
    """The calls of one API; a context manager, for it keeps connections. Safe in many threads.

    `url` is the server's, with or without the base path. What passes by itself (no connection,
    429, a busy server or a database that is away) is tried again, `tries` times within `patience`
    seconds; an `execute` or `rollback` cannot happen twice by that, for each carries an idempotency
    key. Every call raises the typed error that the API's errorCode names, ApiError for a code that
    it does not know, and ApiUnavailableError.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        correlation_id: str | None = None,
        transport: httpx.BaseTransport | None = None,
        tries: int = 6,
        patience: float = 60.0,
    ) -> None:
        self._connection = Connection(
            url,
            token,
            correlation_id=correlation_id,
            transport=transport,
            tries=tries,
            patience=patience,
        )

    def __repr__(self) -> str:
        return f"AssetClassClient({self._connection.url!r})"

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
        self._connection.close()

    def analyze(self, *, top: int | None = None) -> IntegrityReport:
        """Measure the damage, with the `top` worst symbols; takes as long as a scan."""
        return self._get("analyze", IntegrityReport, _said(top=top), timeout=_SCAN_SECONDS)

    def preview(self, options: CorrectionOptions | None = None) -> Preview:
        """What a correction would do; changes nothing."""
        return self._look("preview", Preview, _body(options))

    def validate(self) -> Validation:
        """Whether the thresholds are met, by a fresh scan."""
        return self._look("validate", Validation, {})

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
        body = _body(options) | _naming(correction_id) | _said(reason=reason, ticket=ticket)
        return self._ask("rollback", body, idempotency_key)

    def status(self, *, include_all: bool = False, most: int = 20) -> OperationStatus:
        """The active operation, and up to `most` ended ones: all, or those that changed rows."""
        said = {"limit": most} | ({"include": "all"} if include_all else {})
        return self._get("status", OperationStatus, said)

    def operation(self, correction_id: str, *, wait: int = 0) -> Operation:
        """One operation; with `wait` as it stands at its end, or after so many seconds."""
        segment = _ending(correction_id)
        if segment is None or "/" in correction_id:
            raise _no_such(correction_id)
        seconds = min(wait, _LONGEST_WAIT)
        said = {"wait": seconds} if seconds else {}
        return self._get(f"status/{segment}", Operation, said, timeout=ANSWER_SECONDS + seconds)

    def follow(
        self, correction_id: str, *, progress: Progress | None = None, patience: float = 300.0
    ) -> Operation:
        """Wait until an operation has ended; `progress` hears of it at once, then every second.

        Meanwhile the API may be away for `patience` seconds; after that ApiUnavailableError names
        the operation, which goes on.
        """
        wait, heard = 0, time.monotonic()
        while True:
            try:
                seen = self.operation(correction_id, wait=wait)
            except AssetClassError as error:
                if error.http_status not in _PASSING:
                    raise
                if time.monotonic() - heard > patience:
                    raise ApiUnavailableError(
                        f"Operation {correction_id} goes on, but is not to be followed any more. "
                        f"{error}",
                        correction_id=correction_id,
                    ) from None
                time.sleep(_BETWEEN_LOOKS)
                continue
            wait, heard = _BETWEEN_LOOKS, time.monotonic()
            if progress is not None:
                progress(seen)
            if not seen.is_active:
                return seen

    def pause(self, correction_id: str | None = None) -> Operation:
        """Let the named or the active operation stay between two batches."""
        return self._change("pause", Operation, _naming(correction_id))

    def resume(self, correction_id: str | None = None) -> Operation:
        """Let a paused operation go on, or ask again for one that was cut off."""
        return self._change("resume", Operation, _naming(correction_id))

    def cancel(self, correction_id: str | None = None) -> Operation:
        """Stop the named or the active operation between two batches."""
        return self._change("cancel", Operation, _naming(correction_id))

    def health(self) -> Health:
        """Whether all is well; callers without a token are shown no components."""
        answer = self._connection.send("GET", "health", repeatable=True, answers=_UNHEALTHY)
        data = self._data(answer)
        if isinstance(data, dict) and data.get("components") is None:
            data = {**data, "components": {}}
        return _parsed(Health, data)

    def metrics(self) -> Metrics:
        """The operational metrics."""
        return self._get("metrics", Metrics)

    def metrics_text(self) -> str:
        """The same as Prometheus reads them."""
        said = {"format": "prometheus"}
        return self._connection.send("GET", "metrics", said=said, repeatable=True).text

    def alerts(self, *, most: int = 50, include_resolved: bool = True) -> list[Alert]:
        """Unresolved alerts, the most severe first, then those that are over, the newest first."""
        said = {"limit": most, "resolved": include_resolved}
        found = self._data(self._connection.send("GET", "alerts", said=said, repeatable=True))
        alerts = found.get("alerts") if isinstance(found, dict) else None
        return [_parsed(Alert, alert) for alert in alerts or []]

    def acknowledge(self, alert_id: int, *, note: str | None = None) -> Alert:
        """Say that somebody looks after an alert."""
        return self._change(f"alerts/{alert_id}/acknowledge", Alert, _said(note=note))

    def row_history(
        self, row_id: str, *, symbol: str | None = None, timestamp: str | None = None
    ) -> RowHistory:
        """How a row came by its class; `symbol` and `timestamp` where several have this id."""
        ending = _ending(row_id)
        if ending is None:
            raise RowNotFoundError(
                f"A row with the id {row_id[:60]!r} cannot be asked for over the API: its address "
                "cannot hold that. `assetclass audit row` beside the database can."
            )
        said = _said(symbol=symbol, timestamp=timestamp)
        return self._get(f"audit/rows/{ending}", RowHistory, said)

    def _ask(self, what: str, body: Mapping[str, object], key: str | None) -> str:
        # Made once for all tries: the API answers each of them with the same operation.
        headers = {"Idempotency-Key": visible("The idempotency key", key or str(uuid4()))}
        answer = self._connection.send("POST", what, body=body, headers=headers, repeatable=True)
        accepted = self._data(answer)
        if not isinstance(accepted, dict) or "correctionId" not in accepted:
            raise self._foreign()
        return str(accepted["correctionId"])

    def _get(
        self,
        path: str,
        model: type[Model],
        said: Mapping[str, Any] | None = None,
        *,
        timeout: float = ANSWER_SECONDS,
    ) -> Model:
        answer = self._connection.send("GET", path, said=said, timeout=timeout, repeatable=True)
        return _parsed(model, self._data(answer))

    def _look(self, path: str, model: type[Model], body: Mapping[str, object]) -> Model:
        """A POST that changes nothing."""
        answer = self._connection.send(
            "POST", path, body=body, timeout=_SCAN_SECONDS, repeatable=True
        )
        return _parsed(model, self._data(answer))

    def _change(self, path: str, model: type[Model], body: Mapping[str, object]) -> Model:
        """A POST of which a second one would be told that it comes too late."""
        return _parsed(
            model, self._data(self._connection.send("POST", path, body=body, repeatable=False))
        )

    def _data(self, answer: httpx.Response) -> Any:  # noqa: ANN401 - what JSON holds
        try:
            return answer.json()["data"]
        except (ValueError, KeyError, TypeError):
            raise self._foreign() from None

    def _foreign(self) -> ApiUnavailableError:
        return ApiUnavailableError(
            f"What answers at {self._connection.url} is not the API of the AssetClass pipeline: "
            "is the address right?"
        )


def _body(options: BaseModel | None) -> dict[str, Any]:
    """Only what was chosen, so that the API's own defaults hold for the rest."""
    if options is None:
        return {}
    return options.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


def _said(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _naming(correction_id: str | None) -> dict[str, object]:
    """The operation that is meant; an empty id is no operation's, least of all the active one."""
    if correction_id == "":
        raise _no_such(correction_id)
    return _said(correctionId=correction_id)


def _no_such(correction_id: str) -> OperationNotFoundError:
    return OperationNotFoundError(
        f"No operation has the correctionId {correction_id[:60]!r}. `assetclass status` lists the "
        "recent ones."
    )


def _ending(identity: str) -> str | None:
    """The id as the end of a path; None where a server on the way may make another path of it."""
    if not {"", ".", ".."}.isdisjoint(identity.split("/")):
        return None
    return quote(identity, safe="")


def _parsed(model: type[Model], data: object) -> Model:
    """What a newer API says beyond the model is passed over."""
    try:
        return model.model_validate(data, extra="ignore")
    except ValidationError as error:
        raise ApiUnavailableError(
            f"The API's answer does not fit this client ({error.error_count()} fields): use the "
            "version of assetclass-pipeline that the API runs."
        ) from None
