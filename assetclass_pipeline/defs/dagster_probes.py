"""Probes that ask Dagster's own records: does the daemon live, do our sensors and schedules tick.

Belongs here: what Dagster's storage tells without loading any code. Does not: loading the
definitions (`assetclass doctor` does that), and who asks when (monitoring/health.py).
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar

import dagster as dg
from dagster._core.instance.ref import InstanceRef
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.storage.schedules.schema import JobTickTable
from dagster._core.storage.schedules.sql_schedule_storage import SqlScheduleStorage
from dagster._daemon.controller import get_daemon_statuses
from dagster._daemon.types import DaemonStatus
from dagster._utils.schedules import get_latest_completed_cron_tick
from dagster_shared.serdes import deserialize_value
from sqlalchemy import select, union_all
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.defs.dagster_home import dagster_home, storage_url
from assetclass_pipeline.defs.failures import innermost
from assetclass_pipeline.errors import DatabaseUnavailableError, ServicesError
from assetclass_pipeline.monitoring.health import Answer, Probe
from assetclass_pipeline.settings import Settings

RELIED_SENSORS: Final = frozenset(
    {
        "operation_requests",
        "asset_check_alerts",
        "run_failure_alerts",
        "operation_alerts",
        "service_health_alerts",
        "alert_notifications",
    }
)
"""Sensors without which requests are not carried out, or nobody is told of trouble."""

RELIED_SCHEDULES: Final = frozenset(
    {
        "nightly_correction",
        "daily_data_quality",
        "weekly_backup_cleanup",
        "quarterly_recovery_drill",
        "health_check",
        "weekly_performance",
        "monthly_audit",
        "quarterly_capacity",
    }
)
"""Schedules that the operators' guide promises."""

DAEMON: Final = "daemon"
CODE_LOCATION: Final = "codeLocation"
SENSORS: Final = "sensors"
SCHEDULES: Final = "schedules"
TICKS: Final = "ticks"

_CONNECT_SECONDS = 2
_RECYCLE_SECONDS = 600
_MORE_CONNECTIONS = 2
# The daemon looks at schedules every few seconds; a run of ticks to catch up takes longer.
_LATE_SCHEDULE = 600.0
# Dagster gives a sensor 60 seconds, and the loop over all sensors has its own pace.
_MISSED_INTERVALS = 3
_SENSOR_PATIENCE = 60.0
# Probes of one check share what they read.
_SHARED_FOR = 0.3

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Instigator:
    """A sensor or schedule as the daemon left it; times are seconds since 1970.

    `interval` is a sensor's. `due`, a schedule's, is the latest time at which it should have
    ticked; `watched_since` is when the daemon first saw it. `failure` is what a failed last tick
    said.
    """

    name: str
    switched_on: bool
    last_tick: float | None
    failure: str | None
    interval: float | None = None
    due: float | None = None
    watched_since: float | None = None


