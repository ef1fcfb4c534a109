"""The audit log in words: who acts, what an entry says, and whether a chain of entries is whole.

Belongs here: actors, entries, the pure check of the hash chain. Does not: reading or writing the
table.
"""

import hashlib
import json
import re
import socket
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, PlainSerializer

from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.wire import WireModel


class ActorKind(StrEnum):
    """How we know who acts."""

    TOKEN = "token"  # noqa: S105 - the word, not a secret
    OS_USER = "os_user"
    SCHEDULE = "schedule"
    SENSOR = "sensor"
    DAGSTER_UI = "dagster_ui"
    SYSTEM = "system"


# The web page of Dagster has no login, so nobody can tell who sat before it.
_DAGSTER_UI = "dagster-ui (unauthenticated)"
_SYSTEM = "assetclass"
_NAMED_BY_KIND = {ActorKind.TOKEN, ActorKind.SCHEDULE, ActorKind.SENSOR}


@dataclass(frozen=True)
class Actor:
    """Who acts: a name, and what vouches for it."""

    name: str
    kind: ActorKind

    @classmethod
    def token(cls, name: str) -> Self:
        """Whoever shows the API token of this name."""
        return cls(name, ActorKind.TOKEN)

    @classmethod
    def os_user(cls, name: str) -> Self:
        """The operating system's user who runs a command."""
        return cls(name, ActorKind.OS_USER)

    @classmethod
    def schedule(cls, name: str) -> Self:
        """A schedule of Dagster's."""
        return cls(name, ActorKind.SCHEDULE)

    @classmethod
    def sensor(cls, name: str) -> Self:
        """A sensor of Dagster's."""
        return cls(name, ActorKind.SENSOR)

    @classmethod
    def dagster_ui(cls) -> Self:
        """Somebody at Dagster's web page."""
        return cls(_DAGSTER_UI, ActorKind.DAGSTER_UI)

    @classmethod
    def system(cls) -> Self:
        """This program by itself."""
        return cls(_SYSTEM, ActorKind.SYSTEM)

    @classmethod
    def of_requester(cls, requested_by: str) -> Self:
        """The actor behind the text that an operation's `requestedBy` holds."""
        first, _, name = requested_by.partition(" ")
        if requested_by == _DAGSTER_UI:
            return cls.dagster_ui()
        if name and first in _NAMED_BY_KIND:
            return cls(name, ActorKind(first))
        return cls.os_user(requested_by) if requested_by else cls.system()

    @property
    def requester(self) -> str:
        """The text for `requestedBy`; `of_requester` reads it."""
        if self.kind in _NAMED_BY_KIND:
            return f"{self.kind} {self.name}"
        return "" if self.kind is ActorKind.SYSTEM else self.name


class Action(StrEnum):
    """What is done to operations and to the schema; backups and their like have actions too."""

    REQUEST_OPERATION = "request_operation"
    CLAIM_OPERATION = "claim_operation"
    END_OPERATION = "end_operation"
    PAUSE_OPERATION = "pause_operation"
    RESUME_OPERATION = "resume_operation"
    CANCEL_OPERATION = "cancel_operation"
    TUNE_OPERATION = "tune_operation"
    UPGRADE_SCHEMA = "upgrade_schema"
    DOWNGRADE_SCHEMA = "downgrade_schema"
    CHANGE_THRESHOLDS = "change_thresholds"


@dataclass(frozen=True)
class Source:
    """Where actions come from: an address, and the request that they are part of."""

    origin: str
    correlation_id: str | None = None


source: ContextVar[Source | None] = ContextVar("source", default=None)
"""Of what is done at the moment; unset: this host, and no request."""


def _origin() -> str:
    known = source.get()
    return socket.gethostname() if known is None else known.origin


def _correlation_id() -> str | None:
    known = source.get()
    return None if known is None else known.correlation_id


@dataclass(frozen=True)
class AuditEntry:
    """What is to be recorded; the database adds number, time and hashes.

    `outcome` says what came of it, of a refusal its error code; `origin` is the host or address
    that it came from. `parameters` must be what JSON can hold.
    """

    actor: Actor
    action: str
    outcome: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    correction_id: str | None = None
    correlation_id: str | None = field(default_factory=_correlation_id)
    origin: str = field(default_factory=_origin)

    @property
    def values(self) -> dict[str, object]:
        """What the statement `append` is bound to."""
        return {
            "actor": self.actor.name,
            "actor_kind": self.actor.kind.value,
            "action": str(self.action),
            "origin": self.origin,
            "parameters": json.dumps(self.parameters, default=str),
            "outcome": self.outcome,
            "correction_id": self.correction_id,
            "correlation_id": self.correlation_id,
        }


