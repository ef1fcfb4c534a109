"""Rows a second: what batches wrote while they flowed, whatever held them in between."""

import pytest

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine.estimation import recent_rate
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline_tests.engine.runs import operation_of, plan_now, request_of
from assetclass_pipeline_tests.market import Market

# Of each batch.
RECORDS = 100
SECONDS = 0.1


def write_ledger(market: Market, begins: list[float], epochs: list[int] | None = None) -> str:
    """An operation whose batches began at these seconds; its id."""
    request = request_of()
    plan_now(market, request, park=False)
    for number, begin in enumerate(begins):
        market.connection.execute(
            "INSERT INTO assetclass.operation_batch (correction_id, first_seq, last_seq, epoch, "
            "worker, records_corrected, records_skipped, duration_ms, committed_at) "
            "SELECT correction_id, %(n)s * %(records)s + 1, (%(n)s + 1) * %(records)s, %(epoch)s, "
            "1, %(records)s, 0, %(seconds)s * 1000, timestamptz '2026-01-01 UTC' "
            "+ make_interval(secs => %(end)s) FROM assetclass.operation "
            "ORDER BY requested_at DESC LIMIT 1",
            {
                "n": number,
                "records": RECORDS,
                "epoch": epochs[number] if epochs else 1,
                "seconds": SECONDS,
                "end": begin + SECONDS,
            },
        )
    return request.correction_id


def one_after_the_other(batches: int, *, since: float = 0, rest: float = 0) -> list[float]:
    return [since + number * (SECONDS + rest) for number in range(batches)]


FLOWS = {
    "one worker": (one_after_the_other(20), 1000),
    "one that rests as long as it works": (one_after_the_other(20, rest=SECONDS), 500),
    "two workers": (one_after_the_other(20) * 2, 2000),
    "a pause of an hour": (one_after_the_other(20) + one_after_the_other(20, since=3600), 1000),
    "a throttle that holds each batch": (one_after_the_other(20, rest=30), 500),
}


@pytest.mark.parametrize("flow", FLOWS)
def test_waits_are_no_work(market: Market, flow: str) -> None:
    begins, rate = FLOWS[flow]
    market.fill(20)
    operation = operation_of(market, write_ledger(market, begins))
    assert operation.records_per_second == pytest.approx(rate, rel=0.1)
    with (
        connect(market.dsn, market.settings, purpose="test") as connection,
        transaction(connection, market.settings) as cursor,
    ):
        assert recent_rate(cursor) == pytest.approx(rate, rel=0.1)


def test_the_night_between_two_tries_is_no_work(market: Market) -> None:
    begins = one_after_the_other(20) + one_after_the_other(20, since=80_000)
    named = write_ledger(market.fill(20), begins, epochs=[1] * 20 + [2] * 20)
    assert operation_of(market, named).records_per_second == pytest.approx(1000, rel=0.1)


def test_a_paused_one_shows_the_rate_that_it_had(market: Market) -> None:
    """And no time to its end, which is nobody's guess."""
    named = write_ledger(market.fill(20), one_after_the_other(20))
    for status in (Status.RUNNING, Status.PAUSED):
        market.execute(
            "UPDATE assetclass.operation SET phase = 'correcting', status = %s",
            values=(status.value,),
        )
        operation = operation_of(market, named)
        assert operation.records_per_second == pytest.approx(1000, rel=0.1)
        assert (operation.eta_seconds is None) == (status is Status.PAUSED)


def test_nothing_written_has_no_rate(market: Market) -> None:
    assert operation_of(market, write_ledger(market.fill(20), [])).records_per_second is None
    with (
        connect(market.dsn, market.settings, purpose="test") as connection,
        transaction(connection, market.settings) as cursor,
    ):
        assert recent_rate(cursor) is None
