"""`assetclass pause | resume | cancel | tune` beside a real `execute` in mid-correction."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import pytest

from assetclass_pipeline.engine.correction import CorrectionRequest, correct, plan
from assetclass_pipeline.engine.operations import get_operation, operation_status
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.cli.command import LONGEST, Command, Finished
from assetclass_pipeline_tests.market import Market

RECORDS = 4000
# With the usual settings a dead process is thought alive for a while after the server's start.
SOON_MISSED = {"ASSETCLASS_HEARTBEAT_INTERVAL": "0.1", "ASSETCLASS_HEARTBEAT_STALE_AFTER": "0.5"}
# Far more batches than a test lets pass before it asks for something else.
IN_SMALL_BATCHES = ("--batch-size", "4", "--workers", "1")


@dataclass
class Executing:
    """An `assetclass execute` that runs, and its operation."""

    process: subprocess.Popen[str]
    market: Market
    correction_id: str = ""

    @property
    def operation(self) -> Operation:
        return get_operation(self.market.connection, self.market.settings, self.correction_id)

    def wait_for(self, happened: Callable[[Operation], bool]) -> Operation:
        """The operation as soon as that is so."""
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline and self.process.poll() is None:
            if happened(state := self.operation):
                return state
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError(f"it did not happen: {self.process.communicate()}")

    def end(self) -> Finished:
        out, err = self.process.communicate(timeout=LONGEST)
        return Finished(self.process.returncode, out, err)


@contextmanager
def executing(assetclass: Command, market: Market, *options: str) -> Iterator[Executing]:
    """A correction that has written its first batches; each batch takes its time."""
    market.fill(RECORDS)
    market.execute(
        "CREATE FUNCTION rest() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END $$"
    )
    market.execute(
        "CREATE TRIGGER rest AFTER UPDATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION rest()",
        market.market_identifier,
    )
    with assetclass.start("execute", *IN_SMALL_BATCHES, *options) as process:
        try:
            running = Executing(process, market)
            running.correction_id = _active_id(market, process)
            running.wait_for(lambda operation: operation.records_corrected > 0)
            yield running
        finally:
            process.kill()


def _active_id(market: Market, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline and process.poll() is None:
        active = operation_status(market.connection, market.settings).current_operation
        if active is not None:
            return active.correction_id
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no operation: {process.communicate()}")


def let_it_run(market: Market) -> None:
    market.execute("DROP TRIGGER rest ON {}", market.market_identifier)


def each_row_is_written_once(market: Market, correction_id: str) -> bool:
    """No row without class, and the ledger's ranges add up to the plan without overlapping."""
    written, batches, ranges = market.rows(
        "SELECT sum(records_corrected)::int, sum(last_seq - first_seq + 1)::int, "
        "range_agg(int8range(first_seq, last_seq, '[]'))::text "
        "FROM assetclass.operation_batch WHERE pass = 0"
    )[0]
    operation = get_operation(market.connection, market.settings, correction_id)
    assert ranges == f"{{[1,{RECORDS + 1})}}"
    assert None not in market.classes().values()
    return bool(written == batches == operation.records_corrected == RECORDS)


def test_pause_status_tune_resume(assetclass: Command, market: Market) -> None:
    with executing(assetclass, market) as running:
        paused = assetclass("pause")
        assert paused.status == 0, paused.explain()
        assert f"Operation {running.correction_id}: " in paused.out
        stays = running.wait_for(lambda operation: operation.status is Status.PAUSED)

        shown = assetclass("status")
        assert f"correction {running.correction_id} paused" in shown.out
        assert "`assetclass resume` goes on" in shown.out
        assert "pause requested" in shown.out
        document = assetclass("status", "--json").document["currentOperation"]
        assert document["status"] == "paused"
        assert re.fullmatch(r"Paused by .+: `assetclass resume` goes on\.", *document["throttle"])
        again = assetclass("pause", running.correction_id)
        assert again.status == 1
        assert "is paused already" in again.err

        tuned = assetclass(
            *("tune", "--batch-size", "500", "--workers", "2", "--json"),
            *("--throttle", "lag_seconds=5", "--throttle", "slot_wal_bytes=null"),
        )
        assert tuned.status == 0, tuned.explain()
        newest = tuned.document["events"][0]
        assert (newest["event"], newest["actor"]) == ("tuned", stays.requested_by)
        limits = {"lagSeconds": 5, "slotWalBytes": None}
        assert newest["details"] == {"batchSize": 500, "workers": 2, "throttle": limits}
        assert running.operation.records_corrected == stays.records_corrected < RECORDS

        let_it_run(market)
        resumed = assetclass("resume")
        assert resumed.status == 0, resumed.explain()
        finished = running.end()
    assert finished.status == 0, finished.explain()
    assert "paused" in finished.err
    ended = running.operation
    assert (ended.status, ended.records_corrected) == (Status.SUCCEEDED, RECORDS)
    assert market.value("SELECT max(last_seq - first_seq + 1) FROM assetclass.operation_batch") > 4
    assert each_row_is_written_once(market, running.correction_id)
    people = assetclass("status", running.correction_id).out
    assert "workers 2, batch_size 500, throttle lag_seconds 5" in people
    assert "resume requested" in people


