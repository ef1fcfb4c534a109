"""How big the next batch is, how many connections write and how long they rest between batches.

Belongs here: decisions from what earlier batches took. Does not: clocks, threads, SQL, the throttle
(whether to go on at all is decided elsewhere).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from assetclass_pipeline.model.options import WORKERS_BY_PACE, Pace
from assetclass_pipeline.model.wire import WireModel

SMALLEST_FLOOR = 100
"""Rows of a batch below which the commit costs more than the rows, whatever a row costs."""

SMOOTHING = 0.2
"""Weight of the newest batch: about the last nine count (2 / (9 + 1))."""

LARGEST_GROWTH = 1.5
CUT_AT = 5.0
"""A batch of so many times the target is no noise: waiting for the average would hold locks."""

ENOUGH_GAIN = 0.08
"""Share that throughput must rise by for one more worker to stay."""

HARMLESS_LOSS = 0.03
"""Share that throughput may fall by for one worker to be given up: fewer writers are friendlier."""

CLEAR_CUT = 0.12
"""Distance from the threshold at which one window decides: more than windows differ by chance."""

WINDOWS_BEFORE_A_TRIAL = 3
"""A worker too many costs a tenth while it is tried; what ends within seconds cannot earn that."""

WINDOWS_TO_JUDGE = 3
WINDOWS_REMEMBERED = 4
FIRST_PATIENCE = 16
LONGEST_PATIENCE = 64
"""Windows between two tries of the same direction; at 2 s a window about two minutes."""

_UP: Literal[1] = 1
_DOWN: Literal[-1] = -1


@dataclass(frozen=True)
class Profile:
    """What a pace means: seconds that a batch should take, connections, pause as a share of it.

    `workers` is the most connections where the caller names none. `scans_in_parallel` lets a
    scan of the whole table use all cores.
    """

    target_seconds: float
    workers: int
    pause_share: float
    scans_in_parallel: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.target_seconds < math.inf and 0 <= self.pause_share < math.inf):
            raise ValueError("a profile needs a target above 0 s and a pause share of 0 or more")
        if self.workers < 1:
            raise ValueError("a profile needs at least one worker")


PROFILES: Mapping[Pace, Profile] = MappingProxyType(
    {
        Pace.GENTLE: Profile(0.02, WORKERS_BY_PACE[Pace.GENTLE], 1.0, scans_in_parallel=False),
        Pace.BALANCED: Profile(0.2, WORKERS_BY_PACE[Pace.BALANCED], 0.0),
        Pace.FAST: Profile(0.5, WORKERS_BY_PACE[Pace.FAST], 0.0),
    }
)


def size_range(records: int) -> tuple[int, int]:
    """Rows of the first batch and of the largest one, from the guide's table of planned rows."""
    if records < 10_000:  # noqa: PLR2004 - the guide's table
        return 500, 1000
    if records <= 100_000:  # noqa: PLR2004 - the guide's table
        return 1000, 2000
    return 2000, 5000


class Bounds(WireModel):
    """Limits of an operation: rows of its largest and smallest batch, connections at most."""

    cap: int = Field(ge=1)
    most_workers: int = Field(ge=1)
    floor: int = Field(default_factory=lambda said: min(SMALLEST_FLOOR, said["cap"]), ge=1)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.floor > self.cap:
            raise ValueError("floor must not be above cap: lower the floor or leave it out")
        return self

    def size(self, rows: float) -> int:
        """`rows` rounded into floor..cap."""
        return min(max(round(min(rows, self.cap)), self.floor), self.cap)

    def worker_count(self, workers: int) -> int:
        """`workers` moved into 1..most_workers."""
        return min(max(workers, 1), self.most_workers)


class Search(WireModel):
    """Where the search for the number of workers stands; all counts are windows.

    `throughput` (rows per second) is the mean of the last `windows` with the present number;
    while `trial` is not 0, `throughput_before` is the one without the worker more (1) or
    fewer (-1).
    """

    throughput: float = Field(0.0, ge=0, allow_inf_nan=False)
    windows: int = Field(0, ge=0, le=WINDOWS_REMEMBERED)
    trial: Literal[-1, 0, 1] = 0
    throughput_before: float = Field(0.0, ge=0, allow_inf_nan=False)
    up_wait: int = Field(0, ge=0, le=LONGEST_PATIENCE)
    up_patience: int = Field(FIRST_PATIENCE, ge=1, le=LONGEST_PATIENCE)
    down_wait: int = Field(FIRST_PATIENCE, ge=0, le=LONGEST_PATIENCE)
    down_patience: int = Field(FIRST_PATIENCE, ge=1, le=LONGEST_PATIENCE)


