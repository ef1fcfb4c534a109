"""The operators' guide over HTTP, with everything real: API, daemon, code server, database.

The requests are the guide's (guide.py): method, path, body, with a token in place of YOUR_TOKEN.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from assetclass_pipeline.api.app import BASE_PATH
from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.acceptance.guide import EMERGENCY, GUIDE, JQ, Asked
from assetclass_pipeline_tests.api.service import Service, make_token, serving
from assetclass_pipeline_tests.cli.test_supervisor import Up, up
from assetclass_pipeline_tests.conftest import fresh_database
from assetclass_pipeline_tests.engine.runs import correct_now
from assetclass_pipeline_tests.market import Market, open_market
from assetclass_pipeline_tests.ports import free_port

ROWS = 400
PATIENCE = 120.0

pytestmark = pytest.mark.dagster_services


@dataclass(frozen=True)
class Stage:
    """A market, the API over it, and Dagster's services beside it."""

    market: Market
    service: Service
    """Callers on this machine need no token."""
    closed: Service
    """Everybody needs one."""
    client: httpx.Client
    token: str
    asked_before: str
    running: Up

    def ask(self, asked: Asked, body: str | None) -> httpx.Response:
        """A request of the guide: with a token by the API that wants one, else by the other."""
        service, token = (self.closed, self.token) if asked.has_token else (self.service, None)
        return service.ask(asked.method, asked.call, token, headers=asked.headers, content=body)

    def status(self, correction_id: str) -> dict[str, Any]:
        return dict(self.client.get(f"status/{correction_id}").json()["data"])

    def wait_for(
        self, correction_id: str, happened: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            found = self.status(correction_id)
            if happened(found):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.2)

    def ended(self, correction_id: str) -> dict[str, Any]:
        return self.wait_for(correction_id, lambda found: found["finishedAt"] is not None)

    def tags(self, run_id: str) -> dict[str, str]:
        asked = "query($id: ID!) { runOrError(runId: $id) { ... on Run { tags { key value } } } }"
        found = self.running.ask(asked, id=run_id)["runOrError"]["tags"]
        return {tag["key"]: tag["value"] for tag in found}

    def restore(self) -> None:
        """Every row missing again, as before any correction; nothing is at work."""
        self.ended(self.asked_before)
        self.market.execute("UPDATE {} SET asset_class = NULL", self.market.market_identifier)


