"""Bad input through the real entry point: a clear message, the right exit status, no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from assetclass_pipeline.engine.claiming import CorrectionRequest
from assetclass_pipeline.engine.holding import hold
from assetclass_pipeline.errors import OperationCancelledError
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.cli.command import Command, Finished
from assetclass_pipeline_tests.market import Bar, Market

ACTIVE = "11111111-2222-4333-8444-555555555555"
UNKNOWN = "99999999-2222-4333-8444-555555555555"


def refused(finished: Finished, status: int, *words: str) -> None:
    """One message on standard error with these words, and nothing else."""
    assert finished.status == status, finished.explain()
    assert finished.out == "", finished.explain()
    assert finished.err.startswith("Error: "), finished.explain()
    for word in words:
        assert word in finished.err, finished.explain()
    # Neither the machine's words nor those of the library that read the options.
    assert "Traceback" not in finished.err
    assert "Value error" not in finished.err


def refused_in_json(finished: Finished, status: int, code: str) -> dict[str, object]:
    """One JSON document on standard output that names the code, and nothing else."""
    assert finished.status == status, finished.explain()
    assert finished.err == "", finished.explain()
    document = finished.document
    assert isinstance(document, dict)
    assert (document["success"], document["errorCode"]) == (False, code)
    assert document["message"]
    return document


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["execute", "--batch-size", "0"], ["--batch-size", "greater than or equal to 1"]),
        (["execute", "--batch-size", "10001"], ["--batch-size", "less than or equal to 10000"]),
        (["preview", "--max-records", "0"], ["--max-records", "greater than or equal to 1"]),
        (["execute", "--workers", "17"], ["--workers", "less than or equal to 16"]),
        (["execute", "--batch-size", "many"], ["--batch-size", "integer"]),
        (["execute", "--pace", "furious"], ["--pace", "gentle", "balanced", "fast"]),
        (["execute", "--timeout", "2 hours"], ["--timeout", "HH:MM:SS"]),
        (["execute", "--timeout", "00:00:30"], ["--timeout", "00:01:00", "24:00:00"]),
        (["execute", "--timeout", "24:00:01"], ["--timeout", "00:01:00", "24:00:00"]),
        (["execute", "--target-symbol", ""], ["--target-symbol"]),
        (
            ["execute", "--only-missing", "--overwrite-existing"],
            ["--only-missing", "--overwrite-existing", "contradict"],
        ),
        (["execute", "--batchsize", "10"], ["--batchsize", "assetclass execute --help"]),
        (["analyze", "everything"], ["everything", "assetclass analyze --help"]),
        (["executes"], ["executes", "Did you mean"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_option_that_cannot_be_used_is_named_with_its_limit(
    arguments: list[str], words: list[str]
) -> None:
    # No server is there: options are refused before anything is connected to.
    assetclass = Command({"ASSETCLASS_DATABASE_URL": "postgresql://u@127.0.0.1:1/nowhere"})
    refused(assetclass(*arguments), 2, *words)


def test_a_usage_error_is_one_json_document_too() -> None:
    finished = Command({})("execute", "--batch-size", "0", "--json")
    document = refused_in_json(finished, 2, "INVALID_OPTIONS")
    assert "--batch-size" in str(document["message"])


def test_a_setting_that_cannot_be_used_is_named(assetclass: Command) -> None:
    finished = assetclass("analyze", ASSETCLASS_TIME_ZONE="Nowhere/Land")
    refused(finished, 2, "ASSETCLASS_TIME_ZONE", "Nowhere/Land")


def test_a_server_that_is_down_is_named_with_its_port(assetclass: Command) -> None:
    url = "postgresql://me:sesame@127.0.0.1:1/db"
    refused(
        assetclass("analyze", ASSETCLASS_DATABASE_URL=url), 1, "127.0.0.1:1", "Is the server up"
    )
    finished = assetclass("execute", "--json", ASSETCLASS_DATABASE_URL=url)
    refused_in_json(finished, 1, "DATABASE_UNAVAILABLE")
    assert "sesame" not in finished.out


def test_a_wrong_password_is_told_without_the_password(
    assetclass: Command, database_url: str
) -> None:
    url = make_conninfo(database_url, password="open-sesame")
    finished = assetclass("status", ASSETCLASS_DATABASE_URL=url)
    refused(finished, 1, "password", "ASSETCLASS_DATABASE_URL")
    assert "open-sesame" not in finished.err


def test_an_address_that_is_none_is_not_repeated(assetclass: Command) -> None:
    url = "postgresql://me:ses@me/@host:port/db"
    finished = assetclass("analyze", ASSETCLASS_DATABASE_URL=url)
    refused(finished, 1, "postgresql://USER:PASSWORD@HOST:5432/DATABASE")
    assert "ses@me" not in finished.err


def test_missing_tables_are_all_named(assetclass: Command) -> None:
    for command in ("analyze", "preview", "validate"):
        refused(assetclass(command), 1, "public.market_data", "public.symbols", "ASSETCLASS_")


def test_a_missing_column_is_named(assetclass: Command, market: Market) -> None:
    market.execute("ALTER TABLE market_data RENAME COLUMN symbol TO code")
    refused(assetclass("analyze"), 1, "public.market_data", "symbol")


def test_a_missing_schema_is_told_with_the_command_that_makes_it(
    assetclass: Command, market: Market
) -> None:
    market.execute("DROP SCHEMA assetclass CASCADE")
    refused(assetclass("execute"), 1, "assetclass db upgrade")
    refused(assetclass("status"), 1, "assetclass db upgrade")
    assert assetclass("analyze").status == 0


def test_a_role_that_may_not_write_is_told_the_grant(
    assetclass: Command, market: Market, database_url: str
) -> None:
    role = f"reader_of_{conninfo_to_dict(database_url)['dbname']}"
    market.execute("CREATE ROLE {} LOGIN PASSWORD 'reader'", sql.Identifier(role))
    market.execute(
        "GRANT USAGE ON SCHEMA public, assetclass TO {0};"
        "GRANT SELECT ON market_data, symbols TO {0};"
        "GRANT ALL ON ALL TABLES IN SCHEMA assetclass TO {0}".replace("{0}", role)
    )
    try:
        market.fill(10)
        before = market.versions()
        url = make_conninfo(database_url, user=role, password="reader")
        finished = assetclass("execute", ASSETCLASS_DATABASE_URL=url)
        refused(finished, 1, "GRANT UPDATE (asset_class, updated_at)", role)
        assert assetclass("analyze", ASSETCLASS_DATABASE_URL=url).status == 0
        assert market.versions() == before
    finally:
        market.execute("DROP OWNED BY {}", sql.Identifier(role))
        market.execute("DROP ROLE {}", sql.Identifier(role))


def test_a_second_operation_is_refused_and_names_the_active_one(
    assetclass: Command, market: Market, database_url: str
) -> None:
    market.fill(100)
    before = market.versions()
    with suppress(OperationCancelledError), active_operation(database_url, market):
        refused(assetclass("execute"), 3, ACTIVE, f"assetclass status {ACTIVE}")
        document = refused_in_json(assetclass("execute", "--json"), 3, "OPERATION_IN_PROGRESS")
        assert document["correctionId"] == ACTIVE
        refused(assetclass("demo", "--load-only"), 3, ACTIVE)
        # Looking is always allowed.
        assert assetclass("status", "--json").document["currentOperation"]["correctionId"] == ACTIVE
        assert assetclass("preview").status == 0
    assert market.versions() == before


@contextmanager
def active_operation(database_url: str, market: Market) -> Iterator[None]:
    """An operation that another process, this one, is at work on."""
    with hold(database_url, market.settings, CorrectionRequest(ACTIVE, CorrectionOptions())):
        yield
        raise OperationCancelledError("the test is over")


@pytest.mark.parametrize("correction_id", [UNKNOWN, "no-uuid"])
def test_an_unknown_operation_is_not_found(
    assetclass: Command,
    market: Market,  # noqa: ARG001 - its schema
    correction_id: str,
) -> None:
    refused(assetclass("status", correction_id), 4, correction_id, "assetclass status")
    finished = assetclass("status", correction_id, "--json")
    refused_in_json(finished, 4, "OPERATION_NOT_FOUND")


def test_empty_tables_are_fine_and_valid(assetclass: Command, market: Market) -> None:
    assert market.classes() == {}
    report = assetclass("analyze", "--json").document
    assert [report[score] for score in ("completeness", "integrity", "qualityScore")] == [100] * 3
    assert (report["totalRecords"], report["orphanedPercent"]) == (0, 0)
    for command in ("analyze", "preview", "validate"):
        finished = assetclass(command)
        assert (finished.status, finished.err) == (0, ""), finished.explain()


def test_without_symbols_every_row_is_orphaned(assetclass: Command, market: Market) -> None:
    market.add([Bar(1, "AAPL"), Bar(2, "MSFT", asset_class="STOCK")])
    report = assetclass("analyze", "--json").document
    assert (report["orphaned"], report["mappable"], report["correctable"]) == (2, 0, 0)
    assert assetclass("preview", "--json").document["records"] == 0
    assert assetclass("validate").status == 5


def test_null_tickers_match_nothing(assetclass: Command, market: Market) -> None:
    market.list_symbols((None, "FOREX"), ("AAPL", "STOCK")).add([Bar(1, None), Bar(2, "AAPL")])
    report = assetclass("analyze", "--json").document
    assert (report["orphaned"], report["correctable"]) == (1, 1)
    assert assetclass("analyze").status == 0


def test_the_traceback_of_an_error_needs_debug(assetclass: Command, market: Market) -> None:
    market.fill(10)
    limit = {"ASSETCLASS_SESSION__STATEMENT_TIMEOUT": "0.000001"}
    with psycopg.connect(market.dsn) as other:
        other.execute("LOCK TABLE market_data")
        refused(assetclass("analyze", **limit), 1, "timeout", "--debug")
        for arguments in (["--debug", "analyze"], ["analyze", "--debug"]):
            assert "Traceback" in assetclass(*arguments, **limit).err
        document = refused_in_json(assetclass("analyze", "--json", **limit), 1, "DATABASE_ERROR")
        assert "SELECT" not in str(document["message"])
