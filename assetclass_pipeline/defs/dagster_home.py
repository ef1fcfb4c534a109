"""DAGSTER_HOME of one home directory: its dagster.yaml, its storage database, its environment.

Belongs here: what a process needs to know before it starts Dagster. Does not: Dagster itself, which
is not even imported, so that `up` stays small.
"""

import hashlib
import re
import socket
import tempfile
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy.engine import URL

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.errors import DatabaseUnavailableError
from assetclass_pipeline.settings import Settings

LOCATION_NAME = "assetclass_pipeline"
STORAGE_VARIABLE = "ASSETCLASS_DAGSTER_STORAGE_URL"

# Run granularity, because a correction holds its pool from backup to verification: with op
# granularity another run could slip in between two of its steps.
_DAGSTER_YAML = f"""\
# Written by assetclass whenever it starts; edits here are overwritten.
storage:
  postgres:
    postgres_url:
      env: {STORAGE_VARIABLE}
telemetry:
  enabled: false
nux:
  enabled: false
run_queue:
  dequeue_interval_seconds: 1
  # A code server that is being restarted is no reason to fail a queued run.
  max_user_code_failure_retries: 3
  user_code_failure_retry_delay: 5
concurrency:
  runs:
    max_concurrent_runs: 4
  pools:
    granularity: run
    default_limit: 1
run_monitoring:
  enabled: true
  start_timeout_seconds: 180
  cancel_timeout_seconds: 180
  poll_interval_seconds: 10
  max_resume_run_attempts: 0
  free_slots_after_run_end_seconds: 1
run_retries:
  # Retries belong to the operation, which knows what was committed; a second run does not.
  enabled: false
code_servers:
  local_startup_timeout: 180
  reload_timeout: 180
schedules:
  use_threads: true
  num_workers: 4
sensors:
  use_threads: true
  num_workers: 4
retention:
  schedule:
    purge_after_days: 90
  sensor:
    purge_after_days:
      skipped: 2
      started: 30
      success: 30
      failure: 90
"""


def dagster_home(settings: Settings) -> Path:
    """The absolute directory that DAGSTER_HOME names."""
    return settings.home.absolute() / "dagster"


def storage_url(settings: Settings, data_url: str) -> str:
    """SQLAlchemy URL of Dagster's storage, with the password: keep it out of files and messages."""
    parts = _storage_parts(settings, data_url)
    # SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3, which dagster-postgres cannot use.
    # Host and port stand in the query: socket directories and lists of hosts are no host names.
    login = {name: parts.pop(name, None) for name in ("user", "password", "dbname")}
    return URL.create(
        "postgresql+psycopg2",
        username=login["user"],
        password=login["password"],
        database=login["dbname"],
        query=parts,
    ).render_as_string(hide_password=False)


def prepare_instance(settings: Settings, data_url: str) -> Path:
    """Create the directory, dagster.yaml and storage database where missing; returns DAGSTER_HOME.

    Safe to call at every start and by several processes at once. Raises DatabaseUnavailableError
    when the storage database is missing and cannot be created.
    """
    home = dagster_home(settings)
    home.mkdir(parents=True, exist_ok=True)
    _write_if_changed(home / "dagster.yaml", _DAGSTER_YAML)
    _create_storage_database(settings, data_url)
    return home


def dagster_home_environment(settings: Settings, data_url: str) -> dict[str, str]:
    """Environment variables with which any process joins this instance and this database.

    ASSETCLASS_DATABASE_URL is among them, so that a child never starts an embedded server itself.
    """
    return {
        "DAGSTER_HOME": str(dagster_home(settings)),
        "ASSETCLASS_HOME": str(settings.home.absolute()),
        "ASSETCLASS_DATABASE_URL": data_url,
        STORAGE_VARIABLE: storage_url(settings, data_url),
        # A range of months is stored at once: 335 single events took 14 s.
        "DAGSTER_EVENT_BATCH_SIZE": "1000",
    }


def code_server_directory() -> Path:
    """A new private directory for the code server's socket.

    It is in the temporary directory because a socket's path may have about 100 characters only;
    its name carries the host, so that `end_dead_runs` can tell a dead server from a foreign one.
    """
    return Path(tempfile.mkdtemp(prefix=f"assetclass-{this_host()}-"))


def is_code_server_directory(directory: Path) -> bool:
    """Whether `code_server_directory` made it, on this machine."""
    return directory.name.startswith(f"assetclass-{this_host()}-")


def this_host() -> str:
    """Eight characters for this machine: a socket path has no room for its name."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _storage_parts(settings: Settings, data_url: str) -> dict[str, str]:
    if settings.dagster_database_url is not None:
        parts = _url_parts(settings.dagster_database_url.get_secret_value())
    else:
        parts = _url_parts(data_url) | {"dbname": settings.dagster_database}
    parts.setdefault("connect_timeout", str(settings.session.connect_timeout))
    return parts


def _url_parts(url: str) -> dict[str, str]:
    # SQLAlchemy's form names a driver, which libpq does not know.
    parts = conninfo_to_dict(re.sub(r"^postgres(ql)?\+\w+://", "postgresql://", url.strip()))
    return {name: str(value) for name, value in parts.items() if value is not None}


def _create_storage_database(settings: Settings, data_url: str) -> None:
    if settings.dagster_database_url is None:
        _create_database(settings, data_url, settings.dagster_database)
        return
    url = settings.dagster_database_url.get_secret_value()
    try:
        connect(url, settings, purpose="Dagster storage").close()
    except DatabaseUnavailableError as refusal:
        try:
            parts = _url_parts(url)
            postgres = make_conninfo("", **(parts | {"dbname": "postgres"}))
            _create_database(settings, postgres, parts["dbname"])
        except (DatabaseUnavailableError, psycopg.Error, KeyError):
            # What stands in the way of the database itself says more than the way around it.
            raise DatabaseUnavailableError(
                f"Dagster's storage cannot be used. {refusal} What is said of ASSETCLASS_"
                "DATABASE_URL there goes for ASSETCLASS_DAGSTER_DATABASE_URL here."
            ) from None


def _create_database(settings: Settings, beside: str, name: str) -> None:
    try:
        with connect(beside, settings, purpose="Dagster storage") as connection:
            exists = query("embedded", "database_exists")
            if connection.execute(exists, {"database": name}).fetchone() == (False,):
                create = query("embedded", "create_database", database=sql.Identifier(name))
                connection.execute(create)
    except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
        return  # another process was quicker
    except psycopg.errors.InsufficientPrivilege:
        raise DatabaseUnavailableError(
            f"Dagster's storage needs the database {name!r}, and this role may not create it. Have "
            f"it created (CREATE DATABASE {name} OWNER of this role), or name one that exists with "
            "ASSETCLASS_DAGSTER_DATABASE or ASSETCLASS_DAGSTER_DATABASE_URL."
        ) from None


def _write_if_changed(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    # Written aside and moved: a Dagster process that starts now reads the old or the new file.
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=path.name, delete=False
    ) as draft:
        draft.write(text)
    Path(draft.name).replace(path)
