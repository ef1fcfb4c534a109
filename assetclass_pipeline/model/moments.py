"""Moments and spans as people write them.

Belongs here: reading them. Does not: what they are for.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import overload

from assetclass_pipeline.errors import InvalidOptionsError

_SPAN = re.compile(
    r"(?:(?P<days>\d{1,5})d)?(?:(?P<hours>\d{1,5})h)?"
    r"(?:(?P<minutes>\d{1,5})m(?:in)?)?(?:(?P<seconds>\d{1,7})s)?"
)


@overload
def parse_moment(name: str, said: str) -> datetime: ...


@overload
def parse_moment(name: str, said: str | None) -> datetime | None: ...


def parse_moment(name: str, said: str | None) -> datetime | None:
    """ISO 8601, UTC unless it says otherwise, as UTC; None of nothing.

    `name` is the option's, for the message. Raises InvalidOptionsError.
    """
    if said is None:
        return None
    try:
        moment = datetime.fromisoformat(said)
        # Whoever shows it again says UTC.
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidOptionsError(
            f"{name} {said[:60]}: write a time like 2026-11-25 or 2026-11-25T02:00:00Z."
        ) from None


def parse_span(name: str, said: str) -> timedelta:
    """How long, more than nothing. Raises InvalidOptionsError naming the option."""
    match = _SPAN.fullmatch("".join(said.split()).lower())
    parts = {unit: int(value) for unit, value in match.groupdict("0").items()} if match else {}
    if not any(parts.values()):
        raise InvalidOptionsError(f"{name} {said[:60]}: write how long, like 45m, 2h or 1d12h.")
    return timedelta(**parts)