class DagsterWatch:
    """One instance of Dagster's, kept open to be asked again and again; it is only read.

    Nothing is connected before the first question, and nothing is created: neither DAGSTER_HOME
    nor tables. Safe in many threads. Close it, or use it as a context.
    """

    def __init__(
        self,
        settings: Settings,
        data_url: str,
        *,
        sensors: Iterable[str] = RELIED_SENSORS,
        schedules: Iterable[str] = RELIED_SCHEDULES,
    ) -> None:
        self._settings = _hasty(settings)
        self._storage_url = storage_url(self._settings, data_url)
        self._sensors = frozenset(sensors)
        self._schedules = frozenset(schedules)
        self._opening = threading.Lock()
        self._instance: dg.DagsterInstance | None = None
        self._is_reached = False
        self._reading = threading.Lock()
        self._latest: tuple[float, dict[str, Instigator]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the instance and its connections."""
        with self._opening:
            instance, self._instance = self._instance, None
        if instance is not None:
            instance.dispose()

    def probes(self) -> list[Probe]:
        """Daemon, code location, sensors, schedules and their ticks, for `check_health`."""
        questions: dict[str, Callable[[], Answer]] = {
            DAEMON: self._daemon,
            CODE_LOCATION: self._code_location,
            SENSORS: partial(self._ticking, "sensor", self._sensors),
            SCHEDULES: partial(self._ticking, "schedule", self._schedules),
            TICKS: self._ticks,
        }
        return [
            Probe(name, question, timeout=self._settings.health.timeout)
            for name, question in questions.items()
        ]

    def daemon_heartbeat_age(self) -> float | None:
        """Seconds since the daemon was last heard of: of its part that is silent for longest.

        None when a part has never been heard of, or nobody can tell.
        """
        try:
            statuses = self._ask(_daemon_statuses).values()
        except (DatabaseUnavailableError, ServicesError):
            return None
        beats = [status.last_heartbeat for status in statuses]
        times = [beat.timestamp for beat in beats if beat is not None]
        return None if len(times) < len(beats) or not times else time.time() - min(times)

    def tick_ages(self) -> dict[str, float | None]:
        """Seconds since the last tick of each sensor and schedule relied on; None: never ticked.

        Empty when nobody can tell.
        """
        try:
            found = self._instigators()
        except (DatabaseUnavailableError, ServicesError):
            return {}
        now = time.time()
        ticks = {
            name: found[name].last_tick if name in found else None
            for name in sorted(self._sensors | self._schedules)
        }
        return {name: None if tick is None else now - tick for name, tick in ticks.items()}

    def _daemon(self) -> Answer:
        limit = self._settings.health.daemon_heartbeat
        problems = [*_daemon_problems(self._ask(_daemon_statuses), time.time(), limit)]
        if problems:
            return Answer(False, " ".join(problems))
        return Answer(True, f"Every part of it was heard of within {limit:.0f} s.")

    def _code_location(self) -> Answer:
        """Whoever evaluates a sensor has loaded the code: the youngest good tick is the proof."""
        found = [
            one
            for name, one in self._instigators().items()
            if name in self._sensors and one.last_tick is not None and one.interval is not None
        ]
        now = time.time()
        ages = [
            (now - one.last_tick, one.name, now - one.last_tick <= _sensor_limit(one))
            for one in found
            if one.last_tick is not None and one.failure is None
        ]
        if not ages:
            return Answer(
                False, "No sensor was evaluated yet: `assetclass doctor` loads the definitions."
            )
        age, name, is_fresh = min(ages)
        said = f"{name} was evaluated {age:.0f} s ago"
        if not is_fresh:
            return Answer(False, f"{said}, and nothing since: `assetclass doctor` says why.")
        return Answer(True, f"It is loaded: {said}.")

    def _ticking(self, kind: str, relied_on: frozenset[str]) -> Answer:
        watched = relied_on - self._settings.health.may_be_off
        found = self._instigators()
        problems = [
            problem
            for name in sorted(watched)
            if (problem := _tick_problem(name, kind, found.get(name), self._settings))
        ]
        if problems:
            return Answer(False, " ".join(problems))
        return Answer(True, f"All {len(watched)} {kind}s are switched on and tick.")

    def _ticks(self) -> Answer:
        watched = (self._sensors | self._schedules) - self._settings.health.may_be_off
        failures = [
            f"The last tick of {one.name} failed: {one.failure}."
            for name, one in sorted(self._instigators().items())
            if name in watched and one.switched_on and one.failure is not None
        ]
        if failures:
            return Answer(False, " ".join(failures))
        return Answer(True, "The last tick of each was good.")

    def _instigators(self) -> dict[str, Instigator]:
        with self._reading:
            if self._latest is None or time.monotonic() - self._latest[0] > _SHARED_FOR:
                names = self._sensors | self._schedules
                read = partial(_read_instigators, names=names, settings=self._settings)
                found = {one.name: one for one in self._ask(read)}
                self._latest = (time.monotonic(), found)
            return self._latest[1]

    def _ask(self, question: Callable[[dg.DagsterInstance], _Result]) -> _Result:
        """Ask the instance; a connection that died since the last question is replaced once."""
        try:
            instance = self._open()
            try:
                answer = question(instance)
            except OperationalError:
                answer = question(instance)
        except DBAPIError as error:
            self._is_reached = False
            if "does not exist" in str(error.orig):
                raise ServicesError(
                    "Dagster's storage has no tables yet: `assetclass up` makes them."
                ) from None
            raise DatabaseUnavailableError(
                "Dagster's storage does not answer. Is its server up, and is "
                "ASSETCLASS_DAGSTER_DATABASE_URL right?"
            ) from None
        except (SQLAlchemyError, dg.DagsterError) as error:
            raise DatabaseUnavailableError(
                f"Dagster's storage cannot be read: {type(error).__name__}."
            ) from None
        self._is_reached = True
        return answer

    def _open(self) -> dg.DagsterInstance:
        home = dagster_home(self._settings)
        if not (home / "dagster.yaml").exists():
            raise ServicesError(f"Dagster was never started in {home}: `assetclass up` does that.")
        with self._opening:
            if not self._is_reached:
                self._knock()
            if self._instance is None:
                self._instance = _open_to_read(self._settings, self._storage_url)
            return self._instance

    def _knock(self) -> None:
        """Dagster itself tries for seconds to reach a server that is away, and logs every try."""
        try:
            connect(self._storage_url, self._settings, purpose="health").close()
        except DatabaseUnavailableError as error:
            raise DatabaseUnavailableError(f"Dagster's storage does not answer. {error}") from None


def _hasty(settings: Settings) -> Settings:
    limits = settings.session.model_copy(update={"connect_timeout": _CONNECT_SECONDS})
    return settings.model_copy(update={"session": limits})


def _open_to_read(settings: Settings, storage: str) -> dg.DagsterInstance:
    configured = {"postgres_url": storage, "should_autocreate_tables": False}
    reference = InstanceRef.from_dir(
        str(dagster_home(settings)), overrides={"storage": {"postgres": configured}}
    )
    instance = dg.DagsterInstance.from_ref(reference)
    instance.optimize_for_webserver(
        statement_timeout=round(settings.health.timeout * 1000),
        pool_recycle=_RECYCLE_SECONDS,
        max_overflow=_MORE_CONNECTIONS,
    )
    return instance


def _daemon_statuses(instance: dg.DagsterInstance) -> Mapping[str, DaemonStatus]:
    return get_daemon_statuses(instance, instance.get_required_daemon_types())


def _daemon_problems(
    statuses: Mapping[str, DaemonStatus], now: float, limit: float
) -> Iterator[str]:
    unheard = sorted(name for name, status in statuses.items() if status.last_heartbeat is None)
    if len(unheard) == len(statuses):
        yield "It was never heard of: `assetclass up` starts it."
        return
    if unheard:
        yield f"Never heard of: {', '.join(unheard)}."
    for name, status in sorted(statuses.items()):
        beat = status.last_heartbeat
        if beat is None:
            continue
        if now - beat.timestamp > limit:
            yield f"{name} was last heard of {now - beat.timestamp:.0f} s ago."
        elif beat.errors:
            yield f"{name} meets errors: {_first_line(beat.errors[0].message)}."


def _read_instigators(
    instance: dg.DagsterInstance, names: frozenset[str], settings: Settings
) -> list[Instigator]:
    now = time.time()
    states = [state for state in instance.all_instigator_state() if state.instigator_name in names]
    ticks = _last_ticks(instance, [state.selector_id for state in states])
    found = [
        _sensor(state, state.instigator_data, ticks.get(state.selector_id))
        if isinstance(state.instigator_data, SensorInstigatorData)
        else _schedule(state, ticks.get(state.selector_id), settings, now)
        for state in states
    ]
    # The same name in two code locations: the one that ticks is the one that counts.
    return sorted(found, key=lambda one: (one.switched_on, one.last_tick or 0))


def _last_ticks(instance: dg.DagsterInstance, selectors: list[str]) -> dict[str, TickData]:
    """The last tick of each selector, by one index entry each.

    Dagster's own question for that ranks every tick there is: tens of thousands of each sensor.
    """
    storage = instance.schedule_storage
    if not selectors or not isinstance(storage, SqlScheduleStorage):
        return {}
    of_selector, moment = JobTickTable.c.selector_id, JobTickTable.c.timestamp
    newest = [
        select(of_selector, JobTickTable.c.tick_body)
        .where(of_selector == selector)
        .order_by(moment.desc())
        .limit(1)
        .subquery()
        .select()
        for selector in selectors
    ]
    with storage.connect() as connection:
        rows = connection.execute(union_all(*newest)).all()
    return {selector: deserialize_value(body, TickData) for selector, body in rows}


def _sensor(
    state: InstigatorState, data: SensorInstigatorData, last: TickData | None
) -> Instigator:
    # A tick that finds nothing to do is recorded when it is over; its start is noted at once.
    began = [data.last_tick_start_timestamp, data.last_tick_timestamp, last and last.timestamp]
    times = [moment for moment in began if moment]
    return Instigator(
        state.instigator_name,
        state.status is not InstigatorStatus.STOPPED,
        max(times) if times else None,
        _failure(last),
        interval=float(data.min_interval or 0),
    )


def _schedule(
    state: InstigatorState, last: TickData | None, settings: Settings, now: float
) -> Instigator:
    data = state.instigator_data
    due = since = None
    if isinstance(data, ScheduleInstigatorData) and isinstance(data.cron_schedule, str):
        local = datetime.fromtimestamp(now, settings.zone)
        latest = get_latest_completed_cron_tick(data.cron_schedule, local, settings.time_zone)
        due, since = latest.timestamp(), data.start_timestamp
    return Instigator(
        state.instigator_name,
        state.status is not InstigatorStatus.STOPPED,
        None if last is None else last.timestamp,
        _failure(last),
        due=due,
        watched_since=since,
    )


def _failure(tick: TickData | None) -> str | None:
    """What a failed tick met: the innermost cause, for Dagster wraps it."""
    if tick is None or tick.status is not TickStatus.FAILURE:
        return None
    return _first_line(innermost(tick.error))


def _tick_problem(name: str, kind: str, one: Instigator | None, settings: Settings) -> str | None:
    if one is None:
        return f"{name} was never seen by the daemon."
    if not one.switched_on:
        return f"{name} is switched off."
    late = _late_by(one, settings, time.time()) if kind == "schedule" else _silence(one)
    return None if late is None else f"{name} {late}."


def _sensor_limit(one: Instigator) -> float:
    """Seconds that may lie between two ticks of a sensor."""
    return _MISSED_INTERVALS * (one.interval or 0) + _SENSOR_PATIENCE


def _silence(one: Instigator) -> str | None:
    if one.last_tick is None:
        return "has not ticked yet"
    age = time.time() - one.last_tick
    return f"last ticked {age:.0f} s ago" if age > _sensor_limit(one) else None


def _late_by(one: Instigator, settings: Settings, now: float) -> str | None:
    """What a schedule has missed: the latest time that is due, unless it was watched only since."""
    if one.due is None or now - one.due <= _LATE_SCHEDULE or (one.last_tick or 0) >= one.due:
        return None
    if one.watched_since is not None and one.watched_since >= one.due:
        return None
    return f"has missed {datetime.fromtimestamp(one.due, settings.zone):%Y-%m-%d %H:%M}"


def _first_line(said: str) -> str:
    return (said.strip().splitlines() or ["no reason given"])[0].rstrip(".")[:200]
