"""Which errors are worth another try, and when: locks, lost connections, a server that restarts."""

import threading

import psycopg
from psycopg import errors
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from assetclass_pipeline.errors import DatabaseUnavailableError
from assetclass_pipeline.model.options import RetryOptions

_TRANSIENT = (
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.TooManyConnections,
    errors.IdleSessionTimeout,
    errors.IdleInTransactionSessionTimeout,
    DatabaseUnavailableError,
)


def is_transient(error: BaseException) -> bool:
    """Whether trying again can help."""
    if isinstance(error, _TRANSIENT):
        return True
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    # No code: the connection broke under us. Class 08: a pooler says that it broke behind it.
    return error.sqlstate is None or error.sqlstate.startswith("08")


def what_it_said(error: BaseException) -> str:
    """An error in one line; of PostgreSQL's only the message, which repeats no SQL and no row."""
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return error.diag.message_primary or type(error).__name__
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def retrying(options: RetryOptions, stop: threading.Event) -> Retrying:
    """Exponential waits with jitter that end early when the operation stops."""

    def sleep(seconds: float) -> None:
        stop.wait(seconds)

    return Retrying(
        retry=retry_if_exception(lambda error: is_transient(error) and not stop.is_set()),
        stop=stop_after_attempt(options.tries),
        wait=wait_exponential_jitter(
            multiplier=options.first_wait, max=options.longest_wait, jitter=options.first_wait
        ),
        sleep=sleep,
        reraise=True,
    )
