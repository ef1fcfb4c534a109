"""What may be changed while an operation runs: one model for every surface.

Belongs here: fields and their limits. Does not: the throttle's limits, which model/throttle.py
knows.
"""

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic.alias_generators import to_camel

from assetclass_pipeline.model.options import Pace
from assetclass_pipeline.model.wire import WireModel


def _as_on_the_wire(limits: dict[str, object] | None) -> dict[str, object] | None:
    """Changes are merged by name in the database, so a limit must have one name only."""
    return None if limits is None else {to_camel(name): limit for name, limit in limits.items()}


class Tuning(WireModel):
    """Changes to a running operation; what is None stays as it is."""

    batch_size: int | None = Field(None, ge=1, le=10_000, description="rows of one batch at most")
    workers: int | None = Field(None, ge=1, le=16, description="connections that write at most")
    pace: Pace | None = Field(None, description="gentle, balanced or fast")
    throttle: Annotated[dict[str, object] | None, AfterValidator(_as_on_the_wire)] = Field(
        None, description="limits of the throttle by name; null switches a signal off"
    )
