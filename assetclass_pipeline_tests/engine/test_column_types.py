"""Tables as people have them: enums, short and padded columns, dates, no updated_at, collations."""

from datetime import date
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from assetclass_pipeline.errors import CorrectionFailedError, ErrorRateError
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.model.operation import Operation, SkipReason, Status
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import (
    correct_now,
    operation_of,
    plan_now,
    report_of,
    request_of,
)
from assetclass_pipeline_tests.market import Bar, Market

MONTHS = Calendar(date(2023, 1, 1), date(2024, 12, 1))


def damaged(market: Market, *, empty: bool = True) -> Market:
    """A missing, an empty (where the type has one), a wrong and a right row."""
    market.list_symbols(("AAPL", "STOCK"), ("BTC", "CRYPTO"))
    market.add(
        [Bar(1, "AAPL"), Bar(3, "AAPL", asset_class="CRYPTO"), Bar(4, "BTC", None, "CRYPTO")]
    )
    return market.add([Bar(2, "BTC", asset_class="" if empty else None)])


def assert_corrected(market: Market) -> Operation:
    """Missing ones first, then the wrong one; nothing is left."""
    assert correct_now(market).records_corrected == 2
    operation = correct_now(market, overwrite_existing_values=True)
    assert operation.records_corrected == 1
    classes = {number: str(value).rstrip() for number, value in market.classes().items()}
    assert classes == {1: "STOCK", 2: "CRYPTO", 3: "STOCK", 4: "CRYPTO"}
    report = report_of(market)
    assert (report.correctable, report.mismatched, report.quality_score) == (0, 0, 100)
    assert correct_now(market, overwrite_existing_values=True).records_planned == 0
    return operation


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    "class_type", ["text", "varchar", "varchar(6)", "char(10)", 'varchar(20) COLLATE "POSIX"']
)
def test_text_of_every_kind(make_market: MakeMarket, class_type: str) -> None:
    assert_corrected(damaged(make_market(class_type=class_type)))


@pytest.mark.every_postgres
def test_citext(market: Market) -> None:
    """Compared as it stands: another case is another class, and another symbol."""
    market.execute("CREATE EXTENSION citext")
    for column in ("symbol", "asset_class"):
        market.execute(
            "ALTER TABLE {} ALTER {} TYPE citext", market.market_identifier, sql.Identifier(column)
        )
    damaged(market).add([Bar(5, "aapl"), Bar(6, "AAPL", asset_class="stock")])
    assert correct_now(market, overwrite_existing_values=True).records_corrected == 4
    assert market.classes() == {
        1: "STOCK", 2: "CRYPTO", 3: "STOCK", 4: "CRYPTO", 5: None, 6: "STOCK",
    }  # fmt: skip


@pytest.mark.every_postgres
def test_an_enum_which_knows_no_empty_string(market: Market) -> None:
    market.execute("CREATE TYPE kind AS ENUM ('STOCK', 'CRYPTO')")
    market.execute(
        "ALTER TABLE {} ALTER asset_class TYPE kind USING NULL", market.market_identifier
    )
    assert_corrected(damaged(market, empty=False))


def test_a_type_with_a_percent_sign(market: Market) -> None:
    market.execute("CREATE TYPE \"100% kind\" AS ENUM ('STOCK', 'CRYPTO')")
    market.execute(
        'ALTER TABLE {} ALTER asset_class TYPE "100% kind" USING NULL', market.market_identifier
    )
    market.execute(
        'ALTER TABLE {} ADD CONSTRAINT "50% %s" CHECK (close > 0)', market.market_identifier
    )
    assert_corrected(damaged(market, empty=False))


@pytest.mark.every_postgres
def test_a_domain(market: Market) -> None:
    market.execute("CREATE DOMAIN class_name AS varchar(10) CHECK (VALUE <> 'NONSENSE')")
    market.execute("ALTER TABLE {} ALTER asset_class TYPE class_name", market.market_identifier)
    assert_corrected(damaged(market))


