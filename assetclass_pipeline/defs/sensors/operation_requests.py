"""`operation_requests`: launches what was asked for over HTTP, once, and ends what cannot begin.

Belongs here: from a request to a run, and what became of that run. Does not: writing a request
(engine/requests.py), and taking it up, which is the run's own claim.
"""

from typing import Final

import dagster as dg
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.defs.jobs import CORRECTION_JOB, correction_job
from assetclass_pipeline.defs.partitions import RANGE_END_TAG, RANGE_START_TAG
from assetclass_pipeline.defs.resources import MarketDatabase, correction_run_config
from assetclass_pipeline.defs.rollback import ROLLBACK_JOB, rollback_job, rollback_run_config
from assetclass_pipeline.defs.runs import (
    CORRELATION_TAG,
    REASON_TAG,
    REQUEST_TAG,
    RESUME_TAG,
    TICKET_TAG,
    USER_TAG,
)
from assetclass_pipeline.defs.sensors.ticks import Answer, ask
from assetclass_pipeline.engine.claiming import end_abandoned
from assetclass_pipeline.engine.requests import (
    WaitingRequest,
    end_request,
    note_run,
    waiting_request,
)
from assetclass_pipeline.model.months import EVERYTHING, Calendar
from assetclass_pipeline.model.operation import Kind, Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.settings import Settings

OPERATION_REQUESTS: Final = "operation_requests"

# Dagster indexes the values of tags, and PostgreSQL's index has no room for long ones.
_LONGEST_TAG_BYTES = 1000


@dg.sensor(
    name=OPERATION_REQUESTS,
    jobs=[correction_job, rollback_job],
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Launches each correction or rollback that was asked for over HTTP, once. Ends a request "
        "whose run failed, was terminated or deleted before it began, and takes runs out of the "
        "queue whose request was cancelled."
    ),
)
def operation_requests(
    context: dg.SensorEvaluationContext, database: dg.ResourceParam[MarketDatabase]
) -> Answer:
    """Launch what is asked for, or say how far it is."""
    return ask(
        database,
        OPERATION_REQUESTS,
        lambda connection: _decide(context.instance, connection, database.settings),
    )


def _decide(
    instance: dg.DagsterInstance, connection: Connection[TupleRow], settings: Settings
) -> Answer:
    end_abandoned(connection, settings)
    request = waiting_request(connection, settings)
    _clear_queue(instance, request)
    if request is None:
        return dg.SkipReason("Nothing is asked for.")
    return _bring_on(instance, connection, settings, request)


def run_key_of(request: WaitingRequest) -> str:
    """What a run is launched for; Dagster launches one run for it, however often it is asked to."""
    if request.attempt == 1:
        return request.correction_id
    return f"{request.correction_id}/{request.attempt}"


def run_request_of(request: WaitingRequest, settings: Settings) -> dg.RunRequest:
    """The run that carries a request out."""
    tags = {
        RESUME_TAG: request.correction_id,
        REQUEST_TAG: run_key_of(request),
        USER_TAG: request.requested_by,
        REASON_TAG: request.reason,
        TICKET_TAG: request.ticket,
        CORRELATION_TAG: request.correlation_id,
    }
    if request.scope != EVERYTHING:
        months = Calendar.until_now(settings.first_month).months_in(request.scope)
        tags |= {RANGE_START_TAG: months[0], RANGE_END_TAG: months[-1]}
    if request.kind is Kind.CORRECTION:
        job = CORRECTION_JOB
        config = correction_run_config(CorrectionOptions.model_validate(request.options))
    else:
        job = ROLLBACK_JOB
        config = rollback_run_config(
            request.rollback_of or "",
            RollbackOptions.model_validate(request.options),
            reason=request.reason or "not said",
        )
    return dg.RunRequest(
        run_key=run_key_of(request),
        job_name=job,
        run_config=config,
        tags={name: _short(value) for name, value in tags.items() if value},
    )


def _short(value: str) -> str:
    """As much of it as a tag can hold; the operation keeps all."""
    return value.encode()[:_LONGEST_TAG_BYTES].decode(errors="ignore")


def _bring_on(
    instance: dg.DagsterInstance,
    connection: Connection[TupleRow],
    settings: Settings,
    request: WaitingRequest,
) -> Answer:
    run = _run_of(instance, request)
    if run is None and request.run_id is None:
        return run_request_of(request, settings)
    if run is None:
        message = f"Its Dagster run {request.run_id} was deleted before it began. Ask again."
        end_request(
            connection, settings, request, Status.FAILED, code="RUN_DELETED", message=message
        )
        return dg.SkipReason(f"Operation {request.correction_id} is ended: {message}")
    if run.run_id != request.run_id:
        note_run(connection, settings, request, run.run_id)
    if run.status is dg.DagsterRunStatus.NOT_STARTED:
        # The daemon died between making the run and launching it; asked again, it launches that.
        return run_request_of(request, settings)
    if not run.is_finished:
        return dg.SkipReason(
            f"Run {run.run_id} of operation {request.correction_id} is {run.status.value}."
        )
    status, code, message = _why_not_begun(run)
    end_request(connection, settings, request, status, code=code, message=message)
    return dg.SkipReason(f"Operation {request.correction_id} is ended: {message}")


def _run_of(instance: dg.DagsterInstance, request: WaitingRequest) -> dg.DagsterRun | None:
    """The run that was launched for a request; its re-executions inherit its tags."""
    found = instance.get_runs(dg.RunsFilter(tags={REQUEST_TAG: run_key_of(request)}))
    return next((run for run in found if run.parent_run_id is None), None)


def _why_not_begun(run: dg.DagsterRun) -> tuple[Status, str, str]:
    if run.status is dg.DagsterRunStatus.CANCELED:
        said = "was terminated before it began"
        status, code = Status.CANCELLED, "RUN_TERMINATED"
    else:
        said = f"ended ({run.status.value.lower()}) before the operation began; its log tells why"
        status, code = Status.FAILED, "RUN_FAILED"
    return status, code, f"Its Dagster run {run.run_id} {said}. Resume it, or ask again."


def _clear_queue(instance: dg.DagsterInstance, waiting: WaitingRequest | None) -> None:
    """Take runs out of the queue whose request was cancelled: nothing is left to do for them.

    One that slips through changes nothing: its claim is refused.
    """
    wanted = run_key_of(waiting) if waiting else None
    queued = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.QUEUED], tags={"dagster/sensor_name": OPERATION_REQUESTS}
    )
    for run in instance.get_runs(queued):
        is_original = run.parent_run_id is None
        if is_original and run.tags.get(REQUEST_TAG) != wanted:
            instance.report_run_canceled(run, "What it was launched for was cancelled.")
