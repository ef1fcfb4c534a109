"""What Dagster's storage tells: an instance writes it as the daemon does, the watch reads it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import psycopg
import pytest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.defs.dagster_home import prepare_instance
from assetclass_pipeline.defs.dagster_probes import DagsterWatch
from assetclass_pipeline.defs.instance import open_instance
from assetclass_pipeline.monitoring.health import Component, check_health
from assetclass_pipeline.settings import HealthSettings, Settings, load_settings
from assetclass_pipeline_tests.conftest import fresh_database

SENSORS = {"requests", "alerts"}
SCHEDULES = {"hourly"}


@dataclass(frozen=True)
class Scene:
    """An instance, and the settings with which somebody else finds it, at one moment.

    Whoever looks sees that moment, however long a busy machine takes to look.
    """

    instance: dg.DagsterInstance
    settings: Settings
    data_url: str
    now: float

    def watch(self, **health: object) -> DagsterWatch:
        settings = self.settings.model_copy(
            update={"health": HealthSettings.model_validate({"timeout": 20, **health})}
        )
        return DagsterWatch(settings, self.data_url, sensors=SENSORS, schedules=SCHEDULES)

    def components(self, **health: object) -> dict[str, Component]:
        with self.watch(**health) as watch:
            return check_health(watch.probes(), seconds=30).components

    def beat(self, *, ago: float = 0, errors: list[str] | None = None) -> None:
        """Every daemon that the instance needs."""
        infos = [SerializableErrorInfo(said, [], None) for said in errors or []]
        for name in self.instance.get_required_daemon_types():
            beat = DaemonHeartbeat(self.now - ago, name, "an id", infos)
            self.instance.add_daemon_heartbeat(beat)

    def sensor(
        self,
        name: str,
        *,
        ago: float | None = 1,
        status: InstigatorStatus = InstigatorStatus.DECLARED_IN_CODE,
        failure: str | None = None,
    ) -> None:
        """A sensor that ticks every 30 seconds, and its last tick."""
        started = None if ago is None else self.now - ago
        data = SensorInstigatorData(min_interval=30, last_tick_start_timestamp=started)
        state = InstigatorState(origin(name), InstigatorType.SENSOR, status, data)
        self._store(state, started, failure)

    def schedule(self, name: str, *, ago: float | None, watched: float = 86_400) -> None:
        """A schedule of every full hour, first seen `watched` seconds ago."""
        data = ScheduleInstigatorData("0 * * * *", start_timestamp=self.now - watched)
        state = InstigatorState(
            origin(name), InstigatorType.SCHEDULE, InstigatorStatus.DECLARED_IN_CODE, data
        )
        self._store(state, None if ago is None else self.now - ago, None)

    def _store(self, state: InstigatorState, ticked: float | None, failure: str | None) -> None:
        if self.instance.get_instigator_state(state.instigator_origin_id, state.selector_id):
            self.instance.update_instigator_state(state)
        else:
            self.instance.add_instigator_state(state)
        if ticked is not None:
            tick = TickData(
                instigator_origin_id=state.instigator_origin_id,
                instigator_name=state.instigator_name,
                instigator_type=state.instigator_type,
                status=TickStatus.FAILURE if failure else TickStatus.SKIPPED,
                timestamp=ticked,
                selector_id=state.selector_id,
                error=_wrapped(failure) if failure else None,
            )
            self.instance.create_tick(tick)


def _wrapped(failure: str) -> SerializableErrorInfo:
    cause = SerializableErrorInfo(failure, [], None)
    return SerializableErrorInfo("SensorExecutionError: Error occurred", [], None, cause)


def origin(name: str) -> RemoteInstigatorOrigin:
    location = RegisteredCodeLocationOrigin("assetclass_pipeline")
    return RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)


@pytest.fixture(scope="module")
def opened(
    data_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dg.DagsterInstance, Settings]]:
    name = conninfo_to_dict(data_url)["dbname"]
    settings = load_settings(
        home=tmp_path_factory.mktemp("home"), database_url=None, dagster_database=f"{name}_watched"
    )
    with open_instance(settings, data_url) as instance:
        yield instance, settings


@pytest.fixture
def scene(
    opened: tuple[dg.DagsterInstance, Settings], data_url: str, monkeypatch: pytest.MonkeyPatch
) -> Scene:
    """All is well: everything beats and ticks."""
    now = time.time()
    clock = SimpleNamespace(time=lambda: now, monotonic=time.monotonic)
    monkeypatch.setattr("assetclass_pipeline.defs.dagster_probes.time", clock)
    instance, settings = opened
    instance.wipe_daemon_heartbeats()
    assert instance.schedule_storage is not None
    instance.schedule_storage.wipe()
    scene = Scene(instance, settings, data_url, now)
    scene.beat()
    for name in SENSORS:
        scene.sensor(name)
    scene.schedule("hourly", ago=now - full_hour(scene).timestamp())
    return scene


def full_hour(scene: Scene) -> datetime:
    return datetime.fromtimestamp(scene.now, UTC).replace(minute=0, second=0, microsecond=0)


def test_all_is_well(scene: Scene) -> None:
    components = scene.components()
    assert {name: part.message for name, part in components.items() if not part.is_healthy} == {}
    assert [*components] == ["daemon", "codeLocation", "sensors", "schedules", "ticks"]
    assert components["sensors"].message == "All 2 sensors are switched on and tick."
    assert components["codeLocation"].message.startswith("It is loaded: ")


def test_a_daemon_that_fell_silent(scene: Scene) -> None:
    scene.beat(ago=200)
    component = scene.components()["daemon"]
    assert not component.is_healthy
    assert "SENSOR was last heard of 200 s ago." in component.message


def test_one_part_of_the_daemon_that_died(scene: Scene) -> None:
    beat = DaemonHeartbeat(scene.now - 500, "SCHEDULER", "an id", [])
    scene.instance.add_daemon_heartbeat(beat)
    assert scene.components()["daemon"].message == "SCHEDULER was last heard of 500 s ago."


def test_a_daemon_that_meets_errors(scene: Scene) -> None:
    scene.beat(errors=["ImportError: no module\nTraceback"])
    component = scene.components()["daemon"]
    assert not component.is_healthy
    assert "SENSOR meets errors: ImportError: no module." in component.message


def test_a_daemon_that_never_lived(scene: Scene) -> None:
    scene.instance.wipe_daemon_heartbeats()
    component = scene.components()["daemon"]
    assert component.message == "It was never heard of: `assetclass up` starts it."
    with scene.watch() as watch:
        assert watch.daemon_heartbeat_age() is None


def test_the_age_is_that_of_the_most_silent_part(scene: Scene) -> None:
    beat = DaemonHeartbeat(scene.now - 100, "SCHEDULER", "an id", [])
    scene.instance.add_daemon_heartbeat(beat)
    with scene.watch() as watch:
        assert watch.daemon_heartbeat_age() == pytest.approx(100)


def test_a_sensor_that_was_switched_off(scene: Scene) -> None:
    scene.sensor("alerts", status=InstigatorStatus.STOPPED)
    component = scene.components()["sensors"]
    assert (component.is_healthy, component.message) == (False, "alerts is switched off.")
    assert scene.components(may_be_off=["alerts"])["sensors"].is_healthy


def test_a_sensor_that_ticks_no_more(scene: Scene) -> None:
    scene.sensor("alerts", ago=140)
    assert scene.components()["sensors"].is_healthy
    scene.instance.schedule_storage.wipe()  # type: ignore[union-attr] # checked by the fixture
    scene.sensor("alerts", ago=160)
    scene.sensor("requests")
    message = scene.components()["sensors"].message
    assert message == "alerts last ticked 160 s ago."


def test_a_sensor_whose_tick_failed(scene: Scene) -> None:
    scene.sensor("alerts", ago=0, failure="psycopg.OperationalError: gone\n  File ...")
    components = scene.components()
    assert components["sensors"].is_healthy
    assert not components["ticks"].is_healthy
    message = components["ticks"].message
    assert message == "The last tick of alerts failed: psycopg.OperationalError: gone."


def test_a_sensor_that_nobody_knows(scene: Scene) -> None:
    scene.instance.schedule_storage.wipe()  # type: ignore[union-attr] # checked by the fixture
    components = scene.components()
    assert components["sensors"].message == (
        "alerts was never seen by the daemon. requests was never seen by the daemon."
    )
    assert not components["codeLocation"].is_healthy
    assert not components["schedules"].is_healthy


def test_a_code_location_that_loads_no_more(scene: Scene) -> None:
    scene.instance.schedule_storage.wipe()  # type: ignore[union-attr] # checked by the fixture
    for name in SENSORS:
        scene.sensor(name, ago=300)
    component = scene.components()["codeLocation"]
    assert not component.is_healthy
    assert "was evaluated 300 s ago, and nothing since" in component.message


def test_a_schedule_that_missed_its_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.instance.schedule_storage.wipe()  # type: ignore[union-attr] # checked by the fixture
    # Twenty minutes past an hour, and the tick of that hour is missing.
    hour = full_hour(scene)
    now = (hour + timedelta(minutes=20)).timestamp()
    scene.schedule("hourly", ago=scene.now - hour.timestamp() + 3600)
    monkeypatch.setattr("assetclass_pipeline.defs.dagster_probes.time.time", lambda: now)
    component = scene.components()["schedules"]
    assert component.message == f"hourly has missed {hour:%Y-%m-%d %H:%M}."
    # Five minutes past the hour the daemon may still be about it.
    now -= 900
    assert scene.components()["schedules"].is_healthy


def test_a_new_schedule_has_missed_nothing(scene: Scene) -> None:
    scene.instance.schedule_storage.wipe()  # type: ignore[union-attr] # checked by the fixture
    scene.schedule("hourly", ago=None, watched=0)
    assert scene.components()["schedules"].is_healthy


def test_ages_of_ticks(scene: Scene) -> None:
    with scene.watch() as watch:
        ages = watch.tick_ages()
    assert [*ages] == ["alerts", "hourly", "requests"]
    assert ages["alerts"] == pytest.approx(1)


def test_dagster_was_never_started(data_url: str, tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home", database_url=None)
    with DagsterWatch(settings, data_url) as watch:
        health = check_health(watch.probes(), seconds=10)
        assert {*health.failing} == {*health.components}
        assert "was never started" in health.components["daemon"].message
        assert watch.daemon_heartbeat_age() is None
        assert watch.tick_ages() == {}
    assert not (tmp_path / "home").exists()


def test_looking_makes_no_tables(postgres_server: EmbeddedServer, tmp_path: Path) -> None:
    with fresh_database(postgres_server) as url:
        name = str(conninfo_to_dict(url)["dbname"])
        settings = load_settings(home=tmp_path, database_url=None, dagster_database=name)
        prepare_instance(settings, url)
        with DagsterWatch(settings, url) as watch:
            component = check_health(watch.probes(), seconds=10).components["daemon"]
        assert (
            component.message == "Dagster's storage has no tables yet: `assetclass up` makes them."
        )
        with psycopg.connect(url) as connection:
            tables = connection.execute(
                "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
            ).fetchall()
        assert tables == [(0,)]


def test_a_storage_that_is_away_and_comes_back(scene: Scene) -> None:
    name = scene.settings.dagster_database
    with scene.watch() as watch, psycopg.connect(scene.data_url, autocommit=True) as session:
        assert check_health(watch.probes(), seconds=30).is_healthy
        # A connection that the server ended while nobody used it is replaced without a word.
        ended = """SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
                   WHERE datname = %s AND pid <> pg_backend_pid()"""
        assert session.execute(ended, (name,)).fetchall()[0][0] > 0
        health = check_health(watch.probes(), seconds=30)
        assert health.is_healthy, health.failing
    away = make_conninfo(scene.data_url, port="1")
    with DagsterWatch(scene.settings, away) as watch:
        component = check_health(watch.probes(), seconds=30).components["daemon"]
    assert component.message.startswith("Dagster's storage does not answer.")
