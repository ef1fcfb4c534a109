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
    DatabaseUnavailableError,
)


def is_transient(error: BaseException) -> bool:
    """Whether trying again can help."""
    if isinstance(error, _TRANSIENT):
        return True
    lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return lost and getattr(error, "sqlstate", None) is None


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
