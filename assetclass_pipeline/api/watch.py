"""What the API keeps open to tell how things are: probes, metrics, and the fallback's loop.

Belongs here: putting those parts together for one process. Does not: any of them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from assetclass_pipeline.api.connections import Connections
from assetclass_pipeline.defs.dagster_probes import RELIED_SENSORS, DagsterWatch
from assetclass_pipeline.model.metrics import Metrics
from assetclass_pipeline.monitoring.database_probes import database_probes
from assetclass_pipeline.monitoring.exposition import daemon_ages, exposition, tick_ages
from assetclass_pipeline.monitoring.fallback import Fallback
from assetclass_pipeline.monitoring.health import CachedHealth
from assetclass_pipeline.monitoring.metrics import CachedMetrics, collect

# Seconds. Health is asked for often, and by several at once.
_AGE_OF_HEALTH = 1.0
_DAEMON = "dagster"


@dataclass(frozen=True)
class Watch:
    """How things are; safe in many threads."""

    health: CachedHealth
    metrics: CachedMetrics
    dagster: DagsterWatch

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format, with what only Dagster's records tell."""
        beat = self.dagster.daemon_heartbeat_age()
        # A schedule ticks once a day or less often: its age alone says nothing.
        ticks = {
            name: age
            for name, age in self.dagster.tick_ages().items()
            if age is not None and name in RELIED_SENSORS
        }
        daemon = {} if beat is None else {_DAEMON: beat}
        return exposition(self.metrics.get(), [daemon_ages(daemon), tick_ages(ticks)])


@contextmanager
def watching(connections: Connections) -> Iterator[Watch]:
    """Nothing is connected before somebody asks, but by the fallback, which looks by itself."""
    settings, dsn = connections.settings, connections.dsn

    def read() -> Metrics:
        with connections.borrowed() as connection:
            return collect(connection, settings)

    with ExitStack() as stack:
        probes = stack.enter_context(database_probes(dsn, settings))
        dagster = stack.enter_context(DagsterWatch(settings, dsn))
        health = CachedHealth(
            [*probes, *dagster.probes()],
            seconds=settings.health.timeout,
            max_age=_AGE_OF_HEALTH,
        )
        if settings.api.fallback:
            fallback = Fallback(settings, dsn, dagster.daemon_heartbeat_age)
            fallback.start()
            stack.callback(fallback.stop)
        yield Watch(health, CachedMetrics(read), dagster)
