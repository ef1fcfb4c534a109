"""Every `ASSETCLASS_*` setting: the only module that reads the environment."""

from datetime import date, time
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from assetclass_pipeline.errors import InvalidSettingsError
from assetclass_pipeline.model.options import RetryOptions
from assetclass_pipeline.model.quality import Thresholds
from assetclass_pipeline.model.throttle import ThrottleLimits


def _known_zone(name: str) -> str:
    # Looked up alone: the list of all zones would be read from hundreds of files, at every start.
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"{name!r} is not a time zone; write it like Europe/Istanbul or UTC"
        ) from None
    return name


def _first_of_month(day: date) -> date:
    if day.day != 1:
        raise ValueError(f"must be the first day of a month, like {day.replace(day=1)}")
    return day


class SessionLimits(BaseModel):
    """Server-side limits that every session of ours sets (seconds)."""

    model_config = ConfigDict(frozen=True)

    connect_timeout: int = Field(10, ge=1, description="seconds to reach the server")
    # Below PostgreSQL's deadlock_timeout (1 s), so that our session yields, not the application's.
    lock_timeout: float = Field(0.8, gt=0, description="seconds a statement may wait for a lock")
    statement_timeout: float = Field(300, gt=0, description="seconds one statement may take")
    idle_in_transaction_timeout: float = Field(60, gt=0)
    scan_timeout: float = Field(
        7200, gt=0, description="seconds a statement may take that reads a whole table"
    )


class Settings(BaseSettings):
    """All settings with their defaults; nested ones are written `ASSETCLASS_RETRY__TRIES=5`."""

    model_config = SettingsConfigDict(
        env_prefix="ASSETCLASS_", env_nested_delimiter="__", frozen=True, extra="ignore"
    )

    database_url: SecretStr | None = Field(
        None, description="DSN of the database with the market tables; unset: embedded PostgreSQL"
    )
    home: Path = Field(
        Path(".assetclass"), description="embedded server, Dagster instance, fetched demo data"
    )
    embedded_start_timeout: float = Field(120, gt=0, description="seconds; recovery can take long")

    market_schema: str = "public"
    market_table: str = "market_data"
    symbols_schema: str = "public"
    symbols_table: str = "symbols"

    first_month: Annotated[date, AfterValidator(_first_of_month)] = Field(
        date(1999, 1, 1), description="first monthly partition; older rows belong to it too"
    )
    time_zone: Annotated[str, AfterValidator(_known_zone)] = Field(
        "UTC", description="zone of the schedules and of the throttle's window"
    )
    nightly_start: time = time(2, 0)
    nightly_end: time = time(6, 0)

    dagster_database: str = Field("dagster", description="database of Dagster's own storage")
    dagster_database_url: SecretStr | None = Field(
        None, description="DSN of Dagster's storage; unset: dagster_database beside the data"
    )
    webserver_port: int = Field(3000, ge=1, le=65535)

    backup_in_publication: Literal["refuse", "allow"] = Field(
        "refuse",
        description="where a publication would carry new backup tables: refuse the correction, or "
        "allow it because subscribers get the table first",
    )

    backup_retention_days: int = Field(
        30, ge=1, le=36_500, description="days after which a backup table may be dropped"
    )
    archive_directory: Path | None = Field(
        None, description="files with the rows of dropped backup tables; unset: archive under home"
    )
    archive_retention_days: int = Field(
        2555, ge=1, le=36_500, description="days after which such a file may be removed"
    )
    recovery_limit_seconds: float = Field(
        1800, gt=0, description="how long a rollback of everything may take, for recovery drills"
    )

    thresholds: Thresholds = Thresholds()
    session: SessionLimits = SessionLimits()
    retry: RetryOptions = Field(RetryOptions(), description="defaults of the option `retry`")
    throttle: ThrottleLimits = Field(
        ThrottleLimits(),
        description="when an operation waits between two batches; its window is in `time_zone`",
    )
    heartbeat_interval: float = Field(5, gt=0, description="seconds between two heartbeats")
    heartbeat_stale_after: float = Field(
        60, gt=0, description="seconds without heartbeat after which an operation is interrupted"
    )
    patience: float = Field(
        900, ge=0, description="seconds to wait for a server that is away, or for others' locks"
    )

    @model_validator(mode="after")
    def _stale_is_later_than_a_beat(self) -> "Settings":
        if self.heartbeat_stale_after < 3 * self.heartbeat_interval:
            raise ValueError("heartbeat_stale_after must be at least three heartbeat_intervals")
        return self

    @property
    def archive(self) -> Path:
        """Directory of the archive's files."""
        return self.archive_directory or self.home / "archive"

    @property
    def zone(self) -> ZoneInfo:
        """The schedules' time zone."""
        return ZoneInfo(self.time_zone)


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment; `overrides` win.

    Raises InvalidSettingsError naming each setting that cannot be used.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [
            f"ASSETCLASS_{'__'.join(str(part) for part in problem['loc']).upper()}: "
            f"{problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise InvalidSettingsError("Settings cannot be used:\n  " + "\n  ".join(lines)) from None
