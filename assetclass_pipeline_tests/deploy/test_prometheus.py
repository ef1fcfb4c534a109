"""Prometheus and Grafana: what is deployed for them works with a real server and real numbers."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.analysis import remember_quality
from assetclass_pipeline.errors import CorrectionFailedError
from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.monitoring.exposition import daemon_ages, tick_ages
from assetclass_pipeline.monitoring.metrics import collect, exposition
from assetclass_pipeline_tests.engine.runs import broken_after, correct_now, report_of, undo_now
from assetclass_pipeline_tests.market import Market, open_market
from assetclass_pipeline_tests.ports import free_port
from assetclass_pipeline_tests.prometheus import (
    Programs,
    Prometheus,
    running_prometheus,
)
from deploy.grafana import dashboard

ROOT = Path(__file__).parents[2]
DEPLOYED = ROOT / "deploy" / "prometheus"
TOKEN = "a-token-of-the-test"


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """The deployed files with a token beside them, in a directory of the test's own."""
    directory = tmp_path / "configuration"
    shutil.copytree(DEPLOYED, directory)
    (directory / "assetclass.token").write_text(f"{TOKEN}\n", encoding="utf-8")
    return directory


@pytest.fixture
def market(database_url: str) -> Iterator[Market]:
    with open_market(database_url) as made:
        yield made