class Pacing(WireModel):
    """Rows of the next batch, connections that write, and what was learned to say so.

    `seconds_per_row` is the smoothed cost of a row in a batch of about the present size; None
    until one was measured.
    """

    batch_size: int = Field(ge=1)
    workers: int = Field(ge=1)
    seconds_per_row: float | None = Field(None, ge=0, allow_inf_nan=False)
    search: Search = Search()


def begin(
    start: int, bounds: Bounds, profile: Profile, seconds_per_row: float | None = None
) -> Pacing:
    """Pacing of an operation that measured nothing yet; two workers at most, one when gentle.

    Its first batch has `start` rows, or as many as take the target where a row is known to cost
    more: nobody can cut the first one short.
    """
    rows = min(start, profile.target_seconds / seconds_per_row) if seconds_per_row else start
    return Pacing(
        batch_size=bounds.size(rows),
        workers=bounds.worker_count(min(2, profile.workers)),
        search=Search(up_wait=WINDOWS_BEFORE_A_TRIAL),
    )


def restore(stored: object, bounds: Bounds) -> Pacing | None:
    """Pacing from its stored JSON, moved into `bounds`; None for whatever cannot be used."""
    try:
        return retuned(Pacing.model_validate(stored, strict=True), bounds)
    except ValidationError:
        return None


def retuned(pacing: Pacing, bounds: Bounds) -> Pacing:
    """`pacing` within limits that may have changed.

    What was measured with a number of workers that is no longer allowed is forgotten.
    """
    workers = bounds.worker_count(pacing.workers)
    return pacing.model_copy(
        update={
            "batch_size": bounds.size(pacing.batch_size),
            "workers": workers,
            "search": pacing.search if workers == pacing.workers else _forgotten(pacing.search),
        }
    )


def pause_seconds(seconds: float, profile: Profile) -> float:
    """Seconds to rest after a batch that took `seconds`."""
    return seconds * profile.pause_share


def after_batch(
    pacing: Pacing, *, records: int, seconds: float, bounds: Bounds, profile: Profile
) -> Pacing:
    """`pacing` after a batch of `records` rows took `seconds`.

    The size follows target / smoothed cost of a row. For a cost of fixed + rows * per_row this
    approaches the target from one side, by the factor 1 - SMOOTHING * (1 - fixed / target) a
    batch, so it cannot swing; where the fixed part alone exceeds the target it ends at the floor.
    """
    size = bounds.size(pacing.batch_size)
    whole = 2 * records >= size
    if seconds >= CUT_AT * profile.target_seconds:
        # A short batch that slow met a lock rather than expensive rows: its cost of a row says
        # nothing. A batch begun before an earlier cut must not cut the same surprise twice.
        bearable = records * profile.target_seconds / seconds if whole else size / 2
        size = bounds.size(min(size, bearable))
        cost: float | None = profile.target_seconds / size
    else:
        cost = _smoothed_cost(pacing, records if whole else None, seconds, size, profile)
        largest = max(size + 1, int(LARGEST_GROWTH * size)) if whole else size
        size = bounds.size(min(largest, profile.target_seconds / cost) if cost else largest)
    return pacing.model_copy(update={"batch_size": size, "seconds_per_row": cost})


def _smoothed_cost(
    pacing: Pacing, records: int | None, seconds: float, size: int, profile: Profile
) -> float | None:
    """Seconds per row; `records` None is a batch too short to tell what a row costs.

    A short batch (the end of a leaf) is mostly fixed cost. It proves one thing only: a whole batch
    takes at least as long.
    """
    known = pacing.seconds_per_row
    if records is None:
        sample = seconds / size
        if sample <= (profile.target_seconds / size if known is None else known):
            return known
    else:
        sample = seconds / records
    return sample if known is None else known + SMOOTHING * (sample - known)


