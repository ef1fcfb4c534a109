"""The answer to a COMMIT is lost while rows are quarantined or swept: a second try adds nothing."""

from dataclasses import dataclass

import pytest

from assetclass_pipeline.model.operation import Operation, Phase
from assetclass_pipeline_tests.faults.clients import InThread, request
from assetclass_pipeline_tests.faults.conftest import MakeScene
from assetclass_pipeline_tests.faults.proxy import Moment, Proxy
from assetclass_pipeline_tests.faults.scene import Scene

RETRY = {"tries": 10, "first_wait": 0.05, "longest_wait": 0.2}


@dataclass
class LosesAnAnswer:
    """Cuts the connection behind the n-th COMMIT of a phase."""

    scene: Scene
    proxy: Proxy
    phase: Phase
    number: int
    armed: bool = False

    def __call__(self, operation: Operation) -> None:
        if operation.phase is Phase.CORRECTING and self.phase is Phase.SWEEPING:
            self.scene.apply("UPDATE market_data SET close = close + 1 WHERE id %% 3 = %s", 0)
        if operation.phase is self.phase and not self.armed:
            self.armed = True
            self.proxy.cut_at_commit(Moment.AFTER, after=self.number)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("phase", "refused"), [(Phase.CORRECTING, 1), (Phase.SWEEPING, 0)])
def test_a_row_is_quarantined_once_and_never_for_having_been_written(
    make_scene: MakeScene, phase: Phase, refused: int
) -> None:
    scene = make_scene(records=60)
    if refused:
        scene.market.execute("ALTER TABLE market_data ADD CHECK (id <> 8 OR asset_class IS NULL)")
    cuts = 0
    with Proxy(scene.server_url) as proxy:
        for number in range(12):
            asked = request(batch_size=10, workers=1, retry=RETRY)
            observe = LosesAnAnswer(scene, proxy, phase, number)
            with InThread(scene, asked, url=proxy.url(), observe=observe) as correction:
                correction.join()
            cuts += proxy.disarm()
            ended = correction.operation
            assert ended is not None, (number, correction.error)
            assert len(ended.quarantined) == ended.records_failed == refused, number
            assert ended.records_corrected + refused == ended.records_planned, number
            scene.damage()
    assert cuts > 0
