"""`assetclass backups ...` as people and scripts call it."""

from pathlib import Path
from uuid import uuid4

import pytest

from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.cli.command import Command
from assetclass_pipeline_tests.market import Market


@pytest.fixture
def corrected(market: Market) -> str:
    """A correction of 60 rows."""
    market.fill(60)
    request = CorrectionRequest(str(uuid4()), CorrectionOptions())
    return correct(market.dsn, market.settings, request).correction_id


def test_list_and_verify(assetclass: Command, market: Market, corrected: str) -> None:
    listed = assetclass("backups", "list", "--json")
    assert listed.status == 0, listed.explain()
    (backup,) = listed.document["backups"]
    assert backup["correctionId"] == corrected
    assert (backup["records"], backup["state"], backup["tableName"]) == (
        60,
        "kept",
        market.backup_tables()[0],
    )
    for arguments in ([corrected], ["--all"]):
        verified = assetclass("backups", "verify", *arguments, "--json")
        assert verified.status == 0, verified.explain()
        assert verified.document["passed"] is True
        (found,) = verified.document["verifications"]
        assert (found["restorable"], found["problems"]) == (60, [])
    people = assetclass("backups", "list")
    assert people.status == 0, people.explain()
    assert market.backup_tables()[0] in people.out
    assert "verified" in people.out
    people = assetclass("backups", "verify", corrected)
    assert "can restore" in people.out
    assert "restore 60" in people.out


def test_a_damaged_backup_fails_the_command(
    assetclass: Command, market: Market, corrected: str
) -> None:
    market.execute("UPDATE assetclass.backup SET checksum = checksum || '7'")
    found = assetclass("backups", "verify", "--all", "--json")
    assert found.status == 1, found.explain()
    assert found.document["passed"] is False
    assert "checksum differs" in found.document["verifications"][0]["problems"][0]
    people = assetclass("backups", "verify", corrected)
    assert people.status == 1
    assert "CANNOT RESTORE" in people.out
    assert "Traceback" not in people.err


def test_hold_and_release(assetclass: Command, corrected: str) -> None:
    held = assetclass("backups", "hold", corrected, "--reason", "audit 2026")
    assert held.status == 0, held.explain()
    listed = assetclass("backups", "list")
    assert "is held by" in listed.out
    released = assetclass("backups", "release", corrected, "--json")
    assert (released.status, released.document["state"]) == (0, "kept")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["verify"], 2, "--all"),
        (["verify", "7", "--all"], 2, "--all"),
        (["verify", "yesterday"], 4, "'yesterday'"),
        (["hold", "00000000-0000-4000-8000-000000000000", "--reason", "x"], 4, "No operation"),
        (["hold", "00000000-0000-4000-8000-000000000000"], 2, "--reason"),
    ],
)
def test_what_cannot_be_done_is_said(
    assetclass: Command, market: Market, arguments: list[str], status: int, says: str
) -> None:
    assert market.classes() == {}
    refused = assetclass("backups", *arguments)
    assert refused.status == status, refused.explain()
    assert says in refused.err
    assert "Traceback" not in refused.err


def test_cleanup(assetclass: Command, market: Market, corrected: str) -> None:
    kept = assetclass("backups", "cleanup")
    assert kept.status == 0, kept.explain()
    assert "No backup was dropped" in kept.out
    market.execute("UPDATE assetclass.backup SET expires_at = now() - interval '1 s'")
    market.execute("CREATE TABLE market_data_backup_by_me AS SELECT 1")
    would = assetclass("backups", "cleanup", "--dry-run", "--json")
    assert (would.document["dryRun"], would.document["dropped"]) == (True, [])
    assert "never verified" in would.document["kept"][0]["why"]
    dropped = assetclass("backups", "cleanup", "--json")
    assert dropped.status == 0, dropped.explain()
    (entry,) = dropped.document["dropped"]
    assert (entry["correctionId"], entry["archive"]) == (corrected, f"{corrected}.parquet")
    assert dropped.document["unregistered"][0]["tableName"] == "market_data_backup_by_me"
    assert market.backup_tables() == ["market_data_backup_by_me"]
    listed = assetclass("backups", "list")
    assert "archived in" in listed.out
    assert "market_data_backup_by_me" in listed.out
    gone = assetclass("backups", "verify", corrected, "--json")
    assert (gone.status, gone.document["errorCode"]) == (1, "BACKUP_EXPIRED")
    restored = assetclass("backups", "restore-archive", corrected)
    assert restored.status == 0, restored.explain()
    assert "holds 60 rows" in restored.out
    table = f"archived_{corrected.replace('-', '')}"
    assert f"roll_back.sql -v backup_schema=assetclass -v backup_table={table}" in restored.out
    assert assetclass("backups", "verify", "--all", "--json").document["passed"] is True


def test_cleanup_that_cannot_archive_says_so_by_its_exit_status(
    assetclass: Command, market: Market, corrected: str, tmp_path: Path
) -> None:
    market.execute("UPDATE assetclass.backup SET expires_at = now() - interval '1 s'")
    in_the_way = tmp_path / "archive"
    in_the_way.write_text("no directory", encoding="utf-8")
    there = {"ASSETCLASS_ARCHIVE_DIRECTORY": str(in_the_way)}
    stayed = Command({**assetclass.settings, **there})("backups", "cleanup", "--json")
    assert stayed.status == 1, stayed.explain()
    (kept,) = stayed.document["kept"]
    assert (kept["correctionId"], kept["failed"]) == (corrected, True)
    assert len(market.backup_tables()) == 1


def test_drill(assetclass: Command, market: Market) -> None:
    none = assetclass("backups", "drill", "--json")
    assert (none.status, none.document) == (0, {"drill": None}), none.explain()
    market.fill(60)
    request = CorrectionRequest(str(uuid4()), CorrectionOptions())
    correct(market.dsn, market.settings, request)
    people = assetclass("backups", "drill")
    assert people.status == 0, people.explain()
    assert "restored and proved equal" in people.out
    assert "60 rows in" in people.out
    market.execute("UPDATE assetclass.backup SET checksum = checksum || '7'")
    failed = assetclass("backups", "drill", request.correction_id, "--json")
    assert (failed.status, failed.document["errorCode"]) == (1, "BACKUP_DAMAGED")
    assert "checksum differs" in failed.document["message"]
