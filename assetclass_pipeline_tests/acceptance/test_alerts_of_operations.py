"""Alerts about corrections: real ones that are killed, paused, refused and slowed down."""

from collections.abc import Callable
from datetime import timedelta
from typing import LiteralString

import pytest

from assetclass_pipeline.defs.resources import correction_run_config
from assetclass_pipeline.engine.control import ask_to_pause, ask_to_resume
from assetclass_pipeline.engine.operations import operation_status
from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.acceptance.alert_table import hand_in
from assetclass_pipeline_tests.acceptance.watched import Story, Watched
from assetclass_pipeline_tests.cli.test_supervisor import wait_until

pytestmark = [
    pytest.mark.dagster_services,
    pytest.mark.timeout(600),
]

ROWS = 300
DURATION = 10.0
SETTINGS = {
    "ASSETCLASS_THRESHOLDS__DURATION": str(DURATION),
    "ASSETCLASS_THRESHOLDS__ERROR_RATE": "50",
    "ASSETCLASS_ALERTS__SLOWER_BY_AT_LEAST": "1",
    "ASSETCLASS_HEARTBEAT_INTERVAL": "1",
    "ASSETCLASS_HEARTBEAT_STALE_AFTER": "5",
    # What the rows are like is the other module's matter.
    "ASSETCLASS_THRESHOLDS__COMPLETENESS": "0",
    "ASSETCLASS_THRESHOLDS__QUALITY_SCORE": "0",
    "ASSETCLASS_THRESHOLDS__CORRECTABLE": "100",
    "ASSETCLASS_THRESHOLDS__DEGRADATION": "100",
}
IN_SMALL_BATCHES = correction_run_config(CorrectionOptions(batch_size=50, workers=1))

STORIES = {
    "sla": Story(
        AlertType.SLA_VIOLATION,
        "sla:correction",
        "an operation is not done within the limit",
        "paused for longer than that",
    ),
    "refused": Story(
        AlertType.HIGH_ERROR_RATE,
        "error_rate:correction",
        "more than 10 % of the rows refused",
        "a trigger that refuses 15 %",
    ),
    "slow": Story(
        AlertType.PERFORMANCE_DEGRADATION,
        "performance:correction",
        "slower than past runs of its size",
        "three fast corrections, then a trigger that sleeps",
    ),
    "failed": Story(
        AlertType.OPERATION_FAILED,
        "operation_failed:correction",
        "an operation did not end well",
        "run worker killed in mid-run; then writing forbidden",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def played(watched: Watched) -> None:
    """One story after the other: only one operation runs at a time."""
    watched.market.list_symbols(("AAPL", "STOCK"))
    for _ in range(3):
        _damage(watched)
        watched.launch("correction_job")

    for again in (False, True):
        _damage(watched)
        _drag(watched)
        _refuse(watched, "NEW.id > 255", "check_violation")
        begun = _begin(watched)
        _control(watched, ask_to_pause, begun)
        if again:
            watched.kill_daemon()
            watched.wait_again("sla")
        else:
            assert begun.started_at is not None
            watched.came_true(begun.started_at + timedelta(seconds=DURATION), "sla")
            watched.wait_told("sla")
        _control(watched, ask_to_resume, begun)
        ended = _wait_for(watched, lambda found: found.finished_at is not None)
        assert (ended.status, ended.records_failed) == (Status.SUCCEEDED, 45)
        if not again:
            assert ended.finished_at is not None
            watched.came_true(ended.finished_at, "refused", "slow")
            watched.wait_told("refused", "slow")
    watched.wait_again("refused", "slow")
    _damage(watched)
    watched.launch("correction_job")
    watched.wait_over("sla", "refused", "slow")

    _damage(watched)
    _drag(watched)
    begun = _begin(watched)
    watched.came_true(watched.kill_run_worker(begun.run_id), "failed")
    watched.wait_told("failed")
    watched.kill_daemon()
    _damage(watched)
    _refuse(watched, "true", "insufficient_privilege")
    watched.launch("correction_job", succeeds=False)
    watched.wait_again("failed")
    _damage(watched)
    watched.launch("correction_job")
    watched.wait_over("failed")


def _damage(watched: Watched) -> None:
    """All rows missing, as they were first; whatever stood in the way of a correction is gone."""
    watched.market.execute("DROP TRIGGER IF EXISTS drag ON market_data")
    watched.market.execute("DROP TRIGGER IF EXISTS refuse ON market_data")
    watched.market.execute("TRUNCATE market_data")
    watched.market.execute(
        'INSERT INTO market_data (id, symbol, "timestamp") '
        "SELECT n, 'AAPL', now() FROM generate_series(1, %s) n",
        values=(ROWS,),
    )


def _drag(watched: Watched) -> None:
    watched.market.execute(
        "CREATE OR REPLACE FUNCTION drag() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(0.8); RETURN NULL; END'"
    )
    watched.market.execute(
        "CREATE TRIGGER drag AFTER UPDATE ON market_data FOR EACH STATEMENT EXECUTE FUNCTION drag()"
    )


def _refuse(watched: Watched, which: LiteralString, why: LiteralString) -> None:
    """A trigger that refuses rows, one by one or the statement as such."""
    watched.market.execute(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'not this row' USING ERRCODE = TG_ARGV[0]; END$$"
    )
    watched.market.connection.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON market_data FOR EACH ROW "
        f"WHEN ({which}) EXECUTE FUNCTION refuse('{why}')"
    )


def _begin(watched: Watched) -> Operation:
    """A run that Dagster launches, once it has written its first rows."""
    watched.up.launch("correction_job", IN_SMALL_BATCHES)
    return _wait_for(
        watched, lambda found: found.status is Status.RUNNING and found.records_corrected > 0
    )


def _wait_for(watched: Watched, happened: Callable[[Operation], bool]) -> Operation:
    """The newest operation, once that is so."""
    found: list[Operation] = []

    def look() -> bool:
        status = operation_status(watched.connection, watched.settings, include_all=True)
        newest = status.current_operation or next(iter(status.recent_operations), None)
        found[:] = [newest] if newest and happened(newest) else []
        return bool(found)

    wait_until(look)
    return found[0]


def _control(watched: Watched, ask: Callable[..., Operation], operation: Operation) -> None:
    ask(watched.connection, watched.settings, operation.correction_id, by="anna")


@pytest.mark.parametrize("name", STORIES)
def test_people_are_told_once_in_time_and_once_that_it_is_over(
    name: str, watched: Watched, request: pytest.FixtureRequest
) -> None:
    hand_in(request.node, watched.assert_told_once(name))


def test_nobody_is_told_of_anything_else(watched: Watched) -> None:
    watched.assert_nothing_else()
