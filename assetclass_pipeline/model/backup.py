"""Backups: the tables that hold what operations changed, their states, and when one may go.

Belongs here: pure decisions about them, and how they look on the wire. Does not: tables and files.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import computed_field

from assetclass_pipeline.model.operation import ACTIVE, Kind, Status
from assetclass_pipeline.model.wire import Moment, Seconds, WireModel

BY_HAND = "dropped by hand"


class BackupState(StrEnum):
    """Where a backup table stands."""

    KEPT = "kept"
    HELD = "held"
    NEEDED = "needed"
    EXPIRED = "expired"
    DROPPED = "dropped"
    DROPPED_BY_HAND = "dropped_by_hand"


class ArchiveState(StrEnum):
    """Where the file stands that keeps the rows of a table."""

    PRESENT = "present"
    MISSING = "missing"
    ALTERED = "altered"
    REMOVED = "removed"


_BAD = {ArchiveState.MISSING, ArchiveState.ALTERED}


@dataclass(frozen=True)
class BackupFacts:
    """What decides about one backup table.

    `intact` tells whether its checksum was equal when it was last verified; None: never verified.
    `has_batches` tells whether its operation has changed or tried any row, `is_complete` whether
    its plan is, which comes before any batch, `is_overtaken` whether a rollback has begun since, so
    that it cannot go on. `rollback` is one that reads the table, or began to and can go on:
    (correctionId, status).
    """

    kind: Kind
    status: Status
    expires_at: datetime
    has_batches: bool
    is_complete: bool = True
    is_overtaken: bool = False
    intact: bool | None = None
    rolled_back_by: str | None = None
    held_by: str | None = None
    hold_reason: str | None = None
    dropped_at: datetime | None = None
    drop_reason: str | None = None
    rollback: tuple[str, Status] | None = None

    @property
    def is_superseded(self) -> bool:
        """Whether everything was put back already, so that nobody will restore from it again.

        That a newer correction changed the same rows does not make it so: what those rows held
        first stands here alone.
        """
        return self.rolled_back_by is not None

    @property
    def is_unused(self) -> bool:
        """Whether its operation ended while it was planned: there is nothing to restore from it."""
        return not (self.is_complete or self.has_batches)


class Verdict(StrEnum):
    """What a cleanup does with a backup table."""

    DROP = "drop"
    VERIFY_FIRST = "verify_first"
    KEEP = "keep"


@dataclass(frozen=True)
class Decision:
    """A verdict and why, as the end of a sentence that begins with the table.

    `failed`: it should go, and something stands in the way that does not end by itself.
    """

    verdict: Verdict
    why: str
    failed: bool = False


def needed_by(facts: BackupFacts) -> str | None:
    """Who needs the table, in words; None when nobody does."""
    if facts.status in ACTIVE:
        return f"its {facts.kind} is {facts.status}"
    if facts.rollback is not None and facts.rollback[1] in ACTIVE:
        return f"rollback {facts.rollback[0]} is {facts.rollback[1]}"
    if facts.is_superseded:
        return None
    if facts.rollback is not None:
        return (
            f"rollback {facts.rollback[0]} is {facts.rollback[1]} and can go on "
            f"(`assetclass resume {facts.rollback[0]}`)"
        )
    if facts.status is not Status.SUCCEEDED and facts.has_batches and not facts.is_overtaken:
        return f"its {facts.kind} is {facts.status} and can go on (`assetclass resume`)"
    return None


def state_of(facts: BackupFacts, now: datetime) -> BackupState:
    """The state that people see."""
    if facts.dropped_at is not None:
        by_hand = facts.drop_reason == BY_HAND
        return BackupState.DROPPED_BY_HAND if by_hand else BackupState.DROPPED
    if facts.held_by is not None:
        return BackupState.HELD
    if needed_by(facts) is not None:
        return BackupState.NEEDED
    return BackupState.EXPIRED if facts.expires_at <= now else BackupState.KEPT


def decide(facts: BackupFacts, now: datetime) -> Decision:
    """Whether a cleanup drops the table.

    Only one that is expired, not held, not needed, and whose archive will hold what was written:
    verified, or superseded or never used so that a damaged one is no loss.
    """
    if facts.dropped_at is not None:
        return Decision(Verdict.KEEP, f"was dropped: {facts.drop_reason}")
    if facts.held_by is not None:
        return Decision(Verdict.KEEP, f"is held by {facts.held_by}: {facts.hold_reason}")
    if (needing := needed_by(facts)) is not None:
        return Decision(Verdict.KEEP, f"is needed: {needing}")
    if facts.expires_at > now:
        return Decision(Verdict.KEEP, f"expires at {facts.expires_at:%Y-%m-%d %H:%M} UTC")
    return _decide_expired(facts)


def _decide_expired(facts: BackupFacts) -> Decision:
    expired = f"expired at {facts.expires_at:%Y-%m-%d %H:%M} UTC"
    if facts.is_superseded:
        return Decision(
            Verdict.DROP, f"{expired}; everything was put back by rollback {facts.rolled_back_by}"
        )
    if facts.is_unused:
        return Decision(
            Verdict.DROP, f"{expired}; its plan was never completed, and no row was changed from it"
        )
    if facts.intact is None:
        return Decision(Verdict.VERIFY_FIRST, f"{expired} and was never verified")
    if not facts.intact:
        return Decision(
            Verdict.KEEP,
            f"{expired}, but does not hold what was written into it (`assetclass backups verify`): "
            "look at it, then drop it by hand",
            failed=True,
        )
    return Decision(Verdict.DROP, f"{expired}, verified")


class Verification(WireModel):
    """Whether a backup can restore, as it was found without changing anything.

    `missing` rows were deleted since, `changed` ones hold a third value, `already_restored` ones
    their old value: a rollback would restore `restorable` rows and leave those alone.
    """

    correction_id: str
    table: str
    verified_at: Moment
    passed: bool
    intact: bool
    records: int | None
    checksum: str | None
    registered_records: int | None
    registered_checksum: str | None
    restorable: int
    already_restored: int
    changed: int
    missing: int
    problems: list[str]
    remarks: list[str]
    duration_seconds: Seconds


class Archive(WireModel):
    """The file that keeps the rows of one operation for audits."""

    correction_id: str
    file_name: str
    records: int
    bytes: int
    sha256: str
    archived_at: Moment
    expires_at: Moment
    removed_at: Moment | None
    state: ArchiveState


class Backup(WireModel):
    """One registered table; `why` says what its state is due to."""

    correction_id: str
    kind: Kind
    status: Status
    schema_name: str
    table_name: str
    state: BackupState
    why: str
    records: int | None
    bytes: int | None
    checksum: str | None
    created_at: Moment
    expires_at: Moment
    held_by: str | None
    held_at: Moment | None
    hold_reason: str | None
    verified_at: Moment | None
    verification: dict[str, object] | None
    dropped_at: Moment | None
    dropped_by: str | None
    drop_reason: str | None
    archive: Archive | None


class UnregisteredTable(WireModel):
    """A table that looks like a backup and is in no registry: reported, never touched."""

    schema_name: str
    table_name: str
    bytes: int


class BackupList(WireModel):
    """Everything that keeps old values; `archives` are those without a registered table."""

    backups: list[Backup]
    archives: list[Archive]
    unregistered: list[UnregisteredTable]


class VerificationReport(WireModel):
    """Answer to "can they restore": of some or all tables, then also of every archive."""

    verifications: list[Verification]
    archives: list[Archive]

    @computed_field  # type: ignore[prop-decorator] # pydantic's own way
    @property
    def passed(self) -> bool:
        """Whether every table can restore, and every file is what was written."""
        return all(found.passed for found in self.verifications) and not self.bad_archives

    @property
    def bad_archives(self) -> list[Archive]:
        """Files that are missing or altered."""
        return [file for file in self.archives if file.state in _BAD]


class CleanedUp(WireModel):
    """What a cleanup did with one table, and why; `archive` names the file that keeps its rows.

    `failed` is one that should have gone, and which the next cleanup will not drop by itself.
    """

    correction_id: str
    table: str
    bytes: int | None
    why: str
    failed: bool = False
    archive: str | None = None


class CleanupReport(WireModel):
    """What a cleanup dropped and what it kept; in a dry run, what it would.

    `noticed` are operations whose tables somebody dropped by hand since the last look.
    """

    dry_run: bool
    dropped: list[CleanedUp]
    kept: list[CleanedUp]
    noticed: list[str]
    unregistered: list[UnregisteredTable]
    archives_removed: list[str]


class DrillReport(WireModel):
    """A backup restored into a scratch copy of the rows that it is about.

    `restored` rows of the copy were written, `different` ones did not hold their old value then,
    `missing` ones were deleted from the market table since. `whole_restore_seconds` is what all
    rows of the market table would take at this rate.
    """

    correction_id: str
    table: str
    drilled_at: Moment
    passed: bool
    records: int
    restored: int
    missing: int
    different: int
    duration_seconds: Seconds
    restore_seconds: Seconds
    records_per_second: float | None
    market_records: int
    whole_restore_seconds: Seconds | None
    limit_seconds: Seconds
    within_limit: bool
    problems: list[str]


def whole_restore(records: int, seconds: float, market_records: int) -> float | None:
    """Seconds for every row of the market table at the rate of a drill; None without rows."""
    return max(records, market_records) * seconds / records if records else None


class RestoredArchive(WireModel):
    """A table made of an archive; `proved` where the checksum of the dropped table is known."""

    correction_id: str
    table: str
    records: int
    proved: bool
