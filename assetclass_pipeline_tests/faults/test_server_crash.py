"""The server dies in mid-batch, as by `pg_ctl stop -m immediate`: no checkpoint, then recovery."""

import random
import time
from collections.abc import Iterator

import pytest

from assetclass_pipeline.engine.correction import CorrectionRequest
from assetclass_pipeline.errors import AssetClassError, CorrectionFailedError
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline_tests.faults.clients import (
    InThread,
    batches,
    finish,
    operation_now,
    request,
    wait_until,
)
from assetclass_pipeline_tests.faults.fault_table import Tries
from assetclass_pipeline_tests.faults.scene import SERVER_SETTINGS, Scene, open_scene
from assetclass_pipeline_tests.faults.victim import Victim

RECORDS = 6_000
OPTIONS = {"batch_size": 25, "workers": 2}


@pytest.mark.timeout(900)
def test_dies_in_mid_batch_again_and_again(
    victim: Victim, request_node: pytest.Item, tries: Tries
) -> None:
    """It goes on by itself where the server is back in time, and is resumed where it is not."""
    crashes = tries(full=20, quick=8)
    with open_scene(victim.url, request_node, records=RECORDS) as scene:
        with scene.trading(pause=0.01):
            asked = crash(scene, victim, crashes)
        finish(scene, asked)
        scene.hand_in("server stopped -m immediate", crashes)


@pytest.fixture
def lazy_victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """Writes its log to the disk as late as it may, which is what a crash then loses."""
    lazy = {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}
    with Victim(tmp_path_factory.mktemp("lazy"), {**SERVER_SETTINGS, **lazy}) as victim:
        yield victim


@pytest.mark.timeout(900)
def test_batches_that_a_crash_takes_back_are_done_again(
    lazy_victim: Victim, request_node: pytest.Item, tries: Tries
) -> None:
    """Nobody else commits, so nobody writes our commits to the disk in passing."""
    crashes = tries(full=10, quick=3)
    with open_scene(lazy_victim.url, request_node, records=RECORDS) as scene:
        finish(scene, crash(scene, lazy_victim, crashes))
        scene.hand_in("crash takes commits back", crashes)


def crash(scene: Scene, victim: Victim, crashes: int) -> CorrectionRequest:
    """Let the server die so often in mid-batch; returns what is still to be finished."""
    chance = random.Random(1)  # noqa: S311 - no secret
    asked, crashed = request(**OPTIONS), 0
    while crashed < crashes:
        with InThread(scene, asked) as correction:
            while crashed < crashes and correction.is_alive:
                enough = batches(scene) + chance.randint(1, 30)
                if wait_until(
                    lambda: batches(scene) >= enough,  # noqa: B023 - used at once
                    unless=lambda: not correction.is_alive,
                ):
                    time.sleep(chance.random() * 0.01)
                    victim.stop_immediately()
                    victim.start()
                    scene.reconnect()
                    crashed += 1
            correction.join()
        assert_told_or_done(correction)
        if operation_now(scene, asked).status is Status.SUCCEEDED:
            scene.damage()
            asked = request(**OPTIONS)
    return asked


def assert_told_or_done(correction: InThread) -> None:
    """Never a silent end: it succeeded, or says in a typed error what happened."""
    if correction.operation is None:
        assert isinstance(correction.error, AssetClassError), correction.error
    else:
        assert correction.operation.status is Status.SUCCEEDED


@pytest.mark.timeout(900)
def test_an_unlogged_plan_does_not_survive_and_the_next_operation_does_the_rest(
    victim: Victim, request_node: pytest.Item
) -> None:
    with open_scene(victim.url, request_node, records=RECORDS) as scene:
        asked = request(**OPTIONS, create_backup=False)
        with InThread(scene, asked) as correction:
            assert wait_until(lambda: batches(scene) >= 20, unless=lambda: not correction.is_alive)
            # A crash that takes all batches back leaves nothing to be lost with the plan.
            scene.market.execute("CHECKPOINT")
            victim.stop_immediately()
            victim.start()
            scene.reconnect()
            correction.join()
        assert correction.operation is None
        with pytest.raises(CorrectionFailedError, match="was lost: its table was dropped or"):
            finish(scene, asked)
        done = operation_now(scene, asked).records_corrected
        assert 0 < done < RECORDS
        rest = finish(scene, request(**OPTIONS, create_backup=False))
        assert rest.records_corrected == RECORDS - done
        # The plan is gone, and with it the summary of what it changed: only the ledger tells.
        changes = scene.journal.read(scene.market.connection)
        assert len({change.new["id"] for change in changes if change.new}) == RECORDS
        assert len(changes) == RECORDS
