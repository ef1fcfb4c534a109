"""Health, metrics, alerts and a row's history, over HTTP."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.model.alert import AlertType, Finding
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.monitoring.alert_store import judge
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.api.service import Service, audit_entries, serving
from assetclass_pipeline_tests.market import Bar, Market

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
)


@pytest.fixture(scope="module")
def alert_id(market: Market) -> int:
    settings = load_settings()
    finding = Finding("orphaned rows", AlertType.HIGH_ORPHANED_RECORDS, True, "12 % are orphaned")
    with (
        connect(market.dsn, settings, purpose="test") as connection,
        transaction(connection, settings) as cursor,
    ):
        [alert] = judge(cursor, settings, [finding])
    return alert.id


@pytest.fixture(scope="module")
def public(market: Market) -> Iterator[Service]:
    with serving(market.dsn, api={"metrics_public": True}) as running:
        yield running


def test_health_tells_strangers_only_up_or_down(service: Service, tokens: dict[Role, str]) -> None:
    said = service.ask("GET", "health")
    # No daemon of Dagster's runs here.
    assert said.status_code == 503
    document = said.json()
    assert document["errorCode"] == "SERVICE_UNHEALTHY"
    assert document["data"].keys() == {"isHealthy", "checkedAt", "components"}
    assert (document["data"]["isHealthy"], document["data"]["components"]) == (False, None)
    assert "daemon" not in said.text
    assert said.headers["Retry-After"] == "5"

    shown = service.ask("GET", "health", tokens[Role.VIEWER]).json()
    components = shown["data"]["components"]
    assert components["database"]["isHealthy"] is True
    assert components["database"].keys() == {"isHealthy", "message", "latencyMs"}
    assert components["daemon"]["isHealthy"] is False
    assert "daemon" in shown["message"]


def test_health_refuses_a_wrong_token(service: Service) -> None:
    assert service.ask("GET", "health", "act_wrong").status_code == 401


def test_metrics_are_json_unless_prometheus_asks(service: Service, tokens: dict[Role, str]) -> None:
    viewer = tokens[Role.VIEWER]
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json, text/plain"}):
        data = service.ask("GET", "metrics", viewer, headers=headers).json()["data"]
        assert data["operations"]["started"] == 0
        assert {"keyMetrics", "windows", "trend"} <= data.keys()
    for query, headers in (("", {"Accept": PROMETHEUS}), ("?format=prometheus", {})):
        said = service.ask("GET", f"metrics{query}", viewer, headers=headers)
        assert said.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        names = {family.name for family in text_string_to_metric_families(said.text)}
        assert {"assetclass_operations_started", "assetclass_data_quality_score"} & names
    as_json = service.ask("GET", "metrics?format=json", viewer, headers={"Accept": PROMETHEUS})
    assert as_json.json()["success"] is True
    assert service.ask("GET", "metrics?format=xml", viewer).status_code == 400


def test_prometheus_needs_a_token_unless_the_settings_say_otherwise(
    service: Service, public: Service, tokens: dict[Role, str]
) -> None:
    assert service.ask("GET", "/metrics").status_code == 401
    said = service.ask("GET", "/metrics", tokens[Role.VIEWER])
    assert "assetclass_operations_started_total 0.0" in said.text
    assert public.ask("GET", "/metrics").text.splitlines()[0] == said.text.splitlines()[0]
    # The setting is about that page alone.
    assert public.ask("GET", "metrics").status_code == 401


def test_alerts_are_listed_and_taken_on_by_who_calls(
    service: Service, tokens: dict[Role, str], alert_id: int, market: Market
) -> None:
    def listed() -> Any:
        return service.ask("GET", "alerts", tokens[Role.VIEWER]).json()["data"]["alerts"]

    [alert] = listed()
    assert (alert["id"], alert["alertType"], alert["status"]) == (
        alert_id,
        "HIGH_ORPHANED_RECORDS",
        "open",
    )
    said = service.ask(
        "POST",
        f"alerts/{alert_id}/acknowledge",
        tokens[Role.OPERATOR],
        content='{"note": "I look into it."}',
        headers={"X-Correlation-ID": "ticket-7"},
    )
    assert said.status_code == 200
    assert said.json()["data"]["acknowledgedBy"] == "token operator"
    [alert] = listed()
    assert (alert["status"], alert["acknowledgedBy"]) == ("acknowledged", "token operator")
    [entry] = audit_entries(market.dsn, "acknowledge_alert")
    assert (entry["actor"], entry["outcome"]) == ("operator", "done")
    assert (entry["origin"], entry["correlation_id"]) == ("127.0.0.1", "ticket-7")
    assert entry["parameters"]["note"] == "I look into it."

    again = service.ask("POST", f"alerts/{alert_id}/acknowledge", tokens[Role.OPERATOR])
    assert (again.status_code, again.json()["errorCode"]) == (409, "ALERT_STATE_CONFLICT")


@pytest.mark.parametrize(
    ("wrong", "status"),
    [("999999", 404), ("0", 400), ("-1", 400), ("one", 400), (str(2**63), 400), ("1;DROP", 400)],
)
def test_an_alert_that_is_none(
    service: Service, tokens: dict[Role, str], wrong: str, status: int
) -> None:
    said = service.ask("POST", f"alerts/{wrong}/acknowledge", tokens[Role.ADMIN])
    assert said.status_code == status


@pytest.mark.parametrize("body", ['{"note": ""}', '{"note": 1}', '{"by": "me"}', "[]"])
def test_an_acknowledgement_that_is_none(
    service: Service, tokens: dict[Role, str], alert_id: int, body: str
) -> None:
    path = f"alerts/{alert_id}/acknowledge"
    said = service.ask("POST", path, tokens[Role.ADMIN], content=body)
    assert (said.status_code, said.json()["errorCode"]) == (400, "INVALID_OPTIONS")


def test_a_row_that_nobody_changed_has_no_history(
    service: Service, tokens: dict[Role, str], market: Market
) -> None:
    market.add([Bar(7, "AAPL", asset_class="STOCK")])
    said = service.ask("GET", "audit/rows/7", tokens[Role.VIEWER])
    assert said.status_code == 200
    assert "7" in said.text
    missing = service.ask("GET", "audit/rows/8", tokens[Role.VIEWER])
    assert (missing.status_code, missing.json()["errorCode"]) == (404, "ROW_NOT_FOUND")


@pytest.mark.parametrize(
    "text",
    [
        "' OR '1'='1",
        "1; DROP TABLE market_data; --",
        "%27%20UNION%20SELECT%20hash%20FROM%20assetclass.api_token",
        "../../../etc/passwd",
        "$(id)",
        "{{7*7}}",
        "\u202e",
        "%s %(name)s",
        "x" * 200,
    ],
)
def test_texts_are_values_and_nothing_else(
    service: Service, tokens: dict[Role, str], market: Market, text: str
) -> None:
    said = service.ask(
        "GET",
        "audit/rows/7",
        tokens[Role.VIEWER],
        params={"symbol": text, "timestamp": text},
    )
    assert said.status_code in {400, 404}
    assert "SELECT" not in said.text.replace(text, "")
    as_id = service.ask("GET", f"audit/rows/{text.replace('/', '%2F')}", tokens[Role.VIEWER])
    assert as_id.status_code in {400, 404}
    market.execute("SELECT FROM {}", market.market_identifier)
