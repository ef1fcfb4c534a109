"""Times and spans as people write them behind a flag."""

import re
from datetime import UTC, datetime, timedelta

from assetclass_pipeline.errors import InvalidOptionsError

_SPAN = re.compile(
    r"(?:(?P<days>\d{1,5})d)?(?:(?P<hours>\d{1,5})h)?"
    r"(?:(?P<minutes>\d{1,5})m(?:in)?)?(?:(?P<seconds>\d{1,7})s)?"
)


def moment(flag: str, said: str) -> datetime:
    """The time, UTC unless it says otherwise. Raises InvalidOptionsError naming the flag."""
    try:
        found = datetime.fromisoformat(said)
    except ValueError:
        raise InvalidOptionsError(
            f"{flag} {said[:60]}: write a time like 2026-11-25 or 2026-11-25T02:00:00Z."
        ) from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def span(flag: str, said: str) -> timedelta:
    """How long, more than nothing. Raises InvalidOptionsError naming the flag."""
    match = _SPAN.fullmatch("".join(said.split()).lower())
    parts = {name: int(value) for name, value in match.groupdict("0").items()} if match else {}
    if not any(parts.values()):
        raise InvalidOptionsError(f"{flag} {said[:60]}: write how long, like 45m, 2h or 1d12h.")
    return timedelta(**parts)
