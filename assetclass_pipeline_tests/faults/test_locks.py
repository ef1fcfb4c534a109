"""Others hold locks: on rows, on the whole table, in the opposite order, and for maintenance."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import LiteralString

import psycopg
import pytest

from assetclass_pipeline.model.operation import Operation, Phase
from assetclass_pipeline_tests.faults.clients import (
    InThread,
    batches,
    finish,
    request,
    wait_until,
)
from assetclass_pipeline_tests.faults.conftest import MakeScene
from assetclass_pipeline_tests.faults.fault_table import Tries
from assetclass_pipeline_tests.faults.scene import Scene
from assetclass_pipeline_tests.faults.writers import NAME, against_the_order

RECORDS = 6_000
# A table that is locked for seconds outlasts the usual three tries.
RETRY = {"tries": 12, "first_wait": 0.1, "longest_wait": 0.5}
OPTIONS = {"batch_size": 50, "workers": 2, "retry": RETRY}


@dataclass
class At:
    """Does something once, when a phase is entered."""

    phase: Phase
    deed: Callable[[], None]
    done: bool = field(default=False)

    def __call__(self, operation: Operation) -> None:
        if operation.phase is self.phase and not self.done:
            self.done = True
            self.deed()


@pytest.mark.parametrize("until", [Phase.SWEEPING, None])
def test_rows_locked_by_another_session(make_scene: MakeScene, until: Phase | None) -> None:
    """Let go before the sweep they are corrected; held to the end, listed, and corrected later."""
    scene = make_scene(records=RECORDS)
    with psycopg.connect(scene.server_url(), application_name=NAME) as other:
        other.execute("SELECT FROM market_data WHERE id % 60 = 0 FOR UPDATE")
        observe = At(until or Phase.DONE, other.rollback)
        with (
            scene.trading(pause=0.05, seed=1),
            InThread(scene, request(**OPTIONS), observe=observe) as correction,
        ):
            correction.join()
        assert correction.error is None, correction.error
    assert correction.operation is not None
    locked = correction.operation.skipped_by_reason.get("locked", 0)
    if until is None:
        # Some of the hundred may have met the application before.
        assert 50 < locked <= RECORDS // 60 + 5
    else:
        assert locked <= 5
    finish(scene, request(**OPTIONS))
    assert scene.correctable() == 0
    scene.hand_in("rows locked by another session", 1)


@pytest.mark.timeout(600)
def test_the_whole_table_locked_for_seconds(make_scene: MakeScene, tries: Tries) -> None:
    """ACCESS EXCLUSIVE, in turn in each phase: the run waits in short tries and goes on."""
    phases = [Phase.ANALYSING, Phase.PLANNING, Phase.CORRECTING, Phase.SWEEPING, Phase.VERIFYING]
    times = tries(full=10, quick=5)
    scene = make_scene(records=RECORDS)
    with scene.trading(pause=0.02, seed=2):
        for number in range(times):
            locker = threading.Thread(target=lock_table, args=(scene, 2.0))
            observe = At(phases[number % len(phases)], locker.start)
            with InThread(scene, request(**OPTIONS), observe=observe) as correction:
                correction.join()
            locker.join()
            assert observe.done
            assert correction.error is None, correction.error
            scene.damage()
    finish(scene, request(**OPTIONS))
    scene.hand_in("table locked ACCESS EXCLUSIVE", times)


def lock_table(scene: Scene, seconds: float) -> None:
    """Hold it for so long, and at least until a session of ours waits or the run is over."""
    with psycopg.connect(scene.server_url(), application_name=NAME) as other:
        other.execute("LOCK TABLE market_data IN ACCESS EXCLUSIVE MODE")
        time.sleep(seconds)


def test_deadlocks_with_writers_that_lock_in_the_opposite_order(
    make_scene: MakeScene, tries: Tries
) -> None:
    """The application gets no error: our session never waits for a row while it holds others."""
    times = tries(full=6, quick=2)
    scene = make_scene(records=RECORDS)
    for number in range(times):
        writers = scene.trading(deed=against_the_order(RECORDS), sessions=4, pause=0, seed=number)
        with writers, InThread(scene, request(batch_size=1000, workers=3)) as correction:
            correction.join()
        assert correction.error is None, correction.error
        assert writers.committed
        assert writers.refusals == []
        scene.damage()
    finish(scene, request(**OPTIONS))
    scene.hand_in("writers in the opposite order", times)


MAINTENANCE: dict[str, LiteralString] = {
    "VACUUM FULL": "VACUUM FULL market_data",
    "CLUSTER": "CLUSTER market_data USING by_time",
    "VACUUM": "VACUUM (FREEZE) market_data",
    "heavy updates": "UPDATE market_data SET close = close + 1",
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("partitioning", ["plain", "nested"])
@pytest.mark.parametrize("what", MAINTENANCE)
def test_every_row_moves_in_mid_run(
    make_scene: MakeScene, tries: Tries, what: str, partitioning: str
) -> None:
    """In the middle of the batches every physical address becomes another one."""
    if partitioning == "nested" and what in tries(full=0, quick=1) * ["VACUUM", "CLUSTER"]:
        pytest.skip("tried by `make faults`")
    chance = random.Random(what)  # noqa: S311 - no secret
    times, moved = tries(full=5, quick=1), 0
    scene = make_scene(records=RECORDS, partitioning=partitioning)
    scene.market.execute('CREATE INDEX by_time ON market_data ("timestamp" DESC)')
    with scene.trading(pause=0.02, seed=4):
        while moved < times:
            asked = request(**OPTIONS)
            enough = batches(scene) + chance.randint(3, 30)
            with InThread(scene, asked) as correction:
                if wait_until(
                    lambda: batches(scene) >= enough,  # noqa: B023 - used at once
                    unless=lambda: not correction.is_alive,
                ):
                    maintain(scene, MAINTENANCE[what])
                    moved += 1
                correction.join()
            assert correction.error is None, correction.error
            scene.damage()
    finish(scene, request(**OPTIONS))
    scene.hand_in(f"{what} in mid-run", times)


def maintain(scene: Scene, statement: LiteralString) -> None:
    """Row by row as the application, or whole tables as an administrator."""
    if statement.startswith("UPDATE"):
        scene.apply(statement)
    else:
        scene.market.execute(statement)
