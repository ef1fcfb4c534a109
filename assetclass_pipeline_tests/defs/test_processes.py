"""Runs in processes of their own: Dagster's default executor, and Terminate in the UI."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository

from assetclass_pipeline.model.operation import Status
from assetclass_pipeline_tests.defs.conftest import Pipeline

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


@pytest.fixture
def worker(pipeline: Pipeline) -> Iterator[subprocess.Popen[bytes]]:
    """A run worker that corrects 10,000 rows, ten at a time: long enough to be stopped."""
    pipeline.market.create().fill(10_000)
    definition = pipeline.defs.resolve_job_def("correction_job")
    config = {"batch_size": 10, "workers": 1}
    run = pipeline.instance.create_run_for_job(
        definition, run_config={"resources": {"correction_options": {"config": config}}}
    )
    process = subprocess.Popen([sys.executable, "-m", f"{_HERE}.execute_correction", run.run_id])
    yield process
    process.kill()
    process.wait()


def test_terminate_ends_the_operation_as_cancelled_and_re_executing_goes_on(
    pipeline: Pipeline, worker: subprocess.Popen[bytes]
) -> None:
    run_id = str(worker.args[-1])  # type: ignore[index]  # the list given above
    _wait_until_it_corrects(pipeline, worker)
    run = pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    # What Dagster's launcher does when somebody presses Terminate.
    pipeline.instance.report_run_canceling(run)
    worker.send_signal(signal.SIGINT)
    worker.wait(timeout=30)
    operation = pipeline.operation(run_id)
    assert operation.status is Status.CANCELLED
    assert 0 < operation.records_corrected < 10_000
    run = pipeline.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED
    again = pipeline.launch(parent=run)
    assert again.success
    assert pipeline.operation(run_id).status is Status.SUCCEEDED
    assert None not in pipeline.market.classes().values()


def _wait_until_it_corrects(pipeline: Pipeline, worker: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and worker.poll() is None:
        if pipeline.market.rows("SELECT FROM assetclass.operation_batch LIMIT 1"):
            return
        time.sleep(0.1)
    raise AssertionError("the run never came to correct")