def rules() -> list[dict[str, dict[str, str]]]:
    groups = yaml.safe_load((DEPLOYED / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


class TestChecks:
    def test_configuration_and_rules(
        self, prometheus_programs: Programs, configuration: Path
    ) -> None:
        said = prometheus_programs.check(
            "check", "config", "prometheus.yml", directory=configuration
        )
        assert "rules found" in said
        prometheus_programs.check("check", "rules", "alerts.yml", directory=configuration)

    def test_every_rule_fires_and_keeps_still(
        self, prometheus_programs: Programs, configuration: Path
    ) -> None:
        prometheus_programs.check("test", "rules", "alerts_test.yml", directory=configuration)
        tested = (configuration / "alerts_test.yml").read_text(encoding="utf-8")
        for rule in rules():
            assert f'alertname="{rule["alert"]}"' in tested, "it is never seen firing"

    def test_a_real_exposition_has_no_fault(
        self, prometheus_programs: Programs, market: Market, tmp_path: Path
    ) -> None:
        market.fill(20)
        correct_now(market)
        with connect(market.dsn, market.settings, purpose="test") as connection:
            found = collect(connection, market.settings)
        extra = [daemon_ages({"SENSOR": 1}), tick_ages({"alerts": 1})]
        text = exposition(found, extra).decode()
        said = prometheus_programs.check("check", "metrics", directory=tmp_path, text=text)
        assert said == "", "promtool has no remark"

    def test_the_guides_alerts_have_their_severity_and_page(self) -> None:
        by_name = {str(rule["alert"]): rule for rule in rules()}
        for kind in list(AlertType)[:8]:
            rule = by_name[kind.value]
            assert rule["labels"]["severity"] == kind.severity
            assert rule["annotations"]["runbook"] == f"docs/runbooks/{kind.runbook}"
        pages = {f"docs/runbooks/{kind.runbook}" for kind in AlertType}
        for rule in rules():
            assert rule["annotations"]["runbook"] in pages
            assert (ROOT / rule["annotations"]["runbook"]).exists()
            assert rule["labels"]["severity"] in {"high", "medium", "low"}
            assert rule["annotations"]["summary"]

    def test_only_metrics_that_there_are(self, market: Market) -> None:
        """A misspelt name in a rule or a panel would keep still for ever."""
        report = report_of(market.fill(20))
        with connect(market.dsn, market.settings, purpose="test") as connection:
            remember_quality(connection, market.settings, report, source="test")
            correct_now(market)
            found = collect(connection, market.settings)
        text = exposition(found, [daemon_ages({"x": 1}), tick_ages({"x": 1})]).decode()
        known = set(re.findall(r"^(assetclass_\w+)", text, re.MULTILINE))
        used = "\n".join([(DEPLOYED / "alerts.yml").read_text(encoding="utf-8"), dashboard.build()])
        used = re.sub(r"^\s*#.*$", "", used, flags=re.MULTILINE)
        assert set(re.findall(r"assetclass_\w+", used)) <= known


class TestDashboard:
    def test_the_committed_file_is_what_it_builds(self) -> None:
        assert dashboard.FILE.read_text(encoding="utf-8") == dashboard.build(), (
            "python -m deploy.grafana.dashboard"
        )

    def test_it_asks_the_guides_questions_as_the_guide_writes_them(self) -> None:
        asked = {query for panel in panels() for query in queries(panel)}
        guide = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
        assert asked >= set(dashboard.GUIDE.values())
        assert dashboard.GUIDE == {
            "Operations per day": "increase(assetclass_operations_started_total[24h])",
            "Success rate": (
                "rate(assetclass_operations_completed_total[5m])"
                " / rate(assetclass_operations_started_total[5m]) * 100"
            ),
            "Average duration": (
                "rate(assetclass_operation_duration_seconds_sum[5m])"
                " / rate(assetclass_operation_duration_seconds_count[5m])"
            ),
            "Data quality score": "assetclass_data_quality_score",
        }
        assert all(query in guide for query in dashboard.GUIDE.values())

    def test_each_panel_explains_itself(self) -> None:
        pages = {kind.runbook for kind in AlertType}
        for panel in panels():
            assert panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            for link in panel.get("links", []):
                assert link["url"].removeprefix("${runbooks}/") in pages
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
        assert len(places) == len(set(places)), "none covers another"
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels())

    def test_provisioning_files_can_be_read(self) -> None:
        for file in (ROOT / "deploy" / "grafana" / "provisioning").rglob("*.yml"):
            assert yaml.safe_load(file.read_text(encoding="utf-8"))["apiVersion"] == 1


def panels() -> list[dict[str, Any]]:
    built = json.loads(dashboard.build())
    return [panel for panel in built["panels"] if panel["type"] != "row"]


def queries(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


@contextmanager
def exporter(market: Market, port: int) -> Iterator[None]:
    """A process of its own that serves the metrics."""
    process = subprocess.Popen(
        [sys.executable, "-m", "assetclass_pipeline_tests.deploy.serve_metrics", str(port), TOKEN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{market.dsn}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{port}\n"
            yield
        finally:
            process.kill()


def often(configuration: Path, port: int) -> Path:
    """The deployed configuration, scraping that port every two seconds."""
    file = configuration / "prometheus.yml"
    text = file.read_text(encoding="utf-8")
    assert text.count("_interval: 30s") == 2
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    file.write_text(text.replace("_interval: 30s", "_interval: 2s"), encoding="utf-8")
    return file


def scraped_again(server: Prometheus) -> None:
    """Return when Prometheus knows what is in the database now."""
    now = server.number("vector(time())")
    server.until(lambda at: bool(at.ask(f"assetclass_collected_timestamp_seconds > {now}")))


def counters(server: Prometheus) -> dict[str, str]:
    found = server.ask('{__name__=~"assetclass_.*(_total|_count|_sum|_bucket)"}')
    assert found
    return {json.dumps(each["metric"], sort_keys=True): each["value"][1] for each in found}


def work(market: Market) -> IntegrityReport:
    """Two corrections, a failed one, a rollback, a dry run; then rows go wrong and are measured."""
    undo_now(market, correct_now(market))
    with broken_after(market, 2), pytest.raises(CorrectionFailedError):
        correct_now(market, workers=1)
    correct_now(market)
    correct_now(market, dry_run=True)
    market.execute("UPDATE market_data SET asset_class = 'WRONG' WHERE id <= 30")
    report = report_of(market)
    with connect(market.dsn, market.settings, purpose="test") as connection:
        remember_quality(connection, market.settings, report, source="test")
    return report


@pytest.mark.timeout(240)
def test_dashboards_tell_the_truth(
    prometheus_programs: Programs,
    configuration: Path,
    market: Market,
    tmp_path: Path,
) -> None:
    market.fill(200)
    port = free_port()
    file = often(configuration, port)
    with running_prometheus(prometheus_programs, file, tmp_path) as server:
        with exporter(market, port):
            server.until(lambda at: bool(at.ask("assetclass_operations_started_total == 0")))
            report = work(market)
            scraped_again(server)
            before = counters(server)

        with exporter(market, port):
            scraped_again(server)
            assert counters(server) == before, "another process tells the same"
            for name in {json.loads(labels)["__name__"] for labels in before}:
                assert server.number(f"sum(resets({name}[1h]))") == 0, name

            started, completed, mean = market.rows(
                "SELECT count(*), count(*) FILTER (WHERE status = 'succeeded'),"
                " avg(extract(epoch FROM finished_at - started_at)::float8)"
                "     FILTER (WHERE status = 'succeeded')"
                " FROM assetclass.operation WHERE NOT dry_run"
            )[0]
            assert (started, completed) == (4, 3)
            guide = dashboard.GUIDE
            # increase() extrapolates by about half an interval at each end; a day has thousands.
            samples = "count_over_time(assetclass_operations_started_total[1h])"
            server.until(lambda at: bool(at.ask(f"{samples} > 7 and assetclass_data_records")))
            # Counted first: each sample that comes meanwhile makes the excess smaller.
            counted = server.number(samples)
            day = server.number(guide["Operations per day"])
            assert started <= day <= started * (1 + 1.2 / (counted - 1))
            success = server.number(guide["Success rate"])
            assert success == pytest.approx(100 * completed / started)
            assert server.number(guide["Average duration"]) == pytest.approx(mean, abs=0.001)
            assert server.number(guide["Data quality score"]) == report.quality_score == 85

            unanswered = [
                (panel["title"], query)
                for panel in panels()
                for query in queries(panel)
                if not server.ask(query.replace("$__rate_interval", "1m"))
            ]
            assert unanswered == []

            firing = {each["metric"]["alertname"] for each in server.ask("ALERTS")}
            assert {"LOW_DATA_QUALITY", "OPERATION_FAILED"} <= firing
            assert "METRICS_ABSENT" not in firing
