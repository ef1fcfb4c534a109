"""Options of a rollback: limits, unknown names, what narrows it."""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.operation import Conflict
from assetclass_pipeline.model.rollback import RollbackOptions, parse_rollback_options


def test_the_defaults_restore_everything_that_nobody_changed() -> None:
    options = parse_rollback_options({})
    assert not options.is_partial
    assert not options.dry_run
    assert not options.take_backup_value
    assert options.validate_after_rollback
    assert options.validate_after_each_batch
    assert options.timeout == timedelta(hours=2)


@pytest.mark.parametrize(
    "part", [{"targetSymbols": ["AAPL"]}, {"partitions": ["2024-03-01"]}, {"rowIds": ["7"]}]
)
def test_each_of_three_options_makes_it_partial(part: dict[str, list[str]]) -> None:
    assert parse_rollback_options(part).is_partial


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"targetSymbols": []}, "targetSymbols"),
        ({"targetSymbols": [""]}, "targetSymbols"),
        ({"rowIds": [7]}, "rowIds"),
        ({"partitions": ["2024-03"]}, "partitions"),
        ({"partitions": ["2024-03-02"]}, "partitions"),
        ({"partitions": ["2024-13-01"]}, "partitions"),
        ({"batchSize": 10_001}, "batchSize"),
        ({"workers": 0}, "workers"),
        ({"timeout": "00:00:59"}, "timeout"),
        ({"createBackup": True}, "createBackup"),
    ],
)
def test_what_cannot_be_used_is_named(values: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidOptionsError, match=named):
        parse_rollback_options(values)


def test_it_is_stored_and_read_back_as_it_was() -> None:
    options = RollbackOptions(row_ids=["1"], take_backup_value=True, timeout=timedelta(minutes=5))
    stored = options.model_dump(mode="json", by_alias=True)
    assert (stored["rowIds"], stored["timeout"]) == (["1"], "00:05:00")
    assert RollbackOptions.model_validate(stored) == options


def test_a_conflict_tells_before_corrected_and_now() -> None:
    values = {"id": "1", "symbol": "AAPL", "timestamp": None, "before": None, "corrected": "STOCK"}
    conflict = Conflict.model_validate({**values, "now": "THEIRS", "reason": "changed_by_others"})
    assert conflict.model_dump(by_alias=True)["now"] == "THEIRS"
    with pytest.raises(ValidationError):
        Conflict.model_validate(values)
