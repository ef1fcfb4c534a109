"""A real server on the loopback that answers as a test tells it to, one connection at a time.

Belongs here: answering and keeping what was asked. Does not: expectations.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Said:
    """An answer; `dropped` cuts the connection once the request has arrived."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    dropped: bool = False


DROPPED = Said(dropped=True)


def fine(data: object) -> Said:
    """An envelope around data."""
    return Said(200, json.dumps({"success": True, "data": data, "errorCode": None}).encode())


def refused(status: int, code: str, data: Any = None, **headers: str) -> Said:
    """An envelope of a refusal."""
    content = {"success": False, "message": f"It is {code}.", "data": data, "errorCode": code}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Said(status, json.dumps({**content, "correlationId": "c-1"}).encode(), named)


@dataclass
class Scripted:
    """The server's address, what it will still say, and what it was asked."""

    url: str
    answers: list[Said]
    asked: list[Asked] = field(default_factory=list)


@contextmanager
def scripted(*answers: Said) -> Iterator[Scripted]:
    """A server that gives these answers in this order; the last one again and again."""
    script = Scripted("", [*answers])

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.asked.append(Asked(self.command, self.path, dict(self.headers), body))
            said = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
            self.close_connection = True
            if said.dropped:
                return
            self.send_response(said.status)
            for name, value in {"Content-Length": str(len(said.body)), **said.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said.body)

        do_GET = do_POST = _answer  # noqa: N815 - as http.server names them

        def log_message(self, *_: object) -> None:
            """Nothing into the tests' output."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()
