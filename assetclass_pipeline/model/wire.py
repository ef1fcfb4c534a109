"""The JSON form that all our models share: camelCase names, percents with two decimals, UTC times.

Belongs here: base model and field types. Does not: any model of its own.
"""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, PlainSerializer
from pydantic.alias_generators import to_camel


def _two_decimals(value: float) -> float:
    return round(value, 2)


def _iso_utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Percent = Annotated[float, PlainSerializer(_two_decimals, when_used="json")]
"""0..100; exact in Python, two decimals in JSON."""

Seconds = Annotated[
    float, PlainSerializer(lambda value: round(value, 3), return_type=float, when_used="json")
]
"""A duration; milliseconds are kept in JSON."""

Moment = Annotated[AwareDatetime, PlainSerializer(_iso_utc, when_used="json")]
"""A point in time, ISO 8601 UTC in JSON."""


class WireModel(BaseModel):
    """Immutable value that prints as camelCase JSON and refuses unknown fields."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid"
    )
