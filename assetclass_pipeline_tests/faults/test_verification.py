"""The judge can condemn: each harm that the fault table speaks of, done on purpose."""

from typing import LiteralString

import pytest

from assetclass_pipeline_tests.faults.clients import finish, request, undo_request
from assetclass_pipeline_tests.faults.conftest import MakeScene
from assetclass_pipeline_tests.faults.fault_table import Outcome, add_up, lines_of
from assetclass_pipeline_tests.faults.scene import Scene
from assetclass_pipeline_tests.faults.verification import Verdict, judge

RECORDS = 400


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    """A quiet market."""
    return make_scene(records=RECORDS)


def verdict_of(scene: Scene, *, undoes: bool = False) -> Verdict:
    changes = scene.journal.read(scene.market.connection)
    return judge(scene.market, scene.journal.start, changes, scene.theirs, undoes=undoes)


def test_a_correction_beside_an_application_that_changes_what_it_likes_is_acquitted(
    scene: Scene,
) -> None:
    scene.apply("UPDATE market_data SET asset_class = 'THEIRS' WHERE id = 1")
    scene.apply("DELETE FROM market_data WHERE id = 2")
    finish(scene, request(batch_size=100))
    scene.apply("UPDATE market_data SET asset_class = NULL, close = 7 WHERE id = 3")
    finish(scene, request(batch_size=100))
    scene.apply("UPDATE market_data SET asset_class = 'THEIRS' WHERE id = 4")
    assert verdict_of(scene) == Verdict(changed=RECORDS - 1)


@pytest.mark.parametrize(
    ("harm", "guilty"),
    [
        ("UPDATE market_data SET asset_class = asset_class WHERE id = 5", {"doubled": 1}),
        ("UPDATE market_data SET asset_class = 'CLASS_1' WHERE id = 1", {"overwritten": 1}),
        ("UPDATE market_data SET close = 0 WHERE id = 5", {"overwritten": 1}),
        ("DELETE FROM market_data WHERE id = 5", {"overwritten": 1}),
    ],
)
def test_a_change_that_is_not_the_applications_is_condemned(
    scene: Scene, harm: LiteralString, guilty: dict[str, int]
) -> None:
    scene.apply("UPDATE market_data SET asset_class = 'THEIRS' WHERE id = 1")
    finish(scene, request(batch_size=100))
    scene.market.execute(harm)
    # The ledger and the summaries each lack the one change.
    assert verdict_of(scene) == Verdict(changed=RECORDS, lost=2, **guilty)


def test_a_rollback_beside_an_application_is_acquitted(scene: Scene) -> None:
    correction = request(batch_size=100)
    finish(scene, correction)
    scene.apply("UPDATE market_data SET asset_class = 'THEIRS' WHERE id = 1")
    scene.apply("DELETE FROM market_data WHERE id = 2")
    finish(scene, undo_request(correction.correction_id, batch_size=100))
    scene.apply("UPDATE market_data SET asset_class = 'THEIRS' WHERE id = 3")
    assert verdict_of(scene, undoes=True) == Verdict(changed=2 * RECORDS - 2)


@pytest.mark.parametrize(
    ("harm", "guilty"),
    [
        # What was put back is written once more, or what was not to be.
        ("UPDATE market_data SET asset_class = NULL WHERE id = 5", {"wrong": 1, "lost": 4}),
        (
            "UPDATE market_data SET asset_class = NULL WHERE id = 1",
            {"wrong": 1, "overwritten": 1, "lost": 4},
        ),
        # A class that the row had neither before nor after.
        ("UPDATE market_data SET asset_class = '' WHERE id = 5", {"wrong": 1, "lost": 4}),
    ],
)
def test_harm_of_a_rollback_is_condemned(
    scene: Scene, harm: LiteralString, guilty: dict[str, int]
) -> None:
    correction = request(batch_size=100)
    finish(scene, correction)
    scene.apply("UPDATE market_data SET asset_class = 'THEIRS' WHERE id = 1")
    finish(scene, undo_request(correction.correction_id, batch_size=100))
    scene.market.execute(harm)
    assert verdict_of(scene, undoes=True) == Verdict(changed=2 * RECORDS, **guilty)


def test_a_row_that_a_rollback_forgot_is_lost(scene: Scene) -> None:
    correction = request(batch_size=100)
    finish(scene, correction)
    some = [str(number) for number in range(1, RECORDS)]
    finish(scene, undo_request(correction.correction_id, row_ids=some))
    assert verdict_of(scene, undoes=True) == Verdict(changed=2 * RECORDS - 1, lost=1)


@pytest.mark.parametrize(
    ("forgery", "lost"),
    [
        ("UPDATE assetclass.operation_batch SET records_corrected = 99 WHERE first_seq = 1", 2),
        ("UPDATE assetclass.operation_change SET records = records + 2 WHERE symbol = 'S1'", 2),
        # Not listed any more, and planned without a word.
        ("DELETE FROM assetclass.operation_skipped_row", 2),
    ],
)
def test_a_ledger_that_says_something_else_is_condemned(
    scene: Scene, forgery: LiteralString, lost: int
) -> None:
    asked = request(batch_size=100, workers=1)
    with scene.locked("SELECT FROM market_data WHERE id = 3 FOR UPDATE"):
        operation = finish(scene, asked)
    assert operation.skipped_by_reason == {"locked": 1}
    assert verdict_of(scene) == Verdict(changed=RECORDS - 1)
    scene.market.execute(forgery)
    assert verdict_of(scene) == Verdict(changed=RECORDS - 1, lost=lost)


def test_a_wrong_class_is_condemned(scene: Scene) -> None:
    finish(scene, request(batch_size=100))
    scene.market.execute("UPDATE symbols SET asset_class = 'OTHER' WHERE ticker = 'S1'")
    verdict = verdict_of(scene)
    assert (verdict.wrong, verdict.lost) == (RECORDS // 20, RECORDS // 20)


def test_the_table_adds_up_the_tries_of_a_fault() -> None:
    outcomes = [Outcome("kill", 2, 1000, 0, 0, 0), Outcome("kill", 3, 500, 1, 2, 3)]
    assert lines_of(add_up(outcomes)) == [
        "fault  tries  rows at risk  lost  doubled  overwritten",
        "kill       5         1,500     1        2            3",
    ]
