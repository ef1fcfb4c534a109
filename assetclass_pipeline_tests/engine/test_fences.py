"""A process that was taken over writes nothing any more, whatever it was about to write."""

import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine import holding as holding_module
from assetclass_pipeline.engine import readdressing as readdressing_module
from assetclass_pipeline.engine import sweeping as sweeping_module
from assetclass_pipeline.engine.control import ask_to_pause, ask_to_resume
from assetclass_pipeline.engine.holding import Holder, hold
from assetclass_pipeline.engine.session import Session
from assetclass_pipeline.engine.silence import CONTROL_INTERVAL
from assetclass_pipeline.engine.work import Work, release_quarantine
from assetclass_pipeline.errors import OperationFencedError
from assetclass_pipeline.model.operation import Phase, Status
from assetclass_pipeline_tests.engine.runs import operation_of, plan_now, request_of
from assetclass_pipeline_tests.engine.test_control import WAIT
from assetclass_pipeline_tests.engine.test_traps import late_worker
from assetclass_pipeline_tests.market import Market

Write = Callable[[Work], None]


def _finish(work: Work) -> None:
    values = {
        "status": "succeeded",
        "phase": "done",
        "quality_after": None,
        "late_left": 0,
        "estimate_error_percent": None,
        "dropped": False,
        "error": None,
    }
    work.holder.update("finish", values)


def _quarantine(work: Work) -> None:
    sweeping_module._quarantine(work, 1, psycopg.errors.CheckViolation("no"))


def _remember_file(work: Work) -> None:
    session = Session(lambda: work.holder.connect("test"))
    leaf = next(iter(work.leaves.values()))
    try:
        readdressing_module._remember(work, session, leaf, 1)
    finally:
        session.close()


WRITES: dict[str, Write] = {
    "the phase": lambda work: work.holder.enter_phase(Phase.SWEEPING),
    "the plan": lambda work: work.holder.update("set_plan", {"plan": None, "planned": 1}),
    "the backup table": lambda work: work.holder.update(
        "set_backup_table", {"backup_table": "b", "plan": None}
    ),
    "the scores before": lambda work: work.holder.update(
        "set_quality_before", {"quality": None, "mismatched_left": 1}
    ),
    "the preflight": lambda work: work.holder.update(
        "set_preflight", {"preflight": None, "estimate": None}
    ),
    "the reference": lambda work: work.holder.update("set_reference", {"reference_hash": "x"}),
    "its parking": lambda work: work.holder.update("park", {}),
    "its end": _finish,
    "rows let out of quarantine": lambda work: release_quarantine(work.holder),
    "a row in quarantine": _quarantine,
    "the file of a leaf": _remember_file,
}


def stored(market: Market) -> list[tuple[object, ...]]:
    """All that an operation keeps, whoever wrote it."""
    return [
        *market.rows("SELECT o::text FROM assetclass.operation o"),
        *market.rows("SELECT s::text FROM assetclass.operation_skipped_row s ORDER BY seq"),
        *market.rows("SELECT q::text FROM assetclass.operation_quarantined_row q ORDER BY seq"),
    ]


@pytest.fixture
def taken_over(market: Market, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """The work of a process that was taken over and has not heard of it yet."""
    monkeypatch.setattr(holding_module, "CONTROL_INTERVAL", 3600)
    request = request_of(workers=1)
    plan_now(market.fill(20), request)
    with (
        hold(market.dsn, market.settings, request) as holder,
        late_worker(market, holder, request) as (_, work),
    ):
        market.execute(
            "INSERT INTO assetclass.operation_skipped_row (correction_id, seq, reason) "
            "SELECT correction_id, n, CASE n WHEN 1 THEN 'locked' ELSE 'quarantined' END "
            "FROM assetclass.operation, generate_series(1, 2) n"
        )
        market.execute("UPDATE assetclass.operation SET epoch = epoch + 1")
        yield work


@pytest.mark.parametrize("what", WRITES)
def test_it_does_not_write(market: Market, taken_over: Work, what: str) -> None:
    before = stored(market)
    with pytest.raises(OperationFencedError):
        WRITES[what](taken_over)
    assert stored(market) == before


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED, Status.INTERRUPTED])
def test_it_does_not_write_how_it_ended(market: Market, taken_over: Work, status: Status) -> None:
    market.execute("UPDATE assetclass.operation SET status = %s", values=(status.value,))
    before = stored(market)
    holding_module._end_badly(taken_over.holder, RuntimeError("out of luck"), ())
    assert stored(market) == before


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED])
def test_it_does_not_pause_the_new_owner_nor_let_it_go_on(
    market: Market, taken_over: Work, status: Status
) -> None:
    market.execute("UPDATE assetclass.operation SET status = %s", values=(status.value,))
    before = stored(market)
    holder = taken_over.holder
    with connect(market.dsn, market.settings, purpose="test") as connection:
        if status is Status.RUNNING:
            holder._pause(connection, status, "anna")
        holder._paused_at = time.monotonic()
        if status is Status.PAUSED:
            holder._go_on(connection, status)
    assert stored(market) == before
    holder._paused_at = None


def test_an_operation_that_ended_well_does_not_end_badly_afterwards(
    market: Market, taken_over: Work
) -> None:
    market.execute("UPDATE assetclass.operation SET epoch = epoch - 1, status = 'succeeded'")
    before = stored(market)
    holding_module._end_badly(taken_over.holder, RuntimeError("out of luck"), ())
    assert stored(market) == before


def test_its_heart_does_not_beat_for_the_new_owner(market: Market, taken_over: Work) -> None:
    market.execute("UPDATE assetclass.operation_heartbeat SET epoch = epoch + 1, holder = 'new'")
    before = market.rows("SELECT * FROM assetclass.operation_heartbeat")
    holder = taken_over.holder
    with (
        connect(market.dsn, market.settings, purpose="test") as connection,
        transaction(connection, market.settings) as cursor,
    ):
        holder._beat(cursor, "")
    assert market.rows("SELECT * FROM assetclass.operation_heartbeat") == before


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_hears_of_it(market: Market) -> None:
    """Its scan, which writes nothing for a long time, ends too."""
    with hold(market.dsn, market.settings, request_of()) as holder:
        market.execute("UPDATE assetclass.operation SET epoch = epoch + 1")
        until(holder.stop.is_set)
        assert isinstance(holder.stop.cause, OperationFencedError)
        market.execute("UPDATE assetclass.operation SET epoch = epoch - 1")


def test_a_pause_takes_nothing_of_its_time(market: Market) -> None:
    request = request_of()

    def looks(holder: Holder) -> None:
        time.sleep(3 * CONTROL_INTERVAL)
        assert not holder.stop.is_set()

    with (
        hold(market.dsn, market.settings, request) as holder,
        connect(market.dsn, market.settings, purpose="test") as connection,
    ):
        named = request.correction_id
        ask_to_pause(connection, market.settings, named, by="anna")
        until(lambda: operation_of(market, named).status is Status.PAUSED)
        # As if it had been paused for 100 s, with 20 s left of its time when that began.
        until(lambda: holder._paused_at is not None)
        assert holder._paused_at is not None
        holder._paused_at -= 100
        holder._deadline = holder._paused_at + 20
        looks(holder)
        ask_to_resume(connection, market.settings, named, by="anna")
        until(lambda: operation_of(market, named).status is Status.RUNNING)
        looks(holder)
