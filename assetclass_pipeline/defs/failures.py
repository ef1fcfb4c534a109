"""Errors as a person in the Dagster UI reads them.

Belongs here: from our typed errors and the driver's to one sentence. Does not: deciding which
error it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg
import psycopg
from dagster_shared.error import SerializableErrorInfo

from assetclass_pipeline.errors import AssetClassError

_LONGEST_LINE: Final = 500


@contextmanager
def readable_failures() -> Iterator[None]:
    """Turn an error into dg.Failure with its message; the run log gets no SQL and no password."""
    try:
        yield
    except AssetClassError as error:
        raise _failure(str(error), error.code) from None
    except psycopg.Error as error:
        reason = error.diag.message_primary or type(error).__name__
        message = (
            f"PostgreSQL refused: {reason}. Everything committed stays; mend the cause, then "
            "re-execute this run to go on."
        )
        raise _failure(message, error.sqlstate or "DATABASE_ERROR") from None


def reason_of(error: Exception) -> str:
    """Why something failed, in one line, for what is shown beside the failure."""
    if isinstance(error, dg.Failure):
        return error.description or "no reason given"
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first}"


def innermost(error: SerializableErrorInfo | None) -> str:
    """First line of what is at the bottom of an error that Dagster wrapped; empty when none is."""
    while error is not None and error.cause is not None:
        error = error.cause
    return first_line(error.message if error else "")


def first_line(said: str) -> str:
    """The first line that says anything, 500 characters at most."""
    found = next((line for line in said.splitlines() if line.strip()), "")
    return found.strip()[:_LONGEST_LINE]


def _failure(message: str, code: str) -> dg.Failure:
    return dg.Failure(description=message, metadata={"error_code": code}, allow_retries=False)
