"""Pages: their structure, that they are whole in themselves, and that no text becomes markup."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.analysis import remember_quality
from assetclass_pipeline.engine.disk_space import Free
from assetclass_pipeline.errors import ReportFileError
from assetclass_pipeline.reports import capacity
from assetclass_pipeline.reports.audit import audit_report
from assetclass_pipeline.reports.capacity import capacity_report
from assetclass_pipeline.reports.files import json_of, store, write_page
from assetclass_pipeline.reports.key_numbers import key_numbers, remarks
from assetclass_pipeline.reports.pages import Report, name_of, page
from assetclass_pipeline.reports.performance import performance_report
from assetclass_pipeline.reports.plots import bar_plot
from assetclass_pipeline.reports.quality import quality_report
from assetclass_pipeline_tests.engine.runs import report_of, tables_of
from assetclass_pipeline_tests.market import Bar, Market
from assetclass_pipeline_tests.reports.seeds import (
    Seed,
    add_alert,
    add_measurement,
    add_operations,
)

EVIL = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Structure(HTMLParser):
    """Elements outside of plots, with their classes; every start has its end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self.tags.add(tag)
        if "svg" not in self.open and tag not in {"tr", "td", "small"}:
            kind = dict(attrs).get("class")
            self.lines.append("  " * len(self.open) + tag + (f".{kind}" if kind else ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f"{data} "


def make(market: Market, name: str) -> Report:
    tables = tables_of(market)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        makers: dict[str, Callable[[], Report]] = {
            "performance": lambda: performance_report(connection, market.settings),
            "audit": lambda: audit_report(connection, tables, market.settings),
            "capacity": lambda: capacity_report(connection, tables, market.settings),
            "quality": lambda: quality_report(connection, market.settings),
        }
        return makers[name]()


ALL = pytest.mark.parametrize("name", ["performance", "audit", "capacity", "quality"])


@pytest.fixture
def history(market: Market) -> Market:
    """Some of everything; every text that people write is an attack."""
    now = datetime.now(UTC)
    market.list_symbols(("A", "X"), (EVIL, EVIL))
    market.add(
        [Bar(1, "A", asset_class="X"), Bar(2, EVIL), Bar(3, f"gone {EVIL}", asset_class=EVIL)]
    )
    for day in range(8, 0, -1):
        add_measurement(market, now - timedelta(days=day), total_records=100 - day)
    evil: dict[str, Any] = {"by": EVIL, "reason": EVIL, "ticket": EVIL, "waits": {EVIL: 5.0}}
    add_operations(
        market,
        Seed("one", now - timedelta(days=2), changes=((EVIL, None, EVIL, 5),), **evil),
        Seed("two", now - timedelta(days=1), status="failed", error=EVIL, failed=2, **evil),
    )
    add_alert(market, now - timedelta(days=1), "RUN_FAILED", acknowledged=5)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        measured = report_of(market)
        remember_quality(connection, market.settings, measured, source="quality_report", by=EVIL)
    return market


@ALL
def test_structure(
    history: Market, name: str, snapshot: SnapshotAssertion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "free_disk", lambda *_: Free(data=10**12, wal=None))
    assert Structure(page(make(history, name), history.settings)).lines == snapshot


@ALL
def test_text_stays_text(history: Market, name: str) -> None:
    written = page(make(history, name), history.settings)
    found = Structure(written)
    assert not found.tags & {"script", "img", "iframe", "object", "link"}
    assert not [key for key, _ in found.attributes if key.startswith("on")]
    if name != "capacity":
        assert EVIL in found.text


@ALL
def test_nothing_is_loaded_from_elsewhere(history: Market, name: str) -> None:
    written = page(make(history, name), history.settings)
    for key, value in Structure(written).attributes:
        if key in {"src", "href", "xlink:href", "action", "data", "srcset"}:
            assert str(value).startswith("#"), (key, value)
    assert "url(http" not in written
    assert "@import" not in written
    # What looks like an address is only the name of SVG's vocabulary.
    assert "http" not in written.replace("http://www.w3.org/", "")


@ALL
def test_of_an_empty_history_there_is_a_page_too(market: Market, name: str) -> None:
    report = make(market, name)
    found = Structure(page(report, market.settings))
    assert "None" not in found.text
    assert "nan" not in found.text.split()
    assert name_of(report) == name
    assert all(isinstance(number, int | float) for number in key_numbers(report).values())
    assert all(isinstance(said, str) for said in remarks(report))


def test_plots_take_the_pages_colours(history: Market) -> None:
    written = page(make(history, "audit"), history.settings)
    assert written.count("<svg") == 5
    assert "var(--line-1)" in written
    assert "#0a0101" not in written
    assert "<metadata" not in written


def with_directory(market: Market, directory: Path) -> Any:
    return market.settings.model_copy(update={"reports_directory": directory})


def test_each_day_of_a_long_period_has_a_bar_of_its_own_and_some_have_a_name() -> None:
    # The same day of two years, say.
    names = [f"{number % 300}" for number in range(600)]
    drawn = bar_plot(names, [("rows", [1.0] * 600)], unit="rows a day")
    bars = re.findall(r'<path d="M ([\d.]+) [\d.]+ *\n', drawn)
    assert len(set(bars)) >= 600
    # Beside them are only the title and the few numbers of the axis.
    assert drawn.count("<text") <= 24


def test_days_of_several_years_are_told_apart(history: Market) -> None:
    with connect(history.dsn, history.settings, purpose="test") as connection:
        report = performance_report(
            connection, history.settings, since=datetime(2024, 1, 1, tzinfo=UTC)
        )
    assert ">2024-01-01<" in page(report, history.settings)


def test_files_stand_side_by_side_and_none_is_overwritten(history: Market, tmp_path: Path) -> None:
    settings = with_directory(history, tmp_path / "reports")
    report = make(history, "performance")
    first, second = store(report, settings), store(report, settings)
    stem = f"performance-{report.generated_at:%Y%m%d-%H%M%S}"
    assert (first.html.name, first.data.name) == (f"{stem}.html", f"{stem}.json")
    assert (second.html.name, second.data.name) == (f"{stem}-2.html", f"{stem}-2.json")
    assert first.data.read_text() == json_of(report)
    first.data.unlink()
    assert store(report, settings).html.name == f"{stem}-3.html"
    own = tmp_path / "mine.html"
    write_page(report, settings, own)
    with pytest.raises(ReportFileError, match="nothing is overwritten"):
        write_page(report, settings, own)
    own.write_text("a file")
    with pytest.raises(ReportFileError, match="ASSETCLASS_REPORTS_DIRECTORY"):
        store(report, with_directory(history, own))
