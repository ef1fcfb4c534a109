"""`assetclass metrics` as people, scripts and a scraper's text collector call it."""

from uuid import uuid4

from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.cli.command import Command
from assetclass_pipeline_tests.market import Market


def test_three_ways_to_read_the_same_numbers(assetclass: Command, market: Market) -> None:
    market.fill(60)
    correct(market.dsn, market.settings, CorrectionRequest(str(uuid4()), CorrectionOptions()))

    as_json = assetclass("metrics", "--json")
    assert as_json.status == 0, as_json.explain()
    assert as_json.document["operations"]["completed"] == 1
    assert as_json.document["records"]["corrected"] == 60
    assert as_json.document["thresholds"]["qualityScore"] == 90
    assert [line["name"] for line in as_json.document["keyMetrics"]] == [
        "Operation Success Rate",
        "Data Quality Score",
        "Operation Duration",
        "Error Rate",
        "Records Needing Correction",
    ]

    text = assetclass("metrics", "--prometheus")
    assert text.status == 0, text.explain()
    assert "\nassetclass_records_corrected_total 60.0\n" in text.out
    assert text.out.startswith("# HELP ")

    people = assetclass("metrics")
    assert people.status == 0, people.explain()
    for words in ("Operation Success Rate", "100.00 %", "not measured", "60 corrected"):
        assert words in people.out


def test_before_anything_ran(assetclass: Command, market: Market) -> None:
    assert market.classes() == {}
    people = assetclass("metrics")
    assert people.status == 0, people.explain()
    assert "0 started" in people.out


def test_only_one_form_at_a_time(assetclass: Command, market: Market) -> None:
    assert market.classes() == {}
    refused = assetclass("metrics", "--json", "--prometheus")
    assert refused.status == 2, refused.explain()
