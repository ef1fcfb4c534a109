"""`assetclass audit`: what scripts and people see of the log, its check and its export."""

import csv
import getpass
import json
from pathlib import Path
from typing import Any

from psycopg import sql

from assetclass_pipeline_tests.cli.command import Command
from assetclass_pipeline_tests.engine.runs import correct_now, plan_now, request_of
from assetclass_pipeline_tests.market import Bar, Market


def entries(assetclass: Command, *flags: str) -> list[dict[str, Any]]:
    finished = assetclass("audit", "log", "--json", *flags)
    assert (finished.status, finished.err) == (0, ""), finished.explain()
    found: list[dict[str, Any]] = finished.document["entries"]
    return found


def test_the_log_shows_who_did_what_the_newest_first(assetclass: Command, market: Market) -> None:
    done = correct_now(market.fill(20))
    found = entries(assetclass)
    assert [(e["number"], e["action"], e["outcome"]) for e in found] == [
        (3, "end_operation", "succeeded"),
        (2, "claim_operation", "begun"),
        (1, "upgrade_schema", "done"),
    ]
    assert found[0]["correctionId"] == done.correction_id
    assert found[0]["actorKind"] == "os_user"
    assert found[0]["happenedAt"].endswith("Z")
    chosen = ["--operation", done.correction_id, "--actor", "test", "--limit", "1"]
    times = ["--since", "2020-01-01T00:00:00+03:00", "--until", "2100-01-01"]
    assert [e["number"] for e in entries(assetclass, *chosen, *times)] == [3]
    assert entries(assetclass, "--until", "2020-01-01") == []
    assert [e["number"] for e in entries(assetclass, "--action", "upgrade_schema")] == [1]
    people = assetclass("audit", "log").out
    assert "claim operation" in people
    assert done.correction_id in people.replace("\n", "").replace(" ", "")


def test_what_cannot_be_understood_is_a_usage_error(assetclass: Command, market: Market) -> None:
    assert market.classes() == {}
    for flags, says in (
        (["log", "--since", "yesterday"], "--since yesterday"),
        (["log", "--operation", "nonsense"], "nonsense"),
        (["verify", "--head", "12"], "NUMBER:HASH"),
        (["export", "--format", "xml"], "xml"),
        (["export", "--format", "csv", "--json"], "--out FILE"),
        (["export", "--format", "csv", "--out", "/nowhere/at/all"], "folder that exists"),
    ):
        finished = assetclass("audit", *flags)
        assert finished.status in {2, 4}, finished.explain()
        assert says in finished.err + finished.out


def test_a_refused_command_stands_in_the_log(assetclass: Command, market: Market) -> None:
    active = request_of()
    plan_now(market.fill(10), active, park=False)
    market.execute(
        "UPDATE assetclass.operation_heartbeat SET holder = 'elsewhere:1', "
        "beat_at = now() + interval '1 hour'"
    )
    assert assetclass("execute", "--json", "--reason", "in a hurry").status == 3
    refused = entries(assetclass)[0]
    assert (refused["action"], refused["outcome"]) == ("claim_operation", "OPERATION_IN_PROGRESS")
    assert (refused["actor"], refused["actorKind"]) == (getpass.getuser(), "os_user")
    assert refused["parameters"]["reason"] == "in a hurry"
    assert refused["parameters"]["otherOperation"] == active.correction_id


def test_verify_prints_a_head_and_holds_the_log_against_it(
    assetclass: Command, market: Market
) -> None:
    correct_now(market.fill(20))
    finished = assetclass("audit", "verify", "--json")
    assert (finished.status, finished.document["intact"]) == (0, True), finished.explain()
    head = finished.document["head"]
    assert head.startswith("3:")
    people = assetclass("audit", "verify", "--head", head)
    assert people.status == 0
    assert "Entry 3 is still the one" in people.out
    assert head in people.out
    market.execute("ALTER TABLE assetclass.audit_log DISABLE TRIGGER refuse")
    market.execute("DELETE FROM assetclass.audit_log WHERE number = 3")
    assert assetclass("audit", "verify").status == 0
    cut = assetclass("audit", "verify", "--head", head, "--json")
    assert (cut.status, cut.document["errorCode"]) == (1, "AUDIT_TAMPERED")
    assert "cut off" in cut.document["message"]
    market.execute("UPDATE assetclass.audit_log SET actor = 'eve' WHERE number = 2")
    changed = assetclass("audit", "verify")
    assert changed.status == 1
    assert "entry 2 was changed" in changed.err


def test_export_writes_a_new_file_or_standard_output(
    assetclass: Command, market: Market, tmp_path: Path
) -> None:
    correct_now(market.fill(20))
    shown = entries(assetclass)[::-1]
    to_stdout = assetclass("audit", "export", "--format", "json")
    assert (to_stdout.status, to_stdout.document) == (0, shown), to_stdout.explain()
    file = tmp_path / "audit.csv"
    flags = ["audit", "export", "--format", "csv", "--out", str(file)]
    finished = assetclass(*flags, "--action", "claim_operation", "--json")
    assert finished.document == {"entries": 1, "format": "csv", "file": str(file)}
    with file.open(encoding="utf-8", newline="") as opened:
        (row,) = csv.DictReader(opened)
    assert json.loads(row["parameters"]) == shown[1]["parameters"]
    assert (row["number"], row["hash"]) == ("2", shown[1]["hash"])
    again = assetclass(*flags)
    assert again.status == 2
    assert "new file" in again.err


def test_row_tells_how_it_came_by_its_value_and_the_way_back(
    assetclass: Command, market: Market
) -> None:
    market.list_symbols(("[b]AAPL", "STOCK")).add([Bar(n, "[b]AAPL") for n in (1, 2)])
    done = correct_now(market)
    market.execute("UPDATE market_data SET asset_class = 'BOND' WHERE id = 2")
    finished = assetclass("audit", "row", "2", "--json")
    assert (finished.status, finished.err) == (0, ""), finished.explain()
    (row,) = finished.document["rows"]
    assert row["changedByOthersSince"] is True
    (event,) = row["events"]
    assert (event["correctionId"], event["from"], event["to"]) == (
        done.correction_id,
        None,
        "STOCK",
    )
    people = assetclass("audit", "row", "2")
    assert people.status == 0
    assert "Row 2, [b]AAPL at 2024-03-01 12:00:00+00: now BOND" in people.out
    assert "Somebody else has changed it since." in people.out
    assert "--take-backup-value" in people.out.replace("\n", "")
    for name in market.backup_tables():
        market.execute("DROP TABLE {}", sql.Identifier(name))
    without = assetclass("audit", "row", "1").out
    assert "1 operation touched rows that are gone" in without
    assert "dropped by hand" in without


def test_row_that_is_not_there(assetclass: Command, market: Market) -> None:
    assert market.classes() == {}
    missing = assetclass("audit", "row", "77", "--json")
    assert (missing.status, missing.document["errorCode"]) == (4, "ROW_NOT_FOUND")
    wrong = assetclass("audit", "row", "seven")
    assert wrong.status == 2
    assert "is no bigint" in wrong.err
    market.execute("DROP TABLE market_data")
    assert "does not exist" in assetclass("audit", "row", "1").err
