"""`assetclass health | doctor`: documents, tables, exit status, and what they leave alone."""

import os
import sys
from pathlib import Path

import pytest

from assetclass_pipeline.cli import health
from assetclass_pipeline.cli.presentation import for_people
from assetclass_pipeline.monitoring.doctor import Examination, Finding, Verdict
from assetclass_pipeline_tests.cli.command import Command
from assetclass_pipeline_tests.market import Market


def test_health_prints_one_document_or_a_table(
    assetclass: Command, market: Market, tmp_path: Path
) -> None:
    market.list_symbols(("AAPL", "STOCK"))
    finished = assetclass("health", "--json", ASSETCLASS_HEALTH__TIMEOUT="30")
    # No daemon runs beside this test.
    assert (finished.status, finished.err) == (1, ""), finished.explain()
    document = finished.document
    assert document["isHealthy"] is False
    assert document["components"]["database"]["isHealthy"] is True
    assert document["components"]["marketTables"]["isHealthy"] is True
    assert "was never started" in document["components"]["daemon"]["message"]
    people = assetclass("health")
    assert (people.status, people.err) == (1, "")
    assert "not well" in people.out
    assert "`assetclass doctor` says how to mend that." in people.out
    # Nothing was made, nothing was started.
    assert not (tmp_path / "home").exists()


def test_health_starts_no_embedded_server(tmp_path: Path) -> None:
    finished = Command({"ASSETCLASS_HOME": str(tmp_path / "home")})("health", "--json")
    assert finished.status == 1
    (component,) = finished.document["components"].values()
    assert "does not run" in component["message"]
    assert not (tmp_path / "home").exists()


def test_doctor_says_how_to_mend(assetclass: Command, market: Market) -> None:
    market.execute("DROP TABLE symbols")
    finished = assetclass("doctor", "--json", ASSETCLASS_DATABASE_URI="misspelled")
    assert (finished.status, finished.err) == (1, ""), finished.explain()
    found: dict[str, dict[str, str]] = {}
    for finding in finished.document["findings"]:
        found.setdefault(finding["subject"], finding)
    assert found["marketTables"]["verdict"] == "trouble"
    assert "ASSETCLASS_SYMBOLS_TABLE" in found["marketTables"]["mend"]
    assert found["definitions"]["verdict"] == "fine"
    assert found["settings"]["mend"].endswith("unset ASSETCLASS_DATABASE_URI")
    assert found["indexes"]["verdict"] == "trouble"
    assert found["clock"]["verdict"] == "fine"


def test_doctor_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding(subject="schema", verdict=Verdict.TROUBLE, message="[Old].", mend="db upgrade"),
        Finding(subject="clock", verdict=Verdict.NOTE, message="Late."),
        Finding(subject="disk", verdict=Verdict.FINE, message="Large."),
    ]
    health.show_examination(for_people(), Examination.of(findings))
    out = capsys.readouterr().out
    assert out.index("schema") < out.index("[Old].") < out.index("mend: db upgrade")
    assert out.index("Late.") < out.index("Large.")
    assert "1 to mend, 1 to know of." in out
    health.show_examination(for_people(), Examination.of(findings[1:]))
    assert "Nothing to mend, 1 to know of." in capsys.readouterr().out


def test_doctor_without_a_database_goes_on(tmp_path: Path) -> None:
    finished = Command(
        {
            "ASSETCLASS_HOME": str(tmp_path / "home"),
            "ASSETCLASS_DATABASE_URL": "postgresql://me:secret@127.0.0.1:1/none",
        }
    )("doctor", "--json")
    assert (finished.status, finished.err) == (1, ""), finished.explain()
    subjects = {finding["subject"] for finding in finished.document["findings"]}
    assert {"database", "channels", "definitions", "files", "settings"} <= subjects
    assert "secret" not in finished.out


def test_definitions_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the definitions of these tests are, for the process that loads them.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(health, "_DEFINITIONS", "assetclass_pipeline_tests.cli.broken_definitions")
    finding = health._load_definitions()
    assert finding.verdict is Verdict.TROUBLE
    assert finding.message.startswith("The definitions cannot be loaded. ")
    assert "broken_definitions.py" in finding.message
