"""What may be changed while an operation runs: one model for every surface.

Belongs here: fields and their limits. Does not: the throttle's limits, which model/throttle.py
knows.
"""

from pydantic import Field

from assetclass_pipeline.model.options import Pace
from assetclass_pipeline.model.wire import WireModel


class Tuning(WireModel):
    """Changes to a running operation; what is None stays as it is."""

    batch_size: int | None = Field(None, ge=1, le=10_000, description="rows of one batch at most")
    workers: int | None = Field(None, ge=1, le=16, description="connections that write at most")
    pace: Pace | None = Field(None, description="gentle, balanced or fast")
    throttle: dict[str, object] | None = Field(
        None, description="limits of the throttle by name; null switches a signal off"
    )
