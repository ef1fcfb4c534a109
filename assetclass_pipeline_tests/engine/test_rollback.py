"""Rolling a correction back: what is restored, what is left alone, and what is told of it."""

from assetclass_pipeline.model.operation import Phase, Status
from assetclass_pipeline_tests.engine.runs import (
    correct_now,
    operation_of,
    proof_of,
    undo_now,
)
from assetclass_pipeline_tests.market import Bar, Market


def test_every_row_gets_its_old_value_back(market: Market) -> None:
    market.list_symbols(("AAPL", "STOCK"), ("BTC", "CRYPTO"))
    values = [None, "", "WRONG", "STOCK", " ", "caf\u00e9"]
    market.add(Bar(n, ("AAPL", "BTC", "?")[n % 3], asset_class=values[n % 6]) for n in range(60))
    before = market.classes()
    correction = correct_now(market, overwrite_existing_values=True)
    assert market.classes() != before

    rollback = undo_now(market, correction)

    assert market.classes() == before
    assert (rollback.status, rollback.phase) == (Status.SUCCEEDED, Phase.DONE)
    assert rollback.records_restored == correction.records_corrected
    assert (rollback.records_conflicting, rollback.conflicts) == (0, [])
    assert rollback.rollback_of == correction.correction_id
    undone = operation_of(market, correction.correction_id)
    assert undone.rolled_back_by == rollback.correction_id
    proof = proof_of(market, rollback.correction_id)
    assert (proof.unaccounted, proof.open) == (0, 0)
    assert market.rollback_tables() == [rollback.backup_table]
