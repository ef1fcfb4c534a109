"""The API keeps what its OpenAPI document promises, whoever sends whatever: schemathesis.

Per role and call, cases that fit the document, that do not, and that name something which is
there. Quick by default; `--schema-cases full`, as `make conformance` says, sends more than 5,000.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.generation.case import Case
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from assetclass_pipeline.api import waiting
from assetclass_pipeline.api.access import LEAST_ROLES
from assetclass_pipeline.api.app import BASE_PATH, describe
from assetclass_pipeline.api.envelope import JSON
from assetclass_pipeline.database.connections import connect, transaction
from assetclass_pipeline.model.alert import AlertType, Finding
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.monitoring.alert_store import judge
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.api.case_count import hand_in, most_cases
from assetclass_pipeline_tests.api.service import Service, serving
from assetclass_pipeline_tests.engine.runs import correct_now, undo_now
from assetclass_pipeline_tests.market import Market

ROWS = 60
CALLS = (
    *(f"{call.replace(' ', f' {BASE_PATH}/', 1)}" for call in LEAST_ROLES),
    f"GET {BASE_PATH}/health",
    "GET /metrics",
)
CALLERS: tuple[Role | None, ...] = (None, *Role)
"""None: without a token."""

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]

_TAKES_ID = {"rollback", "pause", "resume", "cancel"}
_REFUSALS = [str(status) for status in (400, 401, 403, 404, 405, 409, 413, 415, 429, 431)]
_BEYOND_A_SCHEMA = (
    "cursor: use nextCursor",
    "onlyProcessNullAssetClass and overwriteExistingValues contradict",
    "timeout must be from",
    "A text in the body holds NUL",
    "id ",
    "timestamp ",
)
"""What else is refused, of values that fit the document."""


@dataclass
class Stage:
    """A running API, the document that it serves, what is there, and what was answered so far."""

    service: Service
    schema: BaseSchema
    tokens: dict[Role, str]
    there: dict[str, Any]
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)

    def cases(self, call: str) -> st.SearchStrategy[Case[Any]]:
        """Requests that fit the document, that do not, and that name what is there."""
        method, _, path = call.partition(" ")
        operation = self.schema[path][method]
        kinds = [
            operation.as_strategy(GenerationMode.POSITIVE),
            operation.as_strategy(GenerationMode.NEGATIVE),
        ]
        named = {name: value for name, value in self.there.items() if f"{{{name}}}" in path}
        if named:
            kinds.append(operation.as_strategy(path_parameters=named))
        if path.rpartition("/")[2] in _TAKES_ID:
            body = {"correctionId": self.there["correction_id"]}
            kinds.append(operation.as_strategy(body=body, media_type=JSON))
        return st.one_of(kinds)

    def send(self, session: requests.Session, call: str, case: Case[Any]) -> None:
        """Send the case and check the answer against the document.

        No run ever takes up what is asked for, so before every other case it is cancelled: calls
        meet an active operation, and none.
        """
        if self.answered.total() % 2:
            self.service.ask("POST", "cancel", self.tokens[Role.ADMIN])
        response = case.call(self.service.url, session, timeout=30)
        case.validate_response(response, checks=_CHECKS)
        assert case.meta is not None
        if response.status_code == 400 and case.meta.generation.mode.is_positive:
            assert response.json()["message"].startswith(_BEYOND_A_SCHEMA)
        # Nothing is missing here that would make any other call unavailable.
        assert response.status_code < 500 or call.endswith("/health")
        self.answered[call, response.status_code] += 1


@pytest.fixture(scope="module")
def stage(market: Market, tokens: dict[Role, str]) -> Iterator[Stage]:
    """A little of everything: corrections, one of them undone, an alert, rows with a history."""
    market.fill(ROWS)
    undo_now(market, correct_now(market))
    correction_id = correct_now(market).correction_id
    with (
        connect(market.dsn, market.settings, purpose="test") as connection,
        transaction(connection, market.settings) as cursor,
    ):
        finding = Finding("low", AlertType.LOW_DATA_QUALITY, True, "quality is low")
        [alert] = judge(cursor, market.settings, [finding])
    there = {"correction_id": correction_id, "row_id": "7", "alert_id": alert.id}
    # Tokens are what schemathesis makes up, and they are many.
    api = {"failed_logins_per_minute": 1_000_000, "fallback": False, "status_age": 0}
    with pytest.MonkeyPatch.context() as patch, serving(market.dsn, api=api) as service:
        # Nobody does what is asked for: waiting for it would last.
        patch.setattr(waiting, "LONGEST_WAIT", 0)
        schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json", config=_config())
        yield Stage(service, schema, tokens, there)


def _config() -> schemathesis.Config:
    return schemathesis.Config.from_dict(
        {
            "generation": {"with-security-parameters": False},
            "checks": {
                "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "503"]},
                "negative_data_rejection": {"expected-statuses": _REFUSALS},
            },
        }
    )


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("call", CALLS)
def test_every_answer_is_one_that_the_document_promises(
    stage: Stage, caller: Role | None, call: str, request: pytest.FixtureRequest
) -> None:
    before = stage.answered.total()
    headers = {} if caller is None else {"Authorization": f"Bearer {stage.tokens[caller]}"}
    with requests.Session() as session:
        session.trust_env = False
        session.headers.update(headers)

        @settings(
            max_examples=most_cases(request.config),
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        @given(case=stage.cases(call))
        def send(case: Case[Any]) -> None:
            stage.send(session, call, case)

        send()
    hand_in(request.node, stage.answered.total() - before)


def test_every_call_of_the_document_is_sent() -> None:
    found = {
        f"{method.upper()} {path}"
        for path, methods in describe(load_settings())["paths"].items()
        for method in methods
    }
    assert found == set(CALLS)
