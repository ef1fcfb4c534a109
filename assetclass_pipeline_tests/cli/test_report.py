"""`assetclass report ...` as people and scripts call it."""

from pathlib import Path

import pytest

from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.cli.command import Command
from assetclass_pipeline_tests.market import Market

CORRECTION = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def corrected(market: Market) -> Market:
    """A correction of 60 rows."""
    market.fill(60)
    correct(market.dsn, market.settings, CorrectionRequest(CORRECTION, CorrectionOptions()))
    return market


def test_people_get_numbers_and_a_page(
    assetclass: Command, corrected: Market, tmp_path: Path
) -> None:
    shown = assetclass("report", "performance")
    assert shown.status == 0, shown.explain()
    assert "records corrected: 60" in shown.out
    (html,) = (tmp_path / "home" / "reports").glob("performance-*.html")
    assert str(html) in shown.out
    assert html.with_suffix(".json").exists()
    own = tmp_path / "audit.html"
    audit = assetclass("report", "audit", "--out", str(own))
    assert audit.status == 0, audit.explain()
    assert "total records: 60" in audit.out
    assert "Data integrity audit" in own.read_text(encoding="utf-8")
    again = assetclass("report", "capacity", "--out", str(own))
    assert again.status == 1
    assert "nothing is overwritten" in again.err
    assert corrected.value("SELECT count(*) FROM assetclass.quality_measurement") == 1


def test_scripts_get_one_document(assetclass: Command, corrected: Market, tmp_path: Path) -> None:
    documents = {
        name: assetclass("report", name, "--json").document
        for name in ("performance", "audit", "capacity", "quality")
    }
    assert documents["performance"]["now"]["recordsCorrected"] == 60
    assert documents["audit"]["guide"] == {
        "totalRecords": 60,
        "nullAssetClass": 0,
        "emptyAssetClass": 0,
        "validAssetClass": 60,
        "completenessPercentage": 100,
    }
    assert documents["audit"]["changesByClass"][0]["from"] is None
    assert documents["capacity"]["largestOperation"] == 60
    assert documents["quality"]["source"] == "monthly_audit"
    assert documents["quality"]["report"]["totalRecords"] == 60
    assert not (tmp_path / "home" / "reports").exists()
    assert corrected.value("SELECT count(*) FROM assetclass.operation") == 1


@pytest.mark.parametrize(
    ("since", "says"),
    [
        ("yesterday", "write a time like"),
        ("0001-01-01T00:00+05:00", "write a time like"),
        ("2999-01-01", "earlier moment"),
        ("0001-01-01", "after 1970-01-01"),
    ],
)
def test_a_period_that_is_none(assetclass: Command, market: Market, since: str, says: str) -> None:
    refused = assetclass("report", "performance", "--since", since)
    assert refused.status == 2, refused.explain()
    assert says in refused.err
    assert market.classes() == {}


def test_a_log_that_was_tampered_with_is_a_failure(assetclass: Command, corrected: Market) -> None:
    corrected.execute("ALTER TABLE assetclass.audit_log DISABLE TRIGGER refuse")
    corrected.execute("UPDATE assetclass.audit_log SET actor = 'nobody' WHERE number = 1")
    found = assetclass("report", "audit", "--json")
    assert found.status == 1
    assert found.document["auditLog"]["whole"] is False
