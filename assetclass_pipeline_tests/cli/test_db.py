"""`assetclass db`: what people and scripts read, and the exit status."""

import json

import psycopg
import pytest

from assetclass_pipeline.cli.main import run


@pytest.fixture(autouse=True)
def _settings(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSETCLASS_DATABASE_URL", database_url)


def test_upgrade_status_and_downgrade_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    documents = []
    for arguments in (["status"], ["upgrade"], ["status"], ["downgrade", "base", "--yes"]):
        assert run(["db", *arguments, "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert [document["atHead"] for document in documents] == [False, True, True, False]
    assert documents[0]["pending"][0] == "0001"
    assert documents[1]["current"] == documents[1]["head"]


def test_status_for_people_names_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["db", "status"]) == 0
    said = capsys.readouterr().out
    assert "not ready" in said
    assert "assetclass db upgrade" in said


def test_downgrade_asks_first(capsys: pytest.CaptureFixture[str]) -> None:
    run(["db", "upgrade"])
    assert run(["db", "downgrade", "base"]) == 2
    assert "--yes" in capsys.readouterr().err
    run(["db", "status"])
    assert "not ready" not in capsys.readouterr().out


def test_indexes(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            'CREATE TABLE market_data (id int, symbol text, "timestamp" date, asset_class text)'
        )
        connection.execute("CREATE TABLE symbols (ticker text, asset_class text)")
    assert run(["db", "indexes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["indexes"]
    assert [entry["outcome"] for entry in found] == ["created"] * 3
    assert found[0]["name"] == "idx_market_data_symbol_asset_class"
    assert run(["db", "indexes"]) == 0
    assert capsys.readouterr().out.count("present") == 3


def test_missing_tables_are_an_error_with_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["db", "indexes", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["errorCode"] == "MARKET_TABLES_UNUSABLE"
    assert "public.symbols does not exist" in document["message"]


def test_without_a_command_it_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["db"]) == 0
    assert "upgrade" in capsys.readouterr().out
