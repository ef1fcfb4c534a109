"""Runs in processes of their own: Dagster's default executor, and Terminate in the UI."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository

from assetclass_pipeline.defs.rollback import rollback_run_config
from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline_tests.defs.conftest import Pipeline, failure

_HERE = "assetclass_pipeline_tests.defs"
_ROOT = Path(__file__).parents[2]
_ASSETS = ("integrity_report", "market_data_backup", "corrected_market_data", "quality_report")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What child processes need beside the instance's variables."""
    monkeypatch.setenv("ASSETCLASS_FIRST_MONTH", "2023-01-01")
    monkeypatch.setenv("ASSETCLASS_HEARTBEAT_INTERVAL", "0.5")
    monkeypatch.setenv("ASSETCLASS_HEARTBEAT_STALE_AFTER", "2")


def test_each_step_in_its_own_process_without_a_partition(pipeline: Pipeline) -> None:
    repository = ReconstructableRepository.for_module(
        f"{_HERE}.multiprocess_definitions", "defs", working_directory=str(_ROOT)
    )
    with dg.execute_job(
        repository.get_reconstructable_job("__ASSET_JOB"),
        pipeline.instance,
        asset_selection=[dg.AssetKey(name) for name in _ASSETS],
    ) as result:
        assert result.success
    assert len(pipeline.months()) > 40
    assert set(pipeline.market.classes().values()) == {"STOCK", "CRYPTO"}
    assert pipeline.operation(result.run_id).status is Status.SUCCEEDED


@contextmanager
def working(run: dg.DagsterRun) -> Iterator[subprocess.Popen[bytes]]:
    """A run worker that executes the run."""
    process = subprocess.Popen([sys.executable, "-m", f"{_HERE}.execute_run", run.run_id])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def worker(pipeline: Pipeline) -> Iterator[subprocess.Popen[bytes]]:
    """A run worker that corrects 10,000 rows, ten at a time: long enough to be stopped."""
    pipeline.market.create().fill(10_000)
    definition = pipeline.defs.resolve_job_def("correction_job")
    config = {"batch_size": 10, "workers": 1}
    run = pipeline.instance.create_run_for_job(
        definition, run_config={"resources": {"correction_options": {"config": config}}}
    )
    with working(run) as process:
        yield process


def test_terminate_ends_the_operation_as_cancelled_and_re_executing_goes_on(
    pipeline: Pipeline, worker: subprocess.Popen[bytes]
) -> None:
    run_id = str(worker.args[-1])  # type: ignore[index]  # the list given above
    run = terminate(pipeline, worker, run_id)
    operation = pipeline.operation(run_id)
    assert operation.status is Status.CANCELLED
    assert 0 < operation.records_corrected < 10_000
    again = pipeline.launch(parent=run)
    assert again.success
    assert pipeline.operation(run_id).status is Status.SUCCEEDED
    assert None not in pipeline.market.classes().values()


def test_a_terminated_rollback_goes_on_by_re_executing(pipeline: Pipeline) -> None:
    market = pipeline.market.create().fill(2000, missing_every=2)
    before = market.classes()
    request = CorrectionRequest(str(uuid4()), CorrectionOptions())
    correction = correct(market.dsn, pipeline.settings, request)
    market.execute(
        "CREATE FUNCTION rest() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END $$"
    )
    market.execute(
        "CREATE TRIGGER rest AFTER UPDATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION rest()",
        market.market_identifier,
    )
    options = RollbackOptions(batch_size=10, workers=1)
    config = rollback_run_config(correction.correction_id, options, reason="a test")
    definition = pipeline.defs.resolve_job_def("rollback_job")
    run = pipeline.instance.create_run_for_job(definition, run_config=config)
    with working(run) as process:
        run = terminate(pipeline, process, run.run_id)
    operation = pipeline.operation(run.run_id)
    assert operation.status is Status.CANCELLED
    assert 0 < operation.records_corrected < 1000
    market.execute("DROP TRIGGER rest ON {}", market.market_identifier)
    again = pipeline.launch(job="rollback_job", ops=config["ops"], parent=run)
    assert again.success, failure(again)
    operation = pipeline.operation(run.run_id)
    assert (operation.status, operation.records_restored) == (Status.SUCCEEDED, 1000)
    assert operation.run_id == again.run_id
    assert market.classes() == before


def terminate(pipeline: Pipeline, worker: subprocess.Popen[bytes], run_id: str) -> dg.DagsterRun:
    """Do what Dagster's launcher does when somebody presses Terminate in the midst of the run."""
    _wait_until_it_writes(pipeline, worker, run_id)
    run = pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    pipeline.instance.report_run_canceling(run)
    worker.send_signal(signal.SIGINT)
    worker.wait(timeout=120)
    run = pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED
    return run


def _wait_until_it_writes(pipeline: Pipeline, worker: subprocess.Popen[bytes], run_id: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and worker.poll() is None:
        if pipeline.market.execute(
            "SELECT FROM assetclass.operation_batch WHERE correction_id = %s LIMIT 1",
            values=(run_id,),
        ).rowcount:
            return
        time.sleep(0.1)
    raise AssertionError("the run never came to write")
