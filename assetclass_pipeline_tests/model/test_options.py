"""Options: defaults, limits, contradictions, and the sentences that name them."""

from datetime import timedelta
from typing import Any

import pytest

from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.options import CorrectionOptions, Pace, parse_options


def test_defaults_are_the_contracts() -> None:
    assert parse_options({}).model_dump(mode="json", by_alias=True) == {
        "batchSize": None,
        "pace": "balanced",
        "maxRecordsToProcess": None,
        "createBackup": True,
        "targetSymbols": None,
        "onlyProcessNullAssetClass": True,
        "overwriteExistingValues": False,
        "validateAfterEachBatch": True,
        "dryRun": False,
        "timeout": "02:00:00",
        "retry": None,
        "workers": None,
    }


@pytest.mark.parametrize(
    "body",
    [
        {
            "batchSize": 1000,
            "createBackup": True,
            "onlyProcessNullAssetClass": True,
            "validateAfterEachBatch": True,
            "dryRun": False,
        },
        {
            "batchSize": 500,
            "maxRecordsToProcess": 10000,
            "createBackup": True,
            "onlyProcessNullAssetClass": True,
            "overwriteExistingValues": False,
            "validateAfterEachBatch": True,
            "timeout": "01:00:00",
            "dryRun": False,
        },
        {"batchSize": 1000, "dryRun": False},
        {"batchSize": 1000, "createBackup": True},
        {"batchSize": 100, "createBackup": True},
        {"maxRecordsToProcess": 50000, "batchSize": 500, "timeout": "03:00:00"},
    ],
)
def test_every_body_of_the_guide_is_understood_as_written(body: dict[str, Any]) -> None:
    printed = parse_options(body).model_dump(mode="json", by_alias=True)
    assert {name: printed[name] for name in body} == body


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"batchSize": 0}, "batchSize: .*greater than or equal to 1"),
        ({"batchSize": 10_001}, "batchSize: .*less than or equal to 10000"),
        ({"batchSize": "many"}, "batchSize: .*integer"),
        ({"maxRecordsToProcess": 0}, "maxRecordsToProcess: .*greater than or equal to 1"),
        ({"workers": 17}, "workers: .*less than or equal to 16"),
        ({"pace": "ludicrous"}, "pace: .*gentle"),
        ({"timeout": "00:00:59"}, "timeout must be from 00:01:00"),
        ({"timeout": "24:00:01"}, "timeout must be from 00:01:00 to 24:00:00"),
        ({"timeout": "2h"}, 'timeout: write it as "HH:MM:SS"'),
        ({"timeout": "00:60:00"}, 'timeout: write it as "HH:MM:SS"'),
        ({"timeout": 60}, 'timeout: write it as "HH:MM:SS"'),
        ({"targetSymbols": []}, "targetSymbols: .*at least 1"),
        ({"targetSymbols": [""]}, "targetSymbols.0: .*at least 1"),
        ({"batchsize": 5}, "batchsize: unknown option"),
        (
            {"onlyProcessNullAssetClass": True, "overwriteExistingValues": True},
            "contradict each other: set one of them to false",
        ),
        ({"retry": {"tries": 0}}, "retry.tries: .*greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_named_with_its_limit(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidOptionsError, match=says) as refused:
        parse_options(values)
    assert refused.value.exit_status == 2


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvalidOptionsError, match=r"batchSize: .*; workers: "):
        parse_options({"batchSize": 0, "workers": 0})


@pytest.mark.parametrize(
    ("said", "only_missing", "overwrite"),
    [
        ({}, True, False),
        ({"overwriteExistingValues": True}, False, True),
        ({"overwrite_existing_values": True}, False, True),
        ({"onlyProcessNullAssetClass": False}, False, False),
        ({"onlyProcessNullAssetClass": False, "overwriteExistingValues": True}, False, True),
        ({"onlyProcessNullAssetClass": True, "overwriteExistingValues": False}, True, False),
    ],
)
def test_which_rows_are_meant(said: dict[str, bool], only_missing: bool, overwrite: bool) -> None:
    options = parse_options(said)
    assert options.only_process_null_asset_class is only_missing
    assert options.overwrite_existing_values is overwrite


@pytest.mark.parametrize(
    ("values", "workers"),
    [
        ({"pace": "gentle"}, 1),
        ({"pace": "balanced"}, 2),
        ({"pace": "fast"}, 4),
        ({"pace": "fast", "workers": 3}, 3),
    ],
)
def test_workers_follow_the_pace_unless_told(values: dict[str, Any], workers: int) -> None:
    assert parse_options(values).worker_count == workers


@pytest.mark.parametrize("timeout", ["00:01:00", "24:00:00", "01:02:03"])
def test_timeouts_are_printed_as_they_are_written(timeout: str) -> None:
    options = parse_options({"timeout": timeout})
    assert options.model_dump(mode="json")["timeout"] == timeout
    assert (
        CorrectionOptions.model_validate(options.model_dump(mode="json", by_alias=True)) == options
    )


def test_python_values_are_taken_too() -> None:
    options = CorrectionOptions(timeout=timedelta(minutes=5), pace=Pace.FAST)
    assert options.timeout == timedelta(minutes=5)
