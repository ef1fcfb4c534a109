"""What a correction would meet on its way: the answer of a preflight.

Belongs here: findings, figures and how far an estimate was off. Does not: looking at the database.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from pydantic import Field

from assetclass_pipeline.model.quality import SecondsRange
from assetclass_pipeline.model.wire import Moment, Seconds, WireModel

SHORTEST_BOUND = 0.001
"""Seconds; the precision of a duration on the wire, and what an error of 0 seconds is held to."""


class Severity(StrEnum):
    """What a finding means for the correction: it is refused, people should look, or just know."""

    REFUSE = "refuse"
    WARN = "warn"
    INFO = "info"


_BY_WEIGHT = [*Severity]


class Finding(WireModel):
    """One thing that was found: `message` says what it means and what to do."""

    code: str
    severity: Severity
    message: str


class UpdateTrigger(WireModel):
    """A trigger of users on the market table that an UPDATE of ours concerns.

    `table` is the first of the `tables` leaves that have it; `fires` says whether it does in our
    sessions, which depends on how it is enabled and on `session_replication_role`.
    """

    name: str
    function: str
    table: str
    tables: int
    timing: Literal["BEFORE", "AFTER"]
    level: Literal["ROW", "STATEMENT"]
    fires: bool


class Rehearsal(WireModel):
    """A batch that was written as a real one is, timed and rolled back.

    `records` were written in `seconds` by one connection, with `wal_bytes` of WAL (None where they
    could not be measured).
    """

    records: int
    seconds: Seconds
    wal_bytes: int | None


class Preflight(WireModel):
    """Everything a preflight found; bytes and rows are None where the rows are not counted yet."""

    checked_at: Moment
    findings: list[Finding]
    indexes_on_asset_class: list[str] = Field(
        description="indexes that mention a column a correction writes: they forbid HOT updates"
    )
    triggers: list[UpdateTrigger]
    replica_identity: dict[str, int] = Field(
        description="leaves by replica identity: default, index, full or nothing"
    )
    publications: list[str] = Field(description="publications that carry rows of the market table")
    rows_to_change: int | None
    disk_needed_bytes: int | None = Field(description="backup and new row versions, without WAL")
    disk_free_bytes: int | None = Field(description="None where the server's disk cannot be seen")
    wal_bytes: int | None
    oldest_transaction_seconds: Seconds | None
    waiting_locks: int
    rehearsal: Rehearsal | None = None
    estimated_seconds: SecondsRange | None = None

    @property
    def refusals(self) -> list[Finding]:
        """Findings for which a correction is refused."""
        return [finding for finding in self.findings if finding.severity is Severity.REFUSE]


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """The gravest first, otherwise in the order they were found."""
    return sorted(findings, key=lambda finding: _BY_WEIGHT.index(finding.severity))


def estimate_error_percent(low: float, high: float, actual: float) -> float:
    """How far `actual` seconds lie outside [low, high], in percent of the nearer bound; inside 0.

    Negative when it went faster than estimated.
    """
    if low <= actual <= high:
        return 0.0
    bound = low if actual < low else high
    return 100 * (actual - bound) / max(bound, SHORTEST_BOUND)
