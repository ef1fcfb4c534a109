"""Start, attach to and stop the embedded PostgreSQL of one directory.

Belongs here: the order of things and who owns the server. Does not: its files, its processes.
"""

import atexit
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, MappingProxyType, TracebackType
from typing import NoReturn, Self
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from assetclass_pipeline.database.embedded.account import (
    Account,
    reachable,
    reachable_binaries,
    server_account,
)
from assetclass_pipeline.database.embedded.binaries import (
    Binaries,
    binaries_for_major,
    find_binaries,
)
from assetclass_pipeline.database.embedded.data_directory import SUPERUSER, DataDirectory
from assetclass_pipeline.database.embedded.launch import Child, advice, launch
from assetclass_pipeline.database.embedded.postmaster import (
    Postmaster,
    clear_stale_file,
    find_postmaster,
    stop_postmaster,
)
from assetclass_pipeline.database.embedded.users import Users
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.errors import EmbeddedServerError

DATABASE = "assetclass"
_HOST = "127.0.0.1"
_POLL_INTERVAL = 0.05
_PORT_TRIES = 5
# Where Linux keeps what processes share, and how much of it parallel queries may need.
_SHARED_MEMORY = Path("/dev", "shm")
_LEAST_SHARED_MEMORY = 256 * 1024 * 1024
_SETTINGS = {
    "listen_addresses": _HOST,
    # A socket's path may not be longer than about 100 bytes, and a home directory's can be.
    "unix_socket_directories": "",
    "shared_buffers": "128MB",
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
    "lc_messages": "C",
    "logging_collector": "off",
    "log_destination": "stderr",
}
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})

# Servers that this process has started: it is their parent, so it must notice their ends.
_children: list[Child] = []


