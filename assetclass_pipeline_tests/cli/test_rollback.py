"""`assetclass rollback` on real tables: a real Dagster run, its refusals, its question, signals."""

import os
import pty
import signal
import subprocess
from contextlib import closing, suppress
from io import FileIO
from uuid import uuid4

import dagster as dg
import pytest

from assetclass_pipeline.engine.correction import CorrectionRequest, correct, plan
from assetclass_pipeline.engine.operations import get_operation, operation_status
from assetclass_pipeline.engine.rollback import RollbackRequest, roll_back
from assetclass_pipeline.model.operation import Kind, Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline_tests.cli.command import LONGEST, PROGRAM, Command, Finished
from assetclass_pipeline_tests.cli.running import instance_of, wait_for_progress
from assetclass_pipeline_tests.market import Market

WHY = ("--reason", "wrong feed")


@pytest.fixture
def correction(market: Market) -> str:
    """100 rows of 200 corrected; its correctionId."""
    market.fill(200, missing_every=2)
    return _correct(market)


def _correct(market: Market) -> str:
    request = CorrectionRequest(str(uuid4()), CorrectionOptions(), requested_by="ada")
    return correct(market.dsn, market.settings, request).correction_id


def refused(finished: Finished, status: int, *words: str) -> None:
    """One message with these words, before Dagster was even started."""
    assert (finished.status, finished.out) == (status, ""), finished.explain()
    assert finished.err.startswith("Error: "), finished.explain()
    for word in words:
        assert word in finished.err, finished.explain()
    assert "Traceback" not in finished.err


def rollbacks(market: Market) -> list[str]:
    status = operation_status(market.connection, market.settings, include_all=True)
    return [one.correction_id for one in status.recent_operations if one.kind is Kind.ROLLBACK]


def test_it_restores_as_a_dagster_run_and_lists_what_others_changed(
    assetclass: Command, market: Market, correction: str
) -> None:
    market.execute("UPDATE market_data SET asset_class = '[bold]' WHERE id = 4")
    market.execute("DELETE FROM market_data WHERE id = 6")
    finished = assetclass("rollback", correction, *WHY, "--ticket", "DATA-9", "--json")
    assert finished.status == 0, finished.explain()
    rollback = finished.document
    assert (rollback["kind"], rollback["status"]) == ("rollback", "succeeded")
    assert (rollback["recordsRestored"], rollback["recordsConflicting"]) == (98, 2)
    assert (rollback["reason"], rollback["ticket"]) == ("wrong feed", "DATA-9")
    assert rollback["rollbackOf"] == correction
    kept = {number: name for number, name in market.classes().items() if number % 2 == 0 and name}
    assert kept == {4: "[bold]"}

    with instance_of(assetclass) as instance:
        run = instance.get_run_by_id(rollback["correctionId"])
        assert run is not None
        assert (run.status, run.job_name) == (dg.DagsterRunStatus.SUCCESS, "rollback_job")
        assert run.tags["user"] == rollback["requestedBy"]

    people = assetclass("status", rollback["correctionId"]).out
    assert "98 restored, 2 in conflict" in people
    [changed] = [line.split() for line in people.splitlines() if "[bold]" in line]
    assert changed[:2] == ["4", "S4"]
    assert changed[4:] == ["NULL", "CLASS_0", "[bold]", "changed", "by", "others"]
    assert f"assetclass rollback {correction} --reason ... --take-backup-value" in _unwrapped(
        people
    )
    corrected = assetclass("status", correction).out
    assert f"rolled back by   {rollback['correctionId']}" in corrected
    assert "undoes it" not in corrected
    refused(assetclass("rollback", correction, *WHY), 1, "was rolled back by")


def _unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_a_dry_run_tells_rows_conflicts_and_scores(
    assetclass: Command, market: Market, correction: str
) -> None:
    assert f"`assetclass rollback {correction} --reason ...` undoes it" in _unwrapped(
        assetclass("status", correction).out
    )
    market.execute("UPDATE market_data SET asset_class = 'BOND' WHERE id = 4")
    before = market.versions()
    options = ("--dry-run", "--row-id", "2", "--row-id", "4", "--partition", "2023-01-01")
    finished = assetclass("rollback", correction, *WHY, *options)
    assert finished.status == 0, finished.explain()
    assert market.versions() == before
    assert "dry run of a rollback" in finished.out
    assert "1 would be restored, 1 in conflict; nothing was changed" in finished.out
    [score] = [line for line in finished.out.splitlines() if "completeness" in line]
    assert score.split() == ["completeness", "100.00", "99.50"]
    assert [line for line in finished.out.splitlines() if "BOND" in line]


