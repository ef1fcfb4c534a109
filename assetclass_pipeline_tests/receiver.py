"""A receiver of notifications on this machine: it records what it is sent, and fails as told.

Belongs here: one small HTTP server for Apprise's `json://`. Does not: expectations about messages.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from assetclass_pipeline.model.alert import Severity
from assetclass_pipeline.settings import Channel
from assetclass_pipeline_tests.ports import free_port

SECRET = "p4ssw0rd-T0P-S3CRET"
"""Stands in the address of every receiver; it may show up nowhere else."""

LONGEST_HANG = 30
"""Seconds in which a receiver that hangs says nothing."""

_USUAL_WAIT = 30


class Mood(StrEnum):
    """What the receiver does with a message."""

    ANSWERING = "answering"
    FAILING = "failing"
    HANGING = "hanging"


@dataclass(frozen=True)
class Received:
    """One message as it arrived; `at` is in monotonic seconds."""

    title: str
    body: str
    kind: str
    at: float


@dataclass
class Receiver:
    """The server behind one or several channels."""

    mood: Mood = Mood.ANSWERING
    requests: int = 0
    messages: list[Received] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _released: threading.Event = field(default_factory=threading.Event)
    _server: ThreadingHTTPServer | None = None
    _port: int = 0

    @property
    def url(self) -> str:
        """Its address as Apprise takes it."""
        return f"json://pager:{SECRET}@127.0.0.1:{self._port}/hooks/{SECRET}"

    def channel(
        self, name: str, *severities: Severity, level: int = 1, url: str | None = None
    ) -> Channel:
        """A channel that leads here; it hears of all severities unless some are named."""
        chosen = {"severities": severities} if severities else {}
        return Channel.model_validate(
            {"name": name, "url": url or self.url, "level": level, **chosen}
        )

    @property
    def titles(self) -> list[str]:
        """Of all messages, in their order of arrival."""
        with self._changed:
            return [message.title for message in self.messages]

    def wait_for(self, number: int, seconds: float = _USUAL_WAIT) -> list[Received]:
        """The messages, once there are so many; AssertionError when they do not come in time."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.messages) >= number, seconds)
            assert arrived, f"{len(self.messages)} of {number} messages came: {self.messages}"
            return list(self.messages)

    def forget(self) -> None:
        """Forget what was received."""
        with self._changed:
            self.messages.clear()
            self.requests = 0

    def start(self) -> None:
        """Listen, on the port of the time before if there was one."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver._take(self, json.loads(body))

            def log_message(self, *_: object) -> None:
                """Tests print nothing."""

        self._released.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on; those that hang are let go."""
        self._released.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _take(self, request: BaseHTTPRequestHandler, message: dict[str, str]) -> None:
        with self._changed:
            self.requests += 1
            mood = self.mood
        if mood is Mood.HANGING:
            self._released.wait(LONGEST_HANG)
            request.close_connection = True
            return
        if mood is Mood.FAILING:
            request.send_error(500)
            return
        received = Received(message["title"], message["message"], message["type"], time.monotonic())
        with self._changed:
            self.messages.append(received)
            self._changed.notify_all()
        request.send_response(200)
        request.send_header("Content-Length", "0")
        request.end_headers()


@contextmanager
def open_receiver() -> Iterator[Receiver]:
    """A receiver that answers, for as long as the context lives."""
    receiver = Receiver()
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver on this machine that records what it is sent."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with open_receiver() as opened:
        yield opened


@pytest.fixture
def another_receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A second one beside `receiver`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with open_receiver() as opened:
        yield opened


def closed_port() -> int:
    """A port on which nobody listens."""
    return free_port()
