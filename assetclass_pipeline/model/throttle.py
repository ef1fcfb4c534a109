"""The throttle's limits, what it measures, and the reasons to wait that follow from both.

Belongs here: pure decisions; a signal that should be there and is not means wait. Does not: how a
signal is measured, and who waits.
"""

import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Generic, TypeVar

from pydantic import BeforeValidator, ByteSize, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.options import describe_problems
from assetclass_pipeline.model.wire import WireModel

Key = TypeVar("Key", bound=Hashable)

_STEP = 1024
_MIB = _STEP**2
_GIB = _STEP**3
_OFF = frozenset({"", "null", "none", "off"})
_WINDOW = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)\s*-\s*([01]?\d|2[0-3]):([0-5]\d)")


class Signal(StrEnum):
    """What can hold an operation back."""

    SERVER = "server"
    REPLICATION_LAG = "replication_lag"
    MISSING_STANDBY = "missing_standby"
    SLOT_WAL = "slot_wal"
    ARCHIVE_BACKLOG = "archive_backlog"
    BLOCKED_SESSIONS = "blocked_sessions"
    OLD_TRANSACTION = "old_transaction"
    FREE_DISK = "free_disk"
    WINDOW = "window"
    CONDITION = "condition"


def _names(value: object) -> object:
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return () if value is None else value


def _window(value: object) -> object:
    if value is None:
        return None
    match = _WINDOW.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError('write it as "HH:MM-HH:MM" from 00:00 to 23:59, like "22:00-06:00"')
    start_hour, start_minute, end_hour, end_minute = (int(part) for part in match.groups())
    if (start_hour, start_minute) == (end_hour, end_minute):
        raise ValueError("its start and its end are the same; for all day write null")
    return f"{start_hour:02}:{start_minute:02}-{end_hour:02}:{end_minute:02}"


# A union, because pydantic-settings would take a plain list from the environment as JSON only.
_Names = Annotated[tuple[str, ...] | None, BeforeValidator(_names)]

_Window = Annotated[str | None, BeforeValidator(_window, json_schema_input_type=str | None)]


class ThrottleLimits(WireModel):
    """When an operation waits between two batches; a limit of None turns its signal off.

    In the environment `ASSETCLASS_THROTTLE__LAG_BYTES=128MiB`; null (or none, off) is None. All but
    the condition can be changed while an operation runs.
    """

    lag_bytes: ByteSize | None = Field(
        ByteSize(64 * _MIB),
        ge=1,
        description="bytes of WAL that a standby or a subscriber may not have replayed yet",
    )
    lag_seconds: float | None = Field(
        10,
        gt=0,
        allow_inf_nan=False,
        description="seconds that a standby or a subscriber may be behind",
    )
    standbys: _Names = Field(
        (),
        description="application_names of standbys that must be streaming; each one absent: wait",
    )
    ignored_standbys: _Names = Field(
        (),
        description="application_names whose lag does not matter (a standby delayed on purpose)",
    )
    slot_wal_bytes: ByteSize | None = Field(
        ByteSize(4 * _GIB),
        ge=1,
        description="bytes of WAL that a replication slot may keep, whether it is in use or not",
    )
    archive_backlog: int | None = Field(
        64, ge=0, description="WAL files that may wait to be archived, where archive_mode is on"
    )
    blocked_seconds: float | None = Field(
        0.5,
        gt=0,
        allow_inf_nan=False,
        description="seconds that a session may wait for a lock of ours",
    )
    oldest_transaction_seconds: float | None = Field(
        3600,
        gt=0,
        allow_inf_nan=False,
        description="seconds that anything but ourselves may hold back vacuum: a transaction, a "
        "prepared one, a standby's query, a slot",
    )
    free_disk_bytes: ByteSize | None = Field(
        ByteSize(1 * _GIB),
        ge=1,
        description="bytes that must stay free for data and WAL, where the server is on this "
        "machine and its directories are visible",
    )
    window: _Window = Field(
        None,
        description='"HH:MM-HH:MM" in the settings\' time zone, also over midnight; outside: wait',
    )
    condition: str | None = Field(
        None,
        description="a SELECT of one row with one boolean: true goes on; false, NULL, no row or an "
        "error waits; settings only",
    )
    poll_seconds: float = Field(
        1.0, ge=0.1, le=60, description="seconds between two looks at the signals"
    )
    starved_after_seconds: float = Field(
        300, gt=0, allow_inf_nan=False, description="seconds of waiting that become an event"
    )

    @model_validator(mode="before")
    @classmethod
    def _understand_off(cls, data: object) -> object:
        """The environment knows only text."""
        if not isinstance(data, dict):
            return data
        return {name: None if _says_off(value) else value for name, value in data.items()}

    @property
    def hours(self) -> tuple[time, time] | None:
        """Start and end of the window, or None when it is always open."""
        if self.window is None:
            return None
        start, end = self.window.split("-")
        return time.fromisoformat(start), time.fromisoformat(end)


