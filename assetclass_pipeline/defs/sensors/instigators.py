"""Ticks of our sensors and schedules.

Belongs here: which ones are ours, and how the newest tick of each came out. Does not: what follows.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorState, TickStatus

from assetclass_pipeline.defs.failures import innermost
from assetclass_pipeline.model.alert import Finding
from assetclass_pipeline.model.alert_rules import TickFacts, judge_tick

_ENDED = [TickStatus.FAILURE, TickStatus.SUCCESS, TickStatus.SKIPPED]
_TICK = "tick:"


def judge_ticks(
    context: dg.SensorEvaluationContext,
    unresolved: AbstractSet[str],
    *,
    watched: Callable[[str], bool],
) -> list[Finding]:
    """How the newest ended tick of each sensor and schedule that is `watched` came out.

    One that was switched off, or is no longer there, does not fail any more.
    """
    states = _states(context)
    findings = [
        judge_tick(facts)
        for name, state in states.items()
        if watched(name) and (facts := _newest_tick(context.instance, state)) is not None
    ]
    alerted = {cause.removeprefix(_TICK) for cause in unresolved if cause.startswith(_TICK)}
    findings += [
        judge_tick(TickFacts(name, tick_id=0, failed=False))
        for name in sorted(alerted - states.keys())
        if watched(name)
    ]
    return findings


def _states(context: dg.SensorEvaluationContext) -> dict[str, InstigatorState]:
    """By name, those of the code location in which the sensor is evaluated."""
    repository, origin = context.repository_def, context.code_location_origin
    location = origin.location_name if origin else None
    names = set()
    if repository is not None:
        names = {sensor.name for sensor in repository.sensor_defs}
        names |= {schedule.name for schedule in repository.schedule_defs}
    return {
        state.name: state
        for state in context.instance.all_instigator_state()
        if state.name in names and location in (None, state.repository_selector.location_name)
    }


def _newest_tick(instance: dg.DagsterInstance, state: InstigatorState) -> TickFacts | None:
    ticks = instance.get_ticks(
        state.instigator_origin_id, state.selector_id, limit=1, statuses=_ENDED
    )
    if not ticks:
        return None
    [tick] = ticks
    failed = state.is_running and tick.status is TickStatus.FAILURE
    return TickFacts(state.name, tick.tick_id, failed, innermost(tick.error) if failed else "")
