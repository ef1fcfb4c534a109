"""`assetclass execute` on real tables: a real Dagster run, its operation, signals."""

import os
import signal
import time

import dagster as dg
import psycopg

from assetclass_pipeline.engine.operations import get_operation
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline_tests.cli.command import LONGEST, Command
from assetclass_pipeline_tests.cli.running import instance_of, wait_for_progress
from assetclass_pipeline_tests.market import Bar, Market


def test_it_corrects_as_a_dagster_run_and_says_so_in_one_document(
    assetclass: Command, market: Market
) -> None:
    market.fill(3000, missing_every=3)
    market.add([Bar(9001, "GONE"), Bar(9002, "S1", asset_class="WRONG")])
    why = ["--reason", "nightly gap", "--ticket", "DATA-7"]
    finished = assetclass("execute", "--json", "--batch-size", "300", *why)

    assert finished.status == 0, finished.explain()
    operation = finished.document
    assert (operation["status"], operation["phase"]) == ("succeeded", "done")
    assert (operation["recordsPlanned"], operation["recordsCorrected"]) == (1000, 1000)
    assert (operation["reason"], operation["ticket"]) == ("nightly gap", "DATA-7")
    assert operation["options"]["batchSize"] == 300
    assert operation["correctionId"] == operation["runId"]
    assert market.backup_tables() == [operation["backupTable"]]

    classes = market.classes()
    assert (classes.pop(9001), classes.pop(9002)) == (None, "WRONG")
    assert classes == {number: f"CLASS_{number % 20 % 2}" for number in range(1, 3001)}

    with instance_of(assetclass) as instance:
        run = instance.get_run_by_id(operation["runId"])
        assert run is not None
        assert (run.status, run.job_name) == (dg.DagsterRunStatus.SUCCESS, "correction_job")
        assert run.tags["user"] == operation["requestedBy"]
        origin = run.remote_job_origin
        assert origin is not None
        assert origin.location_name == "assetclass_pipeline"

    shown = assetclass("status", operation["correctionId"], "--json").document
    assert shown == operation
    listed = assetclass("status", "--json").document["recentOperations"]
    assert [entry["correctionId"] for entry in listed] == [operation["correctionId"]]
    assert operation["correctionId"] in assetclass("status").out
    people = assetclass("status", operation["correctionId"]).out
    assert "1,000 corrected of 1,000 planned" in people
    assert operation["backupTable"] in people


def test_a_dry_run_changes_nothing_and_leaves_no_backup(
    assetclass: Command, market: Market
) -> None:
    market.fill(500, missing_every=2)
    before = market.versions()
    finished = assetclass("execute", "--dry-run", "--overwrite-existing")
    assert finished.status == 0, finished.explain()
    assert "250 would be corrected; nothing was changed" in finished.out
    assert market.versions() == before
    assert market.backup_tables() == []
    assert assetclass("status", "--json").document["recentOperations"] == []
    every = assetclass("status", "--json", "--include-all").document["recentOperations"]
    assert [entry["dryRun"] for entry in every] == [True]


def test_ctrl_c_stops_it_between_two_batches_and_the_next_one_does_the_rest(
    assetclass: Command, market: Market
) -> None:
    market.fill(20_000)
    # One row at a time on one connection, so that the signal comes in the midst of it.
    with assetclass.start("execute", "--batch-size", "1", "--workers", "1") as process:
        try:
            begun = wait_for_progress(market, process)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=LONGEST)
        finally:
            process.kill()
    assert process.returncode == 130, f"{out}\n{err}"
    assert "Traceback" not in err
    assert "Stopped between two batches" in err
    assert "assetclass execute" in err

    stopped = get_operation(market.connection, market.settings, begun.correction_id)
    assert stopped.status in {Status.CANCELLED, Status.INTERRUPTED}
    corrected = market.value("SELECT count(*) FROM market_data WHERE asset_class IS NOT NULL")
    assert 0 < corrected < 20_000
    assert stopped.records_corrected == corrected
    with instance_of(assetclass) as instance:
        run = instance.get_run_by_id(begun.correction_id)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.CANCELED

    rest = assetclass("execute", "--json", "--batch-size", "5000")
    assert rest.status == 0, rest.explain()
    assert rest.document["recordsCorrected"] == 20_000 - corrected


def test_a_failed_run_tells_the_operations_error(
    assetclass: Command, market: Market, another_database_url: str
) -> None:
    market.fill(100)
    market.execute("ALTER TABLE market_data ADD CHECK (asset_class IS DISTINCT FROM 'CLASS_1')")
    finished = assetclass("execute", "--json")
    assert finished.status == 1, finished.explain()
    operation = finished.document
    assert operation["status"] == "failed"
    assert operation["error"]["message"]
    assert operation["error"]["message"] in finished.err
    assert "Traceback" not in finished.err
    with psycopg.connect(another_database_url) as storage:
        assert storage.execute("SELECT status FROM runs").fetchall() == [("FAILURE",)]


def test_nothing_outlives_the_command(assetclass: Command, market: Market) -> None:
    market.fill(10)
    assert assetclass("execute").status == 0
    # A process of PostgreSQL ends a moment after its client.
    deadline = time.monotonic() + LONGEST
    while left := market.rows(
        "SELECT application_name FROM pg_stat_activity "
        "WHERE application_name LIKE 'assetclass:%' AND pid <> pg_backend_pid()"
    ):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert "DAGSTER_HOME" not in os.environ
