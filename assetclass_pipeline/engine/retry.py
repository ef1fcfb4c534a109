"""Which errors are worth another try, which are the data's, and how long to wait in between.

Belongs here: kinds of errors. Does not: trying (attempts.py), and poison rows (batches.py).
"""

import threading
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg import errors
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from assetclass_pipeline.errors import CorrectionFailedError, DatabaseUnavailableError
from assetclass_pipeline.model.options import RetryOptions

Result = TypeVar("Result")

_TRANSIENT = (
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.QueryCanceled,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.TooManyConnections,
    errors.IdleSessionTimeout,
    errors.IdleInTransactionSessionTimeout,
)
# Data exception, constraint, WITH CHECK OPTION, errors of functions, RAISE in a trigger.
_DATA_CLASSES = {"22", "23", "44", "38", "39", "P0"}


def means_waiting(error: BaseException) -> bool:
    """Whether somebody else must finish first: a server that is away, a table that others lock."""
    return isinstance(
        error,
        DatabaseUnavailableError
        | errors.LockNotAvailable
        # Our server could not reach the one behind a foreign table.
        | errors.SqlclientUnableToEstablishSqlconnection,
    )


def is_transient(error: BaseException) -> bool:
    """Whether trying again can help."""
    if means_waiting(error) or isinstance(error, _TRANSIENT):
        return True
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    # No code: the connection broke under us. Class 08: a pooler says that it broke behind it.
    return error.sqlstate is None or error.sqlstate.startswith("08")


def is_data_error(error: BaseException) -> bool:
    """Whether some row cannot have the value that it should get: trying again cannot help."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in _DATA_CLASSES


def shows_contention(error: BaseException) -> bool:
    """Whether we and the application want the same rows at the same time."""
    return isinstance(error, errors.DeadlockDetected | errors.LockNotAvailable)


def what_it_said(error: BaseException) -> str:
    """An error in one line; of PostgreSQL's only the message, which repeats no SQL and no row."""
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return error.diag.message_primary or type(error).__name__
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def begun(step: Callable[[], Result], options: RetryOptions, patience: float) -> Result:
    """Do a step before an operation is held, again after errors that pass by themselves.

    A batch in flight of the owner before us is waited out, `patience` seconds at most; a server
    that is away is told at once. Raises DatabaseUnavailableError, the step's own typed
    errors, and CorrectionFailedError for whatever PostgreSQL refused.
    """

    def worth_it(error: BaseException) -> bool:
        return is_transient(error) and not isinstance(error, DatabaseUnavailableError)

    def gives_up(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, errors.LockNotAvailable):
            return (state.seconds_since_start or 0) > patience
        return state.attempt_number >= options.tries

    again = Retrying(
        retry=retry_if_exception(worth_it),
        stop=gives_up,
        wait=_wait(options),
        reraise=True,
    )
    try:
        return again(step)
    except psycopg.Error as error:
        raise CorrectionFailedError(
            f"The operation could not begin: {what_it_said(error)}. Nothing was changed; try again."
        ) from None


def _wait(options: RetryOptions) -> wait_exponential_jitter:
    return wait_exponential_jitter(
        multiplier=options.first_wait, max=options.longest_wait, jitter=options.first_wait
    )


def retrying(options: RetryOptions, stop: threading.Event) -> Retrying:
    """Exponential waits with jitter that end early when the operation stops.

    What only needs waiting is not tried `tries` times: that is for attempts.py to wait out.
    """

    def worth_it(error: BaseException) -> bool:
        return is_transient(error) and not means_waiting(error) and not stop.is_set()

    def sleep(seconds: float) -> None:
        stop.wait(seconds)

    return Retrying(
        retry=retry_if_exception(worth_it),
        stop=stop_after_attempt(options.tries),
        wait=_wait(options),
        sleep=sleep,
        reraise=True,
    )
