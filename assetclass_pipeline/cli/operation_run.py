"""One run of `correction_job` or `rollback_job` in this process, for commands.

Belongs here: creating the run so that the UI knows it, executing it, and what came out. Does not:
what the job does, and how its outcome is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.events import DagsterEvent
from dagster._core.execution.api import execute_run_iterator
from dagster._core.utils import make_new_run_id
from dagster_shared.error import SerializableErrorInfo

from assetclass_pipeline.cli.progress import live_progress
from assetclass_pipeline.cli.user import this_user
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.defs.instance import open_instance, process_tags, remote_job_origin
from assetclass_pipeline.defs.jobs import CORRECTION_JOB
from assetclass_pipeline.defs.partitions import RANGE_END_TAG, RANGE_START_TAG
from assetclass_pipeline.defs.resources import correction_run_config
from assetclass_pipeline.defs.rollback import ROLLBACK_JOB, rollback_run_config
from assetclass_pipeline.defs.runs import REASON_TAG, RESUME_TAG, TICKET_TAG, USER_TAG
from assetclass_pipeline.engine.operations import Unfinished, get_operation
from assetclass_pipeline.errors import OperationNotFoundError
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.settings import Settings

_DEFINITIONS = "assetclass_pipeline.definitions"

Tags = Mapping[str, str | None]


@dataclass(frozen=True)
class CheckOutcome:
    """One asset check as the run evaluated it."""

    asset: str
    name: str
    passed: bool
    severity: str
    description: str


@dataclass(frozen=True)
class OperationRun:
    """What a run came to; `operation` is None when it failed before it claimed one."""

    run_id: str
    succeeded: bool
    cancelled: bool
    failure: str | None
    operation: Operation | None
    checks: list[CheckOutcome]

    @property
    def worked(self) -> bool:
        """Whether it got as far as claiming its operation."""
        return self.operation is not None and self.operation.run_id == self.run_id


def run_correction(
    dsn: str,
    settings: Settings,
    options: CorrectionOptions,
    *,
    reason: str | None = None,
    ticket: str | None = None,
    resume: Unfinished | None = None,
) -> OperationRun:
    """Run `correction_job` over all rows and show its progress until it has ended.

    It is a run without partition: Dagster writes several events for each month of a range, and
    hundreds of months take longer than the correction. With `resume` it goes on with that
    operation, over its months.

    Ctrl-C and SIGTERM end the run between two batches. Raises DatabaseUnavailableError.
    """
    tags: dict[str, str | None] = {REASON_TAG: reason, TICKET_TAG: ticket}
    if resume is not None:
        months = Calendar.until_now(settings.first_month).months_in(resume.scope)
        tags |= {RANGE_START_TAG: months[0], RANGE_END_TAG: months[-1]}
    config = correction_run_config(options)
    resumed = resume.correction_id if resume else None
    return _run(dsn, settings, CORRECTION_JOB, config, tags, resumed=resumed)


def run_rollback(
    dsn: str,
    settings: Settings,
    rollback_of: str,
    options: RollbackOptions,
    *,
    reason: str,
    ticket: str | None = None,
    resume: str | None = None,
) -> OperationRun:
    """Run `rollback_job` and show its progress until it has ended.

    With `resume` it goes on with that rollback. Signals and errors as with `run_correction`.
    """
    tags = {TICKET_TAG: ticket}
    config = rollback_run_config(rollback_of, options, reason=reason)
    return _run(dsn, settings, ROLLBACK_JOB, config, tags, resumed=resume)


def _run(
    dsn: str,
    settings: Settings,
    job_name: str,
    config: Mapping[str, object],
    tags: Tags,
    *,
    resumed: str | None,
) -> OperationRun:
    """A run of the job, to its end; `resumed` is the operation that it goes on with."""
    with open_instance(settings, dsn) as instance:
        job = _job(job_name)
        run = _create_run(instance, job, config, {**tags, RESUME_TAG: resumed})
        correction_id = resumed or run.run_id
        with live_progress(dsn, settings, correction_id):
            events = _execute(instance, job, run)
        status = _status(instance, run)
    succeeded = status is dg.DagsterRunStatus.SUCCESS
    cancelled = status is dg.DagsterRunStatus.CANCELED
    return OperationRun(
        run_id=run.run_id,
        succeeded=succeeded,
        cancelled=cancelled,
        failure=None if succeeded or cancelled else _failure(events),
        operation=_operation(dsn, settings, correction_id),
        checks=_checks(events),
    )


def _job(name: str) -> ReconstructableJob:
    # Named rather than passed on: steps that the executor starts in other processes find it again.
    return ReconstructableRepository.for_module(_DEFINITIONS, "defs").get_reconstructable_job(name)


def _create_run(
    instance: dg.DagsterInstance, job: ReconstructableJob, config: Mapping[str, object], tags: Tags
) -> dg.DagsterRun:
    run_id = make_new_run_id()
    said = {name: value for name, value in tags.items() if value}
    # The run's log is in the UI; on the terminal it would tear the progress bar.
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    return instance.create_run_for_job(
        job.get_definition(),
        run_id=run_id,
        run_config={**config, **quiet},
        tags={USER_TAG: this_user(), **said, **process_tags(run_id)},
        remote_job_origin=remote_job_origin(job.job_name),
        job_code_origin=job.get_python_origin(),
    )


def _execute(
    instance: dg.DagsterInstance, job: ReconstructableJob, run: dg.DagsterRun
) -> list[DagsterEvent]:
    """All events of the run; a signal ends it as cancelled."""
    events: list[DagsterEvent] = []
    interrupted = False
    try:
        for event in execute_run_iterator(job, run, instance):
            events.append(event)
            if _tells_of_signal(event):
                interrupted = True
                # Otherwise Dagster, which was not asked to terminate it, counts it as failed.
                instance.report_run_canceling(run)
    except KeyboardInterrupt:  # before Dagster listened to signals, or after
        interrupted = True
    if interrupted and _status(instance, run) is not dg.DagsterRunStatus.CANCELED:
        instance.report_run_canceled(run)
    return events


def _tells_of_signal(event: DagsterEvent) -> bool:
    if not event.is_step_failure or event.step_failure_data.error is None:
        return False
    error = _innermost(event.step_failure_data.error)
    return error.cls_name == dg.DagsterExecutionInterruptedError.__name__


def _status(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    recorded = instance.get_run_by_id(run.run_id)
    return run.status if recorded is None else recorded.status


def _operation(dsn: str, settings: Settings, correction_id: str) -> Operation | None:
    with connect(dsn, settings, purpose="execute") as connection:
        try:
            return get_operation(connection, settings, correction_id)
        except OperationNotFoundError:
            return None


def _failure(events: Sequence[DagsterEvent]) -> str:
    """What the first step that failed said."""
    for event in events:
        if not event.is_step_failure:
            continue
        said, error = event.step_failure_data.user_failure_data, event.step_failure_data.error
        if said is not None and said.description:
            return said.description
        if error is not None:
            return _sentence(_innermost(error))
    failed = [event.message for event in events if event.is_failure and event.message]
    return failed[0] if failed else "the run ended without a reason"


def _innermost(error: SerializableErrorInfo) -> SerializableErrorInfo:
    while error.cause is not None:
        error = error.cause
    return error


def _sentence(error: SerializableErrorInfo) -> str:
    # "package.module.SomeError: sentence" says to people what the sentence says.
    kind, _, said = error.message.strip().partition(": ")
    return said if said and " " not in kind else error.message.strip()


def _checks(events: Sequence[DagsterEvent]) -> list[CheckOutcome]:
    evaluations = [
        event.asset_check_evaluation_data
        for event in events
        if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]
    return [
        CheckOutcome(
            asset=evaluation.asset_key.to_user_string(),
            name=evaluation.check_name,
            passed=evaluation.passed,
            severity=evaluation.severity.value,
            description=evaluation.description or "",
        )
        for evaluation in evaluations
    ]
