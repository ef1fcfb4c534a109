"""The plan's scan while others rewrite the table, and what a server may have forgotten of it."""

from collections.abc import Callable
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from assetclass_pipeline.engine import correction as correction_module
from assetclass_pipeline.engine import plan as plan_module
from assetclass_pipeline.engine.correction import correct
from assetclass_pipeline.errors import CorrectionFailedError
from assetclass_pipeline.model.operation import Operation, Phase, SkipReason, Status
from assetclass_pipeline_tests.engine.conftest import MakeMarket
from assetclass_pipeline_tests.engine.runs import (
    correct_now,
    operation_of,
    plan_now,
    proof_of,
    report_of,
    request_of,
)
from assetclass_pipeline_tests.market import Bar, Market

RECORDS = 1000
CLUSTER: LiteralString = "CLUSTER {} USING backwards"


@pytest.fixture
def after_chunk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Plans in chunks of one page, and does something once, when so many of them are stored."""
    add_chunk = plan_module._add_chunk
    monkeypatch.setattr(plan_module, "PAGES_PER_CHUNK", 1)

    def arrange(chunks: int, deed: Callable[[], None]) -> None:
        stored = 0

        def then_do(*arguments: Any) -> None:
            nonlocal stored
            add_chunk(*arguments)
            stored += 1
            if stored == chunks:
                deed()

        monkeypatch.setattr(plan_module, "_add_chunk", then_do)

    return arrange


def damaged(market: Market) -> Market:
    """Rows of several pages, of which CLUSTER turns the order around."""
    market.fill(RECORDS)
    market.execute("CREATE INDEX backwards ON {} (id DESC)", market.market_identifier)
    return market


def turn_around(market: Market) -> Callable[[], None]:
    def deed() -> None:
        market.execute(CLUSTER, market.market_identifier)

    return deed


def assert_planned_once(market: Market, operation: Operation, records: int = RECORDS) -> None:
    """Each row is planned once, by one scan: none of them came in a late pass."""
    assert (operation.status, operation.records_planned) == (Status.SUCCEEDED, records)
    assert (operation.records_corrected, operation.records_skipped) == (records, 0)
    proof = proof_of(market, operation.correction_id)
    assert (proof.unaccounted, proof.open) == (0, 0)


class TestRewrittenWhileItIsScanned:
    """Guard: the file of the leaf is compared after each chunk."""

    @pytest.mark.parametrize("chunks", [1, 3])
    def test_rows_are_planned_once(
        self, market: Market, after_chunk: Callable[..., None], chunks: int
    ) -> None:
        after_chunk(chunks, turn_around(damaged(market)))
        assert_planned_once(market, correct_now(market, batch_size=100))

    def test_rows_are_planned_once_by_who_goes_on_with_the_plan(
        self, market: Market, after_chunk: Callable[..., None]
    ) -> None:
        """Guard: a resume compares with the file that the first chunks were read from."""

        def die() -> None:
            market.execute(CLUSTER, market.market_identifier)
            raise KeyboardInterrupt

        after_chunk(3, die)
        damaged(market)
        request = request_of(batch_size=100)
        with pytest.raises(KeyboardInterrupt):
            plan_now(market, request)
        assert_planned_once(market, correct_now(market, request))

    def test_as_many_rows_are_planned_as_are_asked_for(
        self, market: Market, after_chunk: Callable[..., None]
    ) -> None:
        """Guard: the limit counts rows to add, not those that are planned already."""
        after_chunk(3, turn_around(damaged(market)))
        most = RECORDS * 9 // 10
        operation = correct_now(market, batch_size=100, max_records_to_process=most)
        assert_planned_once(market, operation, most)

    def test_a_late_pass_meets_it_too(
        self,
        market: Market,
        after_chunk: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        late = 300
        monkeypatch.setattr(correction_module, "LATE_PASSES", 1)

        def feed(operation: Operation) -> None:
            if operation.phase is Phase.SWEEPING and market.classes().get(RECORDS + 1, "") == "":
                market.add(Bar(RECORDS + n, "S1") for n in range(1, late + 1))
                chunks = market.value("SELECT pg_relation_size('market_data') / 8192")
                after_chunk(int(chunks) - 1, turn_around(market))

        request = request_of(batch_size=100)
        operation = correct(damaged(market).dsn, market.settings, request, observe=feed)
        assert_planned_once(market, operation, RECORDS + late)


def test_a_partition_that_is_dropped_while_it_is_scanned_stops_nobody(
    make_market: MakeMarket, after_chunk: Callable[..., None]
) -> None:
    """Guard: a leaf is looked for, not taken for an error, when it is unknown by now."""
    market = make_market(partitioning="range").fill(RECORDS)
    market.add(Bar(RECORDS + n, "S1", "2024-03-01") for n in range(1, 11))
    after_chunk(1, lambda: market.execute("DROP TABLE {}", market.part(1)))
    operation = correct_now(market, batch_size=100)
    assert (operation.status, operation.records_corrected) == (Status.SUCCEEDED, 10)
    assert {*operation.skipped_by_reason} == {SkipReason.DELETED}
    assert report_of(market).correctable == 0


class TestForgottenByTheServer:
    """A standby that took over may lack the last chunks; `records_planned` is what it kept."""

    def forget(self, market: Market) -> None:
        market.execute("UPDATE assetclass.operation SET records_planned = records_planned - 1")

    def test_a_chunk_is_not_added_to_a_plan_with_a_hole(
        self, market: Market, after_chunk: Callable[..., None]
    ) -> None:
        after_chunk(2, lambda: self.forget(market))
        request = request_of()
        with pytest.raises(CorrectionFailedError, match=r"lost a part of the plan .* Run it again"):
            plan_now(damaged(market), request)
        assert operation_of(market, request.correction_id).status is Status.FAILED

    @pytest.mark.parametrize("phase", [Phase.CORRECTING, Phase.SWEEPING])
    def test_no_correction_ends_well_with_a_hole_in_its_plan(
        self, market: Market, phase: Phase
    ) -> None:
        def forget(operation: Operation) -> None:
            if operation.phase is phase:
                self.forget(market)

        market.fill(20)
        with pytest.raises(CorrectionFailedError, match="lost a part of the plan"):
            correct(market.dsn, market.settings, request_of(), observe=forget)

    def test_a_plan_that_is_made_anew_begins_with_nothing(self, market: Market) -> None:
        request = request_of()
        planned = plan_now(market.fill(20), request)
        market.execute("DROP TABLE {}", sql.Identifier(str(planned.backup_table)))
        assert correct_now(market, request).records_corrected == 20


def test_what_a_sweep_has_looked_at_is_not_done_by_that(market: Market) -> None:
    """Guard: only batches cover seqs; the range of a sweep's ledger row has holes."""
    request = request_of()
    plan_now(market.fill(20), request)
    market.execute(
        "INSERT INTO assetclass.operation_batch (correction_id, pass, first_seq, last_seq, epoch, "
        "worker, records_corrected, records_skipped, duration_ms) "
        "SELECT correction_id, 1, 1, 20, epoch, 0, 0, 0, 1 FROM assetclass.operation"
    )
    assert correct_now(market, request).records_corrected == 20


@pytest.mark.parametrize("timestamp", ["2024-03-01 12:00:00+00", None])
def test_rows_without_an_id_that_had_to_be_left_are_not_planned_again(
    make_market: MakeMarket, timestamp: str | None
) -> None:
    """Guard: a late pass knows planned rows by symbol and time where they have no id."""
    market = make_market(key='UNIQUE (symbol, "timestamp")')
    market.list_symbols(("AAPL", "STOCK"), ("MSFT", "STOCK"))
    market.add([Bar(None, "AAPL", timestamp), Bar(1, "AAPL", "2024-03-02 12:00:00+00")])
    request = request_of()
    plan_now(market, request)
    with psycopg.connect(market.dsn) as other:
        other.execute("SELECT FROM market_data WHERE id IS NULL FOR UPDATE")
        # Late ones are another matter, of which only the symbol or only the time is known.
        market.add([Bar(None, "MSFT", timestamp), Bar(None, "AAPL", "2024-03-03 12:00:00+00")])
        operation = correct_now(market, request)
    assert operation.skipped_by_reason == {SkipReason.MOVED_OR_CHANGED: 1}
    assert (operation.records_planned, operation.records_corrected) == (4, 3)
    assert report_of(market).correctable == 1
