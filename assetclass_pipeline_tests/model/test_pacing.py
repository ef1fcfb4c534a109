"""Pacing: the rules as tables, and its promises as properties against a simulated database."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from assetclass_pipeline.model.options import WORKERS_BY_PACE, Pace
from assetclass_pipeline.model.pacing import (
    FIRST_PATIENCE,
    LONGEST_PATIENCE,
    PROFILES,
    WINDOWS_TO_JUDGE,
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

GENTLE, BALANCED, FAST = (PROFILES[pace] for pace in Pace)
TARGET = BALANCED.target_seconds
WIDE = Bounds(floor=100, cap=5000, most_workers=4)

often = settings(max_examples=300)
seeds = st.randoms(use_true_random=True)  # true here means: seeded, not drawn bit by bit


def measured(pacing: Pacing, records: int, seconds: float, bounds: Bounds = WIDE) -> Pacing:
    return after_batch(pacing, records=records, seconds=seconds, bounds=bounds, profile=BALANCED)


def settled_at(size: int) -> Pacing:
    """Pacing whose batches of `size` rows take just the target."""
    return Pacing(batch_size=size, workers=2, seconds_per_row=TARGET / size)


@dataclass
class Database:
    """A batch costs fixed + rows * per_row, times `slowness`, give or take `noise`."""

    fixed: float
    per_row: float
    noise: float = 0.0
    slowness: float = 1.0

    def seconds(self, rows: int, random: Random | None = None) -> float:
        luck = random.uniform(1 - self.noise, 1 + self.noise) if random else 1.0
        return (self.fixed + rows * self.per_row) * self.slowness * luck

    def run(
        self, pacing: Pacing, batches: int, bounds: Bounds, random: Random | None = None
    ) -> list[Pacing]:
        """`pacing` and what it becomes after each of `batches` whole batches."""
        states = [pacing]
        for _ in range(batches):
            rows = states[-1].batch_size
            states.append(measured(states[-1], rows, self.seconds(rows, random), bounds))
        return states


@st.composite
def databases(draw: st.DrawFn, *, fixed: float, noise: float = 0.0) -> tuple[Database, int]:
    """A database and the size at which it takes the target; its fixed cost is at most a share."""
    ideal = draw(st.integers(200, 4000))
    fixed_seconds = draw(st.floats(0, fixed)) * TARGET
    return Database(fixed_seconds, (TARGET - fixed_seconds) / ideal, noise), ideal


# Profiles, bounds, beginning


def test_a_pace_is_a_target_a_number_of_workers_and_a_pause() -> None:
    assert {
        Pace.GENTLE: Profile(
            target_seconds=0.02, workers=1, pause_share=1.0, scans_in_parallel=False
        ),
        Pace.BALANCED: Profile(target_seconds=0.2, workers=2, pause_share=0.0),
        Pace.FAST: Profile(target_seconds=0.5, workers=4, pause_share=0.0),
    } == PROFILES
    assert {pace: profile.workers for pace, profile in PROFILES.items()} == WORKERS_BY_PACE


def test_only_a_gentle_pace_rests_as_long_as_its_batch_took() -> None:
    assert [pause_seconds(0.3, profile) for profile in (GENTLE, BALANCED, FAST)] == [0.3, 0, 0]


@pytest.mark.parametrize("values", [(0, 1, 0), (math.inf, 1, 0), (0.1, 0, 0), (0.1, 1, -1)])
def test_a_profile_that_cannot_be_kept_is_refused(values: tuple[float, int, float]) -> None:
    with pytest.raises(ValueError, match="a profile needs"):
        Profile(*values)


@pytest.mark.parametrize(
    ("records", "sizes"),
    [
        (0, (500, 1000)),
        (9_999, (500, 1000)),
        (10_000, (1000, 2000)),
        (100_000, (1000, 2000)),
        (100_001, (2000, 5000)),
        (10**9, (2000, 5000)),
    ],
)
def test_sizes_without_a_given_batch_size_are_the_guides_table(
    records: int, sizes: tuple[int, int]
) -> None:
    assert size_range(records) == sizes


@pytest.mark.parametrize(("cap", "floor"), [(1, 1), (99, 99), (100, 100), (5000, 100)])
def test_the_floor_is_100_rows_unless_the_cap_is_below(cap: int, floor: int) -> None:
    assert Bounds(cap=cap, most_workers=1).floor == floor


@pytest.mark.parametrize(
    "values",
    [
        {"cap": 0, "most_workers": 1},
        {"cap": 10, "most_workers": 0},
        {"cap": 10, "most_workers": 1, "floor": 0},
        {"cap": 10, "most_workers": 1, "floor": 11},
    ],
)
def test_bounds_that_contradict_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=r"greater than or equal to 1|floor must not be"):
        Bounds(**values)


@pytest.mark.parametrize(
    ("start", "most_workers", "profile", "size", "workers"),
    [
        (500, 4, FAST, 500, 2),
        (500, 1, FAST, 500, 1),
        (500, 4, GENTLE, 500, 1),
        (1, 4, BALANCED, 100, 2),
        (9000, 4, BALANCED, 5000, 2),
    ],
)
def test_it_begins_inside_the_bounds_with_two_workers_at_most(
    start: int, most_workers: int, profile: Profile, size: int, workers: int
) -> None:
    pacing = begin(start, Bounds(cap=5000, most_workers=most_workers), profile)
    assert (pacing.batch_size, pacing.workers, pacing.seconds_per_row) == (size, workers, None)


@pytest.mark.parametrize(
    ("cost", "size"),
    [(None, 2000), (0.0, 2000), (TARGET / 5000, 2000), (TARGET / 800, 800), (TARGET, 100)],
)
def test_the_first_batch_is_smaller_where_a_row_is_known_to_cost_more(
    cost: float | None, size: int
) -> None:
    assert begin(2000, WIDE, BALANCED, cost).batch_size == size


# Batch size: the rules


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        (0.0, 1500),
        (1e-300, 1500),
        (TARGET / 2, 1500),
        (TARGET / 1.2, 1200),
        (TARGET, 1000),
        (TARGET * 2, 500),
        (TARGET * 4.9, 204),
        (TARGET * 5, 200),
        (TARGET * 9, 111),
        (TARGET * 1000, 100),
        (math.inf, 100),
    ],
)
def test_the_first_batch_of_1000_rows_says_how_big_the_next_is(seconds: float, size: int) -> None:
    assert measured(begin(1000, WIDE, BALANCED), 1000, seconds).batch_size == size


def test_a_known_cost_is_smoothed_so_that_one_batch_counts_a_fifth() -> None:
    pacing = measured(settled_at(1000), 1000, TARGET * 2)
    assert pacing.seconds_per_row == pytest.approx(1.2 * TARGET / 1000)
    assert pacing.batch_size == round(1000 / 1.2)


@pytest.mark.parametrize(("times", "size"), [(4.99, 556), (5, 200)])
def test_five_times_the_target_is_a_cut_and_less_is_smoothed(times: float, size: int) -> None:
    assert measured(settled_at(1000), 1000, times * TARGET).batch_size == size


@pytest.mark.parametrize(("records", "size"), [(499, 1000), (500, 1500), (1000, 1500)])
def test_only_a_batch_of_at_least_half_the_size_lets_it_grow(records: int, size: int) -> None:
    fast = settled_at(1000).model_copy(update={"seconds_per_row": TARGET / 100_000})
    assert measured(fast, records, 0.001).batch_size == size


def test_a_size_of_one_row_can_still_grow() -> None:
    one = Pacing(batch_size=1, workers=1)
    assert measured(one, 1, 0.001, Bounds(floor=1, cap=10, most_workers=1)).batch_size == 2


@pytest.mark.parametrize("records", [0, 1, 499])
def test_a_short_batch_that_is_not_slow_changes_nothing(records: int) -> None:
    for pacing in (settled_at(1000), begin(1000, WIDE, BALANCED)):
        assert measured(pacing, records, TARGET) == pacing


def test_a_short_batch_over_the_target_shrinks_the_size() -> None:
    assert measured(settled_at(1000), 10, TARGET * 2).batch_size == round(1000 / 1.2)


@pytest.mark.parametrize("seconds", [TARGET * 5, TARGET * 500])
def test_a_short_batch_that_waited_for_a_lock_halves_the_size(seconds: float) -> None:
    assert measured(settled_at(1000), 3, seconds).batch_size == 500


def test_one_stall_met_by_four_running_batches_cuts_once() -> None:
    pacing = settled_at(2000)
    for _ in range(4):
        pacing = measured(pacing, 2000, TARGET * 8)
    assert pacing.batch_size == 250


def test_a_big_batch_begun_before_a_cut_never_raises_the_size() -> None:
    assert measured(settled_at(200), 5000, TARGET * 5).batch_size == 200


def test_after_a_cut_the_size_waits_for_cheaper_batches_before_it_grows() -> None:
    cut = measured(settled_at(1000), 1000, TARGET * 5)
    assert measured(cut, 200, TARGET).batch_size == 200
    assert 200 < measured(cut, 200, TARGET / 5).batch_size <= 300


@pytest.mark.parametrize("seconds", [0.0, TARGET, TARGET * 5])
def test_a_cap_lowered_in_mid_run_holds_whatever_the_batch_took(seconds: float) -> None:
    lowered = Bounds(cap=300, most_workers=4)
    assert measured(settled_at(2000), 2000, seconds, lowered).batch_size <= 300


def test_after_the_cap_was_lowered_a_batch_of_the_cap_counts_as_whole() -> None:
    lowered = Bounds(cap=300, most_workers=4)
    pacing = measured(begin(2000, WIDE, BALANCED), 300, TARGET / 2, lowered)
    assert pacing.seconds_per_row == pytest.approx(TARGET / 600)


# Batch size: the promises

durations = st.one_of(
    st.floats(0, 10 * TARGET), st.floats(min_value=0), st.sampled_from([0.0, 5e-324, math.inf])
)


@often
@given(
    st.integers(1, 200),
    st.integers(0, 9800),
    st.integers(1, 20_000),
    st.lists(st.tuples(st.floats(0, 3), durations), min_size=1, max_size=30),
)
def test_whatever_batches_took_size_stays_in_bounds_grows_at_most_by_half_and_can_be_stored(
    floor: int, above: int, start: int, batches: list[tuple[float, float]]
) -> None:
    bounds = Bounds(floor=floor, cap=floor + above, most_workers=4)
    pacing = begin(start, bounds, BALANCED)
    for share, seconds in batches:
        before, records = pacing.batch_size, int(share * pacing.batch_size)
        pacing = measured(pacing, records, seconds, bounds)
        assert bounds.floor <= pacing.batch_size <= bounds.cap
        assert pacing.batch_size <= max(1.5 * before, before + 1)
        if 2 * records < before:
            assert pacing.batch_size <= before
        stored = json.dumps(pacing.model_dump(mode="json", by_alias=True), allow_nan=False)
        assert restore(json.loads(stored), bounds) == pacing


@often
@given(
    st.integers(100, 5000),
    st.floats(0, 1),
    st.floats(5, 1e9),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_a_batch_of_five_times_the_target_halves_the_size_or_more_whatever_was_known(
    size: int, share: float, times: float, known: float | None
) -> None:
    pacing = Pacing(batch_size=size, workers=2, seconds_per_row=known)
    cut = measured(pacing, int(share * size), times * TARGET)
    assert cut.batch_size <= max(math.ceil(size / 2), WIDE.floor)


@often
@given(databases(fixed=0.5, noise=0.3), st.integers(100, 5000), seeds)
def test_size_of_a_noisy_database_comes_to_the_target_and_stays(
    found: tuple[Database, int], start: int, random: Random
) -> None:
    database, ideal = found
    states = database.run(begin(start, WIDE, BALANCED), 200, WIDE, random)[60:]
    expected = [database.seconds(state.batch_size) / TARGET for state in states]
    assert 0.65 <= min(expected) <= max(expected) <= 1.5
    assert 0.85 <= sum(expected) / len(expected) <= 1.15
    assert all(0.5 * ideal <= state.batch_size <= 1.75 * ideal for state in states)


@often
@given(databases(fixed=0.9), st.integers(100, 5000))
def test_size_of_a_steady_database_approaches_from_one_side_and_never_swings(
    found: tuple[Database, int], start: int
) -> None:
    database, ideal = found
    sizes = [state.batch_size for state in database.run(begin(start, WIDE, BALANCED), 150, WIDE)]
    sign = 1 if start <= ideal else -1
    assert all(sign * (after - before) >= -1 for before, after in pairwise(sizes))
    assert all(sign * (ideal - size) >= -1 for size in sizes)
    assert abs(sizes[-1] - ideal) <= abs(start - ideal)


@often
@given(databases(fixed=0.05, noise=0.3), seeds)
def test_a_database_ten_times_slower_is_followed_in_six_batches_and_regained_in_steps(
    found: tuple[Database, int], random: Random
) -> None:
    database, ideal = found
    bounds = Bounds(floor=1, cap=5000, most_workers=4)
    pacing = database.run(begin(ideal, bounds, BALANCED), 30, bounds, random)[-1]
    database.slowness = 10
    slow = database.run(pacing, 40, bounds, random)
    assert all(database.seconds(state.batch_size) <= 2 * TARGET for state in slow[6:])
    assert all(database.seconds(state.batch_size) >= 0.3 * TARGET for state in slow[20:])
    database.slowness = 1
    regained = database.run(slow[-1], 60, bounds, random)
    assert all(
        after.batch_size <= max(1.5 * before.batch_size, before.batch_size + 1)
        for before, after in pairwise(regained)
    )
    assert all(database.seconds(state.batch_size) >= 0.65 * TARGET for state in regained[40:])


@often
@given(databases(fixed=0.9), st.lists(st.floats(0, 0.499), max_size=50))
def test_ends_of_leaves_leave_the_size_of_a_steady_database_alone(
    found: tuple[Database, int], ends: list[float]
) -> None:
    database, ideal = found
    pacing = before = settled_at(ideal)
    for share in ends:
        rows = int(share * ideal)
        pacing = measured(pacing, rows, database.seconds(rows))
    assert pacing == before


def test_where_the_fixed_cost_alone_exceeds_the_target_the_size_ends_at_the_floor() -> None:
    database = Database(fixed=1.5 * TARGET, per_row=TARGET / 10_000)
    assert database.run(begin(2000, WIDE, BALANCED), 100, WIDE)[-1].batch_size == WIDE.floor


# Workers: the rules


def flowed(pacing: Pacing, bounds: Bounds, *windows: float) -> Pacing:
    for records_per_second in windows:
        pacing = after_window(pacing, records_per_second=records_per_second, bounds=bounds)
    return pacing


def at(workers: int, **search: Any) -> Pacing:
    known = {"throughput": 1000.0, "windows": 4, "up_wait": 9, "down_wait": 9, **search}
    return Pacing.model_validate({"batch_size": 1000, "workers": workers, "search": known})


UP = {"trial": 1, "throughput_before": 1000.0, "throughput": 0.0, "windows": 0}
DOWN = {**UP, "trial": -1}


def test_the_third_window_tries_one_worker_more_and_a_clear_gain_the_next() -> None:
    pacing = flowed(begin(500, WIDE, FAST), WIDE, 1000, 1000)
    assert pacing.workers == 2
    pacing = flowed(pacing, WIDE, 1000)
    assert pacing.workers == 3
    assert flowed(pacing, WIDE, 1500).workers == 4


@pytest.mark.parametrize(
    ("windows", "workers"),
    [
        ([1090, 1090], 3),
        ([1090, 1090, 1090], 3),
        ([1070, 1070], 3),
        ([1070, 1070, 1070], 2),
        ([1190, 1010, 1060], 3),
        ([950], 2),
    ],
)
def test_one_more_stays_for_8_percent_judged_by_three_windows_unless_one_is_clear(
    windows: list[float], workers: int
) -> None:
    three = at(3, **UP)
    assert flowed(three, Bounds(cap=1000, most_workers=3), *windows).workers == workers


@pytest.mark.parametrize(
    ("windows", "workers"),
    [
        ([980] * WINDOWS_TO_JUDGE, 2),
        ([960] * WINDOWS_TO_JUDGE, 3),
        ([1100], 2),
        ([840], 3),
    ],
)
def test_one_fewer_stays_where_less_than_3_percent_is_lost(
    windows: list[float], workers: int
) -> None:
    assert flowed(at(2, **DOWN), WIDE, *windows).workers == workers


@pytest.mark.parametrize(("workers", "gain"), [(8, 0.075), (15, 0.036)])
def test_many_workers_need_half_of_what_perfect_scaling_gives(workers: int, gain: float) -> None:
    bounds = Bounds(cap=1000, most_workers=workers)
    enough, too_little = [1000 * (1 + gain)] * 3, [1000 * (1 + gain - 0.01)] * 3
    assert flowed(at(workers, **UP), bounds, *enough).workers == workers
    assert flowed(at(workers, **UP), bounds, *too_little).workers == workers - 1


@pytest.mark.parametrize("trial", [at(3, **UP), at(1, **DOWN)])
def test_what_failed_leaves_the_throughput_before_it_as_the_measure(trial: Pacing) -> None:
    back = flowed(trial, WIDE, 500)
    assert (back.workers, back.search.trial, back.search.throughput) == (2, 0, 1000)


def test_what_failed_is_tried_again_after_waits_that_double_up_to_a_limit() -> None:
    bounds = Bounds(cap=1000, most_workers=2)
    pacing, tries = at(1, up_wait=1), []
    for window in range(400):
        pacing = flowed(pacing, bounds, 1000 if pacing.workers == 1 else 500)
        if pacing.workers == 2:
            tries.append(window)
    waits = [after - before - 1 for before, after in pairwise(tries)]
    assert waits == [FIRST_PATIENCE, 2 * FIRST_PATIENCE, *[LONGEST_PATIENCE] * (len(waits) - 2)]
    assert len(waits) > 4


@pytest.mark.parametrize("nothing", [0.0, -1.0, math.inf, math.nan])
def test_a_window_without_rows_says_nothing(nothing: float) -> None:
    for pacing in (at(2), at(3, **UP), at(2, **DOWN)):
        assert flowed(pacing, WIDE, nothing) == pacing


def test_a_single_worker_at_most_is_never_changed() -> None:
    bounds = Bounds(cap=1000, most_workers=1)
    pacing = begin(500, bounds, FAST)
    for window in range(200):
        pacing = flowed(pacing, bounds, 1000 + window)
        assert (pacing.workers, pacing.search.trial) == (1, 0)


@pytest.mark.parametrize("before", [at(3), at(3, **UP), at(3, **DOWN), at(3, up_wait=0)])
def test_contention_takes_one_worker_at_once_and_stops_trying_upward_for_a_while(
    before: Pacing,
) -> None:
    pacing = contention(before, WIDE)
    assert (pacing.workers, pacing.search.trial) == (2, 0)
    for _ in range(2 * FIRST_PATIENCE - 1):
        pacing = flowed(pacing, WIDE, 1000 if pacing.workers == 2 else 500)
        assert pacing.workers <= 2
    assert contention(at(1), WIDE).workers == 1


def test_contention_again_and_again_waits_longer_up_to_a_limit() -> None:
    pacing, waits = at(4), []
    for _ in range(4):
        pacing = contention(pacing, WIDE)
        waits.append(pacing.search.up_wait)
    assert waits == [2 * FIRST_PATIENCE, LONGEST_PATIENCE, LONGEST_PATIENCE, LONGEST_PATIENCE]


def test_lower_limits_hold_at_once_and_forget_what_was_measured_above_them() -> None:
    pacing = retuned(at(4, **UP), Bounds(cap=300, most_workers=2))
    assert (pacing.batch_size, pacing.workers) == (300, 2)
    assert (pacing.search.trial, pacing.search.windows) == (0, 0)
    assert retuned(at(4, **UP), WIDE) == at(4, **UP).model_copy(update={"batch_size": 1000})


def test_a_higher_limit_of_workers_is_tried_with_the_next_window() -> None:
    pacing = flowed(at(2, up_wait=0), Bounds(cap=1000, most_workers=2), 1000)
    assert pacing.workers == 2
    assert flowed(pacing, WIDE, 1000).workers == 3


# Workers: the promises


@dataclass
class Server:
    """Throughput grows with each worker up to `cores`; each beyond costs a share of it."""

    cores: int
    cost_beyond: float = 0.0

    def throughput(self, workers: int) -> float:
        return (
            min(workers, self.cores) * 100 * (1 - self.cost_beyond) ** max(0, workers - self.cores)
        )

    def run(self, pacing: Pacing, windows: int, bounds: Bounds, random: Random) -> list[Pacing]:
        states = [pacing]
        for _ in range(windows):
            rate = self.throughput(states[-1].workers) * random.uniform(0.95, 1.05)
            states.append(flowed(states[-1], bounds, rate))
        return states

    def share_near_best(self, states: list[Pacing], bounds: Bounds) -> float:
        """Share of windows whose throughput is within 10 % of the best."""
        best = max(map(self.throughput, range(1, bounds.most_workers + 1)))
        near = [self.throughput(state.workers) >= 0.9 * best - 1e-9 for state in states]
        return sum(near) / len(near)


servers = st.builds(Server, st.integers(1, 16), st.sampled_from([0.0, 0.1]))


@often
@given(servers, st.integers(1, 16), seeds)
@example(Server(2), 16, Random(1))  # noqa: S311 - a simulation
def test_workers_settle_within_10_percent_of_the_best_throughput_and_do_not_thrash(
    server: Server, most_workers: int, random: Random
) -> None:
    bounds = Bounds(cap=1000, most_workers=most_workers)
    settled = server.run(begin(500, bounds, FAST), 300, bounds, random)[100:]
    assert all(1 <= state.workers <= most_workers for state in settled)
    assert server.share_near_best(settled, bounds) >= 0.9
    changed = [before.workers != after.workers for before, after in pairwise(settled)]
    assert max(sum(changed[start : start + 50]) for start in range(len(changed) - 50)) <= 8


@often
@given(st.integers(2, 8), st.integers(2, 8), seeds)
def test_a_server_that_changes_in_mid_run_is_followed(
    cores: int, cores_later: int, random: Random
) -> None:
    bounds = Bounds(cap=1000, most_workers=8)
    server = Server(cores, 0.1)
    pacing = server.run(begin(500, bounds, FAST), 200, bounds, random)[-1]
    server.cores = cores_later
    settled = server.run(pacing, 500, bounds, random)[350:]
    assert server.share_near_best(settled, bounds) >= 0.85


@often
@given(st.integers(3, 8), seeds)
def test_workers_that_bring_nothing_are_given_up(workers: int, random: Random) -> None:
    bounds = Bounds(cap=1000, most_workers=workers)
    states = Server(2).run(at(workers), 400, bounds, random)[300:]
    assert sum(state.workers <= 3 for state in states) >= 0.9 * len(states)


events: dict[str, Callable[[Pacing, Bounds], Pacing]] = {
    "window": lambda pacing, bounds: flowed(pacing, bounds, 1000 * pacing.workers),
    "slow window": lambda pacing, bounds: flowed(pacing, bounds, 1.0),
    "huge window": lambda pacing, bounds: flowed(pacing, bounds, 1e308),
    "contention": contention,
    "retuned": retuned,
}


@often
@given(
    st.lists(st.tuples(st.sampled_from(sorted(events)), st.integers(1, 16)), max_size=60),
)
def test_whatever_happens_workers_stay_in_bounds_change_by_one_and_can_be_stored(
    happened: list[tuple[str, int]],
) -> None:
    pacing = at(4)
    for event, most_workers in happened:
        bounds = Bounds(cap=1000, most_workers=most_workers)
        before, pacing = min(pacing.workers, most_workers), events[event](pacing, bounds)
        assert 1 <= pacing.workers <= most_workers
        assert abs(pacing.workers - before) <= 1
        stored = json.dumps(pacing.model_dump(mode="json", by_alias=True), allow_nan=False)
        assert restore(json.loads(stored), bounds) == pacing


# Stored and restored


def test_stored_form_is_camel_case_json() -> None:
    assert settled_at(1000).model_dump(mode="json", by_alias=True) == {
        "batchSize": 1000,
        "workers": 2,
        "secondsPerRow": TARGET / 1000,
        "search": {
            "throughput": 0.0,
            "windows": 0,
            "trial": 0,
            "throughputBefore": 0.0,
            "upWait": 0,
            "upPatience": FIRST_PATIENCE,
            "downWait": FIRST_PATIENCE,
            "downPatience": FIRST_PATIENCE,
        },
    }


@pytest.mark.parametrize(
    ("stored", "size", "workers"),
    [
        ({"batchSize": 700, "workers": 3}, 700, 3),
        ({"batchSize": 9000, "workers": 99, "secondsPerRow": None}, 5000, 4),
        ({"batchSize": 1, "workers": 1, "secondsPerRow": 1}, 100, 1),
        ({"batchSize": 10**30, "workers": 10**30}, 5000, 4),
    ],
)
def test_a_restored_pacing_is_moved_into_the_bounds(
    stored: object, size: int, workers: int
) -> None:
    pacing = restore(stored, WIDE)
    assert pacing is not None
    assert (pacing.batch_size, pacing.workers) == (size, workers)


STORED: dict[str, Any] = at(3, **UP).model_dump(mode="json", by_alias=True)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        "",
        '{"batchSize": 700, "workers": 3}',
        [],
        {},
        {1: 2},
        {"batchSize": 700},
        {"batchSize": "700", "workers": 3},
        {"batchSize": 0, "workers": 3},
        {"batchSize": 700, "workers": -3},
        {**STORED, "ofANewerVersion": 1},
        {**STORED, "secondsPerRow": math.nan},
        {**STORED, "secondsPerRow": 10**400},
        {**STORED, "search": {**STORED["search"], "trial": 2}},
        {**STORED, "search": {**STORED["search"], "upWait": LONGEST_PATIENCE + 1}},
        {**STORED, "search": {**STORED["search"], "throughput": math.inf}},
    ],
)
def test_a_stored_form_that_cannot_be_used_is_none(stored: object) -> None:
    assert restore(stored, WIDE) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@often
@given(
    st.one_of(
        json_values,
        st.dictionaries(st.sampled_from(sorted(STORED)), json_values | st.integers(0, 9)).map(
            lambda changed: {**STORED, **changed}
        ),
        st.dictionaries(
            st.sampled_from(sorted(STORED["search"])), json_values | st.integers(-1, 9)
        ).map(lambda changed: {**STORED, "search": {**STORED["search"], **changed}}),
    )
)
@example({**STORED, "workers": 1})
def test_no_stored_json_breaks_a_resume(stored: object) -> None:
    pacing = restore(stored, WIDE)
    if pacing is None:
        return
    for _ in range(5):
        assert WIDE.floor <= pacing.batch_size <= WIDE.cap
        assert 1 <= pacing.workers <= WIDE.most_workers
        pacing = flowed(measured(pacing, pacing.batch_size, TARGET), WIDE, 1000)
