"""Asking side by side: who hangs, who fails, and how many threads that costs."""

import threading
import time
from collections.abc import Iterator

import pytest

from assetclass_pipeline.errors import DatabaseUnavailableError
from assetclass_pipeline.monitoring.health import Answer, CachedHealth, Probe, check_health

# A busy machine is no failure here; who waits for what hangs waits longer than this.
PATIENCE = 30.0


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What a hanging look waits for; it comes when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def well() -> Answer:
    return Answer(True, "Well.")


def probes_of(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"probe {name}"]


def test_the_answer_has_the_wire_shape() -> None:
    began = time.monotonic()
    health = check_health([Probe("disk", well, timeout=PATIENCE)], seconds=PATIENCE)
    longest = (time.monotonic() - began) * 1000
    document = health.model_dump(mode="json", by_alias=True)
    assert set(document) == {"isHealthy", "checkedAt", "components"}
    assert document["isHealthy"] is True
    component = document["components"]["disk"]
    assert set(component) == {"isHealthy", "message", "latencyMs"}
    assert 0 <= component["latencyMs"] <= longest
    assert document["checkedAt"].endswith("Z")


def test_one_failing_part_makes_the_whole_unhealthy() -> None:
    bad = Probe("schema", lambda: Answer(False, "Old."), timeout=PATIENCE)
    health = check_health([Probe("disk", well, timeout=PATIENCE), bad], seconds=PATIENCE)
    assert not health.is_healthy
    assert [*health.failing] == ["schema"]


def test_a_look_that_hangs_does_not_hold_the_answer(never: threading.Event) -> None:
    hanging = Probe("hangs", lambda: Answer(never.wait(), ""), timeout=0.05)
    began = time.monotonic()
    health = check_health([hanging, Probe("disk", well, timeout=PATIENCE)], seconds=PATIENCE)
    assert time.monotonic() - began < PATIENCE
    assert health.components["hangs"].message == "No answer within 50 ms."
    assert health.components["hangs"].latency_ms >= 50
    assert health.components["disk"].is_healthy


def test_the_whole_answer_has_a_limit_too(never: threading.Event) -> None:
    hanging = [Probe(name, lambda: Answer(never.wait(), ""), timeout=PATIENCE) for name in "abc"]
    began = time.monotonic()
    health = check_health(hanging, seconds=0.05)
    assert time.monotonic() - began < PATIENCE
    assert {part.message for part in health.components.values()} == {"No answer within 50 ms."}


def test_who_hangs_costs_one_thread_however_often_it_is_asked(never: threading.Event) -> None:
    hanging = Probe("hangs for ever", lambda: Answer(never.wait(), "At last."), timeout=0.02)
    for _ in range(20):
        check_health([hanging], seconds=PATIENCE)
    assert len(probes_of("hangs for ever")) == 1
    health = check_health([hanging], seconds=PATIENCE)
    assert health.components["hangs for ever"].message.startswith("No answer for ")
    never.set()
    for thread in probes_of("hangs for ever"):
        thread.join(PATIENCE)
    hanging.timeout = PATIENCE
    health = check_health([hanging], seconds=PATIENCE)
    assert health.components["hangs for ever"].message == "At last."


def test_looks_go_side_by_side() -> None:
    together = threading.Barrier(3, timeout=PATIENCE)

    def wait_for_the_others() -> Answer:
        together.wait()
        return well()

    looks = [Probe(name, wait_for_the_others, timeout=PATIENCE) for name in "abc"]
    assert check_health(looks, seconds=PATIENCE).is_healthy


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DatabaseUnavailableError("Away. Start it."), "Away. Start it."),
        (OSError("/secret/path"), "It cannot be looked at: OSError."),
    ],
)
def test_an_error_is_an_answer(error: Exception, message: str) -> None:
    def fail() -> Answer:
        raise error

    health = check_health([Probe("any", fail, timeout=PATIENCE)], seconds=PATIENCE)
    component = health.components["any"]
    assert (component.is_healthy, component.message) == (False, message)


def test_many_who_ask_at_once_share_one_check() -> None:
    looks = 0

    def look() -> Answer:
        nonlocal looks
        looks += 1
        time.sleep(0.02)
        return well()

    cached = CachedHealth([Probe("any", look, timeout=PATIENCE)], seconds=PATIENCE, max_age=600)
    asking = [threading.Thread(target=cached.now) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert looks == 1


def test_an_old_health_is_asked_for_again() -> None:
    cached = CachedHealth([Probe("any", well, timeout=PATIENCE)], seconds=PATIENCE, max_age=0)
    assert cached.now().checked_at < cached.now().checked_at


def test_nobody_waits_for_a_check_while_the_latest_is_young_enough() -> None:
    may_look, looks = threading.Event(), 0

    def look() -> Answer:
        nonlocal looks
        looks += 1
        assert looks == 1 or may_look.wait(PATIENCE)
        return well()

    now = 1000.0
    cached = CachedHealth(
        [Probe("any", look, timeout=PATIENCE)], seconds=PATIENCE, max_age=2, clock=lambda: now
    )
    first = cached.now()
    now += 1
    assert cached.now() is first
    assert looks == 1, "young enough for everybody"
    now += 0.5
    deadline = time.monotonic() + PATIENCE
    while looks < 2:
        assert cached.now() is first
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The next check is at work, and has nothing to say yet.
    now += 0.4
    assert cached.now() is first
    may_look.set()
    while cached.now() is first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
