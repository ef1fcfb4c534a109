"""A PostgreSQL server for a test to break.

Belongs here: ending it in a given way, and starting it again. Does not: when.
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline_tests.faults.scene import PATIENCE, SERVER_SETTINGS


class Victim:
    """A server with every safety of PostgreSQL on, under `directory`."""

    def __init__(self, directory: Path, settings: Mapping[str, str] = SERVER_SETTINGS) -> None:
        self.directory = directory
        self._server = EmbeddedServer(directory, settings=settings)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop()

    def url(self) -> str:
        """The DSN; it may be another one after a start."""
        return self._server.url()

    def stop_immediately(self) -> None:
        """As `pg_ctl stop -m immediate`: no checkpoint, no good-bye; returns when it is gone."""
        self._end(signal.SIGQUIT)

    def stop_fast(self) -> None:
        """As `pg_ctl stop -m fast`: sessions are ended, then a checkpoint."""
        self._end(signal.SIGINT)

    def start(self) -> None:
        """Start it again; it recovers first where it has to."""
        self._server.start()

    @property
    def pid(self) -> int:
        """Its first process, the parent of all others."""
        return int((self.directory / "data" / "postmaster.pid").read_text().split()[0])

    def _end(self, number: int) -> None:
        pid = self.pid
        os.kill(pid, number)
        deadline = time.monotonic() + PATIENCE
        while _lives(pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
