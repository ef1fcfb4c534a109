"""The server dies in mid-batch, as by `pg_ctl stop -m immediate`: no checkpoint, then recovery."""

import random
import time

import pytest

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
from assetclass_pipeline_tests.faults.scene import open_scene
from assetclass_pipeline_tests.faults.victim import Victim

RECORDS = 6_000
OPTIONS = {"batch_size": 25, "workers": 2}


@pytest.mark.timeout(900)
def test_dies_in_mid_batch_again_and_again(
    victim: Victim, request_node: pytest.Item, tries: Tries
) -> None:
    """It goes on by itself where the server is back in time, and is resumed where it is not."""
    chance = random.Random(1)  # noqa: S311 - no secret
    crashes = tries(full=20, quick=8)
    with open_scene(victim.url, request_node, records=RECORDS) as scene:
        asked = request(**OPTIONS)
        with scene.trading(pause=0.01):
            crashed = 0
            while crashed < crashes:
                enough = batches(scene) + chance.randint(1, 30)
                with InThread(scene, asked) as correction:
                    in_the_middle = wait_until(
                        lambda: batches(scene) >= enough,  # noqa: B023 - used at once
                        unless=lambda: not correction.is_alive,
                    )
                    if in_the_middle:
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
        finish(scene, asked)
        scene.hand_in("server stopped -m immediate", crashes)


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
            victim.stop_immediately()
            victim.start()
            scene.reconnect()
            correction.join()
        assert correction.operation is None
        with pytest.raises(CorrectionFailedError, match="was lost when the server crashed"):
            finish(scene, asked)
        done = operation_now(scene, asked).records_corrected
        assert 0 < done < RECORDS
        rest = finish(scene, request(**OPTIONS, create_backup=False))
        assert rest.records_corrected == RECORDS - done
        # Its plan is gone, and with it the summary of what it changed: only the ledger tells.
        changes = scene.journal.read(scene.market.connection)
        assert len({change.new["id"] for change in changes if change.new}) == RECORDS
        assert len(changes) == RECORDS
