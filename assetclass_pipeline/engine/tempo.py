"""How fast a running correction goes: what its workers measured, and what was changed live.

Belongs here: the clock and the lock around `model/pacing.py`, which decides. Does not: batches.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

from assetclass_pipeline.model.options import Pace
from assetclass_pipeline.model.pacing import (
    CUT_AT,
    PROFILES,
    Bounds,
    Pacing,
    Profile,
    after_batch,
    after_window,
    begin,
    contention,
    pause_seconds,
    restore,
    retuned,
    size_range,
)
from assetclass_pipeline.model.tuning import Tuning

# Batches of so many seconds together tell what a number of workers is worth.
WINDOW_SECONDS = 2.0


class TempoOptions(Protocol):
    """What was asked for: None leaves it to the plan's size and the pace."""

    @property
    def batch_size(self) -> int | None:
        """Rows of a batch at most."""

    @property
    def pace(self) -> Pace:
        """How hard the server is pressed."""

    @property
    def workers(self) -> int | None:
        """Connections that write at once."""


class Tempo:
    """Batch size, workers and pauses of one operation; its workers share it.

    `tuning` is asked again before each batch: people may change it while the operation runs.
    `stored` is the pacing that an earlier try of the operation left, as JSON; without one
    `rehearsed`, the seconds that a row cost in the rehearsal, may make the first batch smaller.
    """

    def __init__(
        self,
        options: TempoOptions,
        planned: int,
        tuning: Callable[[], Tuning],
        stored: object = None,
        rehearsed: float | None = None,
    ) -> None:
        self._options = options
        self._start, self._cap = size_range(planned)
        self._tuning = tuning
        self._applied = tuning()
        self._guard = threading.Lock()
        self._pacing = restore(stored, self._bounds) or begin(
            self._options.batch_size or self._start, self._bounds, self._profile, rehearsed
        )
        self._window_began: float | None = None
        self._window_records = 0

    @property
    def pacing(self) -> Pacing:
        """As it stands now."""
        with self._guard:
            self._follow_tuning()
            return self._pacing

    @property
    def cap(self) -> int:
        """Rows of the largest batch allowed now."""
        return self._bounds.cap

    @property
    def _profile(self) -> Profile:
        return PROFILES[self._applied.pace or self._options.pace]

    @property
    def _bounds(self) -> Bounds:
        workers = self._applied.workers or self._options.workers or self._profile.workers
        cap = self._applied.batch_size or self._options.batch_size or self._cap
        return Bounds(cap=cap, most_workers=workers)

    def _follow_tuning(self) -> None:
        tuning = self._tuning()
        if tuning != self._applied:
            self._applied = tuning
            self._pacing = retuned(self._pacing, self._bounds)
            self._window_began = None

    def took(self, records: int, seconds: float, *, of: int) -> float:
        """Learn from the last `records` rows of a batch `of` so many; returns seconds to rest now.

        The two differ where a batch had to be halved, to find the rows that are refused.
        """
        with self._guard:
            self._follow_tuning()
            self._learn(records, seconds)
            self._count(of)
            return pause_seconds(seconds, self._profile)

    def took_too_long(self, records: int, seconds: float) -> None:
        """A batch of `records` rows was ended by the server: the next ones are cut at once."""
        with self._guard:
            self._follow_tuning()
            self._learn(records, max(seconds, CUT_AT * self._profile.target_seconds))

    def _learn(self, records: int, seconds: float) -> None:
        self._pacing = after_batch(
            self._pacing,
            records=records,
            seconds=seconds,
            bounds=self._bounds,
            profile=self._profile,
        )

    def _count(self, records: int) -> None:
        now = time.monotonic()
        if self._window_began is None:
            self._window_began, self._window_records = now, 0
            return
        self._window_records += records
        if now - self._window_began >= WINDOW_SECONDS:
            rate = self._window_records / (now - self._window_began)
            self._pacing = after_window(self._pacing, records_per_second=rate, bounds=self._bounds)
            self._window_began, self._window_records = now, 0

    def was_held(self) -> None:
        """Batches were held by the gate: this window tells nothing about the workers."""
        with self._guard:
            self._window_began = None

    def met_contention(self) -> None:
        """A batch met locks of others, or a worker no free connection: fewer of us at once."""
        with self._guard:
            self._pacing = contention(self._pacing, self._bounds)
            self._window_began = None