def test_cancel_and_resume_by_hand(assetclass: Command, market: Market) -> None:
    with executing(assetclass, market) as running:
        cancelled = assetclass("cancel", "--json")
        assert cancelled.document["correctionId"] == running.correction_id
        finished = running.end()
    assert finished.status == 1, finished.explain()
    assert "was cancelled between two batches by" in finished.err
    assert f"assetclass resume {running.correction_id}" in finished.err
    assert "Traceback" not in finished.err
    left = running.operation
    assert left.status is Status.CANCELLED
    assert 0 < left.records_corrected < RECORDS

    let_it_run(market)
    resumed = assetclass("resume", running.correction_id, "--json")
    assert resumed.status == 0, resumed.explain()
    assert resumed.document["correctionId"] == running.correction_id
    assert resumed.document["status"] == "succeeded"
    assert resumed.document["runId"] != left.run_id
    assert resumed.document["backupTable"] == left.backup_table
    assert market.backup_tables() == [left.backup_table]
    assert each_row_is_written_once(market, running.correction_id)
    every = assetclass("status", "--include-all", "--json").document["recentOperations"]
    assert [operation["correctionId"] for operation in every] == [running.correction_id]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_what_a_signal_stopped_is_resumed(
    assetclass: Command, market: Market, number: signal.Signals
) -> None:
    with executing(assetclass, market, "--json") as running:
        running.process.send_signal(number)
        finished = running.end()
    assert finished.status == 130, finished.explain()
    assert f"`assetclass resume {running.correction_id}`" in finished.err
    let_it_run(market)
    resumed = assetclass("resume", running.correction_id)
    assert resumed.status == 0, resumed.explain()
    assert "4,000 corrected of 4,000 planned" in resumed.out
    assert each_row_is_written_once(market, running.correction_id)


def test_what_died_is_resumed(assetclass: Command, market: Market) -> None:
    with executing(assetclass, market) as running:
        running.process.kill()
        running.process.wait()
    let_it_run(market)
    market.execute("UPDATE assetclass.operation_heartbeat SET beat_at = now() - interval '1 hour'")
    looked = assetclass("status", **SOON_MISSED)
    assert "dead, not heard of for" in looked.out, looked.explain()
    assert f"`assetclass resume {running.correction_id}` goes on" in " ".join(looked.out.split())
    resumed = assetclass("resume", running.correction_id, **SOON_MISSED)
    assert resumed.status == 0, resumed.explain()
    assert each_row_is_written_once(market, running.correction_id)


@pytest.mark.parametrize("command", ["pause", "resume", "cancel", "tune"])
def test_nothing_to_ask_of(assetclass: Command, market: Market, command: str) -> None:
    assert market.classes() == {}
    options = ["--workers", "2"] if command == "tune" else []
    alone = assetclass(command, *options)
    assert alone.status == 4, alone.explain()
    assert "No operation is active" in alone.err
    unknown = assetclass(command, str(uuid4()), *options, "--json")
    assert (unknown.status, unknown.document["errorCode"]) == (4, "OPERATION_NOT_FOUND")
    assert unknown.err == ""
    no_id = assetclass(command, "yesterday", *options)
    assert no_id.status == 4
    assert "'yesterday'" in no_id.err


@dataclass(frozen=True)
class Known:
    """Operations that no process works on: one that waits, one that ended well."""

    planned: str
    succeeded: str


@pytest.fixture
def known(market: Market) -> Known:
    market.fill(10)
    planned, succeeded = str(uuid4()), str(uuid4())
    plan(market.dsn, market.settings, CorrectionRequest(planned, CorrectionOptions()), park=True)
    correct(market.dsn, market.settings, CorrectionRequest(succeeded, CorrectionOptions()))
    return Known(planned, succeeded)


def test_states_in_which_it_cannot_be_asked(assetclass: Command, known: Known) -> None:
    for command, options in (("pause", []), ("resume", []), ("tune", ["--workers", "2"])):
        refused = assetclass(command, known.succeeded, *options, "--json")
        assert refused.status == 1, refused.explain()
        assert refused.document["errorCode"] == "OPERATION_STATE_CONFLICT"
        assert f"{known.succeeded} is succeeded" in refused.document["message"]
    refused = assetclass("cancel", known.planned)
    assert (refused.status, refused.out) == (1, "")
    assert "is planned; only an active one can be cancelled" in refused.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "Say what to change"),
        (["--throttle", "lag_seconds"], "--throttle lag_seconds: write it as NAME=VALUE"),
        (["--throttle", "lag_seconds=soon"], "lagSeconds: "),
        (["--throttle", "lag_seconds=-1"], "lagSeconds: "),
        (["--throttle", "speed=9"], "speed: unknown option"),
        (["--throttle", "condition=SELECT true"], "ASSETCLASS_THROTTLE__CONDITION"),
        (["--workers", "99"], "workers: "),
        (["--batch-size", "0"], "batch_size: "),
    ],
)
def test_values_that_cannot_be_used_are_named(
    assetclass: Command, known: Known, options: list[str], says: str
) -> None:
    refused = assetclass("tune", known.planned, *options)
    assert (refused.status, refused.out) == (2, ""), refused.explain()
    assert says in refused.err
    assert "Traceback" not in refused.err


def test_none_is_resumed_while_another_is_active(
    assetclass: Command, market: Market, known: Known
) -> None:
    active = str(uuid4())
    plan(market.dsn, market.settings, CorrectionRequest(active, CorrectionOptions()), park=False)
    market.execute(
        "UPDATE assetclass.operation_heartbeat SET holder = 'elsewhere:1', "
        "beat_at = now() + interval '1 hour'"
    )
    refused = assetclass("resume", known.planned, "--json")
    assert refused.status == 3, refused.explain()
    assert refused.document["correctionId"] == active
    market.execute("UPDATE assetclass.operation_heartbeat SET beat_at = now() - interval '1 hour'")
    # Its process is dead: nobody would hear what is asked of it.
    alone = assetclass("cancel", active, **SOON_MISSED)
    assert alone.status == 1
    assert "is interrupted" in alone.err
    assert assetclass("resume", known.planned, "--json").document["status"] == "succeeded"
