"""Moments as people write them.

Belongs here: reading one. Does not: what it is for.
"""

from datetime import UTC, datetime

from assetclass_pipeline.errors import InvalidOptionsError


def parse_moment(name: str, said: str | None) -> datetime | None:
    """ISO 8601; UTC unless it says otherwise; None of nothing.

    `name` is the option's, for the message. Raises InvalidOptionsError.
    """
    if said is None:
        return None
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        raise InvalidOptionsError(
            f"{name} {said[:60]}: write a time like 2026-11-25 or 2026-11-25T02:00:00Z."
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
