"""The health check every 15 minutes that the operators' guide asks for: a job and its schedule.

Belongs here: asking every probe in a run, and showing what they say. Does not: paging anybody. A
run that finds something amiss succeeds all the same, with the failing components as its result:
`service_health_alerts` pages for them, and a failed run would page a second time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg

from assetclass_pipeline.database.connections import running_database
from assetclass_pipeline.defs.dagster_probes import TICKS, DagsterWatch
from assetclass_pipeline.defs.presentation import Metadata, table
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.errors import DatabaseUnavailableError, EmbeddedServerError
from assetclass_pipeline.monitoring.database_probes import DATABASE, database_probes
from assetclass_pipeline.monitoring.health import Answer, Health, Probe, check_health
from assetclass_pipeline.settings import Settings

HEALTH_CHECK_JOB: Final = "health_check_job"
HEALTH_CHECK: Final = "health_check"
_FROM_SCRATCH: Final = 5.0


@contextmanager
def all_probes(settings: Settings) -> Iterator[list[Probe]]:
    """Every probe of database and Dagster, to be used again and again while the context lives.

    Nothing is started: where the embedded server does not run, one probe says so.
    """
    try:
        dsn = running_database(settings)
    except (DatabaseUnavailableError, EmbeddedServerError) as error:
        away = Answer(False, str(error))
        yield [Probe(DATABASE, lambda: away, timeout=settings.health.timeout)]
        return
    with database_probes(dsn, settings) as probes, DagsterWatch(settings, dsn) as watch:
        yield [*probes, *watch.probes()]


def health_of(settings: Settings) -> Health:
    """One check of everything from scratch; takes five seconds at most, or the timeout if longer.

    Everything is opened for it, and nobody waits for a page: a busy machine is no trouble.
    """
    timeout = max(settings.health.timeout, _FROM_SCRATCH)
    limits = settings.health.model_copy(update={"timeout": timeout})
    with all_probes(settings.model_copy(update={"health": limits})) as probes:
        return check_health(probes, seconds=timeout)


def health_for_alerts(settings: Settings) -> Health:
    """The same without failed ticks: each of those is an alert of its own, TICK_FAILED."""
    health = health_of(settings)
    components = {name: one for name, one in health.components.items() if name != TICKS}
    well = all(one.is_healthy for one in components.values())
    return health.model_copy(update={"components": components, "is_healthy": well})


@dg.op(description="Ask every component whether it is well; nothing is changed.")
def check_all_components(
    context: dg.OpExecutionContext, database: dg.ResourceParam[MarketDatabase]
) -> None:
    """Show each component as metadata of the output; warn of each that is not well."""
    health = health_of(database.settings)
    for name, component in health.failing.items():
        context.log.warning("%s is not well: %s", name, component.message)
    context.add_output_metadata(health_metadata(health))


def health_metadata(health: Health) -> Metadata:
    """The verdict, what fails, and all components as a table."""
    return {
        "result": "healthy" if health.is_healthy else "unhealthy",
        "failing": ", ".join(health.failing) or "nothing",
        "failing_components": len(health.failing),
        "components": table(
            {
                "component": name,
                "healthy": component.is_healthy,
                "message": component.message,
                "latency_ms": round(component.latency_ms, 1),
            }
            for name, component in health.components.items()
        ),
    }


@dg.job(
    name=HEALTH_CHECK_JOB,
    description=(
        "Look at the database, its rights and disk, operations, measurements, notifications, and "
        "at Dagster's daemon, sensors and schedules. It succeeds also when something is not well "
        "and shows what; the sensor service_health_alerts tells people."
    ),
    executor_def=dg.in_process_executor,
)
def health_check_job() -> None:
    """One step."""
    check_all_components()


def health_check_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Every quarter of an hour, as the guide has it."""
    return dg.ScheduleDefinition(
        name=HEALTH_CHECK,
        job_name=HEALTH_CHECK_JOB,
        cron_schedule="*/15 * * * *",
        execution_timezone=settings.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Looks every 15 minutes whether all is well, and keeps what it found.",
    )