def test_what_cannot_be_undone_is_refused_before_dagster_starts(
    assetclass: Command, market: Market, correction: str
) -> None:
    refused(assetclass("rollback", str(uuid4()), *WHY), 4, "No operation has the correctionId")
    refused(assetclass("rollback", "yesterday", *WHY), 4, "'yesterday'")
    request = RollbackRequest(str(uuid4()), correction, RollbackOptions(row_ids=["2"]))
    part = roll_back(market.dsn, market.settings, request).correction_id
    refused(assetclass("rollback", part, *WHY), 1, f"roll back {correction}")
    dry = CorrectionRequest(str(uuid4()), CorrectionOptions(dry_run=True))
    correct(market.dsn, market.settings, dry)
    found = assetclass("rollback", dry.correction_id, *WHY, "--json")
    assert (found.status, found.document["errorCode"]) == (1, "NOT_UNDOABLE")
    assert found.err == ""

    active = str(uuid4())
    request_of = CorrectionRequest(active, CorrectionOptions())
    plan(market.dsn, market.settings, request_of, park=False)
    market.execute(
        "UPDATE assetclass.operation_heartbeat SET holder = 'elsewhere:1', "
        "beat_at = now() + interval '1 hour'"
    )
    refused(assetclass("rollback", correction, *WHY), 3, active)
    assert rollbacks(market) == [part]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--reason"),
        (["--reason", " "], "--reason"),
        ([*WHY, "--partition", "2023-01-02"], "--partition"),
        ([*WHY, "--row-id", ""], "--row-id"),
        ([*WHY, "--batch-size", "0"], "--batch-size"),
        ([*WHY, "--take-backup-value"], "add --yes"),
    ],
)
def test_options_that_cannot_be_used_are_named(options: list[str], says: str) -> None:
    # No server is there: options are refused before anything is connected to.
    assetclass = Command({"ASSETCLASS_DATABASE_URL": "postgresql://u@127.0.0.1:1/nowhere"})
    refused(assetclass("rollback", str(uuid4()), *options), 2, says)


def answering(assetclass: Command, answer: str, *arguments: str) -> tuple[int, str]:
    """Exit status and screen of the command on a terminal where somebody types the answer."""
    ours, theirs = pty.openpty()
    with closing(FileIO(ours, "r+")) as screen:
        process = subprocess.Popen(
            [str(PROGRAM), *arguments],
            env={**assetclass.environment(), "TERM": "dumb"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        screen.write(f"{answer}\n".encode())
        shown = b""
        # At the end of the process the terminal is gone, which is an error to its reader.
        with suppress(OSError):
            while part := screen.read(4096):
                shown += part
        return process.wait(timeout=LONGEST), shown.decode()


def test_it_asks_before_it_overwrites_what_others_wrote(
    assetclass: Command, market: Market, correction: str
) -> None:
    market.execute("UPDATE market_data SET asset_class = 'BOND' WHERE id IN (4, 8)")
    blunt = ("rollback", correction, *WHY, "--take-backup-value")
    before = market.classes()
    status, screen = answering(assetclass, "n", *blunt)
    assert status == 1, screen
    assert "Nothing was changed." in screen
    assert "2 rows were changed by others since the correction" in _unwrapped(screen)
    assert "BOND" in screen
    assert market.classes() == before
    # Only the look is on record.
    [look] = rollbacks(market)
    assert get_operation(market.connection, market.settings, look).dry_run

    # What an earlier rollback left is asked about too.
    request = RollbackRequest(str(uuid4()), correction, RollbackOptions())
    assert roll_back(market.dsn, market.settings, request).records_conflicting == 2
    status, screen = answering(assetclass, "y", *blunt)
    assert status == 0, screen
    assert "2 rows were changed by others since the correction" in _unwrapped(screen)
    assert {market.classes()[number] for number in range(2, 201, 2)} == {None}


def test_what_is_refused_before_it_asks_is_on_record_once(
    assetclass: Command, market: Market
) -> None:
    unknown = str(uuid4())
    status, screen = answering(assetclass, "y", "rollback", unknown, *WHY, "--take-backup-value")
    assert status != 0, screen
    said = market.rows(
        "SELECT parameters ->> 'rollbackOf', outcome, parameters ->> 'reason'"
        " FROM assetclass.audit_log WHERE parameters ? 'rollbackOf'"
    )
    assert said == [(unknown, "OPERATION_NOT_FOUND", "wrong feed")]


def test_what_a_signal_stopped_is_resumed(assetclass: Command, market: Market) -> None:
    market.fill(2000)
    correction = _correct(market)
    market.execute(
        "CREATE FUNCTION rest() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END $$"
    )
    market.execute(
        "CREATE TRIGGER rest AFTER UPDATE ON market_data FOR EACH STATEMENT EXECUTE FUNCTION rest()"
    )
    slowly = ("--batch-size", "4", "--workers", "1")
    with assetclass.start("rollback", correction, *WHY, *slowly) as process:
        try:
            begun = wait_for_progress(market, process)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=LONGEST)
        finally:
            process.kill()
    assert process.returncode == 130, f"{out}\n{err}"
    assert "restoring" in err
    assert "rows are restored and stay so" in err
    assert "assetclass execute" not in out + err
    assert f"`assetclass resume {begun.correction_id}`" in err
    assert "restoring, " in out
    left = get_operation(market.connection, market.settings, begun.correction_id)
    assert (left.kind, left.status) == (Kind.ROLLBACK, Status.CANCELLED)
    assert 0 < left.records_corrected < 2000

    market.execute("DROP TRIGGER rest ON market_data")
    resumed = assetclass("resume", begun.correction_id, "--json")
    assert resumed.status == 0, resumed.explain()
    assert resumed.document["correctionId"] == begun.correction_id
    assert (resumed.document["status"], resumed.document["recordsRestored"]) == ("succeeded", 2000)
    assert set(market.classes().values()) == {None}
    assert rollbacks(market) == [begun.correction_id]
