"""The real definitions, and one sensor more that cannot tick while a file is there."""

import dagster as dg

from assetclass_pipeline.definitions import build_defs
from assetclass_pipeline.settings import load_settings

OBSTACLE = "obstacle"


@dg.sensor(
    name="brittle",
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def brittle() -> dg.SkipReason:
    """Fails while the file is in the home directory."""
    if (load_settings().home / OBSTACLE).exists():
        raise RuntimeError("An obstacle is in the way.")
    return dg.SkipReason("Nothing to do.")


defs = dg.Definitions.merge(build_defs(), dg.Definitions(sensors=[brittle]))
