"""Every `ASSETCLASS_*` setting: the only module that reads the environment."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from json import JSONDecodeError
from pathlib import Path
from typing import Annotated, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from assetclass_pipeline.errors import InvalidSettingsError
from assetclass_pipeline.model.alert import Severity
from assetclass_pipeline.model.options import RetryOptions
from assetclass_pipeline.model.quality import Thresholds
from assetclass_pipeline.model.refused_values import own_words
from assetclass_pipeline.model.throttle import ThrottleLimits
from assetclass_pipeline.model.token import Role

# Ours too, but between our own processes: not for people to set.
_NO_SETTINGS = {"ASSETCLASS_DAGSTER_STORAGE_URL", "ASSETCLASS_UP_MARK"}


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


class Channel(BaseModel):
    """Where people are told of alerts: an Apprise URL, and of which severities it hears.

    Level 1 is told at once; level 2 and 3 when nobody of the level before has acknowledged in time.
    """

    # A misspelt `severities` would let a pager hear of everything.
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=60, pattern=r"^[\w.-]+$")
    url: SecretStr
    severities: frozenset[Severity] = Field(frozenset(Severity), min_length=1)
    level: int = Field(1, ge=1, le=3)


class Reminders(BaseModel):
    """Seconds after which an alert that nobody acknowledges is told again, one level higher."""

    model_config = ConfigDict(frozen=True)

    high: float = Field(900, gt=0)
    medium: float = Field(14_400, gt=0)
    low: float = Field(86_400, gt=0)

    def after(self, severity: Severity) -> timedelta:
        """For alerts of one severity."""
        return timedelta(seconds=getattr(self, severity.value))


class AlertSettings(BaseModel):
    """When an alert opens, who is told, and how often; percents 0..100, times in seconds."""

    model_config = ConfigDict(frozen=True)

    channels: tuple[Channel, ...] = ()
    contacts: tuple[str, str, str] = Field(
        ("ETL operations team", "data engineering team", "platform engineering team"),
        description="whom to call on level 1, 2 and 3",
    )
    reminders: Reminders = Reminders()
    cool_down: float = Field(
        600, ge=0, description="after a message, so long none about the same alert that comes back"
    )
    reopen_within: float = Field(
        86_400, ge=0, description="a cause that comes back so soon reopens its alert"
    )
    notify_resolved: bool = Field(True, description="tell the same channels when it is over")
    delivery_tries: int = Field(10, ge=1)
    # A tick that sends has 60 s in all, and must record afterwards what came of it.
    delivery_timeout: float = Field(10, gt=0, le=30, description="for one message on one channel")
    delivery_backoff: tuple[float, float] = Field(
        (5, 600), description="wait after the first failed try, doubled each time, and at most"
    )

    daemon_gone_after: float = Field(
        120, gt=0, description="without a heartbeat of Dagster's daemon the API tells people itself"
    )
    database_gone_after: float = Field(
        60, gt=0, description="without an answer of the database the API tells people itself"
    )

    error_rate: float = Field(10, ge=0, le=100, description="above: HIGH_ERROR_RATE")
    orphaned: float = Field(10, ge=0, le=100, description="above: HIGH_ORPHANED_RECORDS")
    pickup: float = Field(60, gt=0, description="a request must be taken up by then")

    baseline_runs: int = Field(20, ge=3, description="past ones that a new one is compared with")
    baseline_least: int = Field(5, ge=3, description="with fewer there is no judgement")
    baseline_deviations: float = Field(
        4, gt=0, description="scaled median absolute deviations from the median that are too many"
    )
    slower_by_at_least: float = Field(
        60, ge=0, description="less lost time is never PERFORMANCE_DEGRADATION"
    )

    runbooks_url: str = Field("docs/runbooks", description="where links to runbooks begin")
    webserver_url: str | None = Field(
        None, description="where links to runs begin; unset: the webserver on this machine"
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> "AlertSettings":
        names = [channel.name for channel in self.channels]
        if len(names) != len(set(names)):
            raise ValueError("each channel needs a name of its own")
        return self

    def channel(self, name: str) -> Channel | None:
        """The channel of this name; None when the settings no longer hold it."""
        return next((channel for channel in self.channels if channel.name == name), None)


class HealthSettings(BaseModel):
    """What counts as well; times in seconds."""

    model_config = ConfigDict(frozen=True)

    timeout: float = Field(1, gt=0, le=30, description="for the look at one component")
    quality_report: float = Field(
        93_600, gt=0, description="the newest quality_report may be so old: a day and two hours"
    )
    stalled: float = Field(
        1800, gt=0, description="an operation that writes nothing, and does not wait, is stuck then"
    )
    paused: float = Field(86_400, gt=0, description="a longer pause is mentioned")
    delivery: float = Field(900, gt=0, description="a notification must have been taken by then")
    free_disk_bytes: ByteSize = Field(
        ByteSize(1024**3), ge=0, description="must be free for data, archive and home"
    )
    daemon_heartbeat: float = Field(
        180, ge=60, description="a daemon of Dagster's beats every 30 s; silent for longer, it died"
    )
    may_be_off: frozenset[str] = Field(
        frozenset(), description="sensors and schedules that were switched off on purpose"
    )


class OidcSettings(BaseModel):
    """Whose JWTs the API takes as tokens, and which role their claims give; times in seconds."""

    model_config = ConfigDict(frozen=True)

    issuer: str = Field(min_length=1, description="what the claim `iss` must be")
    audience: str = Field(min_length=1, description="what the claim `aud` must hold")
    jwks_url: str = Field(pattern=r"^https?://", description="where the issuer's keys are")
    algorithms: tuple[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"],
        ...,
    ] = Field(("RS256", "ES256"), min_length=1, description="never one with a shared secret")
    name_claim: str = Field("sub", description="whose value stands in the audit log")
    role_claim: str = Field(
        "roles",
        description="a text or a list; where no claim is called so, a dot leads into one, like "
        "realm_access.roles",
    )
    roles: dict[str, Role] = Field(
        {f"assetclass-{role}": role for role in Role},
        description="which role each value of that claim gives; several give the highest",
    )
    leeway: float = Field(30, ge=0, le=300, description="by how much clocks may differ")
    keys_timeout: float = Field(5, gt=0, description="for fetching the keys")
    keys_lifetime: float = Field(300, gt=0, description="after that they are fetched anew")


class ApiSettings(BaseModel):
    """Limits and doors of the REST API, for each process of it; times in seconds."""

    model_config = ConfigDict(frozen=True)

    host: str = Field(
        "127.0.0.1", description="address to listen on; other machines reach it through a proxy"
    )
    connections: int = Field(10, ge=1, le=500, description="to the database at most")
    connection_wait: float = Field(2, gt=0, description="for a free one; then 503")
    scans: int = Field(
        2, ge=1, le=100, description="analyze, preview and validate at once; each opens its own"
    )
    scan_wait: float = Field(10, gt=0, description="for a place among them; then 503")
    scan_deadline: float = Field(600, gt=0, description="for one of them; then it is ended")
    most_requests: int = Field(
        200, ge=1, le=2000, description="open at once; more are refused with 503"
    )
    status_age: float = Field(
        0.25,
        ge=0,
        le=5,
        description="age of a list of operations at most; who changes one is answered after as "
        "long, so all processes must have the same",
    )

    body_limit: int = Field(65_536, ge=1024, description="bytes of a request's body")
    header_limit: int = Field(16_384, ge=1024, description="bytes of a request's head")
    read_timeout: float = Field(10, gt=0, description="for the head, and for the body, to arrive")
    keep_alive: int = Field(15, ge=1, description="a connection may wait for its next request")
    shutdown_patience: int = Field(30, ge=1, description="for requests at work when it stops")

    failed_logins_per_minute: int = Field(20, ge=1, description="of one address; then 429")
    requests_per_minute_of_token: int = Field(30_000, ge=1)
    requests_per_minute_of_address: int = Field(60_000, ge=1)

    trusted_proxies: tuple[str, ...] = Field(
        (), description="addresses whose X-Forwarded-For is believed"
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="web pages of these origins may call; none by default"
    )
    fallback: bool = Field(
        True, description="deliver messages, and tell of a daemon or a database that is gone"
    )
    metrics_public: bool = Field(False, description="Prometheus may scrape without a token")
    oidc: OidcSettings | None = Field(None, description="single sign-on beside our own tokens")


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
    api_port: int = Field(8000, ge=1, le=65535)
    api_url: str | None = Field(
        None, description="commands talk to the pipeline behind this API; unset: to the database"
    )
    api_token_file: Path | None = Field(
        None, description="holds the token for it, and is readable by its owner alone"
    )
    api_anonymous_role: Role | None = Field(
        None, description="what callers on this machine may do without a token; unset: nothing"
    )

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
    reports_directory: Path | None = Field(
        None, description="where scheduled reports are written; unset: reports under home"
    )
    recovery_limit_seconds: float = Field(
        1800, gt=0, description="how long a rollback of everything may take, for recovery drills"
    )

    thresholds: Thresholds = Thresholds()
    alerts: AlertSettings = AlertSettings()
    health: HealthSettings = HealthSettings()

    api: ApiSettings = ApiSettings()
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
    def reports(self) -> Path:
        """Directory of the scheduled reports."""
        return self.reports_directory or self.home / "reports"

    @property
    def webserver_url(self) -> str:
        """Where links to Dagster's web page begin."""
        return (self.alerts.webserver_url or f"http://127.0.0.1:{self.webserver_port}").rstrip("/")

    @property
    def zone(self) -> ZoneInfo:
        """The schedules' time zone."""
        return ZoneInfo(self.time_zone)