def _says_off(value: object) -> bool:
    return isinstance(value, str) and value.strip().lower() in _OFF


# SQL that runs with the operation's rights is for who sets up the service, not for who tunes it.
_SETTINGS_ONLY = {"condition": "ASSETCLASS_THROTTLE__CONDITION"}


def with_changes(limits: ThrottleLimits, changes: Mapping[str, object]) -> ThrottleLimits:
    """The limits after a live change; names in camelCase or snake_case, null turns a signal off.

    Raises InvalidOptionsError naming each field and its limit; `limits` stay as they are.
    """
    said = {to_camel(name): value for name, value in changes.items()}
    for name, variable in _SETTINGS_ONLY.items():
        if name in said:
            raise InvalidOptionsError(
                f"{name}: cannot be changed while an operation runs; set {variable} and start the "
                "operation anew"
            )
    try:
        return ThrottleLimits.model_validate({**limits.model_dump(by_alias=True), **said})
    except ValidationError as error:
        raise InvalidOptionsError(describe_problems(error)) from None


@dataclass(frozen=True)
class Standby:
    """A receiver of WAL: what it has not replayed (bytes) and for how long; None is unreadable."""

    name: str
    lag_bytes: int | None
    lag_seconds: float | None


@dataclass(frozen=True)
class Slot:
    """A replication slot and the bytes of WAL that it keeps."""

    name: str
    wal_bytes: int
    active: bool


@dataclass(frozen=True)
class BlockedSession:
    """A session that has been waiting for one of ours (seconds)."""

    pid: int
    seconds: float


@dataclass(frozen=True)
class VacuumHolder:
    """Who holds back vacuum, and for how many seconds; None: longer than we look, maybe."""

    who: str
    seconds: float | None


