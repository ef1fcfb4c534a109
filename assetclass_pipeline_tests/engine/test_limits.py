"""Limits in effect are recorded once, by whoever measures by them first."""

import threading
from typing import Any

import pytest
from psycopg.errors import CheckViolation, UniqueViolation

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine.analysis import remember_quality
from assetclass_pipeline.engine.audit import check
from assetclass_pipeline.engine.limits import record_limits
from assetclass_pipeline.model.quality import Thresholds
from assetclass_pipeline_tests.engine.runs import report_of
from assetclass_pipeline_tests.market import Market


def measure(market: Market, limits: Thresholds, by: str = "ada") -> None:
    settings = market.settings.model_copy(update={"thresholds": limits})
    report = report_of(market)
    with connect(market.dsn, settings, purpose="test") as connection:
        remember_quality(connection, settings, report, source="quality_report", by=by)


def recorded(market: Market) -> list[tuple[Any, ...]]:
    return market.rows(
        "SELECT outcome, actor, parameters -> 'before', parameters -> 'after'"
        " FROM assetclass.audit_log WHERE action = 'change_thresholds' ORDER BY number"
    )


def test_each_change_is_recorded_with_before_and_after(market: Market) -> None:
    measure(market, Thresholds())
    measure(market, Thresholds(), by="grace")
    (first,) = recorded(market)
    assert first[:3] == ("recorded", "ada", None)
    assert first[3] == Thresholds().model_dump()
    stricter = Thresholds(completeness=97.5, quality_score_error=50)
    measure(market, stricter, by="grace")
    measure(market, stricter)
    _, changed = recorded(market)
    assert changed == ("changed", "grace", Thresholds().model_dump(), stricter.model_dump())
    measure(market, Thresholds())
    assert len(recorded(market)) == 3
    with connect(market.dsn, market.settings, purpose="test") as connection:
        assert check(connection, market.settings).broken is None


def test_two_processes_record_a_change_once(market: Market) -> None:
    together = threading.Barrier(2, timeout=20)
    written: list[bool] = []

    def record_now() -> None:
        with connect(market.dsn, market.settings, purpose="test") as connection:
            together.wait()
            with transaction(connection, market.settings) as cursor:
                written.append(record_limits(cursor, Thresholds(), by="ada"))

    # The first holds its transaction open until the second waits for it.
    with (
        connect(market.dsn, market.settings, purpose="test") as connection,
        transaction(connection, market.settings) as cursor,
    ):
        assert record_limits(cursor, Thresholds(), by="ada")
        others = [threading.Thread(target=record_now) for _ in range(2)]
        for other in others:
            other.start()
        wait_until_two_wait(market)
    for other in others:
        other.join(timeout=20)
    assert written == [False, False]
    assert len(recorded(market)) == 1


def wait_until_two_wait(market: Market) -> None:
    for _ in range(400):
        waiting = market.value(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        )
        if waiting == 2:
            return
        threading.Event().wait(0.025)
    pytest.fail("nobody waits for the one that records")


def test_a_measurement_that_is_rolled_back_records_nothing(market: Market) -> None:
    market.execute(
        "ALTER TABLE assetclass.quality_measurement ADD CONSTRAINT never CHECK (false) NOT VALID"
    )
    with pytest.raises(CheckViolation):
        measure(market, Thresholds())
    assert recorded(market) == []
    market.execute("ALTER TABLE assetclass.quality_measurement DROP CONSTRAINT never")
    market.execute(
        "ALTER TABLE assetclass.quality_measurement ADD CONSTRAINT never UNIQUE (source)"
        " DEFERRABLE INITIALLY DEFERRED"
    )
    measure(market, Thresholds())
    # This one breaks at its COMMIT, with the entry written.
    with pytest.raises(UniqueViolation):
        measure(market, Thresholds(completeness=97))
    assert len(recorded(market)) == 1
