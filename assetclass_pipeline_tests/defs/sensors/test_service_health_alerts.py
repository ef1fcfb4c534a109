"""`service_health_alerts`: components in two looks, and ticks of all sensors and schedules."""

import time
from datetime import UTC, datetime

import pytest
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster_shared.error import SerializableErrorInfo

from assetclass_pipeline.defs.dagster_home import LOCATION_NAME
from assetclass_pipeline.defs.health import health_for_alerts
from assetclass_pipeline.defs.sensors.service_health_alerts import service_health_alerts_sensor
from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline.monitoring.health import Component, Health
from assetclass_pipeline.settings import Settings
from assetclass_pipeline_tests.defs.sensors.conftest import Watch

SENSOR = "service_health_alerts"
NAMES = ("database", "disk", "daemon", "operation")


class Service:
    """A service of which some components are ill; `tick` looks at it as the next one would."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.ill: set[str] = set()
        self.cursor: str | None = None
        self.sensor = service_health_alerts_sensor(self.health)

    def health(self, _: Settings) -> Health:
        components = {
            name: Component(is_healthy=name not in self.ill, message="It is ill.", latency_ms=1)
            for name in NAMES
        }
        now = datetime.now(UTC)
        return Health(is_healthy=not self.ill, checked_at=now, components=components)

    def tick(self, *ill: str) -> dict[str, int]:
        """Open alerts after a look at a service of which these are ill: occurrences by cause."""
        self.ill = {*ill}
        self.cursor = self.watch.tick(SENSOR, cursor=self.cursor, sensor=self.sensor).cursor
        return {cause: alert.occurrences for cause, alert in self.watch.alerts().items()}


@pytest.fixture
def service(watch: Watch) -> Service:
    return Service(watch)


def test_one_unhealthy_component(service: Service) -> None:
    assert service.tick("disk") == {}
    assert service.tick("disk") == {"component:disk": 1}
    # It goes on: nothing new. It is well: over.
    assert service.tick("disk") == {"component:disk": 1}
    assert service.tick() == {}


def test_a_flicker_is_no_alert(service: Service) -> None:
    for ill in ("disk", "daemon", "disk"):
        assert service.tick(ill) == {}
        assert service.tick() == {}


def test_two_are_one_degraded_service(service: Service) -> None:
    service.tick("disk", "daemon")
    assert service.tick("disk", "daemon") == {"service": 1}
    alert = service.watch.alerts()["service"]
    assert alert.alert_type is AlertType.SERVICE_DEGRADED
    assert alert.details["components"] == {"daemon": "It is ill.", "disk": "It is ill."}
    assert service.tick("disk", "daemon") == {"service": 1}
    assert service.tick("disk") == {"component:disk": 1}
    assert service.tick() == {}


def test_the_alert_of_the_first_one_stays_until_that_is_well(service: Service) -> None:
    service.tick("disk")
    service.tick("disk")
    service.tick("disk", "daemon")
    assert service.tick("disk", "daemon") == {"component:disk": 1, "service": 1}
    service.tick("daemon", "database")
    assert service.tick("daemon", "database").keys() == {"service"}


def test_others_that_come_and_go_do_not_hide_one_that_stays_unhealthy(service: Service) -> None:
    service.tick("disk", "daemon")
    # Were it to stay, both would be one degraded service.
    assert service.tick("disk", "database") == {}
    assert service.tick("disk", "daemon") == {"component:disk": 1}
    assert service.tick("disk", "operation") == {"component:disk": 1}
    assert service.tick() == {}


def test_a_reset_cursor_only_needs_another_look(service: Service) -> None:
    service.tick("disk")
    # The last but one is what an older version has left.
    for cursor in ("nonsense", "[]", '{"failing": ["disk"]}', '{"failing": {"disk": "x"}}'):
        service.cursor = cursor
        assert service.tick("disk") == {}
    assert service.tick("disk") == {"component:disk": 1}


def test_an_operation_that_has_an_alert_of_its_own_is_no_component_alert(
    service: Service,
) -> None:
    service.watch.pipeline.market.execute(
        "INSERT INTO assetclass.alert (cause, alert_type, severity, status, summary) "
        "VALUES ('operation_failed:correction', 'OPERATION_FAILED', 'high', 'open', 'It failed.')"
    )
    service.tick("operation")
    assert service.tick("operation").keys() == {"operation_failed:correction"}


def state_of(
    name: str,
    kind: InstigatorType,
    *,
    location: str = LOCATION_NAME,
    status: InstigatorStatus = InstigatorStatus.RUNNING,
) -> InstigatorState:
    """How the daemon keeps a sensor or schedule."""
    repository = RemoteRepositoryOrigin(
        RegisteredCodeLocationOrigin(location), SINGLETON_REPOSITORY_NAME
    )
    data = ScheduleInstigatorData("0 2 * * *") if kind is InstigatorType.SCHEDULE else None
    return InstigatorState(RemoteInstigatorOrigin(repository, name), kind, status, data)


def add_tick(watch: Watch, state: InstigatorState, status: TickStatus) -> None:
    """A tick as the daemon stores it."""
    failed = status is TickStatus.FAILURE
    cause = SerializableErrorInfo("ValueError: the reason\n", [], "ValueError")
    watch.instance.create_tick(
        TickData(
            state.instigator_origin_id,
            state.instigator_name,
            state.instigator_type,
            status,
            time.time(),
            run_ids=[],
            run_keys=[],
            error=SerializableErrorInfo("outer", [], "Outer", cause=cause) if failed else None,
            selector_id=state.selector_id,
        )
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nightly_correction", InstigatorType.SCHEDULE),
        ("asset_check_alerts", InstigatorType.SENSOR),
    ],
)
def test_a_failed_tick_ends_with_the_next_good_one(
    service: Service, name: str, kind: InstigatorType
) -> None:
    watch, state = service.watch, state_of(name, kind)
    watch.instance.add_instigator_state(state)
    try:
        add_tick(watch, state, TickStatus.FAILURE)
        add_tick(watch, state, TickStatus.STARTED)
        assert service.tick() == {f"tick:{name}": 1}
        alert = watch.alerts()[f"tick:{name}"]
        assert alert.alert_type is AlertType.TICK_FAILED
        assert alert.summary.endswith("ValueError: the reason")
        # The same tick is the same failure; another one is a repeat.
        assert service.tick() == {f"tick:{name}": 1}
        add_tick(watch, state, TickStatus.FAILURE)
        assert service.tick() == {f"tick:{name}": 2}
        add_tick(watch, state, TickStatus.SKIPPED)
        assert service.tick() == {}
    finally:
        watch.instance.delete_instigator_state(state.instigator_origin_id, state.selector_id)


def test_one_that_was_switched_off_does_not_fail_any_more(service: Service) -> None:
    watch, state = service.watch, state_of("asset_check_alerts", InstigatorType.SENSOR)
    watch.instance.add_instigator_state(state)
    try:
        add_tick(watch, state, TickStatus.FAILURE)
        assert service.tick() == {"tick:asset_check_alerts": 1}
        watch.instance.update_instigator_state(state.with_status(InstigatorStatus.STOPPED))
        assert service.tick() == {}
    finally:
        watch.instance.delete_instigator_state(state.instigator_origin_id, state.selector_id)
    assert service.tick() == {}


def test_it_is_watched_by_a_sibling(service: Service) -> None:
    watch, state = service.watch, state_of(SENSOR, InstigatorType.SENSOR)
    watch.instance.add_instigator_state(state)
    try:
        add_tick(watch, state, TickStatus.FAILURE)
        assert service.tick() == {}
        watch.tick("operation_alerts")
        assert watch.alerts().keys() == {f"tick:{SENSOR}"}
        # Nor does it end what only the sibling can know.
        assert service.tick().keys() == {f"tick:{SENSOR}"}
        add_tick(watch, state, TickStatus.SUCCESS)
        watch.tick("operation_alerts")
        assert watch.alerts() == {}
    finally:
        watch.instance.delete_instigator_state(state.instigator_origin_id, state.selector_id)


def test_ticks_of_others_are_none_of_our_business(service: Service) -> None:
    state = state_of("somebody_elses", InstigatorType.SENSOR)
    service.watch.instance.add_instigator_state(state)
    try:
        add_tick(service.watch, state, TickStatus.FAILURE)
        assert service.tick() == {}
    finally:
        service.watch.instance.delete_instigator_state(
            state.instigator_origin_id, state.selector_id
        )


def test_the_real_probes_are_asked(watch: Watch) -> None:
    sensor = watch.pipeline.defs.resolve_sensor_def(SENSOR)
    health = health_for_alerts(watch.pipeline.settings)
    cursor = watch.tick(SENSOR, sensor=sensor).cursor
    assert cursor is not None
    for name, component in health.components.items():
        assert component.is_healthy or f'"{name}"' in cursor
