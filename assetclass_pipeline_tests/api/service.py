"""The API as its callers meet it: a running server, requests over the loopback, tokens.

Belongs here: starting servers and asking them. Does not: expectations.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
from fastapi import APIRouter

from assetclass_pipeline.api.app import BASE_PATH, ROUTERS, create_app
from assetclass_pipeline.api.serve import listening, make_server
from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.tokens import create_token
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.ports import free_port

LONGEST = 30.0


def wait_until(condition: Callable[[], bool], patience: float = LONGEST) -> None:
    """Return as soon as it is true; fails when it does not become true."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@dataclass(frozen=True)
class Service:
    """A running API; paths are those below its base path."""

    url: str
    dsn: str

    def client(self, token: str | None = None, **headers: str) -> httpx.Client:
        """A client that sends this token; close it."""
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return httpx.Client(
            base_url=f"{self.url}{BASE_PATH}", headers=headers, timeout=LONGEST, trust_env=False
        )

    def ask(
        self,
        method: str,
        path: str,
        token: str | None = None,
        *,
        headers: Mapping[str, str] | list[tuple[bytes, bytes]] | None = None,
        content: bytes | str | None = None,
        **options: Any,
    ) -> httpx.Response:
        """One request on a connection of its own; `path` from / on is absolute."""
        with self.client(token) as client:
            target = f"{self.url}{path}" if path.startswith("/") else path
            return client.request(method, target, headers=headers, content=content, **options)

    def raw(self, request: bytes, *, patience: float = LONGEST) -> bytes:
        """Whatever comes back on the bare connection until it is closed."""
        port = int(self.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
            connection.sendall(request)
            parts = []
            while part := connection.recv(65_536):
                parts.append(part)
        return b"".join(parts)


@contextmanager
def serving(dsn: str, *further: APIRouter, **settings: Any) -> Iterator[Service]:
    """The API in a thread of this process, with `further` routers below its base path."""
    made = load_settings(database_url=dsn, **settings)
    # The settings know no port 0.
    with listening(made.model_copy(update={"api_port": 0})) as listener:
        server = make_server(made, create_app(made, dsn, routers=[*ROUTERS, *further]))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        port = listener.getsockname()[1]
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            yield Service(f"http://127.0.0.1:{port}", dsn)
        finally:
            server.should_exit = True
            thread.join(LONGEST)
            assert not thread.is_alive()


@dataclass(frozen=True)
class Process:
    """The API as a process of its own."""

    service: Service
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(LONGEST)


@contextmanager
def serving_process(
    dsn: str, log: Path, *, port: int | None = None, **settings: str
) -> Iterator[Process]:
    """The API as `python -m` starts it, with `ASSETCLASS_...=...`; it listens when this returns."""
    port = free_port() if port is None else port
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ASSETCLASS_") or name == "ASSETCLASS_HOME"
    }
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [sys.executable, "-m", "assetclass_pipeline.api", "--port", str(port)],
            env={**inherited, **settings, "ASSETCLASS_DATABASE_URL": dsn},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        ) as process,
    ):
        try:
            wait_until(lambda: process.poll() is not None or _listens(log))
            assert process.poll() is None, log.read_text()
            yield Process(Service(f"http://127.0.0.1:{port}", dsn), process, log)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(LONGEST)


def _listens(log: Path) -> bool:
    # Its log says so: somebody else may answer on the port.
    return "Application startup complete" in log.read_text()


def make_token(dsn: str, role: Role = Role.VIEWER, *, name: str | None = None) -> str:
    """The secret of a new token; its name is its role's unless it is said."""
    settings = load_settings()
    with connect(dsn, settings, purpose="test") as connection:
        secret, _ = create_token(
            connection,
            settings,
            name=role.value if name is None else name,
            role=role,
            lifetime=None,
            by="test",
        )
    return secret


def audit_entries(dsn: str, action: str) -> list[dict[str, Any]]:
    """Entries of one action, the oldest first."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT actor, outcome, origin, parameters, correlation_id FROM assetclass.audit_log "
            "WHERE action = %s ORDER BY number",
            [action],
        ).fetchall()
    names = ("actor", "outcome", "origin", "parameters", "correlation_id")
    return [dict(zip(names, row, strict=True)) for row in rows]
