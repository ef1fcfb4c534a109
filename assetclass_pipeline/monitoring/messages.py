"""Messages about alerts: a title for a small screen, a body that a person can act on.

Belongs here: pure text from an alert and what is known around it. Does not: sending it
(channels.py), and who is told when (alert_life.py, reminders.py).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from assetclass_pipeline.model.alert import Alert, AlertType, Severity
from assetclass_pipeline.model.alert_life import is_about_the_end
from assetclass_pipeline.model.alert_rules import INCIDENT
from assetclass_pipeline.model.operation import ACTIVE, RESUMABLE, Operation, Status
from assetclass_pipeline.settings import AlertSettings, Settings

TITLE_MOST: Final = 120
"""Characters of a title: what a text message shows at once."""

_DETAILS_MOST = 10
_VALUE_MOST = 200
_FIRST_OF_A_LIST = 3
_HOST_MOST = 30
_LINE_MOST = 800
# Numbers that say how bad it is stand first, whatever else a rule tells.
_FIRST_DETAILS = ("value", "limit", "median", "baseline", "deviation", "runs")
_TO_DO = "whatToDo"
_WORST = ("worstSymbols", "worstMonths")
_WORST_MOST = 5
# Not for people: by which incident a rule knows what it told of. The others stand elsewhere.
_NOT_TOLD = frozenset({INCIDENT, _TO_DO, "unit", "asset", "check", "measuredAt", "levelViolated"})
_UNITS = {"percent": " %", "seconds": " s", "seconds per row": " s a row"}
_IN_UNITS = frozenset({"value", "limit"})
_SMALL = 0.1
# What repeats is bounded: errors of others may be long, and looking through them must take no time.
_SECRETS = (
    # To the last @ of the word: a password may hold any character that somebody forgot to encode.
    (re.compile(r"(\w://[^\s:/@]{0,200}):\S{0,500}@"), r"\1:****@"),
    # Of libpq, of an environment (PGPASSWORD=), of a query, and as JSON or Python write it.
    (
        re.compile(
            r"(?i)((?:password|passwd|pwd|secret|token|api[_-]?key)\w{0,40}[\"']?\s{0,9}[=:]\s{0,9})"
            r"(?:\"(?:[^\"\\]|\\.){0,500}\"|'(?:[^'\\]|\\.){0,500}'|[^\s,;&]+)"
        ),
        r"\1****",
    ),
    (re.compile(r"(?i)\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}"), r"\1****"),
)


@dataclass(frozen=True)
class Message:
    """What is sent: plain text, how urgent it is, and whether it says that something is over."""

    title: str
    body: str
    severity: Severity
    is_over: bool = False


@dataclass(frozen=True)
class Place:
    """Where the trouble is, as people know it; no user and no password."""

    host: str
    database: str
    table: str

    def __str__(self) -> str:
        return f"{self.host}, database {self.database}, table {self.table}"


@dataclass(frozen=True)
class Surroundings:
    """What a message says beside the alert itself; `active` is the operation at work, if any."""

    place: Place
    active: Operation | None
    settings: Settings
    now: datetime


@dataclass(frozen=True)
class Advice:
    """The next step for one type of alert: its runbook's first one, to look, to act.

    `{id}` is the operation's correctionId, and nothing where there is none.
    """

    step: str
    look: str
    act: str


ADVICE: Final = {
    AlertType.OPERATION_FAILED: Advice(
        "Read its error, mend the cause, then resume it; what is committed stays.",
        "assetclass status {id}",
        "assetclass resume {id}",
    ),
    AlertType.SLA_VIOLATION: Advice(
        "See whether it waits, and for what. It harms somebody: make it gentle, or pause it.",
        "assetclass status {id}",
        "assetclass tune {id} --pace gentle",
    ),
    AlertType.SERVICE_DEGRADED: Advice(
        "Several components fail at once: look for what they share (disk, network, database).",
        "assetclass health",
        "assetclass doctor",
    ),
    AlertType.HIGH_ERROR_RATE: Advice(
        "Look which rows the database refuses and why, mend that, then resume it: it tries them "
        "once more.",
        "assetclass status {id}",
        "assetclass resume {id}",
    ),
    AlertType.LOW_DATA_QUALITY: Advice(
        "See which symbols and months are damaged, preview a correction, then run it.",
        "assetclass analyze",
        'assetclass execute --reason "LOW_DATA_QUALITY"',
    ),
    AlertType.DATA_QUALITY_DEGRADED: Advice(
        "Find what changed since the last measurement (a feed, symbols, a correction); mend that.",
        "assetclass analyze",
        "assetclass status --include-all",
    ),
    AlertType.HIGH_ORPHANED_RECORDS: Advice(
        "Have wrong tickers of a feed corrected, and missing ones added to symbols; then correct.",
        "assetclass analyze",
        'assetclass execute --target-symbol SYMBOL --reason "symbol added"',
    ),
    AlertType.PERFORMANCE_DEGRADATION: Advice(
        "Compare what it waited for with earlier runs: locks, an index, an old transaction.",
        "assetclass status {id}",
        "assetclass doctor",
    ),
    AlertType.ASSET_CHECK_FAILED: Advice(
        "Read the check's numbers in the run; its runbook says what each check asks for.",
        "assetclass status",
        "assetclass validate",
    ),
    AlertType.RUN_FAILED: Advice(
        "Read the run's first error, mend the cause, then re-execute it in the Dagster UI.",
        "assetclass health",
        "assetclass status {id}",
    ),
    AlertType.TICK_FAILED: Advice(
        "Read the tick's error in Dagster; until it is mended the schedule or sensor does nothing.",
        "assetclass health",
        "assetclass doctor",
    ),
    AlertType.BACKUP_CLEANUP_FAILED: Advice(
        "See which backup could not be archived or dropped; nothing is lost, but disk fills up.",
        "assetclass backups list",
        "assetclass backups cleanup",
    ),
    AlertType.RECOVERY_DRILL_FAILED: Advice(
        "Start no correction and drop no backup until it is known whether backups restore.",
        "assetclass backups verify --all",
        "assetclass pause",
    ),
    AlertType.COMPONENT_UNHEALTHY: Advice(
        "See which component is unhealthy and follow what the doctor says about it.",
        "assetclass health",
        "assetclass doctor",
    ),
}
"""What to do first, by type; each has a whole page in docs/runbooks."""

_ENDED: Final = "ended"
"""Of an operation that was at work when it was found, and is not any more."""

ADVICE_BY_STATUS: Final[Mapping[AlertType, Mapping[str, Advice]]] = {
    AlertType.SLA_VIOLATION: {
        Status.REQUESTED: Advice(
            "Nobody begins it: the daemon, the sensor operation_requests or the code is amiss. It "
            "is kept, and begins once that is mended.",
            "assetclass health",
            "assetclass doctor",
        ),
        Status.SUCCEEDED: Advice(
            "It is done, and took too long: see what it waited for, before the next one does.",
            "assetclass status {id}",
            "assetclass report performance",
        ),
        **dict.fromkeys(
            (*sorted(RESUMABLE), _ENDED),
            Advice(
                "It is not at work any more: see how far it came, then resume it, or do the rest "
                "in parts.",
                "assetclass status {id}",
                "assetclass resume {id}",
            ),
        ),
    },
    AlertType.HIGH_ERROR_RATE: {
        Status.RUNNING: Advice(
            "Pause it, then look which rows the database refuses and why.",
            "assetclass status {id}",
            "assetclass pause {id}",
        ),
        Status.SUCCEEDED: Advice(
            "Look which rows the database refuses and why, and mend that; then try them again.",
            "assetclass status {id}",
            "assetclass execute --batch-size 100 --max-records 1000 --dry-run",
        ),
    },
}
"""What to do instead where the alert's operation stands like this: what is over cannot be paused,
and what has not begun cannot be made gentle."""


def kind_of(occasion: str) -> str:
    """The first word of an occasion: opened, reopened, escalated, reminder, resolved."""
    return occasion.partition(" ")[0]


def message_of(alert: Alert, occasion: str, around: Surroundings) -> Message:
    """The message that tells of `alert` on this occasion."""
    is_over = is_about_the_end(occasion)
    parts = _over(alert, around) if is_over else _open(alert, occasion, around)
    lines = [(name, one_line(masked(said), _LINE_MOST)) for name, said in parts]
    body = "\n".join(f"{name}: {said}" for name, said in lines if said)
    title = _title(alert, occasion, around)
    return Message(title, body, alert.severity, is_over=is_over)


def advice_for(alert: Alert, status: str | None = None) -> Advice:
    """The next step for an alert; `status` is its operation's, where not as when it was found."""
    known = status or str(alert.details.get("status", ""))
    return ADVICE_BY_STATUS.get(alert.alert_type, {}).get(known, ADVICE[alert.alert_type])


