"""Preflights in tests: short calls with a market's own settings, and what they found."""

from collections.abc import Mapping
from typing import Any

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.engine.preflight import check_market, preflight
from assetclass_pipeline.engine.rehearsal import RECORDS, Rehearsed, rehearse
from assetclass_pipeline.model.months import EVERYTHING
from assetclass_pipeline.model.preflight import Finding, Preflight, Severity
from assetclass_pipeline_tests.engine.runs import options_of
from assetclass_pipeline_tests.market import Market


def read_tables(market: Market, dsn: str | None = None) -> MarketTables:
    """The market tables as a preview sees them."""
    with connect(dsn or market.dsn, market.settings, purpose="test") as connection:
        return inspect_market_tables(connection, market.settings, for_writing=False)


def check(
    market: Market,
    *,
    new_classes: Mapping[str, int] | None = None,
    records: int | None = None,
    dsn: str | None = None,
    allow_backup: bool = False,
    **options: Any,
) -> Preflight:
    """What `check_market` finds, as the role of `dsn`."""
    settings = market.settings
    if allow_backup:
        settings = settings.model_copy(update={"backup_in_publication": "allow"})
    with connect(dsn or market.dsn, settings, purpose="test") as connection:
        return check_market(
            connection,
            read_tables(market, dsn),
            settings,
            options_of(**options),
            new_classes=new_classes,
            records=records,
        )


def check_all(market: Market, records: int, dsn: str | None = None) -> Preflight:
    """The whole preflight: check, rehearsal, estimate."""
    with connect(dsn or market.dsn, market.settings, purpose="test") as connection:
        return preflight(
            connection,
            read_tables(market, dsn),
            market.settings,
            options_of(),
            new_classes=None,
            records=records,
        )


def rehearse_now(
    market: Market, *, records: int = RECORDS, dsn: str | None = None, **options: Any
) -> Rehearsed:
    """One rehearsal, as the role of `dsn`."""
    with connect(dsn or market.dsn, market.settings, purpose="test") as connection:
        return rehearse(
            connection,
            read_tables(market, dsn),
            market.settings,
            options_of(**options),
            EVERYTHING,
            records=records,
        )


def codes(found: Preflight | Rehearsed, *severities: Severity) -> set[str]:
    """Codes of the findings of these severities, or of all."""
    return {
        finding.code
        for finding in found.findings
        if not severities or finding.severity in severities
    }


def the(found: Preflight | Rehearsed, code: str) -> Finding:
    """The only finding of this code; its message is a sentence."""
    (finding,) = (finding for finding in found.findings if finding.code == code)
    assert finding.message.endswith(".")
    assert finding.message[0].isupper() or finding.message[0].isdigit()
    return finding