@dataclass(frozen=True)
class Readings:
    """One look at all signals that are on; `problems` tells why one of them could not be read.

    `archive_backlog` is None where nothing is archived, `condition` where it was NULL or no row,
    `free_disk` (path -> bytes) is empty where it cannot be known.
    """

    role: str = ""
    standbys: tuple[Standby, ...] = ()
    slots: tuple[Slot, ...] = ()
    archive_backlog: int | None = None
    blocked: tuple[BlockedSession, ...] = ()
    vacuum_holders: tuple[VacuumHolder, ...] = ()
    free_disk: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    condition: bool | None = None
    problems: Mapping[Signal, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Reason:
    """Why no batch is started now: a sentence with the measured value and the limit."""

    signal: Signal
    message: str


def reasons(readings: Readings, limits: ThrottleLimits, now: datetime) -> list[Reason]:
    """Every reason to wait; none means go on. `now` is in the zone of the window.

    A server that does not answer is the only reason, for nothing else is known then.
    """
    if Signal.SERVER in readings.problems:
        return [Reason(Signal.SERVER, readings.problems[Signal.SERVER])]
    found: list[Reason] = []
    for signal, names in _LIMITS_OF.items():
        if not _is_on(limits, names):
            continue
        problem = readings.problems.get(signal)
        if problem is None:
            found += _JUDGES[signal](readings, limits)
        else:
            found.append(_unreadable(signal, names, problem))
    return found + _outside_window(limits, now)


def _is_on(limits: ThrottleLimits, names: tuple[str, ...]) -> bool:
    return any(getattr(limits, name) not in (None, ()) for name in names)


def _unreadable(signal: Signal, names: tuple[str, ...], problem: str) -> Reason:
    return Reason(
        signal,
        f"{_WHAT[signal]} cannot be read: {problem}. Mend that, or turn the signal off "
        f"({_off(*names)}).",
    )


def _off(*names: str) -> str:
    """How to turn a signal off, as a person writes it in a live change or in the environment."""
    ways = {name: f"unset {variable}" for name, variable in _SETTINGS_ONLY.items()}
    ways["standbys"] = "standbys: []"
    return ", ".join(ways.get(name, f"{to_camel(name)}: null") for name in names)


def _grant(readings: Readings) -> str:
    quoted = readings.role.replace('"', '""')
    return f'GRANT pg_monitor TO "{quoted}"'


def _replication(readings: Readings, limits: ThrottleLimits) -> list[Reason]:
    return [
        Reason(Signal.REPLICATION_LAG, message)
        for standby in readings.standbys
        if standby.name not in (limits.ignored_standbys or ())
        for message in _lags(standby, readings, limits)
    ] + _missing_standbys(readings, limits)


def _lags(standby: Standby, readings: Readings, limits: ThrottleLimits) -> list[str]:
    if limits.lag_bytes is None and limits.lag_seconds is None:
        return []
    if standby.lag_bytes is None or standby.lag_seconds is None:
        off = _off("lag_bytes", "lag_seconds")
        unseen = f"The lag of standby {standby.name} cannot be seen: {_grant(readings)}, or turn"
        return [f"{unseen} the signal off ({off})."]
    messages = []
    if limits.lag_bytes is not None and standby.lag_bytes > limits.lag_bytes:
        messages.append(
            f"Standby {standby.name} has not replayed {in_bytes(standby.lag_bytes)} of WAL yet; "
            f"the limit is {in_bytes(limits.lag_bytes)}."
        )
    if limits.lag_seconds is not None and standby.lag_seconds > limits.lag_seconds:
        messages.append(
            f"Standby {standby.name} is {in_seconds(standby.lag_seconds)} behind; the limit is "
            f"{in_seconds(limits.lag_seconds)}."
        )
    return messages


def _missing_standbys(readings: Readings, limits: ThrottleLimits) -> list[Reason]:
    streaming = {standby.name for standby in readings.standbys}
    return [
        Reason(
            Signal.MISSING_STANDBY,
            f"Standby {name} is not streaming, so how far it is behind cannot be known: start it, "
            "or take it out of the limit standbys.",
        )
        for name in limits.standbys or ()
        if name not in streaming
    ]


def _slots(readings: Readings, limits: ThrottleLimits) -> list[Reason]:
    limit = limits.slot_wal_bytes
    return [
        Reason(
            Signal.SLOT_WAL,
            f"Replication slot {slot.name}{'' if slot.active else ' (nobody uses it)'} keeps "
            f"{in_bytes(slot.wal_bytes)} of WAL; the limit is {in_bytes(limit)}. A full WAL disk "
            "stops the server: let its consumer catch up, or drop the slot.",
        )
        for slot in readings.slots
        if limit is not None and slot.wal_bytes > limit
    ]


def _archive(readings: Readings, limits: ThrottleLimits) -> list[Reason]:
    backlog, limit = readings.archive_backlog, limits.archive_backlog
    if backlog is None or limit is None or backlog <= limit:
        return []
    return [
        Reason(
            Signal.ARCHIVE_BACKLOG,
            f"{backlog} WAL files wait to be archived; the limit is {limit}. If their number does "
            "not fall, see pg_stat_archiver and the server's log.",
        )
    ]


def _blocked(readings: Readings, limits: ThrottleLimits) -> list[Reason]:
    limit = limits.blocked_seconds
    waiting = [session for session in readings.blocked if limit and session.seconds > limit]
    if limit is None or not waiting:
        return []
    longest = max(waiting, key=lambda session: session.seconds)
    who = "1 session waits" if len(waiting) == 1 else f"{len(waiting)} sessions wait"
    return [
        Reason(
            Signal.BLOCKED_SESSIONS,
            f"{who} for a lock of ours, process {longest.pid} since "
            f"{in_seconds(longest.seconds)}; the limit is {in_seconds(limit)}.",
        )
    ]


def _old_transactions(readings: Readings, limits: ThrottleLimits) -> list[Reason]:
    limit = limits.oldest_transaction_seconds
    if limit is None:
        return []
    messages = [
        f"Vacuum is held back since {in_seconds(holder.seconds)} by {holder.who}; the limit is "
        f"{in_seconds(limit)}. End it, or raise the limit."
        for holder in readings.vacuum_holders
        if holder.seconds is not None and holder.seconds > limit
    ]
    unseen = [holder.who for holder in readings.vacuum_holders if holder.seconds is None]
    if unseen:
        others = f" (and {len(unseen) - 1} more)" if len(unseen) > 1 else ""
        messages.append(
            f"Since when vacuum is held back by {unseen[0]}{others} cannot be seen by this role: "
            f"wait for its end, or {_grant(readings)}, or turn the signal off "
            f"({_off('oldest_transaction_seconds')})."
        )
    return [Reason(Signal.OLD_TRANSACTION, message) for message in messages]


def _free_disk(readings: Readings, limits: ThrottleLimits) -> list[Reason]:
    limit = limits.free_disk_bytes
    return [
        Reason(
            Signal.FREE_DISK,
            f"{in_bytes(free)} are free on the disk of {path}; at least {in_bytes(limit)} are "
            "asked for. Free some space.",
        )
        for path, free in readings.free_disk.items()
        if limit is not None and free < limit
    ]


def _condition(readings: Readings, limits: ThrottleLimits) -> list[Reason]:
    if limits.condition is None or readings.condition is True:
        return []
    said = "false" if readings.condition is False else "NULL or no row"
    return [Reason(Signal.CONDITION, f"The throttle's condition is {said}; it goes on at true.")]


def _outside_window(limits: ThrottleLimits, now: datetime) -> list[Reason]:
    hours = limits.hours
    if hours is None or is_within(hours, now.time()):
        return []
    wait = timedelta(hours=hours[0].hour, minutes=hours[0].minute) - timedelta(
        hours=now.hour, minutes=now.minute
    )
    minutes = int((wait % timedelta(days=1)).total_seconds()) // 60
    return [
        Reason(
            Signal.WINDOW,
            f"It is {now:%H:%M} ({now.tzname()}), and the window is {limits.window}; it opens in "
            f"{minutes // 60} h {minutes % 60:02} min.",
        )
    ]


def is_within(hours: tuple[time, time], moment: time) -> bool:
    """Whether a window is open: from its start up to its end, over midnight where end < start."""
    start, end = hours
    if start < end:
        return start <= moment < end
    return moment >= start or moment < end


# Each signal, and the limits of which any one turns it on.
_LIMITS_OF: dict[Signal, tuple[str, ...]] = {
    Signal.REPLICATION_LAG: ("lag_bytes", "lag_seconds", "standbys"),
    Signal.SLOT_WAL: ("slot_wal_bytes",),
    Signal.ARCHIVE_BACKLOG: ("archive_backlog",),
    Signal.BLOCKED_SESSIONS: ("blocked_seconds",),
    Signal.OLD_TRANSACTION: ("oldest_transaction_seconds",),
    Signal.FREE_DISK: ("free_disk_bytes",),
    Signal.CONDITION: ("condition",),
}
_JUDGES = {
    Signal.REPLICATION_LAG: _replication,
    Signal.SLOT_WAL: _slots,
    Signal.ARCHIVE_BACKLOG: _archive,
    Signal.BLOCKED_SESSIONS: _blocked,
    Signal.OLD_TRANSACTION: _old_transactions,
    Signal.FREE_DISK: _free_disk,
    Signal.CONDITION: _condition,
}
_WHAT = {
    Signal.REPLICATION_LAG: "The standbys' lag",
    Signal.SLOT_WAL: "The WAL kept by replication slots",
    Signal.ARCHIVE_BACKLOG: "The number of WAL files that wait to be archived",
    Signal.BLOCKED_SESSIONS: "Who waits for a lock of ours",
    Signal.OLD_TRANSACTION: "Who holds back vacuum",
    Signal.FREE_DISK: "The free disk space",
    Signal.CONDITION: "The throttle's condition",
}


def signals_on(limits: ThrottleLimits) -> frozenset[Signal]:
    """The signals to be measured."""
    return frozenset(signal for signal, names in _LIMITS_OF.items() if _is_on(limits, names))


@dataclass(frozen=True)
class Age:
    """Seconds that something has been there; `at_most` is infinite when it was there first."""

    at_least: float
    at_most: float


class FirstSeen(Generic[Key]):
    """Since when each of a changing set of keys is there, as far as repeated looks can tell.

    A key that was not there at the last look cannot be older than that look.
    """

    def __init__(self) -> None:
        self._since: dict[Key, tuple[float, float]] = {}
        self._last_look = -math.inf

    def look(self, keys: list[Key], now: float) -> dict[Key, Age]:
        """The age of each key that is there now; `now` in seconds of a clock that never jumps."""
        self._since = {key: self._since.get(key, (now, self._last_look)) for key in keys}
        self._last_look = now
        return {key: Age(now - seen, now - last) for key, (seen, last) in self._since.items()}


class LagClock(Generic[Key]):
    """For how long each standby has not replayed a position of the WAL that we saw written.

    PostgreSQL's own `replay_lag` stands still or is NULL while a standby replays nothing.
    """

    def __init__(self) -> None:
        self._marks: dict[Key, tuple[int, float]] = {}

    def look(self, positions: Mapping[Key, tuple[int, int]], now: float) -> dict[Key, float]:
        """Seconds behind by standby, from (written, replayed) of each one; 0 when it is level."""
        marks: dict[Key, tuple[int, float]] = {}
        for standby, (written, replayed) in positions.items():
            position, since = self._marks.get(standby, (replayed, now))
            if replayed < position:
                marks[standby] = (position, since)
            elif replayed < written:
                marks[standby] = (written, now)
        self._marks = marks
        return {
            standby: now - marks[standby][1] if standby in marks else 0.0 for standby in positions
        }


def files_behind(position: int, archived: str, file_bytes: int) -> int | None:
    """Finished WAL files after `archived` up to the current position; None for other names.

    Names are 24 hexadecimal digits: the timeline, then the file's number in two parts of 4 GiB.
    """
    match = re.match(r"[0-9A-F]{8}([0-9A-F]{8})([0-9A-F]{8})(?![0-9A-F])", archived)
    if match is None:
        return None
    number = int(match[1], 16) * (2**32 // file_bytes) + int(match[2], 16)
    return max(0, position // file_bytes - number - 1)


def in_bytes(value: float) -> str:
    """A size for people: `64 MiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < _STEP:
            return f"{_in_three_digits(value)} {unit}"
        value /= _STEP
    return f"{_in_three_digits(value)} TiB"


def _in_three_digits(value: float) -> str:
    # The format by itself would write 1010 as 1.01e+03.
    return f"{float(f'{value:.3g}'):g}"


def in_seconds(value: float) -> str:
    """A duration for people: `0.5 s`, `75 min`."""
    if value < 120:  # noqa: PLR2004 - up to here seconds are read more easily
        return f"{value:.3g} s"
    return f"{value / 60:.0f} min"
