"""A real Prometheus for tests.

Belongs here: running one server, asking it. Does not: what is scraped, where it comes from.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from assetclass_pipeline_tests.debian import find_programs
from assetclass_pipeline_tests.ports import free_port

_READY_SECONDS = 60


@dataclass(frozen=True)
class Programs:
    """Where the two programs are."""

    prometheus: Path
    promtool: Path

    def check(self, *arguments: str, directory: Path, text: str | None = None) -> str:
        """What `promtool` says; a check that fails fails the test."""
        done = subprocess.run(
            [self.promtool, *arguments],
            cwd=directory,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        return said


@pytest.fixture(scope="session")
def prometheus_programs() -> Programs:
    """Both programs."""
    return Programs(**find_programs("prometheus", "prometheus", "promtool"))


class Prometheus:
    """A running server; queries are PromQL."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)

    def close(self) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The instant vector now: `metric` and `value` of each series."""
        answer = self._client.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        result = answer["data"]["result"]
        assert isinstance(result, list)
        return result

    def number(self, query: str) -> float:
        """The value of the one series that the query has."""
        (series,) = self.ask(query)
        return float(series["value"][1])

    def targets(self) -> list[dict[str, Any]]:
        answer = self._client.get("/api/v1/targets").json()
        found = answer["data"]["activeTargets"]
        assert isinstance(found, list)
        return found

    def until(self, holds: Callable[["Prometheus"], bool], seconds: float = 30) -> None:
        """Return once it holds; some scrapes may have to come first."""
        end = time.monotonic() + seconds
        while not holds(self):
            assert time.monotonic() < end, json.dumps(self.targets(), indent=2)
            time.sleep(0.2)


@contextmanager
def running_prometheus(
    programs: Programs, configuration: Path, directory: Path
) -> Iterator[Prometheus]:
    """A server with this configuration on a loopback port, its data in `directory`."""
    port = free_port()
    with (directory / "prometheus.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [
                programs.prometheus,
                f"--config.file={configuration}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Prometheus(port)
    try:
        end = time.monotonic() + _READY_SECONDS
        while not server.is_ready():
            said = (directory / "prometheus.log").read_text(encoding="utf-8")
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.1)
        yield server
    finally:
        server.close()
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
