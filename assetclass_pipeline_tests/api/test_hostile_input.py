"""Whatever text, type or token comes in: refused or kept as text, never run, never a 5xx.

The fields are those of the OpenAPI document, so that a new one is tried with all the others.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from assetclass_pipeline.api import waiting
from assetclass_pipeline.api.app import BASE_PATH, describe
from assetclass_pipeline.api.envelope import JSON
from assetclass_pipeline.model.token import Role, new_secret
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.api.service import Service, serving
from assetclass_pipeline_tests.engine.runs import correct_now
from assetclass_pipeline_tests.market import Market

ROWS = 40
TEXTS = {
    "SQL": "'; DROP TABLE market_data; --",
    "SQL that is true": "' OR '1'='1",
    "SQL that waits": "1'); SELECT pg_sleep(60); --",
    "SQL in dollars": "$$; DELETE FROM assetclass.operation; $$",
    "HTML": "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>",
    "template": "{{ 90210 * 7919 }}${90210 * 7919}{% raw %}<%= 90210 * 7919 %>",
    "shell": "$(touch /tmp/assetclass_was_here) `id` ; id | id && id",
    "path": "../../../../etc/passwd",
    "path, encoded": "..%2f..%2fetc%2fpasswd",
    "lines": "a\r\nSet-Cookie: b=c\r\n\r\nHTTP/1.1 200 OK",
    "format": "%s%n%x {0} {0.__class__.__mro__} %(message)s",
    "log": "${jndi:ldap://127.0.0.1/a}",
    "emoji": "👩‍👩‍👧‍👦🏴‍☠️",
    "right to left": "\u202eevil\u202c אבג",
    "combining": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!",
    "controls": "\x01\x07\x1b[31m\x7f\u0085\u2028",
    "not a character": "\ufffe\uffff\U0010ffff",
    "blank": " \t ",
    "long": "x" * 60_000,
}
PRODUCT = str(90210 * 7919)
"""What a template would make of it."""
TYPES: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus": -1,
    "fraction": 0.5,
    "10^30": 10**30,
    "-10^30": -(10**30),
    "2^63": 2**63,
    "text": "text",
    "number as text": "1",
    "list": [],
    "list of lists": [[["a"]]],
    "object": {},
    "object with __proto__": {"__proto__": {"a": 1}, "constructor": 1},
}
_LONGEST_HEADER = 9_000
NUMBERS = {
    "minus": "-1",
    "10^30": "1" + "0" * 30,
    "10^5000": "1" + "0" * 5000,
    "exponent": "1e3",
    "not a number": "NaN",
    "hexadecimal": "0xffff",
    "other digits": "١٢٣",
    "underscores": "6_55_35",
}
LISTS = {"targetSymbols", "partitions", "rowIds"}
CALM = {200, 202, 204, 304, 400, 404, 409, 410, 413, 431}
UNWELL = {503}
"""What `health` says here, where no daemon runs."""
PATIENCE = 20.0
"""Seconds; a statement of a sender's would sleep for longer."""


def _fields() -> list[tuple[str, str]]:
    """Every field of every body: the call's path, then the field, with dots to those within."""
    document = describe(load_settings())
    return [
        (path, name)
        for path, methods in document["paths"].items()
        if "requestBody" in methods.get("post", {})
        for name in _names(
            document, methods["post"]["requestBody"]["content"]["application/json"]["schema"]
        )
    ]


