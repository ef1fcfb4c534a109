"""Who asked for a Dagster run, and what vouches for it."""

import dagster as dg
import pytest

from assetclass_pipeline.defs.runs import requester_of
from assetclass_pipeline.model.audit import Actor, ActorKind

PARENT = "11111111-2222-4333-8444-555555555555"
SCHEDULE = {"dagster/schedule_name": "nightly_correction"}


@pytest.mark.parametrize(
    ("tags", "parent", "requester", "kind"),
    [
        ({}, None, "dagster-ui (unauthenticated)", ActorKind.DAGSTER_UI),
        ({"user": "ada"}, None, "ada", ActorKind.OS_USER),
        (SCHEDULE, None, "schedule nightly_correction", ActorKind.SCHEDULE),
        ({"dagster/sensor_name": "healer"}, None, "sensor healer", ActorKind.SENSOR),
        (
            {"dagster/sensor_name": "operation_requests", "user": "token ci"},
            None,
            "token ci",
            ActorKind.TOKEN,
        ),
        # By hand it inherits the tags of its parent, by Dagster itself it is still the schedule's.
        (SCHEDULE, PARENT, "dagster-ui (unauthenticated)", ActorKind.DAGSTER_UI),
        (
            {**SCHEDULE, "dagster/retry_number": "1"},
            PARENT,
            "schedule nightly_correction",
            ActorKind.SCHEDULE,
        ),
    ],
)
def test_requester(tags: dict[str, str], parent: str | None, requester: str, kind: str) -> None:
    run = dg.DagsterRun(job_name="job", tags=tags, parent_run_id=parent, root_run_id=parent)
    assert requester_of(run) == requester
    actor = Actor.of_requester(requester)
    assert (actor.kind, actor.requester) == (kind, requester)


def test_nobody_is_the_program_itself() -> None:
    assert Actor.of_requester("") == Actor.system()
    assert Actor.system().requester == ""
    # A user may be called like a kind.
    assert Actor.of_requester("token").kind is ActorKind.OS_USER
