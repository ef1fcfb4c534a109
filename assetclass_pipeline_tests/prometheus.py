"""A real Prometheus for tests: found on this machine, or unpacked from Debian's package.

Belongs here: finding the programs, running one server, asking it. Does not: what is scraped.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock

_CACHE = Path(sys.prefix) / "cache" / "prometheus"
_DOWNLOAD_SECONDS = 240
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
    """Both programs. Without them the test is skipped, but not on CI where they can be had."""
    return find_programs(_CACHE)


def find_programs(cache: Path) -> Programs:
    """What is on the PATH, or in `cache`, or what is fetched into it; else skips, or fails."""
    found = _on_path() or _unpacked(cache)
    if found is not None:
        return found
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no prometheus and promtool on the PATH, and no {missing[0]} to fetch them")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "lock", timeout=2 * _DOWNLOAD_SECONDS):
        # Another test process may have been faster.
        problem = None if _unpacked(cache) else _fetch(cache)
    found = _unpacked(cache)
    if found is None:
        reason = f"Debian's package of Prometheus could not be had: {problem}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _on_path() -> Programs | None:
    prometheus, promtool = shutil.which("prometheus"), shutil.which("promtool")
    if prometheus is None or promtool is None:
        return None
    return Programs(Path(prometheus), Path(promtool))


def _unpacked(cache: Path) -> Programs | None:
    programs = cache / "package" / "usr" / "bin"
    found = Programs(programs / "prometheus", programs / "promtool")
    return found if found.prometheus.exists() and found.promtool.exists() else None


def _fetch(cache: Path) -> str | None:
    """Unpack the package without installing it; returns what went wrong."""
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        fetch = ["apt-get", "-o", "APT::Sandbox::User=", "download", "prometheus"]
        problem = _run(fetch, directory)
        if problem is not None:
            # The list of packages may be missing or old; not everybody may write it.
            problem = _run(["apt-get", "update"], directory) or _run(fetch, directory)
        if problem is not None:
            return problem
        (package,) = Path(directory).glob("*.deb")
        problem = _run(["dpkg-deb", "-x", str(package), "unpacked"], directory)
        if problem is None:
            (Path(directory) / "unpacked").rename(cache / "package")
        return problem


def _run(command: list[str], directory: str) -> str | None:
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=_DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} took too long"
    return None if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip())


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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