def _exactly(moment: datetime) -> str:
    shown = moment.astimezone(UTC).isoformat(timespec="microseconds")
    return shown.replace("+00:00", "Z")


ExactMoment = Annotated[AwareDatetime, PlainSerializer(_exactly, when_used="json")]
"""Microseconds are kept in JSON: the hash covers them."""


class AuditRecord(WireModel):
    """One row of the audit log."""

    number: int
    happened_at: ExactMoment
    actor: str
    actor_kind: ActorKind
    action: str
    origin: str
    parameters: dict[str, Any]
    outcome: str
    correction_id: str | None
    correlation_id: str | None
    previous_hash: str
    hash: str


GENESIS = "0" * 64
"""What the first row follows."""


@dataclass(frozen=True)
class Head:
    """The last row of a chain as somebody noted it, written `NUMBER:HASH`."""

    number: int
    hash: str

    @classmethod
    def parse(cls, said: str) -> Self:
        """Read `NUMBER:HASH`. Raises InvalidOptionsError."""
        found = re.fullmatch(r"(\d{1,18}):([0-9a-fA-F]{64})", said.strip())
        if found is None:
            raise InvalidOptionsError(
                f"--head {said[:100]}: write it as NUMBER:HASH, as `assetclass audit verify` "
                "printed it."
            )
        return cls(int(found[1]), found[2].lower())

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


class BreakKind(StrEnum):
    """What is wrong where a chain breaks."""

    CHANGED = "changed"
    REMOVED = "removed"
    ADDED_OR_REORDERED = "added_or_reordered"
    CUT_OFF = "cut_off"
    REWRITTEN = "rewritten"


@dataclass(frozen=True)
class ChainBreak:
    """The first row number at which a chain is not whole, and what it looks like."""

    number: int
    kind: BreakKind

    def __str__(self) -> str:
        number, before = self.number, self.number - 1
        return {
            BreakKind.CHANGED: f"entry {number} was changed after it was written",
            BreakKind.REMOVED: f"entry {number} was removed",
            BreakKind.ADDED_OR_REORDERED: (
                f"entry {number} does not follow entry {before}: entries were added, exchanged or "
                "renumbered here, or the one before was replaced together with its hash"
            ),
            BreakKind.CUT_OFF: f"entry {number} and all after it are gone: the end was cut off",
            BreakKind.REWRITTEN: (
                f"entry {number} is not the one whose hash was noted: the chain was rewritten, "
                "from here or from before"
            ),
        }[self.kind]


@dataclass(frozen=True)
class Link:
    """A row of the log for the check: its hashes, and the text that they cover."""

    number: int
    previous_hash: str
    hash: str
    text: str

    @property
    def computed_hash(self) -> str:
        """What `hash` must be."""
        return hashlib.sha256(f"{self.previous_hash}\n{self.text}".encode()).hexdigest()


@dataclass(frozen=True)
class Verification:
    """How far a chain is whole: rows checked, the last of them, and the first break."""

    entries: int
    head: Head | None
    broken: ChainBreak | None


def check_chain(links: Iterable[Link], noted: Head | None = None) -> Verification:
    """Follow the rows in the order of their numbers up to the first break; none is kept.

    Rows cut off at the end leave a whole chain: only a `noted` head shows that.
    """
    entries, last = 0, Head(0, GENESIS)
    for link in links:
        broken = _break_at(link, last, noted)
        if broken is not None:
            return Verification(entries, last if entries else None, broken)
        entries, last = entries + 1, Head(link.number, link.hash)
    cut_off = None
    if noted is not None and noted.number > last.number:
        cut_off = ChainBreak(last.number + 1, BreakKind.CUT_OFF)
    return Verification(entries, last if entries else None, cut_off)


def _break_at(link: Link, last: Head, noted: Head | None) -> ChainBreak | None:
    if link.number > last.number + 1:
        return ChainBreak(last.number + 1, BreakKind.REMOVED)
    if link.number <= last.number or link.previous_hash != last.hash:
        return ChainBreak(link.number, BreakKind.ADDED_OR_REORDERED)
    if link.hash != link.computed_hash:
        return ChainBreak(link.number, BreakKind.CHANGED)
    if noted is not None and link.number == noted.number and link.hash != noted.hash:
        return ChainBreak(link.number, BreakKind.REWRITTEN)
    return None
