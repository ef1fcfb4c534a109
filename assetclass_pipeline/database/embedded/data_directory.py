"""The files of one embedded server: layout, initdb, password, version, log.

Belongs here: what stands on the disk. Nothing in it is absolute, so the directory can be moved.
"""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from assetclass_pipeline.database.embedded.account import (
    Account,
    adopt,
    hand_over,
    reachable,
)
from assetclass_pipeline.database.embedded.binaries import Binaries
from assetclass_pipeline.database.embedded.launch import advice, launch
from assetclass_pipeline.errors import EmbeddedServerError

# Not "assetclass": a role named like our schema finds it first in its search path, and what a
# person creates without naming a schema would land in there.
SUPERUSER = "postgres"
_SCRAM_ITERATIONS_SINCE = 16
_LOG_LINES = 15
_LARGEST_LOG = 16 * 1024 * 1024


class DataDirectory:
    """`directory` with `data/` (PostgreSQL's own), `password`, `port` and `server.log`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "server.log"
        self._password = directory / "password"
        self._port = directory / "port"

    @property
    def initialised(self) -> bool:
        """Whether initdb has come to its end here."""
        return (self.data / "PG_VERSION").exists()

    def major_version(self) -> int:
        """The major version that the data belong to. Raises OSError, ValueError."""
        return int((self.data / "PG_VERSION").read_text().split(".")[0])

    def password(self) -> str:
        """The superuser's password. Raises EmbeddedServerError when the file is gone."""
        try:
            return self._password.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise EmbeddedServerError(
                f"{self._password} is missing, and without it nobody can log in to the embedded "
                f"PostgreSQL. Put it back, or move {self.directory} away to begin with an empty "
                "database."
            ) from None

    def last_port(self) -> int | None:
        """The port of the latest start, which is kept where it is free."""
        try:
            return int(self._port.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def remember_port(self, port: int) -> None:
        """Keep the port for the next start. Raises OSError."""
        self._port.write_text(f"{port}\n", encoding="utf-8")
        adopt(self._port)

    def initialise(self, binaries: Binaries, account: Account | None) -> None:
        """Run initdb in a directory beside and put it in place when it is complete.

        Raises EmbeddedServerError with initdb's own words, OSError when nothing can be written.
        """
        for abandoned in self.directory.glob("data.unfinished-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        # A name of its own: the initdb of a killed process may still be writing under the last one.
        unfinished = Path(tempfile.mkdtemp(prefix="data.unfinished-", dir=self.directory))
        hand_over(unfinished, account)
        password = secrets.token_urlsafe(24)
        self._write_password(password)
        try:
            with (
                reachable(unfinished, account) as (target, inherited),
                _password_for(account, password) as password_path,
                reachable(password_path, account) as (password_name, also_inherited),
            ):
                self._run_initdb(
                    [
                        str(binaries.program("initdb")),
                        *("-D", target, "-U", SUPERUSER, f"--pwfile={password_name}"),
                        *("-A", "scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
                        *_cheap_logins(binaries),
                    ],
                    account,
                    inherited + also_inherited,
                )
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        unfinished.rename(self.data)

    @contextmanager
    def open_log(self) -> Iterator[IO[bytes]]:
        """The log, to append to; a large one is put aside first. Raises OSError."""
        if self.log_size() > _LARGEST_LOG:
            self.log.replace(self.log.with_suffix(".log.1"))
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "ab") as log:  # noqa: PTH123 - a descriptor
            adopt(self.log)
            yield log

    def log_size(self) -> int:
        """Bytes in the log so far."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_tail(self, offset: int) -> str:
        """The last lines that the server wrote after the byte `offset`; empty if there are none."""
        try:
            with self.log.open("rb") as log:
                log.seek(offset)
                lines = log.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])

    def _write_password(self, password: str) -> None:
        fresh = self._password.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.write(f"{password}\n")
        adopt(fresh)
        fresh.replace(self._password)

    def _run_initdb(
        self, command: list[str], account: Account | None, descriptors: tuple[int, ...]
    ) -> None:
        with launch(
            command, output=subprocess.PIPE, account=account, descriptors=descriptors
        ) as initdb:
            try:
                output, _ = initdb.communicate()
            except BaseException:
                initdb.kill()
                raise
        if initdb.returncode != 0:
            lines = output.decode("utf-8", errors="replace").splitlines()
            tail = "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])
            raise EmbeddedServerError(
                f"The embedded PostgreSQL could not be set up in {self.directory}. "
                f"{advice(tail, self.directory)}\ninitdb ends with:\n{tail}"
            )


@contextmanager
def _password_for(account: Account | None, password: str) -> Iterator[Path]:
    """A short-lived copy that initdb's account can read."""
    descriptor, name = tempfile.mkstemp(prefix="assetclass-")
    path = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.write(f"{password}\n")
        hand_over(path, account)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _cheap_logins(binaries: Binaries) -> list[str]:
    """Options that make a login take half the time (measured: 5.4 instead of 11.4 ms).

    Iterations slow down who guesses a person's password; ours has 192 random bits, and Dagster logs
    in anew for each event that it stores. The setting came with PostgreSQL 16.
    """
    return ["--set", "scram_iterations=1"] if binaries.major >= _SCRAM_ITERATIONS_SINCE else []