@pytest.mark.parametrize(
    "definition",
    [
        "TYPE varchar(4)",
        "TYPE char(4)",
        "TYPE short_enum USING NULL",
        "TYPE never_stock",
    ],
)
def test_a_class_that_does_not_fit_changes_nothing(
    market: Market, definition: LiteralString
) -> None:
    """Guard: the class is assigned, for a cast to varchar(4) would cut it."""
    market.execute("CREATE TYPE short_enum AS ENUM ('CRYPTO')")
    market.execute("CREATE DOMAIN never_stock AS text CHECK (VALUE <> 'STOCK')")
    statement: LiteralString = "ALTER TABLE {} ALTER asset_class "
    market.execute(statement + definition, market.market_identifier)
    market.list_symbols(("AAPL", "STOCK"), ("BTC", "CRYPTO")).add([Bar(1, "AAPL"), Bar(2, "BTC")])
    request = request_of()
    with pytest.raises(CorrectionFailedError, match=r"symbols.*does not fit asset_class"):
        correct_now(market, request)
    assert operation_of(market, request.correction_id).status is Status.FAILED
    assert set(market.classes().values()) == {None}


def test_a_constraint_that_refuses_too_many_rows_stops_it(market: Market) -> None:
    damaged(market).execute(
        "ALTER TABLE {} ADD CHECK (asset_class <> 'STOCK')", market.market_identifier
    )
    with pytest.raises(
        ErrorRateError,
        match=r"1 of 1 rows were refused by the database, more than 5 %: .* check constraint",
    ):
        correct_now(market)
    assert market.classes()[1] is None
    told = market.value("SELECT error_message FROM assetclass.operation_quarantined_row")
    assert "violates check constraint" in told


@pytest.mark.parametrize(
    ("timestamp_type", "inside", "outside"),
    [
        ("date", ["2024-02-01", "2024-02-29"], ["2024-01-31", "2024-03-01", "infinity", None]),
        (
            "timestamp",
            ["2024-02-01 00:00", "2024-02-29 23:59:59.999999"],
            ["2024-01-31 23:59:59.999999", "2024-03-01 00:00", "-infinity", None],
        ),
        (
            "timestamptz",
            ["2024-01-31 16:00-08", "2024-03-01 00:59:59+01"],
            ["2024-02-01 00:59:59+01", "2024-02-29 16:00-08", "0001-01-01 00:00+00", None],
        ),
    ],
)
def test_months_of_every_kind_of_time(
    make_market: MakeMarket, timestamp_type: str, inside: list[str], outside: list[str | None]
) -> None:
    """Months are UTC, whatever time zone the database prefers."""
    market = make_market(timestamp_type=timestamp_type).list_symbols(("AAPL", "STOCK"))
    market.add(Bar(n, "AAPL", time) for n, time in enumerate([*inside, *outside]))
    database = sql.Identifier(market.connection.info.dbname)
    market.execute("ALTER DATABASE {} SET timezone = 'Asia/Tokyo'", database)
    request = request_of(scope=MONTHS.range_of("2024-02-01", "2024-02-01"))
    correct_now(market, request)
    corrected = {number for number, value in market.classes().items() if value == "STOCK"}
    assert corrected == set(range(len(inside)))
    february = {part.partition: part for part in report_of(market).by_partition}["2024-02-01"]
    assert (february.records, february.correctable) == (len(inside), 0)


def test_without_updated_at(make_market: MakeMarket) -> None:
    assert_corrected(damaged(make_market(has_updated_at=False)))


def test_updated_at_is_set_on_changed_rows_only(market: Market) -> None:
    correct_now(damaged(market))
    stamped = "SELECT id, updated_at IS NOT NULL FROM {} ORDER BY id"
    assert market.rows(stamped, market.market_identifier) == [
        (1, True), (2, True), (3, False), (4, False),
    ]  # fmt: skip


