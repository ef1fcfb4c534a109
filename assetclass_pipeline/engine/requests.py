"""Asking for an operation without running it: written down here, launched by a sensor of Dagster's.

Belongs here: the `requested` row, with everything that is refused before it, and what becomes of a
request that no run takes up. Does not: launching (defs/sensors/operation_requests.py), and taking
it up, which is a claim like any other (claiming.py).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from psycopg import Connection, Cursor, errors
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.engine.audit import (
    Asker,
    record_refusal,
    record_wish,
)
from assetclass_pipeline.engine.claiming import (
    Check,
    CorrectionRequest,
    OperationRequest,
    check_claimable,
    creation_of,
    end_abandoned,
    in_progress,
    refuse_while_active,
)
from assetclass_pipeline.engine.control import ask_to_resume
from assetclass_pipeline.engine.correction import look_before
from assetclass_pipeline.engine.ending import note_end
from assetclass_pipeline.engine.operations import active_id, as_uuid, get_operation
from assetclass_pipeline.engine.retry import is_transient
from assetclass_pipeline.engine.rollback import RollbackRequest
from assetclass_pipeline.engine.undo_check import Undoing
from assetclass_pipeline.engine.undo_record import look_at
from assetclass_pipeline.errors import (
    AssetClassError,
    DatabaseUnavailableError,
    IdempotencyKeyReusedError,
    OperationNotFoundError,
    OperationStateError,
)
from assetclass_pipeline.model.audit import Action, Actor
from assetclass_pipeline.model.months import TimeRange
from assetclass_pipeline.model.operation import RESUMABLE, Kind, Operation, Status
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.settings import Settings

# Whoever asks waits for an answer, so what passes by itself is waited for a few seconds at most.
_TRIES = 6
_LONGEST_WAIT = 0.4

Result = TypeVar("Result")


@dataclass(frozen=True)
class IdempotencyKey:
    """A key by which the same caller can ask again without asking twice."""

    caller: str
    key: str


@dataclass(frozen=True)
class Requested:
    """The operation that was asked for; not `is_new` where the same key had asked for it before."""

    correction_id: str
    is_new: bool


@dataclass(frozen=True)
class WaitingRequest:
    """An operation that is asked for and not begun.

    `attempt` counts how often it was asked for; `waited` are the seconds since the last time;
    `run_id` is the Dagster run that was seen to be launched for it.
    """

    correction_id: str
    kind: Kind
    options: dict[str, Any]
    scope: TimeRange
    rollback_of: str | None
    reason: str | None
    ticket: str | None
    attempt: int
    requested_by: str
    correlation_id: str | None
    run_id: str | None
    waited: float


def request_correction(
    connection: Connection[TupleRow],
    settings: Settings,
    request: CorrectionRequest,
    *,
    correlation_id: str | None = None,
    idempotency: IdempotencyKey | None = None,
) -> Requested:
    """Write down that a correction is wanted, unless something forbids it or another one is active.

    The same key with the same request returns the operation of the first time, whatever became of
    it. Raises OperationInProgressError naming the active operation, IdempotencyKeyReusedError,
    PreflightRefusedError, MarketTablesError, SchemaNotReadyError and ArchiveError.
    """

    def refuse() -> None:
        refuse_while_active(connection, settings)
        look_before(connection, settings, request.options)

    with _refusals_recorded(connection, settings, request, correlation_id):
        require_schema(connection)
        ask = _Ask(connection, settings, request, correlation_id, idempotency)
        return ask.once(refuse, None)


def request_rollback(
    connection: Connection[TupleRow],
    settings: Settings,
    request: RollbackRequest,
    *,
    correlation_id: str | None = None,
    idempotency: IdempotencyKey | None = None,
) -> Requested:
    """Write down that a correction is to be undone, unless that cannot be.

    A key works as with `request_correction`. Only what reads the whole backup is left to the run.
    Raises OperationNotFoundError, NotUndoableError, BackupExpiredError, AlreadyRolledBackError,
    LaterCorrectionError, OperationInProgressError, IdempotencyKeyReusedError, InvalidOptionsError,
    MarketTablesError and SchemaNotReadyError.
    """
    with _refusals_recorded(connection, settings, request, correlation_id):
        require_schema(connection)
        undoing = Undoing(settings, request.correction_id, request.rollback_of, request.options)

        def refuse() -> None:
            # A correction whose process died has ended, and can be undone.
            end_abandoned(connection, settings)
            look_at(connection, settings, undoing)
            inspect_market_tables(connection, settings, for_writing=not request.options.dry_run)

        ask = _Ask(connection, settings, request, correlation_id, idempotency)
        return ask.once(refuse, undoing.check)


def resume(
    connection: Connection[TupleRow],
    settings: Settings,
    correction_id: str,
    *,
    by: str,
    correlation_id: str | None = None,
) -> Operation:
    """Let a paused operation go on, or ask again for one that ended and can go on.

    Raises OperationNotFoundError, OperationStateError when it can do neither,
    OperationInProgressError naming another active one, and for a rollback what `request_rollback`
    raises.
    """
    end_abandoned(connection, settings)
    left = get_operation(connection, settings, correction_id)
    if left.status not in RESUMABLE:
        return ask_to_resume(
            connection, settings, left.correction_id, by=by, correlation_id=correlation_id
        )
    check: Check | None = None
    if left.rollback_of is not None:
        options = RollbackOptions.model_validate(left.options)
        undoing = Undoing(settings, left.correction_id, left.rollback_of, options)
        look_at(connection, settings, undoing)
        check = undoing.check
    _patiently(
        lambda: _ask_again(connection, settings, left, check, by=by, correlation_id=correlation_id)
    )
    return get_operation(connection, settings, left.correction_id)


def waiting_request(connection: Connection[TupleRow], settings: Settings) -> WaitingRequest | None:
    """What is asked for and not begun; None when nothing is."""
    with transaction(connection, settings, read_only=True) as cursor:
        row = cursor.execute(query("request", "waiting")).fetchone()
    if row is None:
        return None
    correction_id, kind, options, start, end, *rest = row
    return WaitingRequest(correction_id, Kind(kind), options, TimeRange(start, end), *rest)


def note_run(
    connection: Connection[TupleRow], settings: Settings, request: WaitingRequest, run_id: str
) -> None:
    """Keep which run was launched for a request, so that it is missed when it is gone."""
    values = {**_key_of(request), "run_id": run_id}
    with transaction(connection, settings) as cursor:
        cursor.execute(query("request", "note_run"), values)
        cursor.execute(query("request", "show_run"), values)


def end_request(
    connection: Connection[TupleRow],
    settings: Settings,
    request: WaitingRequest,
    status: Status,
    *,
    code: str,
    message: str,
) -> bool:
    """End a request that no run will take up; False where one has, or it was ended before."""
    error = Jsonb({"code": code, "message": message})
    values = {**_key_of(request), "status": status.value, "error": error}
    with transaction(connection, settings) as cursor:
        ended = bool(cursor.execute(query("request", "end_waiting"), values).rowcount)
        if ended:
            note_end(cursor, as_uuid(request.correction_id), Actor.system())
    return ended


def _key_of(request: WaitingRequest) -> dict[str, object]:
    return {"correction_id": as_uuid(request.correction_id), "attempt": request.attempt}


@dataclass(frozen=True)
class _Ask:
    """One try to write a request down."""

    connection: Connection[TupleRow]
    settings: Settings
    request: OperationRequest
    correlation_id: str | None
    idempotency: IdempotencyKey | None

    def once(self, refuse: Callable[[], None], check: Check | None) -> Requested:
        """The operation, new or as the same key asked for it before; `refuse` forbids new ones."""
        known = self._known()
        if known is not None:
            return known
        try:
            refuse()
            return _patiently(lambda: self._write(check))
        except DatabaseUnavailableError:
            raise
        except AssetClassError:
            # Its twin was quicker, and is perhaps what stands in the way.
            known = self._known()
            if known is not None:
                return known
            raise

    def _write(self, check: Check | None) -> Requested:
        key = as_uuid(self.request.correction_id)
        try:
            with transaction(self.connection, self.settings) as cursor:
                if not self._take_key(cursor):
                    return self._taken(cursor)
                if check is not None:
                    check(cursor)
                cursor.execute(query("operation", "create"), creation_of(key, self.request))
                by = self.request.requested_by
                values = {"correction_id": key, "correlation_id": self.correlation_id}
                cursor.execute(query("request", "set_correlation"), values)
                cursor.execute(query("request", "add"), {**values, "requested_by": by})
                record_wish(
                    cursor,
                    self.request.correction_id,
                    Action.REQUEST_OPERATION,
                    by,
                    _said(self.request),
                    correlation_id=self.correlation_id,
                )
        except errors.UniqueViolation:
            _raise_in_progress(self.connection, self.settings)
            raise
        return Requested(self.request.correction_id, is_new=True)

    def _take_key(self, cursor: Cursor[TupleRow]) -> bool:
        if self.idempotency is None:
            return True
        values = {
            **self._key_values(self.idempotency),
            "request_hash": self._hash,
            "correction_id": as_uuid(self.request.correction_id),
        }
        return bool(cursor.execute(query("request", "remember_key"), values).rowcount)

    def _known(self) -> Requested | None:
        if self.idempotency is None:
            return None
        with transaction(self.connection, self.settings, read_only=True) as cursor:
            return self._look_up(cursor, self.idempotency)

    def _taken(self, cursor: Cursor[TupleRow]) -> Requested:
        found = self._look_up(cursor, self.idempotency) if self.idempotency else None
        if found is None:
            raise OperationNotFoundError(
                "The operation of this Idempotency-Key is gone. Ask with a new key."
            )
        return found

    def _look_up(self, cursor: Cursor[TupleRow], idempotency: IdempotencyKey) -> Requested | None:
        values = self._key_values(idempotency)
        row = cursor.execute(query("request", "known_key"), values).fetchone()
        if row is None:
            return None
        if row[0] != self._hash:
            raise IdempotencyKeyReusedError(
                f"This Idempotency-Key was used for another request, which became operation "
                f"{row[1]}. Send each new request with a new key."
            )
        return Requested(row[1], is_new=False)

    def _key_values(self, idempotency: IdempotencyKey) -> dict[str, object]:
        return {"caller": idempotency.caller, "key": idempotency.key}

    @property
    def _hash(self) -> str:
        said = json.dumps(_said(self.request), sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()


def _said(request: OperationRequest) -> dict[str, object]:
    """What was asked for, every default written out."""
    said = {
        "kind": request.kind.value,
        "options": request.options.model_dump(mode="json", by_alias=True),
        "rangeStart": request.scope.start,
        "rangeEnd": request.scope.end,
        "rollbackOf": request.rollback_of,
        "reason": request.reason,
        "ticket": request.ticket,
    }
    return {name: value for name, value in said.items() if value is not None}


def _ask_again(
    connection: Connection[TupleRow],
    settings: Settings,
    left: Operation,
    check: Check | None,
    *,
    by: str,
    correlation_id: str | None,
) -> None:
    key = as_uuid(left.correction_id)
    by_key = {"correction_id": key}
    try:
        with transaction(connection, settings) as cursor:
            row = cursor.execute(query("operation", "lock"), by_key).fetchone()
            if row is None or Status(row[0]) not in RESUMABLE:
                raise OperationStateError(
                    f"Operation {key} is {row[0] if row else 'gone'} by now: somebody was quicker."
                )
            check_claimable(cursor, key, Status(row[0]))
            if check is not None:
                check(cursor)
            cursor.execute(query("request", "ask_again"), by_key)
            cursor.execute(
                query("request", "add"),
                {**by_key, "requested_by": by, "correlation_id": correlation_id},
            )
            details: dict[str, object] = {"from": left.status.value}
            cursor.execute(
                query("control", "remember"),
                {**by_key, "event": "resume_requested", "actor": by, "details": Jsonb(details)},
            )
            record_wish(
                cursor,
                left.correction_id,
                Action.RESUME_OPERATION,
                by,
                details,
                correlation_id=correlation_id,
            )
    except errors.UniqueViolation:
        _raise_in_progress(connection, settings)
        raise


def _raise_in_progress(connection: Connection[TupleRow], settings: Settings) -> None:
    """Return when what was active has ended meanwhile: then there is room for another one."""
    if active_id(connection, settings) is not None:
        raise in_progress(connection, settings)


def _patiently(step: Callable[[], Result]) -> Result:
    """Do a step again that met others who ask at the same instant."""

    def is_worth_it(error: BaseException) -> bool:
        if isinstance(error, DatabaseUnavailableError):
            return False
        return is_transient(error) or isinstance(error, errors.UniqueViolation)

    again = Retrying(
        retry=retry_if_exception(is_worth_it),
        stop=stop_after_attempt(_TRIES),
        wait=wait_random(0, _LONGEST_WAIT),
        reraise=True,
    )
    return again(step)


@contextmanager
def _refusals_recorded(
    connection: Connection[TupleRow],
    settings: Settings,
    request: OperationRequest,
    correlation_id: str | None,
) -> Iterator[None]:
    try:
        yield
    except DatabaseUnavailableError:
        raise
    except AssetClassError as error:
        asker = Asker(
            request.requested_by, request.reason, request.ticket, correlation_id=correlation_id
        )
        undone = {"rollbackOf": request.rollback_of} if request.rollback_of else {}
        record_refusal(connection, settings, error, asker, Action.REQUEST_OPERATION, **undone)
        raise
