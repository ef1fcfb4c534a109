"""The market tables: described as they are, or refused with every reason at once."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.errors import MarketTablesError
from assetclass_pipeline.settings import Settings
from assetclass_pipeline_tests.market import add_server

SETTINGS = Settings()
MARKET = (
    "CREATE TABLE market_data"
    ' (id bigint PRIMARY KEY, symbol text, "timestamp" timestamptz, asset_class text)'
)
FOREIGN = MARKET.replace("CREATE TABLE", "CREATE FOREIGN TABLE").replace(" PRIMARY KEY", "")
SYMBOLS = "CREATE TABLE symbols (ticker text, asset_class text)"
PARTITIONED = (
    'CREATE TABLE market_data (id bigint, symbol text, "timestamp" timestamptz, asset_class text)'
    " PARTITION BY"
)


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[TupleRow]]:
    with connect(database_url, SETTINGS, purpose="test") as opened:
        yield opened


@pytest.fixture
def clerk(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> Iterator[psycopg.Connection[TupleRow]]:
    """A session of the role "bar's clerk ...", which has no right but to connect."""
    name = f"bar's clerk {connection.info.dbname}"
    role = sql.Identifier(name)
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(role))
    try:
        with connect(
            make_conninfo(database_url, user=name, password="x"), SETTINGS, purpose="test"
        ) as opened:
            yield opened
    finally:
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


def make(connection: psycopg.Connection[TupleRow], *statements: str) -> None:
    for statement in statements:
        connection.execute(statement.encode())


def inspect(
    connection: psycopg.Connection[TupleRow], *, for_writing: bool = True, **settings: str
) -> MarketTables:
    return inspect_market_tables(
        connection,
        Settings(**settings),  # type: ignore[arg-type]
        for_writing=for_writing,
    )


def problems(connection: psycopg.Connection[TupleRow], **settings: str) -> list[str]:
    with pytest.raises(MarketTablesError) as caught:
        inspect(connection, for_writing=True, **settings)
    lines = str(caught.value).splitlines()
    # Each ends its sentence, or with the statement to run.
    assert all(line.endswith((".", ";")) for line in lines)
    return lines


def only_problem(connection: psycopg.Connection[TupleRow], **settings: str) -> str:
    (problem,) = problems(connection, **settings)
    return problem


def grants(lines: list[str]) -> list[str]:
    return [line.partition(": ")[2] for line in lines if "GRANT" in line]


@pytest.mark.every_postgres
def test_plain_tables(connection: psycopg.Connection[TupleRow]) -> None:
    make(connection, MARKET, SYMBOLS)

    found = inspect(connection)

    assert found.market.as_string() == '"public"."market_data"'
    assert found.symbols.as_string() == '"public"."symbols"'
    assert (found.market_name, found.symbols_name) == ("public.market_data", "public.symbols")
    assert [(leaf.oid, leaf.schema, leaf.table) for leaf in found.leaves] == [
        (found.market_oid, "public", "market_data")
    ]
    assert not found.is_partitioned
    types = (found.id_type, found.symbol_type, found.timestamp_type, found.asset_class_type)
    assert types == ("bigint", "text", "timestamp with time zone", "text")
    assert (found.timestamp_kind, found.asset_class_is_enum) == ("timestamptz", False)
    assert (found.has_updated_at, found.updated_at_type) == (False, None)


@pytest.mark.every_postgres
def test_types_are_spelled_with_their_schema(connection: psycopg.Connection[TupleRow]) -> None:
    make(
        connection,
        SYMBOLS,
        'CREATE TYPE "Class" AS ENUM (\'STOCK\'); CREATE DOMAIN some_class AS "Class"',
        "CREATE DOMAIN moment AS timestamp(3); CREATE DOMAIN later AS moment",
        'CREATE TABLE market_data (id uuid UNIQUE, symbol varchar(9), "timestamp" later,'
        " asset_class some_class, updated_at timestamp)",
    )

    found = inspect(connection)

    assert (found.asset_class_type, found.asset_class_is_enum) == ("public.some_class", True)
    assert (found.timestamp_type, found.timestamp_kind) == ("public.later", "timestamp")
    assert found.symbol_type == "character varying(9)"
    assert (found.has_updated_at, found.updated_at_type) == (True, "timestamp without time zone")
    enum_table = inspect_enum_column(connection)
    assert (enum_table.asset_class_type, enum_table.asset_class_is_enum) == ('public."Class"', True)


def inspect_enum_column(connection: psycopg.Connection[TupleRow]) -> MarketTables:
    make(connection, 'ALTER TABLE market_data ALTER asset_class TYPE "Class"')
    return inspect(connection)


def test_names_come_from_settings(connection: psycopg.Connection[TupleRow]) -> None:
    make(
        connection,
        'CREATE SCHEMA "Tick;s"',
        MARKET.replace("market_data", '"Tick;s"."Bars "" %s"'),
        SYMBOLS.replace("symbols", '"Tick;s".ref'),
    )

    found = inspect(
        connection,
        market_schema="Tick;s",
        market_table='Bars " %s',
        symbols_schema="Tick;s",
        symbols_table="ref",
    )

    assert found.market.as_string() == '"Tick;s"."Bars "" %s"'
    assert found.market_name == 'Tick;s.Bars " %s'


@pytest.mark.every_postgres
def test_leaves_of_nested_partitions_are_ordered_by_name(
    connection: psycopg.Connection[TupleRow],
) -> None:
    make(
        connection,
        SYMBOLS,
        f'{PARTITIONED} RANGE ("timestamp")',
        "CREATE SCHEMA archive",
        "CREATE TABLE rest PARTITION OF market_data (UNIQUE (id)) DEFAULT",
        "CREATE TABLE year PARTITION OF market_data FOR VALUES FROM ('2024-01-01') TO"
        " ('2025-01-01') PARTITION BY LIST (symbol)",
        "CREATE TABLE year_b PARTITION OF year (UNIQUE (id, symbol)) FOR VALUES IN ('B')",
        "CREATE TABLE year_a PARTITION OF year (UNIQUE (\"timestamp\")) FOR VALUES IN ('A')",
        "CREATE TABLE archive.year_c PARTITION OF year (PRIMARY KEY (id)) FOR VALUES IN ('C')",
    )

    found = inspect(connection)

    assert found.is_partitioned
    names = [leaf.identifier.as_string() for leaf in found.leaves]
    assert names == [
        '"archive"."year_c"',
        '"public"."rest"',
        '"public"."year_a"',
        '"public"."year_b"',
    ]


def test_partitioned_table_without_partitions(connection: psycopg.Connection[TupleRow]) -> None:
    make(connection, SYMBOLS, f"{PARTITIONED} LIST (symbol)")
    assert inspect(connection).leaves == ()


def test_every_problem_is_named_at_once(connection: psycopg.Connection[TupleRow]) -> None:
    make(
        connection,
        'CREATE TABLE market_data (id bigint, "Symbol" text, "timestamp" text, asset_class int)',
    )

    found = problems(connection)

    assert len(found) == 4
    assert found[0] == (
        "Table public.market_data has no column symbol. It has Symbol: letter case counts. "
        "Add or rename it."
    )
    assert "asset_class of public.market_data is of type integer" in found[1]
    assert '"timestamp" of public.market_data is of type text' in found[2]
    assert "Table public.symbols does not exist" in found[3]
    assert "ASSETCLASS_SYMBOLS_TABLE" in found[3]


def test_whoever_begins_with_the_embedded_server_is_told_of_the_demo(
    connection: psycopg.Connection[TupleRow], database_url: str
) -> None:
    *missing, way = problems(connection)
    assert [line.partition(".")[0] for line in missing] == ["Table public"] * 2
    assert "`assetclass demo --load-only`" in way
    assert "demo" not in "".join(problems(connection, database_url=database_url))


def test_missing_columns_of_both_tables(connection: psycopg.Connection[TupleRow]) -> None:
    make(connection, "CREATE TABLE market_data ()", "CREATE TABLE symbols (asset_class text)")
    assert [line.partition(".")[2].partition(". ")[0] for line in problems(connection)] == [
        "market_data has no column id",
        "market_data has no column symbol",
        "market_data has no column timestamp",
        "market_data has no column asset_class",
        "symbols has no column ticker",
    ]


def test_similar_tables_are_hinted_at(connection: psycopg.Connection[TupleRow]) -> None:
    make(
        connection,
        SYMBOLS,
        "CREATE SCHEMA sales",
        MARKET.replace("market_data", '"Market_Data"'),
        MARKET.replace("market_data", "sales.market_data"),
    )
    assert "There is public.Market_Data and sales.market_data" in only_problem(connection)


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        ([f"{MARKET.replace('market_data', 't')}; CREATE VIEW market_data AS TABLE t"], "a view"),
        (
            [
                MARKET.replace("market_data", "t"),
                "CREATE MATERIALIZED VIEW market_data AS TABLE t",
            ],
            "a materialized view",
        ),
        (
            [
                "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w",
                FOREIGN + " SERVER s",
            ],
            "public.market_data is a foreign table that postgres_fdw does not serve",
        ),
        (
            [
                "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w",
                f"{PARTITIONED} LIST (symbol)",
                "CREATE FOREIGN TABLE far PARTITION OF market_data DEFAULT SERVER s",
            ],
            "Partition public.far is a foreign table that postgres_fdw does not serve",
        ),
        ([MARKET, "CREATE TABLE child () INHERITS (market_data)"], "inherit"),
        ([f"{PARTITIONED} LIST (asset_class)"], "partitioned by asset_class"),
        ([f"{PARTITIONED} RANGE (symbol, (lower(asset_class)))"], "partitioned by asset_class"),
        (
            [
                f"{PARTITIONED} LIST (symbol)",
                "CREATE TABLE p PARTITION OF market_data DEFAULT PARTITION BY LIST (asset_class)",
            ],
            "public.p is partitioned by asset_class",
        ),
        (
            [
                f"{PARTITIONED.replace('market_data', 'whole')} LIST (asset_class)",
                "CREATE TABLE market_data PARTITION OF whole (UNIQUE (id)) DEFAULT",
            ],
            "public.whole is partitioned by asset_class",
        ),
        (
            [MARKET, "CREATE RULE r AS ON UPDATE TO market_data DO INSTEAD NOTHING"],
            "a rule that rewrites updates",
        ),
        (
            [
                f"{PARTITIONED} LIST (symbol)",
                "CREATE TABLE p PARTITION OF market_data (UNIQUE (id)) DEFAULT",
                "CREATE RULE r AS ON UPDATE TO p DO INSTEAD NOTHING",
            ],
            "Partition public.p has a rule",
        ),
        ([MARKET.replace(" PRIMARY KEY", "")], "public.market_data has no key"),
        (
            [
                f"{PARTITIONED} LIST (symbol)",
                "CREATE TABLE p PARTITION OF market_data DEFAULT",
                "CREATE INDEX ON p (id)",
            ],
            'Add one: CREATE UNIQUE INDEX CONCURRENTLY ON "public"."p" (id);',
        ),
        (
            [
                MARKET.replace(
                    "asset_class text", "asset_class text GENERATED ALWAYS AS ('x') STORED"
                )
            ],
            "is generated",
        ),
        ([f"{MARKET}; ALTER TABLE market_data ADD updated_at bigint"], "updated_at"),
        ([f"{MARKET}; ALTER TABLE market_data ALTER asset_class TYPE text[] USING NULL"], "text[]"),
    ],
)
def test_what_cannot_be_corrected_is_refused_with_its_reason(
    connection: psycopg.Connection[TupleRow], statements: list[str], reason: str
) -> None:
    make(connection, SYMBOLS, *statements)
    assert reason in only_problem(connection)


def test_distributed_table_is_refused(connection: psycopg.Connection[TupleRow]) -> None:
    # Citus keeps its tables in this catalogue; without Citus, this is what it looks like.
    make(
        connection,
        MARKET,
        SYMBOLS,
        "SET allow_system_table_mods = on;"
        " CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass)",
    )
    inspect(connection)
    make(connection, "INSERT INTO pg_catalog.pg_dist_partition VALUES ('market_data')")
    assert "Citus" in only_problem(connection)


def test_other_storage_is_refused(connection: psycopg.Connection[TupleRow]) -> None:
    make(
        connection,
        SYMBOLS,
        "CREATE ACCESS METHOD columns TYPE TABLE HANDLER heap_tableam_handler",
        f"{MARKET} USING columns",
    )
    assert "stored by columns" in only_problem(connection)


def test_temporary_table_is_refused(connection: psycopg.Connection[TupleRow]) -> None:
    make(connection, SYMBOLS, MARKET.replace("CREATE TABLE", "CREATE TEMPORARY TABLE"))
    schema = connection.execute("SELECT pg_my_temp_schema()::regnamespace::text").fetchall()[0][0]
    assert "temporary" in only_problem(connection, market_schema=schema)


def test_updated_at_that_is_generated_is_not_set(connection: psycopg.Connection[TupleRow]) -> None:
    make(
        connection,
        SYMBOLS,
        MARKET,
        "ALTER TABLE market_data ADD updated_at timestamptz"
        ' GENERATED ALWAYS AS ("timestamp") STORED',
    )
    assert not inspect(connection).has_updated_at


def test_symbols_may_be_a_view(connection: psycopg.Connection[TupleRow]) -> None:
    make(
        connection, MARKET, "CREATE VIEW symbols AS SELECT 'A'::text ticker, 'X'::text asset_class"
    )
    assert inspect(connection).symbols_name == "public.symbols"


@pytest.mark.every_postgres
def test_missing_rights_end_with_the_statements_that_give_them(
    connection: psycopg.Connection[TupleRow], clerk: psycopg.Connection[TupleRow]
) -> None:
    make(
        connection,
        "CREATE SCHEMA bars; CREATE SCHEMA old",
        PARTITIONED.replace("market_data", "bars.market_data") + " LIST (symbol)",
        "CREATE TABLE old.rest PARTITION OF bars.market_data (UNIQUE (id)) DEFAULT",
        "ALTER TABLE bars.market_data ADD updated_at timestamptz",
        SYMBOLS,
        # Default rights of public differ between versions.
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
    )

    found = problems(clerk, market_schema="bars")

    role = sql.Identifier(clerk.info.user).as_string()
    assert grants(found) == [
        f'GRANT USAGE ON SCHEMA "bars" TO {role};',
        f'GRANT SELECT ON "bars"."market_data" TO {role};',
        f'GRANT UPDATE (asset_class, updated_at) ON "bars"."market_data" TO {role};',
        f'GRANT CREATE ON SCHEMA "bars" TO {role};',
        f'GRANT USAGE ON SCHEMA "old" TO {role};',
        f'GRANT SELECT ON "old"."rest" TO {role};',
        f'GRANT UPDATE (asset_class, updated_at) ON "old"."rest" TO {role};',
        f'GRANT USAGE ON SCHEMA "public" TO {role};',
        f'GRANT SELECT ON "public"."symbols" TO {role};',
    ]
    make(connection, *grants(found))
    assert inspect(clerk, market_schema="bars").has_updated_at
    # What it says is enough is enough.
    clerk.execute(
        "UPDATE old.rest SET asset_class = 'X', updated_at = now()"
        " FROM symbols WHERE ticker = symbol"
    )


def test_rights_on_the_parent_do_not_count_for_its_partitions(
    connection: psycopg.Connection[TupleRow], clerk: psycopg.Connection[TupleRow]
) -> None:
    role = sql.Identifier(clerk.info.user).as_string()
    make(
        connection,
        f"{PARTITIONED} LIST (symbol)",
        "CREATE TABLE leaf PARTITION OF market_data (UNIQUE (id)) DEFAULT",
        SYMBOLS,
        f"GRANT ALL ON market_data, symbols TO {role}; GRANT ALL ON SCHEMA public TO {role}",
        f"GRANT SELECT, UPDATE (symbol) ON leaf TO {role}",
    )
    assert only_problem(clerk).endswith(f'GRANT UPDATE (asset_class) ON "public"."leaf" TO {role};')


def test_reading_asks_for_no_right_to_write(
    connection: psycopg.Connection[TupleRow], clerk: psycopg.Connection[TupleRow]
) -> None:
    role = sql.Identifier(clerk.info.user).as_string()
    make(
        connection,
        MARKET,
        SYMBOLS,
        f"GRANT SELECT ON market_data TO {role}",
        f"GRANT SELECT (ticker, asset_class) ON symbols TO {role}",
    )
    inspect(clerk, for_writing=False)
    assert any("UPDATE (asset_class)" in line for line in problems(clerk))


@pytest.mark.every_postgres
def test_row_security_that_applies_is_refused(
    connection: psycopg.Connection[TupleRow], clerk: psycopg.Connection[TupleRow]
) -> None:
    role = sql.Identifier(clerk.info.user).as_string()
    make(
        connection,
        MARKET,
        SYMBOLS,
        f"GRANT ALL ON market_data, symbols TO {role}; GRANT ALL ON SCHEMA public TO {role}",
        "ALTER TABLE market_data ENABLE ROW LEVEL SECURITY",
    )
    assert "Row security of public.market_data may hide rows" in only_problem(clerk)
    # The owner is not subject to it.
    inspect(connection)


def test_nothing_is_locked_or_waited_for(
    database_url: str, connection: psycopg.Connection[TupleRow]
) -> None:
    make(
        connection,
        SYMBOLS,
        f"{PARTITIONED} LIST (symbol)",
        "CREATE TABLE part PARTITION OF market_data (UNIQUE (id)) DEFAULT",
    )
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE market_data, symbols IN ACCESS EXCLUSIVE MODE")
        assert len(inspect(connection).leaves) == 1


def test_inspection_belongs_outside_a_transaction(connection: psycopg.Connection[TupleRow]) -> None:
    with transaction(connection, SETTINGS), pytest.raises(psycopg.ProgrammingError):
        inspect(connection)


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    "key",
    [
        "PRIMARY KEY (id)",
        "UNIQUE (id)",
        'PRIMARY KEY (id, "timestamp")',
        'UNIQUE (symbol, "timestamp")',
        'UNIQUE (id) INCLUDE (asset_class), UNIQUE ("timestamp", price)',
    ],
)
def test_keys_of_every_kind(connection: psycopg.Connection[TupleRow], key: str) -> None:
    make(
        connection,
        SYMBOLS,
        'CREATE TABLE market_data (id bigint, symbol text, "timestamp" timestamptz,'
        f" asset_class text, price numeric, {key})",
    )
    assert [leaf.kind for leaf in inspect(connection).leaves] == ["heap"]


@pytest.mark.parametrize(
    "index",
    [
        "CREATE UNIQUE INDEX ON market_data (id) WHERE symbol IS NOT NULL",
        "CREATE UNIQUE INDEX ON market_data ((id + 1))",
        "CREATE UNIQUE INDEX ON market_data (id, lower(symbol))",
        "CREATE UNIQUE INDEX ON market_data (id, price)",
        "ALTER TABLE market_data ADD UNIQUE (id) DEFERRABLE",
        "CREATE INDEX ON market_data (id)",
        (
            "CREATE UNIQUE INDEX broken ON market_data (id);"
            " UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass"
        ),
    ],
)
def test_what_is_no_key(connection: psycopg.Connection[TupleRow], index: str) -> None:
    """Reading needs none."""
    make(
        connection,
        SYMBOLS,
        MARKET.replace(" PRIMARY KEY", " NOT NULL, price numeric"),
        index,
    )
    assert "public.market_data has no key" in only_problem(connection)
    inspect(connection, for_writing=False)


def test_an_unlogged_table_is_as_good_as_any(connection: psycopg.Connection[TupleRow]) -> None:
    make(connection, SYMBOLS, MARKET.replace("CREATE TABLE", "CREATE UNLOGGED TABLE"))
    assert inspect(connection).leaves


def test_symbols_may_be_no_foreign_table(connection: psycopg.Connection[TupleRow]) -> None:
    make(
        connection,
        MARKET,
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w",
        SYMBOLS.replace("CREATE TABLE", "CREATE FOREIGN TABLE") + " SERVER s",
    )
    assert "public.symbols is a foreign table, and every batch reads it" in only_problem(connection)


def test_a_standby_is_refused_for_writing(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "postgres", settings={"shared_buffers": "16MB"})
    with server, connect(server.url(), SETTINGS, purpose="test") as connection:
        make(connection, SYMBOLS, MARKET)
    (configuration,) = tmp_path.rglob("postgresql.conf")
    (configuration.parent / "standby.signal").touch()
    with server, connect(server.url(), SETTINGS, purpose="test") as connection:
        assert "name the primary" in only_problem(connection)
        inspect(connection, for_writing=False)


class TestForeignTables:
    """Another database of the same server stands for another server."""

    @pytest.fixture
    def remote(
        self,
        connection: psycopg.Connection[TupleRow],
        another_database_url: str,
    ) -> Iterator[psycopg.Connection[TupleRow]]:
        make(connection, SYMBOLS)
        add_server(connection, another_database_url)
        with connect(another_database_url, SETTINGS, purpose="test") as opened:
            yield opened

    @pytest.mark.every_postgres
    def test_a_partition_on_another_server(
        self, connection: psycopg.Connection[TupleRow], remote: psycopg.Connection[TupleRow]
    ) -> None:
        """Nothing of the inspection stays."""
        make(remote, MARKET.replace("market_data", "bars"))
        make(
            connection,
            f"{PARTITIONED} RANGE (id)",
            "CREATE TABLE near PARTITION OF market_data (UNIQUE (id)) FOR VALUES FROM (0) TO (9)",
            "CREATE FOREIGN TABLE far PARTITION OF market_data DEFAULT"
            " SERVER far_away OPTIONS (table_name 'bars')",
        )
        found = inspect(connection)
        assert [(leaf.table, leaf.kind) for leaf in found.leaves] == [
            ("far", "foreign"),
            ("near", "heap"),
        ]
        assert [leaf.table for leaf in found.foreign_leaves] == ["far"]
        tables = connection.execute(
            "SELECT foreign_table_name FROM information_schema.foreign_tables"
        )
        assert tables.fetchall() == [("far",)]

    @pytest.mark.parametrize(
        ("there", "here", "reason"),
        [
            ([], "", "has no table public.market_data"),
            ([MARKET], "OPTIONS (updatable 'false')", "option updatable off"),
            ([MARKET], "OPTIONS (table_name 'other')", "has no table public.other"),
            ([f"{PARTITIONED} LIST (symbol)"], "", "holds a partitioned table public.market_data"),
            (
                [
                    MARKET.replace("market_data", "below"),
                    "CREATE VIEW market_data AS TABLE below",
                ],
                "",
                "holds no plain table",
            ),
            ([MARKET, "CREATE TABLE child () INHERITS (market_data)"], "", "others inherit"),
            ([MARKET, "ALTER TABLE market_data ENABLE ROW LEVEL SECURITY"], "", "row security"),
            (
                [MARKET, 'ALTER TABLE market_data RENAME symbol TO "Symbol"'],
                "",
                'column "symbol" does not exist',
            ),
            (
                [
                    MARKET,
                    "CREATE TYPE kind AS ENUM ('STOCK')",
                    "ALTER TABLE market_data ALTER asset_class TYPE kind USING NULL",
                ],
                "",
                "public.kind",
            ),
        ],
    )
    def test_what_cannot_be_corrected_there(
        self,
        connection: psycopg.Connection[TupleRow],
        remote: psycopg.Connection[TupleRow],
        there: list[str],
        here: str,
        reason: str,
    ) -> None:
        make(remote, *there)
        make(connection, f"{FOREIGN} SERVER far_away {here}")
        assert reason in only_problem(connection)
        inspect(connection, for_writing=False)

    def test_rights_there_and_a_mapping_are_needed(
        self,
        connection: psycopg.Connection[TupleRow],
        remote: psycopg.Connection[TupleRow],
        clerk: psycopg.Connection[TupleRow],
    ) -> None:
        name = clerk.info.user
        role = sql.Identifier(name).as_string()
        make(remote, MARKET, f"GRANT SELECT, UPDATE (id) ON market_data TO {role}")
        make(
            connection,
            f"{FOREIGN} SERVER far_away",
            f"GRANT ALL ON market_data, symbols TO {role}; GRANT ALL ON SCHEMA public TO {role}",
        )
        lacks_server = only_problem(clerk)
        assert lacks_server.endswith(f'GRANT USAGE ON FOREIGN SERVER "far_away" TO {role};')
        make(connection, *grants([lacks_server]))
        assert "user mapping not found" in only_problem(clerk)
        login = f"OPTIONS (user '{name.replace(chr(39), chr(39) * 2)}', password 'x')"
        make(connection, f"CREATE USER MAPPING FOR {role} SERVER far_away {login}")
        assert "permission denied for table market_data" in only_problem(clerk)
        make(remote, f"GRANT UPDATE (asset_class) ON market_data TO {role}")
        assert inspect(clerk).foreign_leaves
        make(remote, f"DROP OWNED BY {role}")