def _advice_now(alert: Alert, around: Surroundings) -> Advice:
    active = around.active
    if active is not None and active.correction_id == alert.correction_id:
        return advice_for(alert, active.status)
    return advice_for(alert, _ENDED if alert.details.get("status") in ACTIVE else None)


def one_line(said: str, most: int) -> str:
    """The text in one line, cut at so many characters; no character in it steers a screen."""
    flat = " ".join(said.split())
    flat = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in flat)
    return flat if len(flat) <= most else flat[: most - 3].rstrip() + "..."


def spoken(span: timedelta) -> str:
    """A duration as people say it: 40 s, 12 min, 3 h 05 min, 2 days 4 h."""
    seconds = max(0, round(span.total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if not minutes:
        return f"{seconds} s"
    if not hours:
        return f"{minutes} min"
    if not days:
        return f"{hours} h {minutes % 60:02} min"
    return f"{days} day{'s' if days > 1 else ''} {hours % 24} h"


def _title(alert: Alert, occasion: str, around: Surroundings) -> str:
    kind = kind_of(occasion)
    begins = {
        "resolved": f"RESOLVED {alert.alert_type}",
        "escalated": f"now {alert.severity.upper()}: {alert.alert_type}",
        "reopened": f"{alert.severity.upper()} again: {alert.alert_type}",
        "reminder": f"{alert.severity.upper()} level {alert.level}, unacknowledged for "
        f"{_age(alert, around)}: {alert.alert_type}",
    }.get(kind, f"{alert.severity.upper()} {alert.alert_type}")
    host = one_line(around.place.host, _HOST_MOST)
    was = ", was" if kind == "resolved" else ""
    return one_line(f"{begins} ({host}){was}: {masked(alert.summary)}", TITLE_MOST)


def _open(alert: Alert, occasion: str, around: Surroundings) -> Iterable[tuple[str, str]]:
    advice, settings = _advice_now(alert, around), around.settings
    if kind_of(occasion) == "reminder":
        yield "Unacknowledged", f"for {_age(alert, around)}; now level {alert.level}"
    yield "What", alert.summary
    yield "Where", str(around.place)
    yield "How bad", _how_bad(alert)
    for name, said in worst(alert.details):
        yield name.capitalize(), said
    yield "Since", f"{_moment(alert.opened_at)}, {_age(alert, around)} ago; {_times(alert)}"
    yield "Written now", _activity(around.active, alert)
    yield "Do now", to_do(alert, advice)
    yield "correctionId", alert.correction_id or ""
    yield "Look", _command(advice.look, alert)
    yield "Act", _command(advice.act, alert)
    yield "Take it", f"assetclass alerts ack {alert.id}"
    yield "Run", f"{settings.webserver_url}/runs/{alert.run_id}" if alert.run_id else ""
    yield "Runbook", _runbook(alert, settings.alerts)
    yield "Call next", _call_next(alert, settings.alerts)


def _over(alert: Alert, around: Surroundings) -> Iterable[tuple[str, str]]:
    ended = alert.resolved_at or around.now
    yield "It was", alert.summary
    yield "Where", str(around.place)
    lasted = spoken(ended - alert.opened_at)
    yield "Lasted", f"{lasted}, {_moment(alert.opened_at)} to {_moment(ended)}; {_times(alert)}"
    yield "Last numbers", _how_bad(alert)
    yield "Written now", _activity(around.active, alert)
    yield "correctionId", alert.correction_id or ""
    yield "History", f"assetclass alerts show {alert.id}"
    yield "Runbook", _runbook(alert, around.settings.alerts)


def _how_bad(alert: Alert) -> str:
    return "; ".join(f"{name} {said}" for name, said in numbers(alert.details)[:_DETAILS_MOST])


def numbers(details: Mapping[str, object]) -> list[tuple[str, str]]:
    """What the details of an alert say in words: how bad it is first, then what else a rule tells.

    What stands elsewhere (what to do, the worst places) is not among them.
    """
    names = [name for name in _FIRST_DETAILS if name in details]
    names += [name for name in details if name not in names]
    unit = _UNITS.get(str(details.get("unit")), "")
    told = []
    for name in names:
        if name in _NOT_TOLD or name in _WORST:
            continue
        said = _value(details[name])
        if said:
            told.append((_words(name), said + unit if name in _IN_UNITS else said))
    return told


def worst(details: Mapping[str, object], *, most: int = _WORST_MOST) -> list[tuple[str, str]]:
    """The worst symbols and months, each as its name and how many of its rows are damaged."""
    told = []
    for name in _WORST:
        places = details.get(name)
        if not isinstance(places, list) or not places:
            continue
        rest = f"; and {len(places) - most} more" if len(places) > most else ""
        told.append((_words(name), "; ".join(map(_place, places[:most])) + rest))
    return told


def _place(place: object) -> str:
    """EURAUD=X 7,126 of 7,126."""
    if not isinstance(place, Mapping):
        return one_line(_scalar(place), _VALUE_MOST)
    name = next((place[key] for key in ("symbol", "month", "partition") if key in place), None)
    records = place.get("records")
    damaged = place.get("damaged")
    if damaged is None and "missing" in place:
        damaged = place["missing"] + place.get("mismatched", 0)
    said = ["(no symbol)" if name is None else str(name)]
    if damaged:
        said.append(f"{_scalar(damaged)} of {_scalar(records)}")
    elif records is not None:
        said.append(_scalar(records))
    if place.get("errorCode"):
        said.append(f"({place['errorCode']})")
    return " ".join(said)


def to_do(alert: Alert, advice: Advice) -> str:
    """The next step: what the failed check itself says, or else that of the advice."""
    said = alert.details.get(_TO_DO)
    return said if isinstance(said, str) and said else advice.step


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return _some([f"{_words(str(name))} {_value(part)}" for name, part in value.items()])
    if isinstance(value, list | tuple):
        return _some([_value(part) for part in value])
    return "" if value is None else one_line(_scalar(value), _VALUE_MOST)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _decimal(value)
    return str(value)


def _decimal(value: float) -> str:
    # A row takes far less than a hundredth of a second.
    if value and abs(value) < _SMALL:
        return f"{value:.3g}"
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def _some(parts: list[str]) -> str:
    rest = len(parts) - _FIRST_OF_A_LIST
    more = f" and {rest} more" if rest > 0 else ""
    return one_line(", ".join(parts[:_FIRST_OF_A_LIST]), _VALUE_MOST) + more


def _words(name: str) -> str:
    """`errorRate` and `error_rate` as people write them."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name).lower()


def _activity(active: Operation | None, alert: Alert) -> str:
    if active is None:
        return "nothing"
    same = "this operation" if active.correction_id == alert.correction_id else active.kind.value
    rows = "" if active.records_planned is None else f" of {active.records_planned:,} rows"
    doing = active.doing if active.status is Status.RUNNING else active.status.value
    said = f"{same} {active.correction_id}: {doing}, {active.progress_percent:.0f} %{rows}"
    if active.abandoned:
        return f"nothing; {said}, but its process is gone"
    if active.dry_run:
        said += " (dry run: no market row is changed)"
    return said + (f"; waits: {one_line(active.throttle[0], 100)}" if active.throttle else "")


def _command(text: str, alert: Alert) -> str:
    return " ".join(text.format(id=alert.correction_id or "").split())


def _runbook(alert: Alert, settings: AlertSettings) -> str:
    return f"{settings.runbooks_url.rstrip('/')}/{alert.alert_type.runbook}"


def _call_next(alert: Alert, settings: AlertSettings) -> str:
    level = min(alert.level, len(settings.contacts))
    after = spoken(settings.reminders.after(alert.severity))
    if level == len(settings.contacts):
        return f"{settings.contacts[-1]} (level {level}, the last); told again after {after}"
    called = f"{settings.contacts[level]} (level {level + 1})"
    return f"{called}, told unless somebody takes it within {after}"


def _times(alert: Alert) -> str:
    seen = "seen once" if alert.occurrences == 1 else f"seen {alert.occurrences:,} times"
    if not alert.times_reopened:
        return seen
    back = "once" if alert.times_reopened == 1 else f"{alert.times_reopened:,} times"
    return f"{seen}, came back {back}"


def _age(alert: Alert, around: Surroundings) -> str:
    return spoken(around.now - alert.opened_at)


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def masked(said: str) -> str:
    """The text without what looks like a password."""
    for pattern, shown in _SECRETS:
        said = pattern.sub(shown, said)
    return said
