"""Serving the API: a server that listens, cuts slow clients off, and finishes what it has begun.

Belongs here: the process and its sockets. Does not: the application (app.py).
"""

import asyncio
import gc
import logging
import socket
import uuid
from datetime import UTC, datetime
from http import HTTPStatus
from typing import cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from assetclass_pipeline.api.app import create_app
from assetclass_pipeline.api.envelope import JSON, Envelope
from assetclass_pipeline.api.first_step import FIRST_STEP, lacks_token
from assetclass_pipeline.api.framing import CORRELATION_HEADER, HEADERS
from assetclass_pipeline.api.log_lines import log_as_json
from assetclass_pipeline.database.connections import open_database
from assetclass_pipeline.database.embedded import exit_on_termination
from assetclass_pipeline.errors import InvalidOptionsError, ServicesError
from assetclass_pipeline.settings import Settings

_LOG = logging.getLogger(__name__)

# Seconds for which the rest of what cannot be read as HTTP is dropped: a client that is cut off
# while it writes would never see the answer.
_PATIENCE_WITH_THE_REST = 1.0


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; requests at work are finished then.

    A database that is away is no reason not to start. Raises ServicesError when the port cannot be
    listened on.
    """
    exit_on_termination()
    log_as_json()
    with open_database(settings) as dsn, listening(settings) as listener:
        if lacks_token(settings, dsn):
            _LOG.warning(FIRST_STEP)
        server = make_server(settings, create_app(settings, dsn))
        # All modules are here to stay: to look at each of their objects now and then would stop
        # every request for a tenth of a second.
        gc.collect()
        gc.freeze()
        server.run(sockets=[listener])


def make_server(settings: Settings, app: FastAPI) -> uvicorn.Server:
    """The server of one process; `run` it with sockets that are bound."""
    api = settings.api
    config = uvicorn.Config(
        app,
        http=_protocol(api.read_timeout),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(api.trusted_proxies),
        forwarded_allow_ips=list(api.trusted_proxies),
        timeout_keep_alive=api.keep_alive,
        timeout_graceful_shutdown=api.shutdown_patience,
        h11_max_incomplete_event_size=api.header_limit,
    )
    return uvicorn.Server(config)


def listening(settings: Settings) -> socket.socket:
    """The socket that the settings name; port 0 is any free one. Raises ServicesError."""
    host, port = settings.api.host, settings.api_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ServicesError(
            f"The API cannot listen on {host}:{port}: {error.strerror}. End what listens there, or "
            "choose another port: ASSETCLASS_API_PORT=8001."
        ) from None
    listener.set_inheritable(False)
    return listener


def _protocol(seconds: float) -> type[H11Protocol]:
    class InTime(_Protocol):
        seconds_for_head = seconds

    return InTime


class _Protocol(H11Protocol):
    """HTTP/1.1 as the server speaks it, and in time: a head that dawdles is cut off.

    The server itself limits the wait between two requests, but neither for the first one nor for
    the rest of a head that was begun.
    """

    seconds_for_head = 10.0
    _cut: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first head is awaited."""
        # The server's own class asks for the kind of transport that every TCP connection has.
        super().connection_made(cast("asyncio.Transport", transport))
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """A part of a head, or of a body, which the application waits for itself."""
        if self._refused:
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_awaiting()
        elif self._cut is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._stop_awaiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in our envelope too."""
        error = InvalidOptionsError(
            f"This is no usable HTTP request, or its head is larger than the API reads: {msg}"
        )
        content = Envelope[None](
            success=False,
            message=str(error),
            data=None,
            error_code=error.code,
            timestamp=datetime.now(UTC),
            correlation_id=str(uuid.uuid4()),
        )
        body = content.model_dump_json(by_alias=True).encode()
        headers = [
            *HEADERS.items(),
            (CORRELATION_HEADER, content.correlation_id),
            ("content-type", JSON),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        response = h11.Response(status_code=HTTPStatus.BAD_REQUEST, headers=headers)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self._refused = True
        self.loop.call_later(_PATIENCE_WITH_THE_REST, self.transport.close)

    def _await_head(self) -> None:
        self._cut = self.loop.call_later(self.seconds_for_head, self.transport.abort)

    def _stop_awaiting(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None
