"""Connections that break, also exactly while COMMIT is on its way, and connections that stall."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from assetclass_pipeline.model.operation import Operation, Phase, Status
from assetclass_pipeline_tests.faults.clients import (
    InThread,
    batches,
    finish,
    operation_now,
    request,
    wait_until,
)
from assetclass_pipeline_tests.faults.conftest import MakeScene
from assetclass_pipeline_tests.faults.fault_table import Tries
from assetclass_pipeline_tests.faults.proxy import Moment, Proxy
from assetclass_pipeline_tests.faults.scene import PATIENCE, Scene

RECORDS = 6_000
# Cuts come more often than in any real network: more tries than usual, with short waits.
RETRY = {"tries": 10, "first_wait": 0.05, "longest_wait": 0.5}
OPTIONS = {"batch_size": 50, "workers": 2, "retry": RETRY}
SWEEP_TWICE = (
    "a sweep's batch that is tried again after its COMMIT arrived meets its own ledger row"
)


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    return make_scene(records=RECORDS)


@pytest.fixture
def proxy(scene: Scene) -> Iterator[Proxy]:
    """Between the correction and the server; the application goes straight."""
    with Proxy(scene.server_url) as proxy:
        yield proxy


@pytest.mark.timeout(600)
def test_cut_at_random_moments(scene: Scene, proxy: Proxy, tries: Tries) -> None:
    """One connection at a time, or all at once; the run opens new ones and goes on by itself."""
    chance = random.Random(2)  # noqa: S311 - no secret
    wanted, cut = tries(full=60, quick=20), 0
    with scene.trading(seed=2):
        while cut < wanted:
            asked = request(**OPTIONS)
            with InThread(scene, asked, url=proxy.url()) as correction:
                correction.holds.wait(PATIENCE)
                while correction.is_alive and cut < wanted:
                    time.sleep(0.05 + chance.random() * 0.1)
                    links = proxy.links
                    if links and chance.random() < 0.7:
                        links = [chance.choice(links)]
                    for link in links:
                        link.cut()
                    cut += bool(links)
                correction.join()
            assert correction.error is None, correction.error
            scene.damage()
    finish(scene, request(**OPTIONS))
    scene.hand_in("connection cut by a proxy", cut)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("moment", Moment)
def test_cut_while_commit_is_on_its_way(
    scene: Scene, proxy: Proxy, tries: Tries, moment: Moment
) -> None:
    """Whether it arrived or not: what is tried again is neither lost nor done twice."""
    chance = random.Random(str(moment))  # noqa: S311 - no secret
    wanted, cut = tries(full=60, quick=20), 0
    with scene.trading(seed=3):
        while cut < wanted:
            asked = request(**OPTIONS)
            with InThread(scene, asked, url=proxy.url()) as correction:
                correction.holds.wait(PATIENCE)
                while correction.is_alive and cut < wanted:
                    proxy.cut_at_commit(moment, after=chance.randint(0, 25))
                    wait_until(
                        lambda: not proxy.is_armed,
                        unless=lambda: not correction.is_alive,
                    )
                    cut += proxy.disarm()
                correction.join()
            assert correction.error is None, correction.error
            scene.damage()
    finish(scene, request(**OPTIONS))
    scene.hand_in(f"COMMIT cut {moment}", cut)


@pytest.mark.parametrize(
    ("phase", "create_backup"),
    [
        (Phase.ANALYSING, True),
        (Phase.PLANNING, True),
        (Phase.PLANNING, False),
        (Phase.CORRECTING, True),
        (Phase.SWEEPING, True),
        (Phase.VERIFYING, True),
        (Phase.VERIFYING, False),
    ],
)
def test_cut_when_the_answer_to_each_commit_of_a_phase_is_back(
    make_scene: MakeScene, phase: Phase, create_backup: bool
) -> None:
    """Systematically, where chance may miss: the first commits of each phase, one after another."""
    cuts = 0
    scene = make_scene(records=300)
    with Proxy(scene.server_url) as proxy:
        for number in range(10):
            interference = Interference(scene, proxy, phase, number)
            asked = request(**{**OPTIONS, "batch_size": 10}, create_backup=create_backup)
            with InThread(scene, asked, url=proxy.url(), observe=interference) as correction:
                correction.join()
            cuts += proxy.disarm()
            assert correction.error is None, (number, correction.error)
            scene.damage()
    finish(scene, request(**OPTIONS))
    scene.hand_in("COMMIT cut in each phase", cuts)


@dataclass
class Interference:
    """Moves rows before the batches, so that there is something to sweep, and arms the proxy."""

    scene: Scene
    proxy: Proxy
    phase: Phase
    number: int
    done: set[Phase] = field(default_factory=set)

    def __call__(self, operation: Operation) -> None:
        if operation.phase in self.done:
            return
        self.done.add(operation.phase)
        if operation.phase is Phase.CORRECTING:
            self.scene.apply("UPDATE market_data SET close = close + 1 WHERE id %% 3 = %s", 0)
        if operation.phase is self.phase:
            self.proxy.cut_at_commit(Moment.AFTER, after=self.number)


def test_cut_at_each_commit_of_the_start(scene: Scene, proxy: Proxy) -> None:
    """Looking at the tables, claiming and the first heartbeat are tried again like all the rest."""
    untyped = []
    for number in range(8):
        proxy.cut_at_commit(Moment.AFTER, after=number)
        with InThread(scene, request(**OPTIONS), url=proxy.url()) as correction:
            correction.join()
        proxy.disarm()
        if correction.error is not None:
            untyped.append((number, correction.error))
        scene.damage()
    assert untyped == []
    finish(scene, request(**OPTIONS))
    scene.hand_in("COMMIT cut before the claim", 8)


def test_sessions_ended_by_an_administrator_in_every_phase(scene: Scene) -> None:
    """As in a failover: every session of ours ends, and the run goes on by itself."""
    ended: list[Phase] = []

    def end_sessions(operation: Operation) -> None:
        if operation.phase not in {*ended, Phase.DONE}:
            ended.append(operation.phase)
            scene.market.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'assetclass: %' AND datname = current_database()"
            )

    with InThread(scene, request(**OPTIONS), observe=end_sessions) as correction:
        correction.join()
    assert correction.error is None, correction.error
    assert set(ended) >= {Phase.ANALYSING, Phase.PLANNING, Phase.CORRECTING, Phase.VERIFYING}
    scene.hand_in("sessions ended by an administrator", len(ended))


# Needs the watchdog of session.py: a step that is silent for longer than its time-out and some
# grace is cut off. TCP cannot notice: the proxy's kernel acknowledges every packet, as a hung
# pooler or a middlebox does.
# What a cut session had open on the server, the server ends itself.
WATCHDOG = {
    "statement_timeout": 2.0,
    "scan_timeout": 2.0,
    "connect_timeout": 2,
    "idle_in_transaction_timeout": 3.0,
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "whose",
    [
        "worker 1",
        "correction",
        "heartbeat",
        "%",
    ],
)
def test_connections_stall(scene: Scene, proxy: Proxy, tries: Tries, whose: str) -> None:
    """One session, or all of them, go silent for ever in mid-batch; new ones work."""
    chance = random.Random(4)  # noqa: S311 - no secret
    times = tries(full=3, quick=1)
    limits = scene.market.session.model_copy(update=WATCHDOG)
    scene.settings_of_ours.update(session=limits, heartbeat_stale_after=60)
    with scene.trading(seed=4, pause=0.02):
        for _ in range(times):
            scene.damage()
            asked = request(**{**OPTIONS, "batch_size": 20})
            enough = batches(scene) + chance.randint(5, 60)
            with InThread(scene, asked, url=proxy.url()) as correction:
                assert wait_until(
                    lambda: batches(scene) >= enough,  # noqa: B023 - used at once
                    unless=lambda: not correction.is_alive,
                )
                # The heartbeat's own session begins a moment later than the others.
                assert wait_until(
                    lambda: stall(scene, proxy, whose) > 0, unless=lambda: not correction.is_alive
                )
                try:
                    correction.join()
                finally:
                    # What still hangs would outlive the test.
                    proxy.cut_all()
            assert correction.error is None, correction.error
            assert operation_now(scene, asked).status is Status.SUCCEEDED
    finish(scene, request(**OPTIONS))
    scene.hand_in("connections stalled for ever", times)


def stall(scene: Scene, proxy: Proxy, whose: str) -> int:
    """Stall the sessions of that purpose; returns how many."""
    ports = scene.market.execute(
        "SELECT client_port FROM pg_stat_activity WHERE application_name LIKE %s",
        values=[f"assetclass: {whose}"],
    ).fetchall()
    links = [link for link in proxy.links if (link.port,) in ports]
    for link in links:
        link.stall()
    return len(links)


@pytest.mark.timeout(600)
def test_the_server_cannot_be_reached_for_some_seconds(scene: Scene, proxy: Proxy) -> None:
    """The circuit breaker: for longer than all retries of a batch last it waits, then goes on."""
    scene.settings_of_ours.update(heartbeat_interval=0.5, heartbeat_stale_after=30)
    asked = request(batch_size=20, workers=2)
    with scene.trading(seed=5), InThread(scene, asked, url=proxy.url()) as correction:
        assert wait_until(lambda: batches(scene) >= 10, unless=lambda: not correction.is_alive)
        proxy.refuse()
        proxy.cut_all()
        threading.Event().wait(5)
        assert correction.is_alive
        proxy.refuse(refuses=False)
        correction.join()
    assert correction.error is None, correction.error
    finish(scene, request(**OPTIONS))
    scene.hand_in("server away for some seconds", 1)
