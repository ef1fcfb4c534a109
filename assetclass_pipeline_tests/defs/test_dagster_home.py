"""DAGSTER_HOME: written once, without passwords; the storage database is made where it can be."""

import threading
from pathlib import Path

import psycopg
import pytest
import sqlalchemy

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.defs.dagster_home import (
    dagster_home_environment,
    prepare_instance,
    storage_url,
)
from assetclass_pipeline.errors import DatabaseUnavailableError
from assetclass_pipeline.settings import Settings, load_settings


def _settings(home: Path, **overrides: object) -> Settings:
    return load_settings(home=home, database_url=None, **overrides)


@pytest.mark.parametrize(
    "data_url",
    [
        "postgresql://someone:p%40ss%2Fw%C3%B6rd@db.example:6543/data?sslmode=require",
        "postgresql+psycopg://someone:p%40ss%2Fw%C3%B6rd@db.example:6543/data?sslmode=require",
        "host=db.example port=6543 user=someone password=p@ss/wörd dbname=data sslmode=require",
    ],
)
def test_the_storage_stands_beside_the_data(tmp_path: Path, data_url: str) -> None:
    url = sqlalchemy.make_url(storage_url(_settings(tmp_path), data_url))
    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.database) == ("someone", "p@ss/wörd", "dagster")
    assert url.query["host"] == "db.example"
    assert url.query["port"] == "6543"
    assert url.query["sslmode"] == "require"


def test_a_socket_directory_is_no_host_name(tmp_path: Path) -> None:
    url = sqlalchemy.make_url(storage_url(_settings(tmp_path), "postgresql:///data?host=/run/pg"))
    assert url.query["host"] == "/run/pg"
    assert url.host is None


def test_preparing_twice_or_at_once_leaves_one_file_and_one_database(
    tmp_path: Path, postgres_server: EmbeddedServer
) -> None:
    settings = _settings(tmp_path, dagster_database="dagster prepared")
    prepare = threading.Barrier(4)
    homes: list[Path] = []

    def run() -> None:
        prepare.wait()
        homes.append(prepare_instance(settings, postgres_server.url()))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(homes) == {tmp_path / "dagster"}
    assert len(homes) == 4
    assert [path.name for path in homes[0].iterdir()] == ["dagster.yaml"]
    before = (homes[0] / "dagster.yaml").stat().st_mtime_ns
    prepare_instance(settings, postgres_server.url())
    assert (homes[0] / "dagster.yaml").stat().st_mtime_ns == before
    url = dagster_home_environment(settings, postgres_server.url())[
        "ASSETCLASS_DAGSTER_STORAGE_URL"
    ]
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT current_database()")) == "dagster prepared"
    engine.dispose()


def test_a_database_of_its_own_is_created_too(
    tmp_path: Path, postgres_server: EmbeddedServer
) -> None:
    own = postgres_server.url("dagster_own")
    prepare_instance(_settings(tmp_path, dagster_database_url=own), "postgresql:///unused")
    psycopg.connect(own).close()


def test_a_role_that_may_not_create_databases_is_told_what_to_do(
    tmp_path: Path, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS dagster_less")
        connection.execute("CREATE ROLE dagster_less LOGIN PASSWORD 'lesser'")
    limited = "postgresql://dagster_less:lesser@" + database_url.partition("@")[2]
    settings = _settings(tmp_path, dagster_database="dagster_missing")
    with pytest.raises(
        DatabaseUnavailableError, match="CREATE DATABASE dagster_missing"
    ) as refusal:
        prepare_instance(settings, limited)
    assert "lesser@" not in str(refusal.value)


def test_a_storage_that_cannot_be_reached_names_its_setting(tmp_path: Path) -> None:
    settings = _settings(
        tmp_path, dagster_database_url="postgresql://someone:hidden@127.0.0.1:9/dagster"
    )
    with pytest.raises(
        DatabaseUnavailableError, match="ASSETCLASS_DAGSTER_DATABASE_URL"
    ) as refusal:
        prepare_instance(settings, "postgresql:///unused")
    assert "hidden" not in str(refusal.value)
