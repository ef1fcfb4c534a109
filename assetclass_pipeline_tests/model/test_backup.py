"""When a backup table may go, as tables of facts and verdicts."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from assetclass_pipeline.model.backup import (
    BackupFacts,
    BackupState,
    Verdict,
    decide,
    needed_by,
    state_of,
)
from assetclass_pipeline.model.operation import ACTIVE, RESUMABLE, Kind, Status

NOW = datetime(2026, 3, 1, 4, 30, tzinfo=UTC)
EXPIRED = BackupFacts(
    kind=Kind.CORRECTION,
    status=Status.SUCCEEDED,
    expires_at=NOW - timedelta(seconds=1),
    has_batches=True,
    intact=True,
)


@pytest.mark.parametrize(
    ("change", "verdict", "says"),
    [
        ({}, Verdict.DROP, "expired at 2026-03-01 04:29 UTC, verified"),
        ({"expires_at": NOW}, Verdict.DROP, "expired"),
        ({"expires_at": NOW + timedelta(seconds=1)}, Verdict.KEEP, "expires at"),
        ({"intact": None}, Verdict.VERIFY_FIRST, "never verified"),
        ({"intact": False}, Verdict.KEEP, "does not hold what was written"),
        # Superseded: what it could restore was restored.
        ({"intact": False, "rolled_back_by": "r1"}, Verdict.DROP, "put back by rollback r1"),
        ({"intact": None, "rolled_back_by": "r1"}, Verdict.DROP, "put back by rollback r1"),
        ({"rolled_back_by": "r1", "expires_at": NOW + timedelta(days=1)}, Verdict.KEEP, "expires"),
        # Held, whatever else.
        ({"held_by": "ada", "hold_reason": "audit"}, Verdict.KEEP, "is held by ada: audit"),
        ({"held_by": "ada", "rolled_back_by": "r1"}, Verdict.KEEP, "is held by ada"),
        # Needed by its own operation.
        ({"status": Status.RUNNING}, Verdict.KEEP, "its correction is running"),
        ({"status": Status.FAILED}, Verdict.KEEP, "is failed and can go on"),
        ({"status": Status.TIMED_OUT}, Verdict.KEEP, "can go on"),
        ({"status": Status.FAILED, "rolled_back_by": "r1"}, Verdict.DROP, "put back"),
        ({"status": Status.FAILED, "is_overtaken": True}, Verdict.DROP, "expired"),
        # A plan that nobody used: a resume plans afresh.
        ({"status": Status.PLANNED, "has_batches": False}, Verdict.DROP, "expired"),
        ({"status": Status.FAILED, "has_batches": False}, Verdict.DROP, "expired"),
        ({"status": Status.REQUESTED, "has_batches": False}, Verdict.KEEP, "requested"),
        # Needed by a rollback.
        ({"rollback": ("r2", Status.RUNNING)}, Verdict.KEEP, "rollback r2 is running"),
        ({"rollback": ("r2", Status.PAUSED)}, Verdict.KEEP, "rollback r2 is paused"),
        ({"rollback": ("r2", Status.CANCELLED)}, Verdict.KEEP, "assetclass resume r2"),
        (
            {"rollback": ("r2", Status.RUNNING), "rolled_back_by": "r1"},
            Verdict.KEEP,
            "rollback r2 is running",
        ),
        ({"rollback": ("r2", Status.CANCELLED), "rolled_back_by": "r1"}, Verdict.DROP, "put back"),
        # Gone.
        ({"dropped_at": NOW, "drop_reason": "dropped by hand"}, Verdict.KEEP, "by hand"),
        # Of a rollback.
        ({"kind": Kind.ROLLBACK}, Verdict.DROP, "verified"),
        ({"kind": Kind.ROLLBACK, "status": Status.FAILED}, Verdict.KEEP, "its rollback is failed"),
    ],
)
def test_what_a_cleanup_does(change: dict[str, object], verdict: Verdict, says: str) -> None:
    facts = replace(EXPIRED, **change)  # type: ignore[arg-type] # a table of changes
    decision = decide(facts, NOW)
    assert decision.verdict is verdict
    assert says in decision.why


@pytest.mark.parametrize("status", sorted(ACTIVE))
def test_an_active_operation_needs_its_table_whatever_it_has_done(status: Status) -> None:
    for has_batches in (True, False):
        assert needed_by(replace(EXPIRED, status=status, has_batches=has_batches))


@pytest.mark.parametrize("status", sorted(RESUMABLE))
def test_one_that_can_go_on_needs_it_when_it_has_changed_rows(status: Status) -> None:
    assert needed_by(replace(EXPIRED, status=status))
    assert needed_by(replace(EXPIRED, status=status, has_batches=False)) is None


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, BackupState.EXPIRED),
        ({"expires_at": NOW + timedelta(days=1)}, BackupState.KEPT),
        ({"held_by": "ada"}, BackupState.HELD),
        ({"status": Status.RUNNING}, BackupState.NEEDED),
        ({"status": Status.RUNNING, "held_by": "ada"}, BackupState.HELD),
        ({"dropped_at": NOW, "drop_reason": "expired"}, BackupState.DROPPED),
        ({"dropped_at": NOW, "drop_reason": "dropped by hand"}, BackupState.DROPPED_BY_HAND),
        ({"dropped_at": NOW, "held_by": "ada", "drop_reason": "x"}, BackupState.DROPPED),
    ],
)
def test_states(change: dict[str, object], state: BackupState) -> None:
    facts = replace(EXPIRED, **change)  # type: ignore[arg-type] # a table of changes
    assert state_of(facts, NOW) is state