@pytest.fixture(scope="module")
def stage(
    postgres_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch, fresh_database(postgres_server) as dsn:
        patch.setenv("ASSETCLASS_FIRST_MONTH", "2023-01-01")
        settings = load_settings(
            home=tmp_path_factory.mktemp("home"),
            webserver_port=free_port(),
            api_port=free_port(),
            database_url=dsn,
            dagster_database=f"{dsn.rpartition('/')[2]}_dagster",
        )
        with open_market(dsn) as market:
            market.fill(ROWS)
            token = make_token(dsn, Role.ADMIN)
            same = {
                "home": settings.home,
                "dagster_database": settings.dagster_database,
                # A busy machine is slow, and not ill.
                "health": {"timeout": 30},
            }
            with (
                serving(dsn, api_anonymous_role=Role.ADMIN, **same) as service,
                serving(dsn, api={"fallback": False}, **same) as closed,
                service.client(token) as client,
            ):
                # Nobody is there yet to launch it.
                asked = client.post("execute", json={"dryRun": True}).json()["data"]
                with up(settings, "assetclass_pipeline.definitions") as running:
                    running.wait_for("Ready")
                    yield Stage(
                        market, service, closed, client, token, asked["correctionId"], running
                    )


def test_what_was_asked_for_before_the_daemon_ran_is_launched_once(stage: Stage) -> None:
    found = stage.ended(stage.asked_before)
    assert (found["status"], found["recordsPlanned"]) == ("succeeded", ROWS)
    assert stage.market.value("SELECT count(*) FROM assetclass.operation") == 1
    assert stage.tags(found["runId"])["assetclass/correlation_id"] == found["correlationId"]
    runs = 'runsOrError(filter: {pipelineName: "correction_job"})'
    asked = f"{{ {runs} {{ ... on Runs {{ results {{ runId }} }} }} }}"
    assert len(stage.running.ask(asked)["runsOrError"]["results"]) == 1


def test_the_daily_procedure(
    stage: Stage, record_testsuite_property: Callable[[str, object], None]
) -> None:
    stage.restore()
    assert stage.client.get("analyze").json()["data"]["correctable"] == ROWS
    previewed = stage.client.post("preview", content='{"batchSize": 1000, "dryRun": false}')
    assert previewed.json()["data"]["records"] == ROWS
    began = time.monotonic()
    executed = stage.client.post(
        "execute", content='{"batchSize": 1000, "createBackup": true}'
    ).json()["data"]
    stage.wait_for(executed["correctionId"], lambda found: found["recordsCorrected"] > 0)
    record_testsuite_property("seconds to the first batch", round(time.monotonic() - began, 1))
    found = stage.ended(executed["correctionId"])
    assert (found["status"], found["recordsCorrected"]) == ("succeeded", ROWS)
    assert found["requestedBy"] == "token admin"
    assert stage.client.get("analyze").json()["data"]["correctable"] == 0
    assert stage.client.post("validate").json()["data"]["passed"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_emergency_rollback_by_curl_and_jq(stage: Stage, tmp_path: Path) -> None:
    programs = os.environ["PATH"]
    if shutil.which("jq") is None:
        (tmp_path / "jq").write_text(JQ)
        (tmp_path / "jq").chmod(0o700)
        programs = f"{tmp_path}{os.pathsep}{programs}"
    done = subprocess.run(
        ["/bin/bash", "-c", EMERGENCY],
        env={
            "HOST": stage.service.url,
            "PATH": programs,
            "PYTHON": sys.executable,
            "no_proxy": "*",
        },
        capture_output=True,
        check=True,
        text=True,
    )
    answer = httpx.Response(202, text=done.stdout).json()
    assert answer["success"], answer
    found = stage.ended(answer["data"]["correctionId"])
    assert (found["status"], found["recordsRestored"]) == ("succeeded", ROWS)
    assert set(stage.market.classes().values()) == {None}


@pytest.mark.parametrize("asked", GUIDE, ids=str)
def test_each_request_of_the_guide_runs_as_written(stage: Stage, asked: Asked) -> None:
    stage.restore()
    body = asked.body
    if asked.call == "rollback":
        as_it_stands = stage.ask(asked, body)
        assert (as_it_stands.status_code, as_it_stands.json()["errorCode"]) == (
            404,
            "OPERATION_NOT_FOUND",
        )
        body = asked.naming(correct_now(stage.market).correction_id)
    response = stage.ask(asked, body)
    expected = 202 if asked.call in {"execute", "rollback"} else 200
    assert response.status_code == expected, response.text
    answer = response.json()
    assert (answer["success"], answer["errorCode"]) == (True, None)
    if expected == 202:
        found = stage.ended(answer["data"]["correctionId"])
        written = found["recordsRestored" if asked.call == "rollback" else "recordsCorrected"]
        assert (found["status"], written) == ("succeeded", ROWS)


@pytest.mark.parametrize("asked", [asked for asked in GUIDE if not asked.has_token], ids=str)
def test_a_request_without_a_token_runs_only_where_the_settings_say_so(
    stage: Stage, asked: Asked
) -> None:
    response = stage.closed.ask(asked.method, asked.call, headers=asked.headers, content=asked.body)
    assert (response.status_code, response.json()["errorCode"]) == (401, "UNAUTHORIZED")


def test_health_and_analyze_tell_what_the_guide_looks_for(stage: Stage) -> None:
    assert stage.client.get("health").json()["data"]["isHealthy"] is True
    report = stage.client.get("analyze").json()["data"]
    assert {"completeness", "integrity", "orphanedPercent"} <= set(report)


@pytest.fixture
def slow_batches(stage: Stage) -> Iterator[Callable[[], None]]:
    """No operation ends before all is asked of it, however long that takes; a call lets it run."""
    stage.restore()
    stage.market.execute(
        "CREATE FUNCTION rest() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$"
    )
    stage.market.execute(
        "CREATE TRIGGER rest AFTER UPDATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION rest()",
        stage.market.market_identifier,
    )

    def let_it_run() -> None:
        stage.market.execute("DROP FUNCTION IF EXISTS rest CASCADE")

    yield let_it_run
    let_it_run()


def test_pause_resume_cancel_and_resume_of_a_real_run(
    stage: Stage, slow_batches: Callable[[], None]
) -> None:
    asked = stage.client.post("execute", json={"batchSize": 1, "pace": "gentle"}).json()
    correction_id = asked["data"]["correctionId"]
    stage.wait_for(correction_id, lambda found: found["recordsCorrected"] > 0)
    assert stage.client.post("pause").status_code == 202
    stage.wait_for(correction_id, lambda found: found["status"] == "paused")
    assert stage.client.post("execute", json={}).json()["data"] == {"correctionId": correction_id}
    assert stage.client.post("resume").status_code == 202
    stage.wait_for(correction_id, lambda found: found["status"] == "running")
    assert stage.client.post("cancel").status_code == 202
    cancelled = stage.ended(correction_id)
    assert cancelled["status"] == "cancelled"
    assert 0 < cancelled["recordsCorrected"] < ROWS
    slow_batches()
    again = stage.client.post("resume", json={"correctionId": correction_id})
    assert (again.status_code, again.json()["data"]["status"]) == (202, "requested")
    finished = stage.ended(correction_id)
    assert (finished["status"], finished["recordsCorrected"]) == ("succeeded", ROWS)
    assert finished["runId"] != cancelled["runId"]
    assert BASE_PATH in again.headers["Location"]
