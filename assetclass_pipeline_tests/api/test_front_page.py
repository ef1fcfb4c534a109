"""The page at /: read only, for viewers, with nothing loaded from elsewhere."""

import base64
import re
from uuid import uuid4

import httpx
import pytest

from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.engine.analysis import remember_quality
from assetclass_pipeline.engine.correction import CorrectionRequest
from assetclass_pipeline.model.alert import AlertType, Finding
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.monitoring.alert_store import judge
from assetclass_pipeline_tests.api.service import Service, serving
from assetclass_pipeline_tests.engine.runs import correct_now, plan_now, report_of
from assetclass_pipeline_tests.market import Market

FORGED = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def _fresh(market: Market) -> None:
    """No operation, no alert and no measurement yet; every row missing."""
    market.execute(
        "TRUNCATE assetclass.operation, assetclass.alert, assetclass.quality_measurement CASCADE"
    )
    market.execute("TRUNCATE {}", market.market_identifier)
    market.execute("TRUNCATE {}", market.symbols_identifier)
    market.fill(100)


def look(service: Service, token: str) -> str:
    response = service.ask("GET", "/", token)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    return response.text


def basic(user: str, password: str) -> dict[str, str]:
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {login}"}


def test_with_nothing_to_show_it_says_so(service: Service, tokens: dict[Role, str]) -> None:
    page = look(service, tokens[Role.VIEWER])
    for said in ("No operation is active", "No alert is open", "Not measured yet"):
        assert said in page


def test_it_shows_what_goes_on_what_went_before_scores_and_alerts(
    service: Service, tokens: dict[Role, str], market: Market
) -> None:
    ended = correct_now(market, max_records_to_process=40)
    asked = CorrectionRequest(
        str(uuid4()), CorrectionOptions(batch_size=10), requested_by=FORGED, reason=FORGED
    )
    plan_now(market, asked, park=False)
    market.execute("UPDATE assetclass.operation_heartbeat SET throttle = ARRAY['standby is late']")
    with connect(market.dsn, market.settings, purpose="test") as connection:
        remember_quality(connection, market.settings, report_of(market), source="test")
        found = Finding("low", AlertType.LOW_DATA_QUALITY, True, f"{FORGED} quality is low")
        with transaction(connection, market.settings) as cursor:
            judge(cursor, market.settings, [found])
    page = look(service, tokens[Role.VIEWER])
    assert ended.correction_id in page
    assert asked.correction_id in page
    assert "standby is late" in page
    assert "LOW_DATA_QUALITY" in page
    assert "40.00 %" in page
    assert "not met: &gt;= 95 %" in page
    assert "<progress" in page
    assert FORGED not in page
    assert page.count("&lt;script&gt;") >= 3


def test_it_loads_nothing_and_refreshes_itself(service: Service, tokens: dict[Role, str]) -> None:
    page = look(service, tokens[Role.VIEWER])
    assert re.search(r'<meta http-equiv="refresh" content="\d+">', page)
    assert not re.search(r"<script|<link|<img|src=|href=|@import|url\(|https?://", page)


def test_a_browser_is_asked_for_a_token_as_the_password(
    service: Service, tokens: dict[Role, str]
) -> None:
    refused = service.ask("GET", "/")
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    assert "token as the password" in refused.text
    known = basic("anybody", tokens[Role.VIEWER])
    assert service.ask("GET", "/", headers=known).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        basic("anybody", "wrong"),
        basic("anybody", ""),
        {"Authorization": "Basic %%%"},
        {"Authorization": "Basic"},
        {"Authorization": "Bearer wrong"},
    ],
    ids=str,
)
def test_without_a_valid_token_nothing_is_shown(service: Service, headers: dict[str, str]) -> None:
    response = service.ask("GET", "/", headers=headers)
    assert response.status_code == 401
    assert "Recent operations" not in response.text


@pytest.mark.parametrize(("method", "path"), [("GET", "status"), ("POST", "execute")])
def test_only_the_page_takes_a_password(
    service: Service, tokens: dict[Role, str], market: Market, method: str, path: str
) -> None:
    """A browser sends one along with requests that other pages make."""
    response = service.ask(method, path, headers=basic("anybody", tokens[Role.ADMIN]))
    assert response.status_code == 401
    assert market.value("SELECT count(*) FROM assetclass.operation") == 0


def test_on_this_machine_it_is_open_where_the_settings_say_so(market: Market) -> None:
    with serving(market.dsn, api_anonymous_role=Role.VIEWER) as open_one:
        assert httpx.get(open_one.url, trust_env=False).status_code == 200


def test_while_the_database_is_away_it_says_so_and_comes_back_by_itself() -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    quiet = {"fallback": False}
    with serving(nowhere, api=quiet, api_anonymous_role=Role.VIEWER) as service:
        refused = httpx.get(service.url, trust_env=False)
    assert refused.status_code == 503
    assert refused.headers["Content-Type"].startswith("text/html")
    assert "PostgreSQL cannot be reached" in refused.text
    assert '<meta http-equiv="refresh" content="5">' in refused.text


def test_a_missing_token_is_not_asked_for_again_and_again(service: Service) -> None:
    assert "refresh" not in service.ask("GET", "/").text