def after_window(pacing: Pacing, *, records_per_second: float, bounds: Bounds) -> Pacing:
    """`pacing` after a window (about 2 s) in which batches flowed at `records_per_second`.

    One worker more or fewer is tried and judged by up to three windows, by one where the answer is
    clear. What failed is tried again after a wait that doubles. A window without rows (paused,
    throttled, waiting for a lock) says nothing.
    """
    pacing = retuned(pacing, bounds)
    if not 0 < records_per_second < math.inf:
        return pacing
    pacing = _with_window(pacing, records_per_second)
    if pacing.search.trial:
        return _judged(pacing, bounds)
    return _next_trial(pacing, bounds)


def contention(pacing: Pacing, bounds: Bounds) -> Pacing:
    """`pacing` with one worker fewer, after a batch met locks of others; more is not tried soon."""
    patience = min(2 * pacing.search.up_patience, LONGEST_PATIENCE)
    search = _forgotten(pacing.search).model_copy(
        update={"up_wait": max(patience, pacing.search.up_wait), "up_patience": patience}
    )
    workers = bounds.worker_count(pacing.workers - 1)
    return pacing.model_copy(update={"workers": workers, "search": search})


def _forgotten(search: Search) -> Search:
    return search.model_copy(
        update={"throughput": 0.0, "windows": 0, "trial": 0, "throughput_before": 0.0}
    )


def _with_window(pacing: Pacing, records_per_second: float) -> Pacing:
    search = pacing.search
    windows = min(search.windows + 1, WINDOWS_REMEMBERED)
    passed = 0 if search.trial else 1
    update = {
        "windows": windows,
        "throughput": search.throughput + (records_per_second - search.throughput) / windows,
        "up_wait": max(search.up_wait - passed, 0),
        "down_wait": max(search.down_wait - passed, 0),
    }
    return pacing.model_copy(update={"search": search.model_copy(update=update)})


def _next_trial(pacing: Pacing, bounds: Bounds) -> Pacing:
    search = pacing.search
    if search.up_wait == 0 and pacing.workers < bounds.most_workers:
        trial: Literal[-1, 1] = _UP
    elif search.down_wait == 0 and pacing.workers > 1:
        trial = _DOWN
    else:
        return pacing
    started = {
        "trial": trial,
        "throughput_before": search.throughput,
        "throughput": 0.0,
        "windows": 0,
    }
    return pacing.model_copy(
        update={
            "workers": pacing.workers + trial,
            "search": search.model_copy(update=started),
        }
    )


def _judged(pacing: Pacing, bounds: Bounds) -> Pacing:
    search = pacing.search
    surplus = search.throughput - search.throughput_before * _required(pacing)
    if abs(surplus) < CLEAR_CUT * search.throughput_before and search.windows < WINDOWS_TO_JUDGE:
        return pacing
    if surplus < 0:
        return _taken_back(pacing, bounds)
    return _kept(pacing, bounds)


def _required(pacing: Pacing) -> float:
    """Share of the throughput before the trial that lets the trial stay.

    From the seventh worker on, 8 % is more than half of what a perfectly scaling server gives
    (1 / workers); from the thirteenth on it is more than all.
    """
    if pacing.search.trial == _DOWN:
        return 1 - HARMLESS_LOSS
    return 1 + min(ENOUGH_GAIN, 0.5 / max(pacing.workers - 1, 1))


def _kept(pacing: Pacing, bounds: Bounds) -> Pacing:
    search = pacing.search
    update: dict[str, int]
    if search.trial == _UP:
        update = {"up_wait": 0, "up_patience": FIRST_PATIENCE, "down_wait": search.down_patience}
    else:
        update = {
            "down_wait": FIRST_PATIENCE,
            "down_patience": FIRST_PATIENCE,
            "up_wait": max(search.up_wait, search.up_patience),
        }
    stays = pacing.model_copy(update={"search": search.model_copy(update={"trial": 0, **update})})
    return _next_trial(stays, bounds)


def _taken_back(pacing: Pacing, bounds: Bounds) -> Pacing:
    search = pacing.search
    direction = "up" if search.trial == _UP else "down"
    patience = search.up_patience if search.trial == _UP else search.down_patience
    update = {
        "trial": 0,
        "throughput": search.throughput_before,
        "windows": 1,
        f"{direction}_wait": patience,
        f"{direction}_patience": min(2 * patience, LONGEST_PATIENCE),
    }
    return pacing.model_copy(
        update={
            "workers": bounds.worker_count(pacing.workers - search.trial),
            "search": search.model_copy(update=update),
        }
    )
