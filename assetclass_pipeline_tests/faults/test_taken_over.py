"""A process that was given up for dead and wakes up late, and a clock that jumps."""

import random
import signal
import threading
import time

import psycopg
import pytest

from assetclass_pipeline.engine.correction import plan
from assetclass_pipeline.errors import OperationInProgressError
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline_tests.faults.clients import (
    InProcess,
    InThread,
    batches,
    finish,
    operation_now,
    request,
    wait_until,
)
from assetclass_pipeline_tests.faults.conftest import MakeScene
from assetclass_pipeline_tests.faults.fault_table import Tries
from assetclass_pipeline_tests.faults.scene import Scene

RECORDS = 6_000
OPTIONS = {"batch_size": 25, "workers": 2}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("transaction_ends_after", [1.0, 12.0])
def test_a_worker_that_wakes_up_late_writes_nothing(
    make_scene: MakeScene, tries: Tries, transaction_ends_after: float
) -> None:
    """Stopped in mid-batch with a transaction open, taken over, finished elsewhere, then woken.

    PostgreSQL ends the sleeper's open transaction before it wakes up, or the fence has to.
    """
    chance = random.Random(6)  # noqa: S311 - no secret
    times, stopped = tries(full=10, quick=3), 0
    scene = make_scene(records=RECORDS)
    limits = scene.market.session.model_copy(
        update={"idle_in_transaction_timeout": transaction_ends_after}
    )
    scene.settings_of_ours.update(session=limits, heartbeat_interval=0.2, heartbeat_stale_after=2.5)
    with scene.trading(pause=0.02, seed=6):
        while stopped < times:
            asked = request(**OPTIONS)
            with InProcess(scene, asked) as sleeper:
                enough = batches(scene) + chance.randint(1, 150)
                if wait_until(
                    lambda: batches(scene) >= enough,  # noqa: B023 - used at once
                    unless=lambda: not sleeper.process.is_alive(),
                ):
                    time.sleep(chance.random() * 0.01)
                    sleeper.send(signal.SIGSTOP)
                    # It may have ended a moment before.
                    stopped += operation_now(scene, asked).status is Status.RUNNING
                    take_over(scene, sleeper)
            scene.damage()
    finish(scene, request(**OPTIONS))
    scene.hand_in("taken over, woken up late", times)


def take_over(scene: Scene, sleeper: InProcess) -> None:
    """Another process finishes the sleeper's operation; then it wakes up and must do nothing."""
    asked = sleeper.asked
    was_running = operation_now(scene, asked).status is Status.RUNNING
    if was_running:
        finish(scene, asked)
    before = operation_now(scene, asked)
    ledger = batches(scene)
    sleeper.send(signal.SIGCONT)
    ended = sleeper.ended()
    assert ended.code == ("OPERATION_FENCED" if was_running else None), ended
    assert batches(scene) == ledger
    assert operation_now(scene, asked) == before


def test_a_take_over_waits_out_the_batch_in_flight(make_scene: MakeScene) -> None:
    """The owner's last batch holds the operation's row for longer than one lock_timeout."""
    scene = make_scene(records=100)
    asked = request()
    plan(scene.server_url(), scene.settings, asked, park=True)
    with psycopg.connect(scene.server_url()) as batch:
        batch.execute("SELECT FROM assetclass.operation FOR SHARE")
        with InThread(scene, asked) as taking_over:
            threading.Event().wait(1.5)
            batch.rollback()
            taking_over.join()
    assert taking_over.error is None, taking_over.error
    scene.hand_in("taken over in mid-commit", 1)


@pytest.mark.timeout(600)
def test_the_clients_clock_jumps_by_a_day(make_scene: MakeScene, tries: Tries) -> None:
    """Back and forth at every look: it neither times out nor is given up for dead.

    Deadlines are of the monotonic clock, heartbeats of the database's. (The database's own clock
    cannot be moved here; it is one clock for all who compare.)
    """
    times = tries(full=5, quick=1)
    scene = make_scene(records=RECORDS)
    scene.settings_of_ours.update(heartbeat_interval=2, heartbeat_stale_after=8)
    with scene.trading(pause=0.02, seed=7):
        for _ in range(times):
            asked = request(batch_size=5, workers=1, timeout="00:05:00")
            rivals = Rivals(scene)
            with InProcess(scene, asked, jumping_clock=True) as client, rivals:
                ended = client.ended()
            assert ended.code is None, ended
            assert operation_now(scene, asked).status is Status.SUCCEEDED
            assert rivals.refused
            epoch = scene.market.value("SELECT max(epoch) FROM assetclass.operation")
            assert epoch == 1
            scene.damage()
    finish(scene, request(**OPTIONS))
    scene.hand_in("clock jumps by a day", times)


class Rivals:
    """Others try to take the operation over all the time, and are refused while it lives."""

    def __init__(self, scene: Scene) -> None:
        self.refused = 0
        self._scene = scene
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._try)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _try(self) -> None:
        while not self._over.wait(0.3):
            with InThread(self._scene, request(dry_run=True)) as rival:
                rival.join()
            self.refused += isinstance(rival.error, OperationInProgressError)