def test_columns_of_different_collations(market: Market) -> None:
    """Guard: everything is compared under "C"."""
    for table, column, collation in (
        (market.market_identifier, "symbol", '"POSIX"'),
        (market.market_identifier, "asset_class", '"C"'),
        (market.symbols_identifier, "ticker", '"C"'),
        (market.symbols_identifier, "asset_class", '"POSIX"'),
    ):
        statement: LiteralString = (
            "ALTER TABLE {} ALTER " + column + " TYPE text COLLATE " + collation
        )
        market.execute(statement, table)
    assert_corrected(damaged(market))


@pytest.mark.every_postgres
class TestCollationsThatIgnoreCase:
    """Guard: tickers and classes are compared byte by byte, whatever the columns say."""

    @pytest.fixture
    def caseless(self, market: Market) -> Market:
        """AAPL and aapl are two tickers for us, and equal for the tables' own comparison."""
        try:
            market.execute(
                "CREATE COLLATION caseless "
                "(provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("this server was built without ICU")
        for table, column in (
            (market.market_identifier, "symbol"),
            (market.market_identifier, "asset_class"),
            (market.symbols_identifier, "ticker"),
        ):
            statement: LiteralString = (
                "ALTER TABLE {} ALTER " + column + " TYPE text COLLATE caseless"
            )
            market.execute(statement, table)
        return market.list_symbols(("AAPL", "STOCK"), ("aapl", "CRYPTO"))

    def test_each_ticker_gives_its_own_class(self, caseless: Market) -> None:
        caseless.add([Bar(1, "AAPL"), Bar(2, "aapl"), Bar(3, "Aapl")])
        operation = correct_now(caseless)
        assert operation.skipped_by_reason == {}
        assert caseless.classes() == {1: "STOCK", 2: "CRYPTO", 3: None}

    @pytest.mark.parametrize("moved", [True, False])
    def test_what_others_changed_in_case_only_is_theirs(
        self, caseless: Market, *, moved: bool
    ) -> None:
        caseless.add([Bar(1, "AAPL"), Bar(2, "AAPL", asset_class="stock"), Bar(3, "AAPL")])
        request = request_of(overwrite_existing_values=True)
        plan_now(caseless, request)
        if moved:
            # Found again by key.
            caseless.execute("VACUUM FULL {}", caseless.market_identifier)
            caseless.execute("UPDATE {} SET close = 2", caseless.market_identifier)
        caseless.execute(
            "UPDATE {} SET asset_class = 'Stock' WHERE id = 2", caseless.market_identifier
        )
        caseless.execute("UPDATE {} SET symbol = 'aapl' WHERE id = 3", caseless.market_identifier)
        operation = correct_now(caseless, request)
        assert operation.skipped_by_reason == {SkipReason.CHANGED_BY_OTHERS: 2}
        assert caseless.classes() == {1: "STOCK", 2: "Stock", 3: "CRYPTO"}


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    ("id_type", "key"),
    [
        ("bigint", "UNIQUE (id)"),
        ("integer", "PRIMARY KEY (id)"),
        ("uuid", "PRIMARY KEY (id)"),
        ("text", 'PRIMARY KEY (id, "timestamp")'),
        ("varchar(40)", 'PRIMARY KEY (symbol, "timestamp")'),
        ("numeric", 'UNIQUE (id, symbol, "timestamp")'),
    ],
)
def test_keys_of_every_kind(make_market: MakeMarket, id_type: str, key: str) -> None:
    """Found again by key after they moved, too."""
    market = make_market(id_type=id_type, key=key).list_symbols(("AAPL", "STOCK"))
    number = "00000000-0000-0000-0000-000000000001" if id_type == "uuid" else "7"
    market.add([Bar(number, "AAPL")])
    request = request_of()
    plan_now(market, request)
    market.execute("UPDATE {} SET close = 2", market.market_identifier)
    assert correct_now(market, request).records_corrected == 1
    assert set(market.classes().values()) == {"STOCK"}
