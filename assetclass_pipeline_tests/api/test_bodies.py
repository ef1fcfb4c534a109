"""Bodies of requests: what is read as JSON, what is refused, and how soon."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from typing import Any

import pytest
from fastapi import APIRouter, Request, Response

from assetclass_pipeline.api.bodies import _without_repeats, read_strictly
from assetclass_pipeline.api.envelope import answer
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.api.service import LONGEST, Service, serving, wait_until
from assetclass_pipeline_tests.market import Market

echoing = APIRouter()


@echoing.post("/echo")
def echo(request: Request, options: CorrectionOptions | None = None) -> Response:
    return answer(request, options)


@pytest.fixture(scope="module")
def service(market: Market) -> Iterator[Service]:
    with serving(market.dsn, echoing) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(market: Market) -> Iterator[Service]:
    with serving(market.dsn, echoing, api={"read_timeout": 0.5}) as running:
        yield running


def refusal(service: Service, content: bytes, content_type: str | None = None) -> tuple[int, str]:
    headers = {} if content_type is None else {"Content-Type": content_type}
    said = service.ask("POST", "echo", content=content, headers=headers)
    document = said.json()
    assert document["success"] is False
    assert document["data"] is None
    assert document["correlationId"] == said.headers["X-Correlation-ID"]
    return said.status_code, f"{document['errorCode']}: {document['message']}"


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "application/JSON",
        'application/json; a=b; Charset="UTF-8"',
        "application/json; charset*=x; charset*0*=y",
        "application/x-www-form-urlencoded",
    ],
)
def test_json_is_read_whatever_curl_declares(service: Service, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    said = service.ask("POST", "echo", content=b'{"batchSize": 100}', headers=headers)
    assert said.status_code == 200
    assert said.json()["data"]["batchSize"] == 100


def test_no_body_is_no_mistake(service: Service) -> None:
    assert service.ask("POST", "echo").json()["data"] is None


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/xml",
        "multipart/form-data; boundary=x",
        "nonsense",
        "application/json; charset=utf-16",
        'application/json;charset="latin-1"',
    ],
)
def test_what_is_declared_as_something_else_is_not_read(
    service: Service, content_type: str
) -> None:
    status, said = refusal(service, b'{"batchSize": 100}', content_type)
    assert status == 415
    assert said.startswith("UNSUPPORTED_MEDIA_TYPE: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"\xff\xfe{}", "it is not UTF-8"),
        (b'{"batchSize": 1, "batchSize": 2}', "'batchSize' stands twice"),
        (b'{"retry": {"tries": 1, "tries": 2}}', "'tries' stands twice"),
        (b'{"batchSize": NaN}', "NaN is no number"),
        (b'{"batchSize": -Infinity}', "-Infinity is no number"),
        (b'{"batchSize": 1e999}', "a number is too large"),
        (b'{"batchSize": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"targetSymbols": ["A\\u0000"]}', "holds NUL"),
        (b'{"targetSymbols": ["\\ud800"]}', "half of a surrogate pair"),
        (b'{"a\\u0000": 1}', "holds NUL"),
        (b"[" * 10_000 + b"]" * 10_000, "nested"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested"),
        (b"[" * 40 + b"]" * 40, "nested deeper than 32 levels"),
    ],
)
def test_what_is_no_strict_json_is_refused_with_the_reason(
    service: Service, content: bytes, reason: str
) -> None:
    status, said = refusal(service, content)
    assert status == 400
    assert said.startswith("INVALID_OPTIONS: ")
    assert reason in said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"batchSize": 0}, "batchSize: Input should be greater than or equal to 1"),
        ({"batchSize": 10_001}, "batchSize: Input should be less than or equal to 10000"),
        ({"batchSize": "many"}, "batchSize: Input should be a valid integer"),
        ({"timeout": "2h"}, 'timeout: write it as "HH:MM:SS"'),
        ({"nonsense": 1}, "nonsense: unknown option"),
        ({"retry": {"tries": 0}}, "retry.tries: Input should be greater"),
        ([], "Input should be"),
        ("text", "Input should be"),
    ],
)
def test_an_option_out_of_its_range_is_named_with_its_limit(
    service: Service, content: Any, reason: str
) -> None:
    status, said = refusal(service, json.dumps(content).encode())
    assert status == 400
    assert said.startswith("INVALID_OPTIONS: ")
    assert reason in said


def test_a_body_of_100_megabytes_is_refused_at_once_and_its_sender_is_told(
    service: Service,
) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
    assert service.raw(head).startswith(b"HTTP/1.1 413 "), "before anything of it has come"
    status, said = refusal(service, b"x" * 100_000_000)
    assert status == 413
    assert "larger than 65,536 bytes" in said


def test_who_writes_everything_before_reading_is_told_too(service: Service) -> None:
    body = b"x" * 20_000_000
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert service.raw(head + body).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_say_its_length_is_counted(service: Service) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 10_000

    with service.client() as client:
        said = client.post("echo", content=endless())
    assert said.status_code == 413


def test_a_body_at_the_limit_is_read(service: Service) -> None:
    padding = b" " * (65_536 - len(b'{"batchSize": 7}'))
    assert service.ask("POST", "echo", content=b'{"batchSize": 7}' + padding).status_code == 200
    assert service.ask("POST", "echo", content=b'{"batchSize": 7} ' + padding).status_code == 413


def test_a_body_that_dawdles_is_cut_off(impatient: Service) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    said = impatient.raw(head)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"REQUEST_TOO_SLOW" in said


@pytest.mark.parametrize("begun", [b"", b"POST /echo HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_dawdles_is_cut_off(impatient: Service, begun: bytes) -> None:
    with suppress(ConnectionResetError):
        assert impatient.raw(begun) == b""


def test_a_second_head_that_dawdles_is_cut_off_too(impatient: Service) -> None:
    port = int(impatient.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=LONGEST) as connection:
        connection.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        first = HTTPResponse(connection)
        first.begin()
        assert first.status == 404
        assert json.loads(first.read())["errorCode"] == "NOT_FOUND"
        connection.sendall(b"GET /not")
        with suppress(ConnectionResetError):
            assert connection.recv(65_536) == b""


def test_a_head_that_is_too_large_is_refused_in_the_envelope(service: Service) -> None:
    said = service.ask("GET", "/docs", headers={"X": "x" * 17_000})
    assert (said.status_code, said.json()["errorCode"]) == (431, "HEAD_TOO_LARGE")


@pytest.mark.parametrize(
    "request_",
    [b"GARBAGE\r\n\r\n", b"GET /docs HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000],
    ids=["no http", "never ends"],
)
def test_what_is_no_http_is_refused_in_the_envelope(service: Service, request_: bytes) -> None:
    head, _, body = service.raw(request_).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    document = json.loads(body)
    assert document["errorCode"] == "INVALID_OPTIONS"
    said = head.decode().lower()
    assert f"\r\nx-correlation-id: {document['correlationId']}" in said
    assert "\r\nx-content-type-options: nosniff" in said
    assert "\r\ncache-control: no-store" in said


def test_a_client_that_waits_for_leave_is_refused_before_it_sends(service: Service) -> None:
    said = service.raw(
        b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 999999\r\n\r\n"
    )
    assert said.startswith(b"HTTP/1.1 413 ")


def test_who_writes_on_after_a_refusal_sees_it_all_the_same(service: Service) -> None:
    port = int(service.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=LONGEST) as connection:
        connection.sendall(b"GARBAGE\r\n\r\n")
        while not select.select([connection], [], [], 0)[0]:
            connection.sendall(b"x" * 1_000)
        for _ in range(10):
            connection.sendall(b"x" * 100_000)
        refused = HTTPResponse(connection)
        refused.begin()
        assert (refused.status, json.loads(refused.read())["success"]) == (400, False)
        # Not for ever, though.
        wait_until(lambda: _is_cut_off(connection))


def _is_cut_off(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


@pytest.mark.parametrize("path", ["echo%00", "echo?reason=%00"])
def test_a_path_cannot_hold_nul(service: Service, path: str) -> None:
    said = service.ask("POST", path)
    assert (said.status_code, said.json()["errorCode"]) == (400, "INVALID_OPTIONS")


def test_a_name_that_stands_twice_among_thousands_is_found_in_one_look() -> None:
    """Anybody may send a body of this size, and while it is read nobody else is answered."""
    looked = 0

    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal looked
            looked += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [Name(number) for number in range(8_000)]
    with pytest.raises(ValueError, match="'7999' stands twice"):
        _without_repeats([(name, 1) for name in [*names, Name(7_999)]])
    assert looked < 10 * len(names)


def test_numbers_and_texts_of_json_are_left_as_they_are() -> None:
    document = {"a": [1, 2.5, None, True, "ä😀"], "b": {"c": []}}
    assert read_strictly(json.dumps(document).encode()) == document
    with pytest.raises(InvalidOptionsError):
        read_strictly(b"")
