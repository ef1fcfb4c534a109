"""kill -9 of a process that rolls back, at random points, resumed until it is done."""

import pytest

from assetclass_pipeline.model.operation import Phase, Status
from assetclass_pipeline_tests.faults.clients import (
    Asked,
    finish,
    operation_now,
    request,
    undo_request,
)
from assetclass_pipeline_tests.faults.conftest import MakeScene
from assetclass_pipeline_tests.faults.fault_table import Tries
from assetclass_pipeline_tests.faults.test_killed_client import SETTINGS, Killer

RECORDS = 4_000
OPTIONS = {"batch_size": 50, "workers": 2}
# Ten deaths on the way of a rollback; the two groups differ in the moments.
POINTS = (
    Phase.CORRECTING,
    Phase.PLANNING,
    Phase.SWEEPING,
    Phase.STARTING,
    Phase.PLANNING,
    Phase.CORRECTING,
    Phase.CORRECTING,
    Phase.CORRECTING,
    Phase.SWEEPING,
    Phase.VERIFYING,
)


class KillerOfRollbacks(Killer):
    """Corrects in peace, and kills each rollback of that again and again."""

    def another(self) -> Asked:
        """A new rollback, of a new correction."""
        correction = request(**OPTIONS)
        finish(self._scene, correction)
        return undo_request(correction.correction_id, **OPTIONS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", range(2))
def test_killed_at_random_points(make_scene: MakeScene, tries: Tries, group: int) -> None:
    if group >= tries(full=2, quick=1):
        pytest.skip("tried by `make faults`")
    points = POINTS[: tries(full=len(POINTS), quick=3)]
    scene = make_scene(records=RECORDS)
    scene.settings_of_ours.update(SETTINGS)
    with scene.trading(seed=group):
        killer = KillerOfRollbacks(scene, group, dict(OPTIONS))
        killer.learn()
        for phase in points:
            killer.kill_in(phase)
    finish(scene, killer.asked)
    rollback = operation_now(scene, killer.asked)
    assert rollback.status is Status.SUCCEEDED
    assert rollback.records_restored
    assert killer.killed_in == [*points]
    scene.hand_in("kill -9 of a rollback", len(points), undoes=True)