def _names(document: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for part in schema.get("anyOf", []):
        yield from _names(document, part)
    for name, field in schema.get("properties", {}).items():
        yield name
        yield from (f"{name}.{within}" for within in _names(document, field))


def _parameters(place: str) -> list[tuple[str, str]]:
    """Every parameter at this place: the call, the name."""
    return [
        (f"{method.upper()} {path}", parameter["name"])
        for path, methods in describe(load_settings())["paths"].items()
        for method, operation in methods.items()
        for parameter in operation["parameters"]
        if parameter["in"] == place
    ]


@pytest.fixture(scope="module")
def correction_id(market: Market) -> str:
    """Of a correction that can be undone; the table is complete after it."""
    market.fill(ROWS)
    return correct_now(market).correction_id


@pytest.fixture(scope="module")
def service(market: Market) -> Iterator[Service]:
    """One that does not tire of wrong tokens, and does not wait for what nobody will do."""
    api = {"failed_logins_per_minute": 1_000_000, "fallback": False, "status_age": 0}
    with pytest.MonkeyPatch.context() as patch, serving(market.dsn, api=api) as running:
        patch.setattr(waiting, "LONGEST_WAIT", 0)
        yield running


@pytest.fixture(scope="module")
def admin(service: Service, tokens: dict[Role, str]) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {tokens[Role.ADMIN]}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_was_run(market: Market, admin: httpx.Client, correction_id: str) -> Iterator[None]:
    """Whatever was sent, all tables are there, no row has changed, and nothing stays active."""
    before = market.classes()
    yield
    admin.post(f"{BASE_PATH}/cancel")
    assert market.classes() == before
    assert admin.get(f"{BASE_PATH}/status/{correction_id}").json()["data"]["status"] == "succeeded"


def body_with(path: str, name: str, value: Any, correction_id: str) -> dict[str, Any]:
    """A body that the call takes, but for this field."""
    body: dict[str, Any] = {"correctionId": correction_id} if path.endswith("/rollback") else {}
    place, _, within = name.partition(".")
    body[place] = {within: value} if within else value
    return body


def require_calm(response: httpx.Response, sent: str, *, path_is_hostile: bool = False) -> None:
    """A short answer of ours, no header of the sender's making, nothing of our inside."""
    assert response.status_code in CALM, (sent, response.text)
    assert "set-cookie" not in response.headers
    assert len(response.content) < 70_000
    for hushed in ("Traceback", "psycopg", "pydantic", "root:x:", PRODUCT):
        assert hushed not in response.text, sent
    if response.headers.get("Content-Type") == JSON:
        envelope = response.json()
        assert envelope["success"] == response.is_success
        assert (envelope["errorCode"] is None) == response.is_success
        # Else nothing was tried.
        assert path_is_hostile or envelope["errorCode"] != "NOT_FOUND"


@pytest.mark.parametrize(("path", "name"), _fields())
def test_a_hostile_text_in_a_field_is_refused_or_kept_as_text(
    admin: httpx.Client, correction_id: str, path: str, name: str
) -> None:
    for kind, text in TEXTS.items():
        for value in (text, [text]) if name in LISTS else (text,):
            began = time.monotonic()
            body = body_with(path, name, value, correction_id)
            response = admin.post(path.replace("{alert_id}", "1"), json=body)
            require_calm(response, kind)
            assert time.monotonic() - began < PATIENCE
            if response.status_code == 202:
                admin.post(f"{BASE_PATH}/cancel")


@pytest.mark.parametrize(("path", "name"), _fields())
def test_a_wrong_type_in_a_field_is_refused_by_name_or_harmless(
    admin: httpx.Client, correction_id: str, path: str, name: str
) -> None:
    for kind, value in TYPES.items():
        body = body_with(path, name, value, correction_id)
        response = admin.post(path.replace("{alert_id}", "1"), json=body)
        require_calm(response, kind)
        if response.status_code == 202:
            admin.post(f"{BASE_PATH}/cancel")
        if response.status_code == 400 and "operation" not in response.json()["message"].lower():
            assert name.partition(".")[0] in response.json()["message"], kind


@pytest.mark.parametrize("kind", [kind for kind in TEXTS if kind != "long"])
def test_what_is_kept_comes_back_as_it_was_said_and_is_only_text_on_the_page(
    service: Service, tokens: dict[Role, str], admin: httpx.Client, kind: str
) -> None:
    text = TEXTS[kind][:200]
    asked = admin.post(f"{BASE_PATH}/execute", json={"reason": text, "ticket": text})
    assert asked.status_code == 202, asked.text
    found = admin.get(asked.headers["Location"]).json()["data"]
    assert (found["reason"], found["ticket"]) == (text, text)
    page = service.ask("GET", "/", tokens[Role.ADMIN]).text
    assert "<script" not in page
    assert "<img" not in page
    assert PRODUCT not in page


@pytest.mark.parametrize(("call", "name"), _parameters("query"))
def test_a_hostile_text_in_a_query_is_refused_or_harmless(
    admin: httpx.Client, correction_id: str, call: str, name: str
) -> None:
    method, _, path = call.partition(" ")
    path = path.format(correction_id=correction_id, row_id="7", alert_id="1")
    for kind, text in {**TEXTS, **NUMBERS}.items():
        began = time.monotonic()
        require_calm(admin.request(method, path, params={name: text[:_LONGEST_HEADER]}), kind)
        assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize(("call", "name"), _parameters("path"))
def test_a_hostile_text_in_a_path_is_nothing_that_is_there(
    admin: httpx.Client, call: str, name: str
) -> None:
    method, _, path = call.partition(" ")
    for kind, text in {**TEXTS, **NUMBERS}.items():
        target = path.replace(f"{{{name}}}", quote(text[:2_000], safe=""))
        response = admin.request(method, target)
        require_calm(response, kind, path_is_hostile=True)
        assert response.status_code in {400, 404}, kind


@pytest.mark.parametrize(("call", "name"), _parameters("header"))
def test_a_hostile_text_in_a_header_is_refused_or_harmless(
    admin: httpx.Client, correction_id: str, call: str, name: str
) -> None:
    method, _, path = call.partition(" ")
    path = path.format(correction_id=correction_id, row_id="7", alert_id="1")
    for kind, text in TEXTS.items():
        # What holds a line end is no header of HTTP at all: no client sends it.
        said = as_header(text)
        response = admin.request(method, path, headers=[(name.encode(), said)])
        assert response.status_code in CALM | UNWELL, (kind, response.text)
        assert response.headers["X-Correlation-ID"].encode() != said
        if response.status_code == 202:
            admin.post(f"{BASE_PATH}/cancel")


BODIES = {
    "begins with a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "invalid UTF-8": b'{"reason": "\xc3\x28"}',
    "NUL": b'{"reason": "a\\u0000b"}',
    "bare NUL": b'{"reason": "a\x00b"}',
    "half a surrogate": b'{"reason": "\\ud83d"}',
    "a name twice": b'{"reason": "a", "reason": "b"}',
    "1e400": b'{"batchSize": 1e400}',
    "-1e400": b'{"batchSize": -1e400}',
    "10^30": b'{"batchSize": 1' + b"0" * 30 + b"}",
    "10^5000": b'{"batchSize": 1' + b"0" * 5000 + b"}",
    "NaN": b'{"batchSize": NaN}',
    "lists to depth 10,000": b'{"reason": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "objects to depth 10,000": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "open to depth 10,000": b"[" * 10_000,
    "two documents": b"{}{}",
    "a comment": b"{} // no",
    "a form": b"batchSize=1&reason=x",
    "XML": b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
}


@pytest.mark.parametrize("path", sorted({path for path, _ in _fields()}))
@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_is_no_strict_json_is_refused_by_every_call(
    admin: httpx.Client, path: str, kind: str
) -> None:
    response = admin.post(path.replace("{alert_id}", "1"), content=BODIES[kind])
    assert (response.status_code, response.json()["errorCode"]) == (400, "INVALID_OPTIONS")
    require_calm(response, kind)


def test_a_body_of_100_megabytes_is_cut_off_and_not_read(
    service: Service, admin: httpx.Client
) -> None:
    """As by a client that streams what it does not count."""
    port = int(service.url.rpartition(":")[2])
    piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    head = f"POST {BASE_PATH}/execute HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head.encode())
        with suppress(ConnectionError):
            while sent < 100_000_000:
                connection.sendall(piece)
                sent += len(piece)
        said = connection.recv(65_536)
    assert said.startswith(b"HTTP/1.1 413 ")
    assert admin.get(f"{BASE_PATH}/status").status_code == 200


def as_header(text: str, *, longest: int = _LONGEST_HEADER) -> bytes:
    """What a client can send of it: no line ends, and no blanks around it."""
    return "".join(text.splitlines()).strip().encode()[:longest]


def _other(text: str, _secret: str) -> str:
    return text


WRONG_TOKENS: dict[str, Callable[[str], str]] = {
    "nothing": lambda _: "",
    "truncated": lambda secret: secret[:-1],
    "one letter more": lambda secret: f"{secret}A",
    "its half": lambda secret: secret[: len(secret) // 2],
    "blank within": lambda secret: f"{secret[:10]} {secret[10:]}",
    "twice": lambda secret: f"{secret} {secret}",
    "quoted": lambda secret: f'"{secret}"',
    "a list": lambda secret: f"{secret},{secret}",
    "forged": lambda _: new_secret(),
    "a signature of nobody": lambda _: "eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ.",
    "15 kB": lambda _: "act_" + "A" * 15_000,
    **{kind: partial(_other, text) for kind, text in TEXTS.items() if len(text) < _LONGEST_HEADER},
}


@pytest.mark.parametrize("kind", WRONG_TOKENS)
@pytest.mark.parametrize("call", ["GET status", "POST execute", "GET /metrics", "GET /"])
def test_a_wrong_token_opens_nothing(
    service: Service, tokens: dict[Role, str], kind: str, call: str
) -> None:
    method, _, path = call.partition(" ")
    said = as_header(f"Bearer {WRONG_TOKENS[kind](tokens[Role.ADMIN])}", longest=16_000)
    header = [(b"Authorization", said)]
    response = service.ask(method, path, headers=header, content=b"")
    # Bytes that no header may hold are no HTTP.
    assert response.status_code == 401 or (kind == "controls" and response.status_code == 400)
    assert tokens[Role.ADMIN] not in response.text


def test_a_token_of_100_kilobytes_is_not_even_read(
    service: Service, tokens: dict[Role, str]
) -> None:
    secret = tokens[Role.ADMIN]
    for bearer in ("A" * 100_000, secret + "A" * 100_000):
        said = service.raw(
            f"GET {BASE_PATH}/status HTTP/1.1\r\nHost: x\r\n"
            f"Connection: close\r\nAuthorization: Bearer {bearer}\r\n\r\n".encode()
        )
        assert said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))


@pytest.mark.parametrize("blanks", [" {}", "{} ", "{}  ", "\t{}", "{}\t"])
def test_blanks_around_a_token_are_no_part_of_it(
    service: Service, tokens: dict[Role, str], blanks: str
) -> None:
    said = service.raw(
        f"GET {BASE_PATH}/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {blanks.format(tokens[Role.VIEWER])}\r\n\r\n".encode()
    )
    assert said.startswith(b"HTTP/1.1 200 ")