@dataclass(frozen=True)
class SettingInEffect:
    """A setting with its value, secrets masked; `variable` is None where the default holds."""

    name: str
    value: str
    variable: str | None


def settings_in_effect(settings: Settings) -> list[SettingInEffect]:
    """Every setting of the first level, in the order of the class, and where it comes from."""
    prefix = _prefix()
    given = [name for name in os.environ if name.upper().startswith(prefix)]
    return [
        SettingInEffect(
            name,
            str(value),
            next((variable for variable in sorted(given) if _sets(variable, name)), None),
        )
        for name, value in settings.model_dump(mode="json").items()
    ]


def unknown_variables() -> list[str]:
    """Variables `ASSETCLASS_*` of the environment that set nothing: misspelled, most likely."""
    return sorted(
        variable
        for variable in os.environ
        if variable.upper().startswith(_prefix())
        and variable.upper() not in _NO_SETTINGS
        and not any(_sets(variable, name) for name in Settings.model_fields)
    )


def _prefix() -> str:
    return str(Settings.model_config["env_prefix"])


def _sets(variable: str, name: str) -> bool:
    field, *parts = variable.lower().removeprefix(_prefix().lower()).split("__")
    return field == name and _has(Settings.model_fields[name].annotation, parts)


def _has(kind: object, parts: Sequence[str]) -> bool:
    """Whether a setting of this type has such a part, at whatever depth."""
    if not parts:
        return True
    # One that may be unset is its type, or None.
    nested = next(
        (
            one
            for one in (kind, *get_args(kind))
            if isinstance(one, type) and issubclass(one, BaseModel)
        ),
        None,
    )
    if nested is None:
        # A list or a table: what its parts are called is its own business.
        return True
    field = nested.model_fields.get(parts[0])
    return field is not None and _has(field.annotation, parts[1:])


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment; `overrides` win.

    Raises InvalidSettingsError naming each setting that cannot be used.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [
            f"ASSETCLASS_{'__'.join(str(part) for part in problem['loc']).upper()}: "
            f"{own_words(problem['msg'])}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise InvalidSettingsError("Settings cannot be used:\n  " + "\n  ".join(lines)) from None
    except SettingsError as error:
        raise InvalidSettingsError(_no_json(error)) from None


def _no_json(error: SettingsError) -> str:
    """Which variable should hold JSON and does not; its value may be a secret."""
    cause = error.__cause__
    said = cause.doc if isinstance(cause, JSONDecodeError) else None
    variables = [
        variable
        for variable, value in sorted(os.environ.items())
        if value == said and variable.upper().startswith(_prefix())
    ]
    examples = """'["127.0.0.1"]' or '{"operators": "operator"}'"""
    return (
        f"Settings cannot be used:\n  {' or '.join(variables) or error}: write lists and tables as "
        f"JSON, like {examples} with these quotes in a shell."
    )