class EmbeddedServer:
    """One user of the embedded PostgreSQL in `directory`; any number of processes may be users.

    The first one starts the server, the last one to leave stops it. A user that dies without
    leaving no longer counts. Times are in seconds; `settings` are PostgreSQL's own and only matter
    to the user that starts the server.
    """

    def __init__(
        self,
        directory: Path,
        *,
        binaries: Binaries | None = None,
        start_timeout: float = 120,
        stop_timeout: float = 60,
        settings: Mapping[str, str] = _NO_SETTINGS,
    ) -> None:
        self._files = DataDirectory(directory.expanduser().absolute())
        self._binaries = binaries
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        # Whoever holds the lock may rightly need both times.
        self._lock_timeout = start_timeout + stop_timeout
        self._settings = dict(settings)
        self._users = Users(self._files.directory)
        self._port: int | None = None
        self._within_process = threading.RLock()

    def start(self) -> str:
        """Start the server, or attach to the running one; returns the DSN of `assetclass`.

        Raises EmbeddedServerError that says what stands in the way and what to do about it.
        """
        with self._within_process, self._system_errors_explained():
            # First of all, so that no moment is left in which a signal finds a server without it.
            atexit.unregister(self.stop)
            atexit.register(self.stop)
            self._files.directory.mkdir(parents=True, exist_ok=True)
            with self._users.exclusive(self._lock_timeout):
                newly_joined = self._users.join()
                try:
                    self._port = self._ensure_running()
                except BaseException:
                    if newly_joined:
                        self._users.leave()
                    raise
            return self.url()

    def stop(self) -> None:
        """Leave; the last user stops the server and waits for its end. Without start: nothing.

        Raises EmbeddedServerError when the server cannot be stopped.
        """
        with self._within_process, self._system_errors_explained():
            if not self._users.joined:
                return
            with self._users.exclusive(self._lock_timeout):
                try:
                    if not self._users.anyone_else():
                        self._stop_running()
                finally:
                    self._users.leave()
                    self._port = None
                    atexit.unregister(self.stop)

    def url(self, database: str = DATABASE) -> str:
        """The DSN of a database; it holds the password, so it is not for logs.

        Raises EmbeddedServerError before `start`.
        """
        if self._port is None:
            raise EmbeddedServerError("The embedded PostgreSQL is not started: call start() first.")
        return self._url(self._port, database)

    def _url(self, port: int, database: str) -> str:
        password = quote(self._files.password(), safe="")
        return f"postgresql://{SUPERUSER}:{password}@{_HOST}:{port}/{quote(database, safe='')}"

    def running_url(self) -> str | None:
        """The DSN of `assetclass` where the server runs already, started by whomever; else None.

        Nothing is started, joined or written: the server may stop at any moment. Raises
        EmbeddedServerError when its files cannot be read.
        """
        with self._system_errors_explained():
            postmaster = find_postmaster(self._files.data)
        if postmaster is None or not postmaster.ready or postmaster.port is None:
            return None
        return self._url(postmaster.port, DATABASE)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _ensure_running(self) -> int:
        deadline = time.monotonic() + self._start_timeout
        postmaster = self._find_postmaster()
        while postmaster is not None and postmaster.stopping and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL)
            postmaster = self._find_postmaster()
        if postmaster is not None:
            return self._wait_until_ready(None, 0, deadline)
        return self._start_anew(deadline)

    def _find_postmaster(self) -> Postmaster | None:
        _reap_children()
        return find_postmaster(self._files.data)

    def _start_anew(self, deadline: float) -> int:
        account = server_account(self._files.directory, self._files.data)
        binaries = reachable_binaries(self._fitting_binaries(), account)
        if not self._files.initialised:
            self._files.initialise(binaries, account)
        clear_stale_file(self._files.data)
        for attempt in range(1, _PORT_TRIES + 1):
            port = _free_port(self._files.last_port() if attempt == 1 else None)
            offset = self._files.log_size()
            try:
                ready = self._launch_and_wait(binaries, account, port, offset, deadline)
            except EmbeddedServerError as error:
                # Someone else took the port after we had looked.
                if attempt == _PORT_TRIES or "Address already in use" not in str(error):
                    raise
            else:
                self._files.remember_port(ready)
                return ready
        raise AssertionError("the last attempt returns or raises")

    def _fitting_binaries(self) -> Binaries:
        if not self._files.initialised:
            return self._binaries or find_binaries()
        major = self._files.major_version()
        fitting = self._binaries or binaries_for_major(major)
        if fitting is None or fitting.major != major:
            chosen = self._binaries or find_binaries()
            raise EmbeddedServerError(
                f"{self._files.data} holds data of PostgreSQL {major}, and the programs in "
                f"{chosen.bin_directory} are PostgreSQL {chosen.major}, which cannot open it. "
                f"Install PostgreSQL {major}; or move {self._files.directory} away to begin with "
                "an empty database; or dump the data with the old version and load it into the new."
            )
        return fitting

    def _launch_and_wait(
        self,
        binaries: Binaries,
        account: Account | None,
        port: int,
        offset: int,
        deadline: float,
    ) -> int:
        settings = _SETTINGS | _shared_memory() | self._settings | {"port": str(port)}
        with (
            reachable(self._files.data, account) as (data, descriptors),
            self._files.open_log() as log,
        ):
            command = [str(binaries.program("postgres")), "-D", data]
            for name, value in settings.items():
                command += ["-c", f"{name}={value}"]
            child = launch(command, output=log, account=account, descriptors=descriptors)
        _children.append(child)
        try:
            return self._wait_until_ready(child, offset, deadline)
        except BaseException:
            if child.poll() is None:
                stop_postmaster(psutil.Process(child.pid), self._files.data, 0)
                child.wait()
            raise

    def _wait_until_ready(self, child: Child | None, offset: int, deadline: float) -> int:
        """The port of the server as soon as it answers; `child` is it, if we have started it."""
        while True:
            child_runs = child is not None and child.poll() is None
            postmaster = self._find_postmaster()
            if postmaster is None and not child_runs:
                raise self._failure("did not start", offset)
            if postmaster is not None and postmaster.ready and postmaster.port is not None:
                self._ensure_database(postmaster.port, deadline)
                return postmaster.port
            if time.monotonic() >= deadline:
                raise self._failure(
                    f"was not ready after {self._start_timeout:g} s. After a crash it may need "
                    "longer to recover: set ASSETCLASS_EMBEDDED_START_TIMEOUT to more seconds and "
                    "try again",
                    offset,
                )
            time.sleep(_POLL_INTERVAL)

    def _failure(self, what: str, offset: int) -> EmbeddedServerError:
        tail = self._files.log_tail(offset)
        return EmbeddedServerError(
            f"The embedded PostgreSQL in {self._files.directory} {what}. "
            f"{advice(tail, self._files.directory)}{self._log_excerpt(tail)}"
        )

    def _log_excerpt(self, tail: str) -> str:
        return f"\n{self._files.log} ends with:\n{tail}" if tail else ""

    def _ensure_database(self, port: int, deadline: float) -> None:
        try:
            with psycopg.connect(
                host=_HOST,
                port=port,
                user=SUPERUSER,
                password=self._files.password(),
                dbname="postgres",
                connect_timeout=max(2, int(deadline - time.monotonic())),
                autocommit=True,
            ) as connection:
                exists = connection.execute(
                    query("embedded", "database_exists"), {"database": DATABASE}
                ).fetchone()
                if exists == (False,):
                    connection.execute(
                        query("embedded", "create_database", database=sql.Identifier(DATABASE))
                    )
        except psycopg.Error as error:
            if "password authentication failed" in str(error):
                raise EmbeddedServerError(
                    f"The embedded PostgreSQL refuses the password in {self._files.directory}. The "
                    "file `password` there is not the one of its set-up: put the right one back."
                ) from None
            raise EmbeddedServerError(
                f"The embedded PostgreSQL in {self._files.directory} runs, but does not answer: "
                f"{error}\nLook into {self._files.log}."
            ) from error

    def _stop_running(self) -> None:
        postmaster = self._find_postmaster()
        if postmaster is not None:
            stop_postmaster(postmaster.process, self._files.data, self._stop_timeout)
        _reap_children()

    @contextmanager
    def _system_errors_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EmbeddedServerError(
                f"The embedded PostgreSQL cannot use {self._files.directory}: {error}. "
                f"{advice(str(error), self._files.directory)}"
                f"{self._log_excerpt(self._files.log_tail(0))}"
            ) from error


def exit_on_termination() -> None:
    """Let SIGTERM, or the end of the terminal, end this process like `sys.exit`.

    Then the server is left in order. What `nohup` starts goes on without its terminal. For a
    program's main thread; a library never calls it.
    """
    signal.signal(signal.SIGTERM, _exit)
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _exit)


def _shared_memory() -> dict[str, str]:
    """Parallel queries need more than the 64 MB that a container's /dev/shm has by default.

    Some sandboxes have none at all.
    """
    if sys.platform != "linux":
        return {}
    try:
        room = shutil.disk_usage(_SHARED_MEMORY).total
    except OSError:
        room = 0
    return {} if room >= _LEAST_SHARED_MEMORY else {"dynamic_shared_memory_type": "sysv"}


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _reap_children() -> None:
    _children[:] = [child for child in _children if child.poll() is None]


def _free_port(preferred: int | None) -> int:
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
            if os.name == "posix":
                # As PostgreSQL does: connections that linger do not make a port taken.
                candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((_HOST, port))
            except OSError:
                continue
            return int(candidate.getsockname()[1])
    raise EmbeddedServerError(
        f"No free port is left on {_HOST}. End processes that listen there and try again."
    )
