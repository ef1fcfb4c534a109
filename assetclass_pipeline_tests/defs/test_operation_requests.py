"""The sensor that launches what was asked for over HTTP: once, and never what was cancelled."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.storage.tags import RUN_KEY_TAG
from psycopg import sql

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.defs.instance import remote_job_origin
from assetclass_pipeline.defs.sensors.operation_requests import OPERATION_REQUESTS
from assetclass_pipeline.engine.claiming import CorrectionRequest
from assetclass_pipeline.engine.control import ask_to_cancel
from assetclass_pipeline.engine.requests import (
    request_correction,
    request_rollback,
    resume,
    waiting_request,
)
from assetclass_pipeline.engine.rollback import RollbackRequest
from assetclass_pipeline.model.months import Calendar, TimeRange
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline.model.options import parse_options
from assetclass_pipeline.model.rollback import parse_rollback_options
from assetclass_pipeline_tests.defs.conftest import Pipeline, failure

ALICE = "token alice"


def ask(pipeline: Pipeline, *, scope: TimeRange | None = None, **options: Any) -> str:
    """Ask for a correction as the API does; returns its correctionId."""
    request = CorrectionRequest(
        str(uuid4()),
        parse_options({"batch_size": 10, **options}),
        scope or TimeRange(),
        requested_by=ALICE,
        reason="feed without classes",
        ticket="OPS-1",
    )
    with connect(pipeline.market.dsn, pipeline.settings, purpose="test") as connection:
        asked = request_correction(connection, pipeline.settings, request, correlation_id="abc")
    return asked.correction_id


def ask_to_undo(pipeline: Pipeline, correction_id: str, **options: Any) -> str:
    request = RollbackRequest(
        str(uuid4()), correction_id, parse_rollback_options(options), requested_by=ALICE
    )
    with connect(pipeline.market.dsn, pipeline.settings, purpose="test") as connection:
        return request_rollback(connection, pipeline.settings, request).correction_id


def cancel(pipeline: Pipeline, correction_id: str) -> Operation:
    with connect(pipeline.market.dsn, pipeline.settings, purpose="test") as connection:
        return ask_to_cancel(connection, pipeline.settings, correction_id, by=ALICE)


def go_on(pipeline: Pipeline, correction_id: str) -> Operation:
    with connect(pipeline.market.dsn, pipeline.settings, purpose="test") as connection:
        return resume(connection, pipeline.settings, correction_id, by=ALICE)


def tick(pipeline: Pipeline) -> dg.RunRequest | str:
    """The run that the sensor asks for, or why it asks for none."""
    with dg.build_sensor_context(
        instance=pipeline.instance,
        resources={"database": (pipeline.defs.resources or {})["database"]},
        definitions=pipeline.defs,
    ) as context:
        decided = pipeline.defs.resolve_sensor_def(OPERATION_REQUESTS).evaluate_tick(context)
    if decided.run_requests:
        [request] = decided.run_requests
        return request
    return decided.skip_message or ""


def asked_run(pipeline: Pipeline) -> dg.RunRequest:
    request = tick(pipeline)
    assert isinstance(request, dg.RunRequest), request
    return request


def create(
    pipeline: Pipeline,
    request: dg.RunRequest,
    *,
    status: dg.DagsterRunStatus | None = None,
    parent: dg.DagsterRun | None = None,
) -> dg.DagsterRun:
    """A run as the daemon makes it of a request, or a re-execution of it."""
    job = pipeline.defs.resolve_job_def(str(request.job_name))
    tags = {"dagster/sensor_name": OPERATION_REQUESTS, RUN_KEY_TAG: str(request.run_key)}
    return pipeline.instance.create_run_for_job(
        job,
        run_config={
            **(request.run_config or {}),
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        tags={**request.tags, **tags},
        status=status,
        remote_job_origin=remote_job_origin(job.name),
        parent_run_id=parent.run_id if parent else None,
        root_run_id=parent.run_id if parent else None,
    )


def execute(pipeline: Pipeline, run: dg.DagsterRun) -> dg.JobExecutionResult:
    job = pipeline.defs.resolve_job_def(run.job_name)
    return execute_run(InMemoryJob(job), run, pipeline.instance, raise_on_error=False)


def test_without_a_request_it_skips(pipeline: Pipeline) -> None:
    assert tick(pipeline) == "Nothing is asked for."


def test_a_request_becomes_a_run_that_works_on_the_same_operation(pipeline: Pipeline) -> None:
    correction_id = ask(pipeline, validate_after_each_batch=False, timeout="01:00:00")
    request = asked_run(pipeline)
    assert (request.job_name, request.run_key) == ("correction_job", correction_id)
    result = execute(pipeline, create(pipeline, request))
    assert result.success, failure(result)

    operation = pipeline.operation(correction_id)
    assert operation.status is Status.SUCCEEDED
    assert operation.records_corrected == 41
    assert operation.run_id == result.run_id
    assert operation.requested_by == ALICE
    assert (operation.reason, operation.ticket) == ("feed without classes", "OPS-1")
    assert operation.options["timeout"] == "01:00:00"
    assert operation.options["validateAfterEachBatch"] is False
    assert pipeline.run(result).tags["assetclass/correlation_id"] == "abc"
    assert len(pipeline.operations()) == 1
    claimed = pipeline.market.rows(
        "SELECT actor, actor_kind, outcome FROM assetclass.audit_log"
        " WHERE action = 'claim_operation' AND correction_id = {}"
        " ORDER BY number",
        sql.Literal(correction_id),
    )
    assert claimed == [("alice", "token", "begun"), ("alice", "token", "continued")]
    assert tick(pipeline) == "Nothing is asked for."


def test_a_dry_run_changes_nothing(pipeline: Pipeline) -> None:
    correction_id = ask(pipeline, dry_run=True)
    result = execute(pipeline, create(pipeline, asked_run(pipeline)))
    assert result.success, failure(result)
    operation = pipeline.operation(correction_id)
    assert (operation.status, operation.records_planned) == (Status.SUCCEEDED, 41)
    assert set(pipeline.market.classes().values()) == {None}


def test_a_rollback_is_launched_as_the_other_job(pipeline: Pipeline) -> None:
    corrected = ask(pipeline)
    execute(pipeline, create(pipeline, asked_run(pipeline)))
    rollback_id = ask_to_undo(pipeline, corrected, target_symbols=["AAPL"])
    request = asked_run(pipeline)
    assert (request.job_name, request.run_key) == ("rollback_job", rollback_id)
    result = execute(pipeline, create(pipeline, request))
    assert result.success, failure(result)
    operation = pipeline.operation(rollback_id)
    assert operation.records_restored == 21
    assert operation.requested_by == ALICE
    assert operation.reason is None


def test_a_part_of_the_months_is_launched_as_their_range(pipeline: Pipeline) -> None:
    calendar = Calendar.until_now(pipeline.settings.first_month)
    ask(pipeline, scope=calendar.range_of("2023-02-01", "2023-03-01"))
    result = execute(pipeline, create(pipeline, asked_run(pipeline)))
    assert result.success, failure(result)
    assert pipeline.months() == {"2023-02-01", "2023-03-01"}


def test_a_long_reason_fits_into_a_tag(pipeline: Pipeline) -> None:
    correction_id = ask(pipeline)
    reason = "ü" * 5000
    pipeline.market.execute("UPDATE assetclass.operation SET reason = %s", values=(reason,))
    run = create(pipeline, asked_run(pipeline))
    assert run.tags["assetclass/reason"] == "ü" * 500
    execute(pipeline, run)
    assert pipeline.operation(correction_id).reason == reason


def test_once_its_run_exists_no_other_is_asked_for(pipeline: Pipeline) -> None:
    correction_id = ask(pipeline)
    run = create(pipeline, asked_run(pipeline), status=dg.DagsterRunStatus.QUEUED)
    said = tick(pipeline)
    assert said == f"Run {run.run_id} of operation {correction_id} is QUEUED."
    with connect(pipeline.market.dsn, pipeline.settings, purpose="test") as connection:
        waiting = waiting_request(connection, pipeline.settings)
    assert waiting is not None
    assert waiting.run_id == run.run_id


def test_a_run_that_was_made_and_not_launched_is_asked_for_again(pipeline: Pipeline) -> None:
    ask(pipeline)
    request = asked_run(pipeline)
    create(pipeline, request)
    assert asked_run(pipeline).run_key == request.run_key


def ended_in_queue(pipeline: Pipeline, run: dg.DagsterRun) -> None:
    pipeline.instance.report_run_canceled(run)


def failed(pipeline: Pipeline, run: dg.DagsterRun) -> None:
    pipeline.instance.report_run_failed(run)


def deleted_unseen(pipeline: Pipeline, run: dg.DagsterRun) -> None:
    tick(pipeline)
    pipeline.instance.delete_run(run.run_id)


@pytest.mark.parametrize(
    ("what_happened", "status", "code"),
    [
        (ended_in_queue, Status.CANCELLED, "RUN_TERMINATED"),
        (failed, Status.FAILED, "RUN_FAILED"),
        (deleted_unseen, Status.FAILED, "RUN_DELETED"),
    ],
)
def test_a_request_whose_run_cannot_begin_any_more_is_ended(
    pipeline: Pipeline,
    what_happened: Callable[[Pipeline, dg.DagsterRun], None],
    status: Status,
    code: str,
) -> None:
    correction_id = ask(pipeline)
    run = create(pipeline, asked_run(pipeline), status=dg.DagsterRunStatus.QUEUED)
    what_happened(pipeline, run)
    assert isinstance(tick(pipeline), str)
    operation = pipeline.operation(correction_id)
    assert operation.status is status
    assert operation.error is not None
    assert operation.error.code == code
    assert run.run_id in operation.error.message
    assert tick(pipeline) == "Nothing is asked for."


def test_a_run_that_fails_before_the_operation_begins_ends_it(pipeline: Pipeline) -> None:
    correction_id = ask(pipeline)
    run = create(pipeline, asked_run(pipeline))
    pipeline.market.execute("ALTER TABLE {} RENAME TO gone", pipeline.market.symbols_identifier)
    assert not execute(pipeline, run).success
    tick(pipeline)
    assert pipeline.operation(correction_id).status is Status.FAILED


def test_what_is_cancelled_in_the_queue_never_begins(pipeline: Pipeline) -> None:
    correction_id = ask(pipeline)
    run = create(pipeline, asked_run(pipeline), status=dg.DagsterRunStatus.QUEUED)
    cancel(pipeline, correction_id)
    assert tick(pipeline) == "Nothing is asked for."
    stored = pipeline.instance.get_run_by_id(run.run_id)
    assert stored is not None
    assert stored.status is dg.DagsterRunStatus.CANCELED


def test_a_cancelled_one_whose_run_begins_all_the_same_changes_nothing(
    pipeline: Pipeline,
) -> None:
    correction_id = ask(pipeline)
    run = create(pipeline, asked_run(pipeline))
    cancel(pipeline, correction_id)
    result = execute(pipeline, run)
    assert not result.success
    assert "cancelled" in failure(result)
    assert set(pipeline.market.classes().values()) == {None}
    assert pipeline.operation(correction_id).status is Status.CANCELLED
    assert len(pipeline.operations()) == 1


def test_its_run_executed_again_by_hand_goes_on(pipeline: Pipeline) -> None:
    correction_id = ask(pipeline)
    request = asked_run(pipeline)
    first = create(pipeline, request)
    cancel(pipeline, correction_id)
    execute(pipeline, first)
    result = execute(pipeline, create(pipeline, request, parent=first))
    assert result.success, failure(result)
    assert pipeline.operation(correction_id).status is Status.SUCCEEDED


def test_what_is_resumed_is_launched_by_a_run_of_its_own(pipeline: Pipeline) -> None:
    correction_id = ask(pipeline)
    first = create(pipeline, asked_run(pipeline), status=dg.DagsterRunStatus.QUEUED)
    cancel(pipeline, correction_id)
    go_on(pipeline, correction_id)
    request = asked_run(pipeline)
    assert request.run_key == f"{correction_id}/2"
    stored = pipeline.instance.get_run_by_id(first.run_id)
    assert stored is not None
    assert stored.status is dg.DagsterRunStatus.CANCELED
    result = execute(pipeline, create(pipeline, request))
    assert result.success, failure(result)
    assert pipeline.operation(correction_id).status is Status.SUCCEEDED


def test_what_somebody_executes_again_stays_in_the_queue(pipeline: Pipeline) -> None:
    correction_id = ask(pipeline)
    request = asked_run(pipeline)
    first = create(pipeline, request, status=dg.DagsterRunStatus.QUEUED)
    cancel(pipeline, correction_id)
    again = create(pipeline, request, status=dg.DagsterRunStatus.QUEUED, parent=first)
    tick(pipeline)
    stored = pipeline.instance.get_run_by_id(again.run_id)
    assert stored is not None
    assert stored.status is dg.DagsterRunStatus.QUEUED
