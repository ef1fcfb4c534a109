"""Commands that only look: what they print for people and for scripts, and how fast they start."""

import importlib
import inspect
import subprocess
import sys

import pytest
import typer
from typer.main import get_command

from assetclass_pipeline.cli.main import COMMANDS
from assetclass_pipeline_tests.cli.command import Command
from assetclass_pipeline_tests.market import Bar, Market


def damaged(market: Market) -> None:
    """Three kinds of damage, and two rows that are right."""
    market.list_symbols(("AAPL", "STOCK"), ("MSFT", "STOCK"), ("X", "A"), ("X", "B"), ("Y", None))
    market.add(
        [
            Bar(1, "AAPL"),
            Bar(2, "AAPL", asset_class=""),
            Bar(3, "MSFT", asset_class="BOND"),
            Bar(4, "AAPL", asset_class="STOCK"),
            Bar(5, "MSFT", asset_class="STOCK"),
            Bar(6, "[bold]GONE[/bold]"),
            Bar(7, "X"),
            Bar(8, "Y"),
        ]
    )


def test_help_does_not_wait_for_dagster() -> None:
    script = (
        "import sys; sys.argv = ['assetclass', '--help']\n"
        "from assetclass_pipeline.cli.main import run\n"
        "run(['--help'])\n"
        "slow = {'dagster', 'pandas', 'sqlalchemy', 'psycopg', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported: {slow}' if slow else 0)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    for name in COMMANDS:
        assert f"\n  {name} " in finished.stdout


@pytest.mark.usefixtures("market")
def test_asking_does_not_wait_for_what_only_writers_need(assetclass: Command) -> None:
    script = (
        "import sys\n"
        "from assetclass_pipeline.cli.main import run\n"
        "for asked in sys.argv[1:]:\n"
        "    assert run(asked.split()) == 0, asked\n"
        "slow = {'dagster', 'pandas', 'sqlalchemy', 'alembic', 'numpy', 'pyarrow'}\n"
        "sys.exit(f'imported: {slow & set(sys.modules)}' if slow & set(sys.modules) else 0)"
    )
    asked = ("status", "db status", "analyze", "preview", "backups list", "alerts list")
    finished = subprocess.run(
        [sys.executable, "-c", script, *asked, "tokens list", "audit verify", "metrics"],
        env=assetclass.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr


def test_each_command_says_the_same_in_the_list_and_in_its_own_help() -> None:
    for name, place in COMMANDS.items():
        found = getattr(importlib.import_module(place.module), place.attribute)
        said = get_command(found).help if isinstance(found, typer.Typer) else inspect.getdoc(found)
        assert str(said).splitlines()[0] == place.sentence, name


def test_without_arguments_the_help_is_shown() -> None:
    finished = Command({})()
    assert finished.status == 0
    assert finished.out.startswith("Usage: assetclass")


def test_analyze_prints_one_document_or_tables(assetclass: Command, market: Market) -> None:
    damaged(market)
    finished = assetclass("analyze", "--json")
    assert (finished.status, finished.err) == (0, ""), finished.explain()
    report = finished.document
    counted = ("totalRecords", "correctable", "mismatched", "orphaned", "ambiguous", "unclassified")
    assert [report[name] for name in counted] == [8, 2, 1, 1, 1, 1]
    # Damage is no failure; a symbol is text, whatever it looks like.
    people = assetclass("analyze")
    assert (people.status, people.err) == (0, "")
    assert "[bold]GONE[/bold]" in people.out
    assert "completeness" in people.out


def test_preview_counts_exactly_and_changes_nothing(assetclass: Command, market: Market) -> None:
    damaged(market)
    before = market.versions()
    assert assetclass("preview", "--json").document["records"] == 2
    finished = assetclass("preview", "--json", "--overwrite-existing", "--batch-size", "2")
    assert (finished.document["records"], finished.document["batches"]) == (3, 2)
    only = ["--overwrite-existing", "--target-symbol", "MSFT", "--target-symbol", "NONE"]
    assert assetclass("preview", "--json", *only).document["records"] == 1
    assert "3 rows would change" in assetclass("preview", "--overwrite-existing").out
    assert market.versions() == before


def test_preview_says_what_a_correction_would_meet(assetclass: Command, market: Market) -> None:
    damaged(market)
    found = assetclass("preview", "--json").document["preflight"]
    assert found["rehearsal"]["records"] == 2
    assert found["findings"]
    assert not any(finding["severity"] == "refuse" for finding in found["findings"])
    people = assetclass("preview").out
    assert "A batch of 2 rows was rehearsed" in people
    assert "refused" not in people
    market.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    found = assetclass("preview", "--json").document["preflight"]
    assert found["findings"][0]["code"] == "BACKUP_PUBLISHED"
    assert "a correction is refused" in assetclass("preview").out
    assert "refused" not in assetclass("preview", "--no-backup").out
    assert "refused" not in assetclass("preview", ASSETCLASS_BACKUP_IN_PUBLICATION="allow").out


def test_validate_tells_by_its_exit_status(assetclass: Command, market: Market) -> None:
    market.list_symbols(("AAPL", "STOCK")).add([Bar(0, "AAPL", asset_class="STOCK")])
    finished = assetclass("validate", "--json")
    assert (finished.status, finished.document["passed"]) == (0, True)
    damaged(market)
    finished = assetclass("validate", "--json")
    assert (finished.status, finished.document["passed"]) == (5, False)
    people = assetclass("validate")
    assert people.status == 5
    assert "not met" in people.out


def test_status_of_a_fresh_database_is_calm(assetclass: Command, market: Market) -> None:
    assert market.classes() == {}
    finished = assetclass("status", "--json")
    assert finished.document == {
        "isRunning": False,
        "currentOperation": None,
        "recentOperations": [],
    }
    assert "No operation is active" in assetclass("status").out
