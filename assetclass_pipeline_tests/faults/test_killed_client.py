"""kill -9 of the correcting process at random points of every phase, resumed until it is done."""

import random

import pytest

from assetclass_pipeline.model.operation import Phase, Status
from assetclass_pipeline_tests.faults.clients import (
    Asked,
    Death,
    InProcess,
    finish,
    operation_now,
    request,
)
from assetclass_pipeline_tests.faults.conftest import MakeScene
from assetclass_pipeline_tests.faults.fault_table import Tries
from assetclass_pipeline_tests.faults.scene import Scene

RECORDS = 6_000
OPTIONS = {"batch_size": 50, "workers": 2}
# Ten deaths on the way of an operation; the five groups differ in the moments.
POINTS = (
    Phase.STARTING,
    Phase.ANALYSING,
    Phase.PLANNING,
    Phase.PLANNING,
    Phase.CORRECTING,
    Phase.CORRECTING,
    Phase.CORRECTING,
    Phase.SWEEPING,
    Phase.SWEEPING,
    Phase.VERIFYING,
)
# The dead one's session ends with it, so it is given up after three missed beats.
SETTINGS = {"heartbeat_interval": 0.1, "heartbeat_stale_after": 5}


class Killer:
    """Runs operations one after the other, and kills each again and again."""

    def __init__(self, scene: Scene, seed: int, options: dict[str, object]) -> None:
        self._scene, self._options = scene, options
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self._usual: dict[Phase, float] = {}
        self.asked: Asked = self.another()
        self.killed_in: list[Phase] = []

    def learn(self) -> None:
        """One undisturbed operation: how long each phase usually takes."""
        with InProcess(self._scene, self.asked) as client:
            ended = client.ended()
        assert ended.code is None, ended
        self._usual = {phase: ended.duration(phase) for phase in ended.entered}
        self._begin_another()

    def kill_in(self, phase: Phase) -> None:
        """One death in a phase; where the process was faster, earlier in the next operation."""
        after = self._chance.random() * self._usual.get(phase, 0.0)
        while not self._dies(Death(phase, after)):
            after = after / 2 if after > 0.001 else 0.0
        self.killed_in.append(phase)

    def _dies(self, death: Death) -> bool:
        with InProcess(self._scene, self.asked, death=death) as client:
            ended = client.ended()
        if ended.killed:
            return True
        # The one before it may not be given up yet; everything else would be a failure.
        assert ended.code in {None, "OPERATION_IN_PROGRESS"}, ended
        if ended.code is None:
            self._begin_another()
        return False

    def _begin_another(self) -> None:
        self._scene.damage()
        self.asked = self.another()

    def another(self) -> Asked:
        """A new operation."""
        return request(**self._options)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("create_backup", [True, False])
@pytest.mark.parametrize("group", range(5))
def test_killed_at_random_points(
    make_scene: MakeScene, tries: Tries, group: int, create_backup: bool
) -> None:
    if not create_backup and group >= tries(full=5, quick=1):
        pytest.skip("tried by `make faults`")
    scene = make_scene(records=RECORDS)
    scene.settings_of_ours.update(SETTINGS)
    killer = Killer(scene, group, {**OPTIONS, "create_backup": create_backup})
    with scene.trading(seed=group):
        killer.learn()
        for phase in POINTS:
            killer.kill_in(phase)
    finish(scene, killer.asked)
    assert operation_now(scene, killer.asked).status is Status.SUCCEEDED
    assert killer.killed_in == [*POINTS]
    scene.hand_in("kill -9 of the client", len(POINTS))
