"""The services of Dagster: one shared code server, webserver, daemon; and when each is ready.

Belongs here: their commands and questions to them. Does not: keeping them alive.
"""

import http.client
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assetclass_pipeline.cli.marked_processes import is_run_worker, marked_processes
from assetclass_pipeline.cli.supervisor import Service, python_module

WEBSERVER_HOST = "127.0.0.1"

_ANSWER_SECONDS = 10
_STATUS_QUERY = """
{
  instance { daemonHealth { allDaemonStatuses { daemonType required lastHeartbeatTime } } }
  workspaceOrError {
    ... on Workspace { locationEntries { locationOrLoadError { __typename } } }
  }
}
"""


@dataclass(frozen=True)
class DagsterServices:
    """The services of one `up`; `directory` is private to it and holds the code server's socket."""

    definitions_module: str
    location_name: str
    directory: Path
    port: int
    mark: str
    read_only: bool = False

    @property
    def url(self) -> str:
        """Where people look."""
        return f"http://{WEBSERVER_HOST}:{self.port}"

    @property
    def code_socket(self) -> Path:
        """The code server's address; the directory keeps other users of the machine out."""
        return self.directory / "code.sock"

    def stages(self, end_runs: Callable[[], None]) -> list[list[Service]]:
        """First the code server, then those that ask it; `end_runs` is called before it stops."""
        self._write_workspace()
        code_server = Service(
            "code-server",
            python_module(
                "dagster",
                *("api", "grpc", "--socket", str(self.code_socket)),
                *("--module-name", self.definitions_module, "--attribute", "defs"),
                *("--location-name", self.location_name, "--empty-working-directory"),
                *("--log-level", "warning"),
            ),
            is_ready=self._code_server_is_ready,
            before_start=lambda: self.code_socket.unlink(missing_ok=True),
            before_stop=end_runs,
        )
        webserver = Service(
            "webserver",
            python_module(
                "dagster_webserver",
                *("--host", WEBSERVER_HOST, "--port", str(self.port)),
                *("--workspace", str(self._workspace), "--log-level", "warning"),
                *(("--read-only",) if self.read_only else ()),
            ),
            is_ready=self._webserver_is_ready,
            # Open pages keep their connections; nothing is lost when they are cut.
            stop_timeout=5,
        )
        return [[code_server], [webserver, self._daemon()]]

    def has_run_workers(self) -> bool:
        """Whether a run that this `up` launched is in progress."""
        return any(is_run_worker(process) for process in marked_processes(self.mark))

    @property
    def _workspace(self) -> Path:
        return self.directory / "workspace.yaml"

    def _write_workspace(self) -> None:
        # JSON is YAML, and leaves no question of quoting.
        server = {
            "host": "localhost",
            "socket": str(self.code_socket),
            "location_name": self.location_name,
        }
        workspace = {"load_from": [{"grpc_server": server}]}
        self._workspace.write_text(json.dumps(workspace), encoding="utf-8")

    def _daemon(self) -> Service:
        started = [0.0]

        def remember_start() -> None:
            started[0] = time.time()

        def is_ready() -> bool:
            status = _ask(self.url)
            return status is not None and _all_daemons_beat(status, since=started[0])

        return Service(
            "daemon",
            python_module(
                "dagster._daemon",
                *("run", "--workspace", str(self._workspace), "--log-level", "info"),
            ),
            is_ready=is_ready,
            before_start=remember_start,
            stop_timeout=20,
        )

    def _code_server_is_ready(self) -> bool:
        # It binds its socket after it has loaded the definitions.
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.code_socket))
            except OSError:
                return False
        return True

    def _webserver_is_ready(self) -> bool:
        status = _ask(self.url)
        return status is not None and _location_is_loaded(status)


def run_ender(
    services: DagsterServices,
    environment: dict[str, str],
    *,
    patience: float,
    hurry: Callable[[], bool],
) -> Callable[[], None]:
    """A function that ends the runs in progress, waiting `patience` seconds for their last batch.

    `hurry` turns true when waiting must stop at once.
    """

    def end_runs() -> None:
        if not services.has_run_workers():
            return
        command = python_module(
            "assetclass_pipeline.cli.end_runs", str(services.code_socket), str(patience)
        )
        with subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            deadline = time.monotonic() + patience + 60
            while process.poll() is None:
                if hurry() or time.monotonic() > deadline:
                    process.kill()
                time.sleep(0.1)

    return end_runs


def _ask(url: str) -> dict[str, Any] | None:
    request = urllib.request.Request(  # noqa: S310 - our own webserver's address
        f"{url}/graphql",
        data=json.dumps({"query": _STATUS_QUERY}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        # Not through the proxy of the environment: its loopback is not ours.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=_ANSWER_SECONDS
        ) as answer:
            data = json.load(answer).get("data")
    except (OSError, http.client.HTTPException, ValueError):
        # Not there, not an answer of its own, or it ended in the middle of one.
        return None
    return data if isinstance(data, dict) else None


def _all_daemons_beat(status: dict[str, Any], *, since: float) -> bool:
    daemons = status["instance"]["daemonHealth"]["allDaemonStatuses"]
    return all(
        (daemon["lastHeartbeatTime"] or 0) >= since for daemon in daemons if daemon["required"]
    )


def _location_is_loaded(status: dict[str, Any]) -> bool:
    entries = status["workspaceOrError"].get("locationEntries", [])
    found = [entry["locationOrLoadError"] for entry in entries]
    return bool(found) and all(
        location is not None and location["__typename"] == "RepositoryLocation"
        for location in found
    )
