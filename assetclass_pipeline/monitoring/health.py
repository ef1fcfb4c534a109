"""Is the pipeline well: questions asked in parallel, each with its own time, and one answer.

Belongs here: asking without waiting for who does not answer. Does not: the questions themselves
(database_probes.py, defs/dagster_probes.py), alerts made of the answers (alert_rules.py), advice
(doctor.py). How it works, and what it costs, stands in docs/health.md.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg

from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.model.health import Component, Health

__all__ = ["Answer", "CachedHealth", "Component", "Health", "Probe", "check_health"]


@dataclass(frozen=True)
class Answer:
    """What a look at one part finds."""

    is_healthy: bool
    message: str


class _Look:
    """One look of a probe, in a thread of its own."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.ended: float | None = None
        self.answer = Answer(False, "The look ended without an answer.")
        self.done = threading.Event()

    @property
    def seconds(self) -> float:
        """How long it took, or takes already."""
        return (time.monotonic() if self.ended is None else self.ended) - self.began


class Probe:
    """One question about one part; `look` only looks, and `timeout` is what it may take (seconds).

    At most one look is under way: while it hangs, whoever asks waits for that one, so that a part
    that never answers costs one thread, however often it is asked. Safe in many threads.
    """

    def __init__(self, name: str, look: Callable[[], Answer], *, timeout: float) -> None:
        self.name = name
        self.timeout = timeout
        self._question = look
        self._lock = threading.Lock()
        self._under_way: _Look | None = None

    def begin(self) -> _Look:
        """The look under way, or a new one."""
        with self._lock:
            look = self._under_way
            if look is None or look.done.is_set():
                look = self._under_way = _Look()
                # A daemon thread: one that hangs does not keep the process from ending.
                threading.Thread(
                    target=self._carry_out, args=(look,), name=f"probe {self.name}", daemon=True
                ).start()
            return look

    def _carry_out(self, look: _Look) -> None:
        try:
            look.answer = self._question()
        except Exception as error:  # noqa: BLE001 - whatever it is, the part is not well
            look.answer = Answer(False, _said(error))
        finally:
            look.ended = time.monotonic()
            look.done.set()


def check_health(probes: Iterable[Probe], *, seconds: float) -> Health:
    """Ask all probes at once; the answer takes `seconds` at most, whoever hangs.

    A probe that has not answered within its own timeout counts as not well. Raises nothing.
    """
    asked_at = time.monotonic()
    looks = [(probe, probe.begin()) for probe in probes]
    components = {
        probe.name: _component(look, min(probe.timeout, seconds), asked_at) for probe, look in looks
    }
    return Health(
        is_healthy=all(component.is_healthy for component in components.values()),
        checked_at=datetime.now(UTC),
        components=components,
    )


def _component(look: _Look, timeout: float, asked_at: float) -> Component:
    in_time = look.done.wait(max(0.0, asked_at + timeout - time.monotonic()))
    if in_time:
        answer = look.answer
    elif look.began >= asked_at:
        answer = Answer(False, f"No answer within {timeout * 1000:.0f} ms.")
    else:
        answer = Answer(False, f"No answer for {look.seconds:.0f} s.")
    return Component(
        is_healthy=answer.is_healthy, message=answer.message, latency_ms=look.seconds * 1000
    )


class CachedHealth:
    """The health for many who ask: one that is at most `max_age` seconds old.

    However many ask at once, one check is under way; while the latest is young enough nobody waits
    for it. Safe in many threads.
    """

    def __init__(
        self,
        probes: Iterable[Probe],
        *,
        seconds: float,
        max_age: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probes = list(probes)
        self._seconds = seconds
        self._max_age = max_age
        self._clock = clock
        self._lock = threading.Lock()
        self._latest: tuple[float, Health] | None = None

    def at_once(self) -> Health | None:
        """The latest health; None when it is too old. Takes no time."""
        health, age = self._known()
        if health is None or age >= self._max_age:
            return None
        # Renewed before it is too old, by nobody who waits for it.
        if age > self._max_age / 2 and self._lock.acquire(blocking=False):
            threading.Thread(target=self._check_and_release, daemon=True).start()
        return health

    def now(self) -> Health:
        """The latest health; who finds it too old gets the result of the check under way."""
        found = self.at_once()
        if found is not None:
            return found
        with self._lock:
            health, age = self._known()
            return health if health is not None and age < self._max_age else self._check()

    def _known(self) -> tuple[Health | None, float]:
        latest = self._latest
        return (None, 0.0) if latest is None else (latest[1], self._clock() - latest[0])

    def _check(self) -> Health:
        began = self._clock()
        health = check_health(self._probes, seconds=self._seconds)
        self._latest = (began, health)
        return health

    def _check_and_release(self) -> None:
        try:
            self._check()
        finally:
            self._lock.release()


def _said(error: Exception) -> str:
    """What an error says to people, without SQL and without a password."""
    if isinstance(error, AssetClassError):
        return str(error)
    if isinstance(error, psycopg.Error):
        said = error.diag.message_primary or type(error).__name__
        return f"PostgreSQL refused: {said}."
    return f"It cannot be looked at: {type(error).__name__}."
