"""The throttle on real servers: what it sees, what it may not see, and when it lets go."""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.embedded import Binaries, EmbeddedServer
from assetclass_pipeline.engine.throttle import Throttle, _free_disk
from assetclass_pipeline.model.throttle import Readings, Signal, ThrottleLimits, with_changes
from assetclass_pipeline.settings import load_settings
from assetclass_pipeline_tests.standby import STANDBY, make_standby

SETTINGS = load_settings(time_zone="Europe/Istanbul")
MIB = 1024**2
DEADLINE = 30.0
ALL_OFF = ThrottleLimits(
    lag_bytes=None,
    lag_seconds=None,
    slot_wal_bytes=None,
    archive_backlog=None,
    blocked_seconds=None,
    oldest_transaction_seconds=None,
    free_disk_bytes=None,
)
Session = psycopg.Connection[TupleRow]


def only(**limits: Any) -> ThrottleLimits:
    """Limits of which only these are on."""
    condition = limits.pop("condition", None)
    return with_changes(ALL_OFF, limits).model_copy(update={"condition": condition})


@contextmanager
def throttle_on(url: str, limits: ThrottleLimits, **options: Any) -> Iterator[Throttle]:
    """A throttle of the user and the database of `url`."""

    def open_connection(purpose: str) -> Session:
        return connect(url, SETTINGS, purpose=purpose)

    with Throttle(open_connection, SETTINGS, limits, **options) as throttle:
        yield throttle


def until(throttle: Throttle, holds: Callable[[list[str]], bool]) -> list[str]:
    """The messages of the first look for which this holds."""
    deadline = time.monotonic() + DEADLINE
    while True:
        messages = [reason.message for reason in throttle.reasons()]
        if holds(messages):
            return messages
        assert time.monotonic() < deadline, messages
        time.sleep(0.05)


def nothing(messages: list[str]) -> bool:
    return not messages


def something(messages: list[str]) -> bool:
    return bool(messages)


def value(session: Session, statement: LiteralString) -> Any:
    row = session.execute(statement).fetchone()
    assert row is not None
    return row[0]


def write_wal(session: Session, size: int) -> None:
    session.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', %s))", [size])


def finish_wal_file(session: Session) -> None:
    write_wal(session, 10)
    session.execute("SELECT pg_switch_wal()")


def as_role(url: str, name: str) -> str:
    return make_conninfo(url, user=name, password="secret")


@contextmanager
def ordinary_role(session: Session, name: str) -> Iterator[None]:
    """A role with the right to log in and no other."""
    role = sql.Identifier(name)
    session.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(role))
    try:
        yield
    finally:
        session.execute(sql.SQL("DROP OWNED BY {}").format(role))
        session.execute(sql.SQL("DROP ROLE {}").format(role))


@contextmanager
def running(session: Session, statement: LiteralString) -> Iterator[None]:
    """The statement in a thread, which waits for a lock; it is ended at the end."""

    def run() -> None:
        with suppress(psycopg.errors.QueryCanceled):
            session.execute(statement)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        session.cancel_safe(timeout=DEADLINE)
        thread.join(DEADLINE)
    assert not thread.is_alive()


@dataclass(frozen=True)
class Pair:
    """A primary and its standby; `session` is the superuser's, on the primary."""

    primary: EmbeddedServer
    standby: EmbeddedServer
    session: Session

    @property
    def url(self) -> str:
        return self.primary.url()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The standby receives, but does not replay."""
        with psycopg.connect(self.standby.url(), autocommit=True) as there:
            there.execute("SELECT pg_wal_replay_pause()")
            try:
                yield
            finally:
                there.execute("SELECT pg_wal_replay_resume()")

    def configure(self, name: LiteralString, setting: LiteralString) -> None:
        self.session.execute(
            sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), setting)
        )
        self.session.execute("SELECT pg_reload_conf()")


@pytest.fixture(scope="module")
def pair(postgres_binaries: Binaries) -> Iterator[Pair]:
    """Two servers of this file's own, in a directory whose disk the throttle can see."""
    settings = {
        "shared_buffers": "16MB",
        "fsync": "off",
        "autovacuum": "off",
        "max_prepared_transactions": "2",
        "wal_keep_size": "256MB",
        "wal_receiver_status_interval": "1s",
        "archive_mode": "on",
    }
    directory = Path(tempfile.mkdtemp(prefix="throttle-"))
    directory.chmod(0o755)
    one, two = directory / "one", directory / "two"
    primary = EmbeddedServer(one, binaries=postgres_binaries, settings=settings)
    standby = EmbeddedServer(two, binaries=postgres_binaries, settings=settings)
    try:
        with primary, psycopg.connect(primary.url(), autocommit=True) as session:
            session.execute("ALTER SYSTEM SET archive_command = 'true'")
            session.execute("SELECT pg_reload_conf()")
            make_standby(primary.url(), one, two, postgres_binaries)
            with standby:
                yield Pair(primary, standby, session)
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def superuser(database_url: str) -> Iterator[Session]:
    with psycopg.connect(database_url, autocommit=True) as session:
        yield session


@pytest.mark.every_postgres
def test_a_healthy_pair_gives_no_reason_and_everything_is_seen(pair: Pair) -> None:
    limits = ThrottleLimits(standbys=(STANDBY,), condition="SELECT true", free_disk_bytes=1)
    with throttle_on(pair.url, limits) as throttle:
        until(throttle, nothing)
        readings = throttle.measure()
    assert [standby.name for standby in readings.standbys] == [STANDBY]
    assert readings.standbys[0].lag_bytes is not None
    assert readings.archive_backlog is not None
    assert readings.condition is True
    assert readings.problems == {}
    assert all(free > 1 for free in readings.free_disk.values())
    assert [Path(path).name for path in readings.free_disk] == ["data"]


@pytest.mark.every_postgres
def test_a_standby_that_does_not_replay_holds_until_it_does(pair: Pair) -> None:
    with (
        throttle_on(pair.url, only(lagBytes=MIB)) as in_bytes,
        throttle_on(pair.url, only(lagSeconds=0.3)) as in_seconds,
    ):
        until(in_bytes, nothing)
        with pair.paused():
            write_wal(pair.session, 3 * MIB)
            (message,) = until(in_bytes, something)
            assert message.startswith(f"Standby {STANDBY} has not replayed 3")
            assert message.endswith("MiB of WAL yet; the limit is 1 MiB.")
            (message,) = until(in_seconds, something)
            assert message.startswith(f"Standby {STANDBY} is ")
            assert message.endswith(" s behind; the limit is 0.3 s.")
            in_bytes.limits = only(lagBytes=64 * MIB)
            until(in_bytes, nothing)
            in_bytes.limits = only(lagBytes=MIB, ignoredStandbys=STANDBY)
            until(in_bytes, nothing)
            in_bytes.limits = only(lagBytes=MIB)
            until(in_bytes, something)
        until(in_bytes, nothing)
        until(in_seconds, nothing)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process")
def test_a_standby_that_says_nothing_is_behind_too(pair: Pair) -> None:
    """PostgreSQL's own replay_lag stays what it was at the last answer."""
    with (
        psycopg.connect(pair.standby.url(), autocommit=True) as there,
        throttle_on(pair.url, only(lagSeconds=0.3)) as throttle,
    ):
        until(throttle, nothing)
        receiver = value(there, "SELECT pid FROM pg_stat_wal_receiver")
        os.kill(receiver, signal.SIGSTOP)
        try:
            write_wal(pair.session, 10)
            (message,) = until(throttle, something)
            assert message.startswith(f"Standby {STANDBY} is ")
        finally:
            os.kill(receiver, signal.SIGCONT)
        until(throttle, nothing)


def test_a_named_standby_that_is_gone_holds_an_unnamed_one_does_not(pair: Pair) -> None:
    with (
        throttle_on(pair.url, only(standbys=[STANDBY])) as naming,
        throttle_on(pair.url, ThrottleLimits(free_disk_bytes=None)) as not_naming,
    ):
        until(naming, nothing)
        pair.standby.stop()
        try:
            (message,) = until(naming, something)
            assert message.startswith(f"Standby {STANDBY} is not streaming")
            until(not_naming, nothing)
        finally:
            pair.standby.start()
        until(naming, nothing)


def test_a_slot_that_nobody_uses_keeps_wal(pair: Pair) -> None:
    # A slot keeps WAL from the last checkpoint on.
    pair.session.execute("CHECKPOINT")
    pair.session.execute("SELECT pg_create_physical_replication_slot('left_over', true)")
    try:
        with throttle_on(pair.url, only(slotWalBytes=2 * MIB)) as throttle:
            assert throttle.reasons() == []
            write_wal(pair.session, 3 * MIB)
            (message,) = until(throttle, something)
            assert message.startswith("Replication slot left_over (nobody uses it) keeps 3")
    finally:
        pair.session.execute("SELECT pg_drop_replication_slot('left_over')")


@pytest.mark.every_postgres
def test_wal_files_that_are_not_archived_are_counted_with_and_without_the_right_to_list_them(
    pair: Pair,
) -> None:

    def archived(messages: list[str]) -> bool:
        # After three failures the archiver sleeps for a minute, or until there is another file.
        finish_wal_file(pair.session)
        time.sleep(0.3)
        return not messages

    with ordinary_role(pair.session, "counting"):
        finish_wal_file(pair.session)
        url = as_role(pair.url, "counting")
        with (
            throttle_on(pair.url, only(archiveBacklog=1)) as listing,
            throttle_on(url, only(archiveBacklog=1)) as counting,
        ):
            until(listing, nothing)
            until(counting, nothing)
            pair.configure("archive_command", "false")
            try:
                for _ in range(2):
                    finish_wal_file(pair.session)
                for throttle in (listing, counting):
                    (message,) = until(throttle, something)
                    assert message.startswith("2 WAL files wait to be archived; the limit is 1.")
            finally:
                pair.configure("archive_command", "true")
            until(listing, archived)
            until(counting, archived)


def test_where_nothing_was_archived_yet_a_backlog_cannot_be_counted_without_the_right(
    pair: Pair,
) -> None:
    with ordinary_role(pair.session, "counting"):
        pair.session.execute("SELECT pg_stat_reset_shared('archiver')")
        with throttle_on(as_role(pair.url, "counting"), only(archiveBacklog=64)) as throttle:
            (message,) = until(throttle, something)
            assert "GRANT pg_monitor" in message
            pair.session.execute("GRANT pg_monitor TO counting")
            until(throttle, nothing)


def test_a_standbys_lag_that_a_role_may_not_see_holds_until_it_may(pair: Pair) -> None:
    with (
        ordinary_role(pair.session, "app"),
        throttle_on(as_role(pair.url, "app"), only(lagBytes=64 * MIB)) as throttle,
    ):
        (message,) = until(throttle, something)
        assert message.startswith(f"The lag of standby {STANDBY} cannot be seen: GRANT ")
        advice = message.partition("seen: ")[2].partition(", or")[0]
        pair.session.execute(advice.encode())
        until(throttle, nothing)


def test_a_query_on_a_standby_that_feeds_back_holds_vacuum(pair: Pair) -> None:
    with (
        psycopg.connect(pair.standby.url()) as there,
        psycopg.connect(pair.standby.url(), autocommit=True) as superuser,
        throttle_on(pair.url, only(oldestTransactionSeconds=0.5)) as throttle,
    ):
        superuser.execute("ALTER SYSTEM SET hot_standby_feedback = on")
        superuser.execute("SELECT pg_reload_conf()")
        try:
            there.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            there.execute("SELECT count(*) FROM pg_class")

            def is_held(messages: list[str]) -> bool:
                write_wal(pair.session, 1)
                return bool(messages)

            (message,) = until(throttle, is_held)
            assert message.startswith("Vacuum is held back since ")
            assert f" {STANDBY};" in message
            with throttle_on(pair.url, only(oldestTransactionSeconds=DEADLINE)) as later:
                assert later.reasons() == [], "PostgreSQL does not tell: counted from now on"
            there.rollback()
            until(throttle, nothing)
        finally:
            superuser.execute("ALTER SYSTEM RESET hot_standby_feedback")
            superuser.execute("SELECT pg_reload_conf()")


def test_a_prepared_transaction_holds_vacuum(pair: Pair) -> None:
    with psycopg.connect(pair.url) as session:
        session.execute("SELECT pg_current_xact_id()")
        session.execute("PREPARE TRANSACTION 'forgotten'")
        session.rollback()
        session.autocommit = True
        try:
            with throttle_on(pair.url, only(oldestTransactionSeconds=0.3)) as throttle:
                (message,) = until(throttle, something)
                assert "by prepared transaction forgotten;" in message
        finally:
            session.execute("ROLLBACK PREPARED 'forgotten'")


class TestOnOneServer:
    """No standby, nothing archived."""

    @pytest.mark.every_postgres
    def test_a_role_without_rights_need_not_wait(
        self, superuser: Session, database_url: str
    ) -> None:
        limits = ThrottleLimits(condition="SELECT true")
        with (
            ordinary_role(superuser, "modest"),
            throttle_on(as_role(database_url, "modest"), limits) as throttle,
        ):
            until(throttle, nothing)
            assert throttle.measure() == Readings(role="modest", condition=True)

    def test_a_session_that_waits_for_one_of_ours(
        self, superuser: Session, database_url: str
    ) -> None:
        superuser.execute("CREATE TABLE bars (id int PRIMARY KEY, n int)")
        superuser.execute("INSERT INTO bars VALUES (1, 0)")
        update: LiteralString = "UPDATE bars SET n = n + 1 WHERE id = 1"
        with (
            connect(database_url, SETTINGS, purpose="batch") as ours,
            connect(database_url, SETTINGS, purpose="batch") as also_ours,
            psycopg.connect(database_url, autocommit=True) as theirs,
            throttle_on(database_url, only(blockedSeconds=0.05)) as throttle,
        ):
            with running_after(ours, update, also_ours):
                assert waits_for_long(superuser, also_ours)
                assert throttle.reasons() == [], "our own may wait for each other"
            with running_after(superuser, update, theirs):
                assert waits_for_long(ours, theirs)
                assert throttle.reasons() == [], "they wait for each other"
            with running_after(ours, update, theirs):
                (message,) = until(throttle, something)
                pid = theirs.info.backend_pid
                assert message.startswith(f"1 session waits for a lock of ours, process {pid} ")
            until(throttle, nothing)

    def test_an_open_transaction_holds_vacuum_unless_it_is_ours(
        self, superuser: Session, database_url: str
    ) -> None:
        with (
            connect(database_url, SETTINGS, purpose="batch") as ours,
            psycopg.connect(database_url, application_name="someone") as theirs,
            throttle_on(database_url, only(oldestTransactionSeconds=0.2)) as throttle,
        ):
            ours.execute("BEGIN")
            ours.execute("SELECT pg_current_xact_id()")
            # Open, but without a snapshot and an id: nothing is held.
            theirs.execute("SELECT 1")
            is_old = (
                "SELECT count(*) = 2 FROM pg_stat_activity WHERE datname = current_database() "
                "AND clock_timestamp() - xact_start > interval '0.3 s'"
            )
            wait_for(superuser, is_old)
            assert throttle.reasons() == []
            theirs.execute("SELECT pg_current_xact_id()")
            (message,) = [reason.message for reason in throttle.reasons()]
            assert f"by session {theirs.info.backend_pid} (postgres, someone, idle in " in message
            theirs.rollback()
            assert throttle.reasons() == []

    def test_a_vacuum_holds_back_no_other_one(self, superuser: Session, database_url: str) -> None:
        superuser.execute("CREATE TABLE bars AS SELECT n FROM generate_series(1, 50000) AS n")
        superuser.execute("DELETE FROM bars")
        limits = only(oldestTransactionSeconds=0.2)
        with (
            psycopg.connect(database_url, autocommit=True) as vacuuming,
            throttle_on(database_url, limits) as throttle,
        ):
            vacuuming.execute("SET vacuum_cost_delay = 100")
            vacuuming.execute("SET vacuum_cost_limit = 1")
            with running(vacuuming, "VACUUM bars"):
                is_old: LiteralString = (
                    "SELECT count(*) > 0 FROM pg_stat_activity JOIN pg_stat_progress_vacuum "
                    "USING (pid) WHERE backend_xmin IS NOT NULL "
                    "AND clock_timestamp() - xact_start > interval '0.3 s'"
                )
                # Something must have an id after it, or nobody holds anything back.
                superuser.execute("SELECT pg_current_xact_id()")
                wait_for(superuser, is_old)
                assert throttle.reasons() == []
                assert value(superuser, is_old), "the vacuum was still at work"

    def test_what_a_role_may_not_look_into_is_old_until_it_was_not_there(
        self, superuser: Session, database_url: str
    ) -> None:
        with (
            ordinary_role(superuser, "modest"),
            psycopg.connect(database_url) as before,
            psycopg.connect(database_url) as after,
            throttle_on(
                as_role(database_url, "modest"), only(oldestTransactionSeconds=0.5)
            ) as throttle,
        ):
            before.execute("SELECT pg_current_xact_id()")
            (message,) = [reason.message for reason in throttle.reasons()]
            pid = before.info.backend_pid
            assert message.startswith(f"Since when vacuum is held back by session {pid} cannot be")
            before.rollback()
            assert throttle.reasons() == []
            throttle.limits = only(oldestTransactionSeconds=DEADLINE)
            after.execute("SELECT pg_current_xact_id()")
            assert throttle.reasons() == []
            throttle.limits = only(oldestTransactionSeconds=0.5)
            (message,) = until(throttle, something)
            assert f"by session {after.info.backend_pid};" in message

    def test_free_disk(self, pair: Pair) -> None:
        with throttle_on(pair.url, only(freeDiskBytes=2**60)) as throttle:
            (reason,) = throttle.reasons()
        assert reason.signal is Signal.FREE_DISK
        assert "/one/data; at least 1.05e+06 TiB are asked for." in reason.message

    def test_a_directory_that_means_another_one_to_each_process_is_not_measured(self) -> None:
        assert _free_disk(["/proc/self/cwd", "/dev/fd/0", "/nowhere"]) == {}
        assert [*_free_disk([tempfile.gettempdir()])] == [tempfile.gettempdir()]

    def test_the_window_is_in_the_zone_of_the_settings(self, database_url: str) -> None:
        now = datetime.now(SETTINGS.zone)
        around = f"{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=1):%H:%M}"
        later = f"{now + timedelta(hours=1):%H:%M}-{now + timedelta(hours=2):%H:%M}"
        with throttle_on(database_url, only(window=around)) as throttle:
            assert throttle.reasons() == []
            throttle.limits = only(window=later)
            assert [reason.signal for reason in throttle.reasons()] == [Signal.WINDOW]

    @pytest.mark.parametrize(
        ("condition", "says"),
        [
            ("SELECT true", None),
            ("  SELECT 1 < 2 -- a comment", None),
            ("SELECT count(*) < 1000 FROM pg_stat_activity;", None),
            ("SELECT 'a%(x)s' LIKE 'a%'", None),
            ("VALUES (true)", None),
            ("SELECT false", "is false"),
            ("SELECT NULL::boolean", "is NULL or no row"),
            ("SELECT true WHERE false", "is NULL or no row"),
            ("SELECT 1", "it must return one row with one boolean"),
            ("SELECT 't'::text", "it must return one row with one boolean"),
            ("SELECT true, true", "it must return one row with one boolean"),
            ("SELECT true FROM generate_series(1, 2)", "it must return one row with one boolean"),
            ("SELECT n FROM nowhere", 'relation "nowhere" does not exist'),
            ("SELECT 1 / 0 = 0", "division by zero"),
            ("nonsense", "syntax error"),
            ("SELECT pg_sleep(20) IS NOT NULL", "it took longer than 2 s"),
            ("SELECT writes()", "cannot execute INSERT in a read-only transaction"),
            ("INSERT INTO written VALUES (1) RETURNING true", "syntax error"),
            ("COMMIT", "syntax error"),
            (
                "SELECT true) c; COMMIT; INSERT INTO written VALUES (1); SELECT FROM (SELECT true",
                "cannot insert multiple commands",
            ),
        ],
    )
    def test_conditions(
        self, superuser: Session, database_url: str, condition: str, says: str | None
    ) -> None:
        superuser.execute("CREATE TABLE written (n int)")
        superuser.execute(
            "CREATE FUNCTION writes() RETURNS boolean LANGUAGE sql AS "
            "'INSERT INTO written VALUES (1) RETURNING true'"
        )
        with throttle_on(database_url, only(condition=condition)) as throttle:
            found = [(reason.signal, reason.message) for reason in throttle.reasons()]
            throttle.limits = ThrottleLimits()
            assert throttle.reasons() == []
        if says is None:
            assert found == []
        else:
            ((signal_, message),) = found
            assert signal_ is Signal.CONDITION
            assert says in message
        assert value(superuser, "SELECT count(*) FROM written") == 0

    def test_a_signal_that_fails_hides_no_other(
        self, superuser: Session, database_url: str
    ) -> None:
        superuser.execute("REVOKE EXECUTE ON FUNCTION pg_blocking_pids(int) FROM public")
        limits = ThrottleLimits(oldest_transaction_seconds=0.001, condition="SELECT false")
        with (
            ordinary_role(superuser, "modest"),
            throttle_on(as_role(database_url, "modest"), limits) as throttle,
            psycopg.connect(database_url) as theirs,
        ):
            theirs.execute("SELECT pg_current_xact_id()")
            found = {reason.signal: reason.message for reason in throttle.reasons()}
        assert [*found] == [Signal.BLOCKED_SESSIONS, Signal.OLD_TRANSACTION, Signal.CONDITION]
        assert "permission denied for function pg_blocking_pids" in found[Signal.BLOCKED_SESSIONS]
        assert "blockedSeconds: null" in found[Signal.BLOCKED_SESSIONS]
        assert "cannot be seen" in found[Signal.OLD_TRANSACTION]

    def test_a_lost_connection_is_the_reason_once(
        self, superuser: Session, database_url: str
    ) -> None:
        with throttle_on(database_url, ThrottleLimits()) as throttle:
            assert throttle.reasons() == []
            superuser.execute(
                "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
                "WHERE application_name = 'assetclass: throttle' AND datname = current_database()"
            )
            (reason,) = throttle.reasons()
            assert reason.signal is Signal.SERVER
            assert reason.message.startswith("The server does not answer: ")
            assert throttle.reasons() == []

    def test_a_server_that_cannot_be_reached_is_the_only_reason(self, database_url: str) -> None:
        limits = ThrottleLimits(standbys=("a",), condition="SELECT false")
        with throttle_on(make_conninfo(database_url, port="1"), limits) as throttle:
            for _ in range(2):
                (reason,) = throttle.reasons()
                assert reason.signal is Signal.SERVER
                assert "Is the server up" in reason.message

    @pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process")
    def test_a_server_that_stays_silent_is_given_up(self, database_url: str) -> None:
        with throttle_on(database_url, ThrottleLimits()) as throttle:
            assert throttle.reasons() == []
            connection = throttle._connection
            assert connection is not None
            pid = connection.info.backend_pid
            os.kill(pid, signal.SIGSTOP)
            usual = throttle._silent_after
            try:
                throttle._silent_after = 0.5
                (reason,) = throttle.reasons()
                assert reason.signal is Signal.SERVER
                # A new session of a busy server may take longer to answer than the silence above.
                throttle._silent_after = usual
                assert throttle.reasons() == []
            finally:
                os.kill(pid, signal.SIGCONT)

    def test_nothing_is_connected_where_every_signal_is_off(self, database_url: str) -> None:
        with throttle_on(make_conninfo(database_url, port="1"), ALL_OFF) as throttle:
            assert throttle.reasons() == []

    def test_the_connection_is_given_back(self, superuser: Session, database_url: str) -> None:
        ours = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'assetclass: %' "
            "AND datname = current_database()"
        )
        with throttle_on(database_url, ThrottleLimits()) as throttle:
            throttle.reasons()
            assert value(superuser, ours) == 1
        wait_for(
            superuser,
            "SELECT count(*) = 0 FROM pg_stat_activity "
            "WHERE application_name LIKE 'assetclass: %' AND datname = current_database()",
        )


def wait_for(session: Session, statement: LiteralString) -> None:
    """Until the statement returns true."""
    deadline = time.monotonic() + DEADLINE
    while not value(session, statement):
        assert time.monotonic() < deadline, statement
        time.sleep(0.02)


def waits_for_long(session: Session, waiting: Session) -> bool:
    """Whether the other one comes to wait for a lock longer than the tests' limit."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        found = session.execute(
            "SELECT FROM pg_locks WHERE pid = %s AND NOT granted "
            "AND waitstart < clock_timestamp() - interval '0.1 s'",
            [waiting.info.backend_pid],
        ).fetchone()
        if found is not None:
            return True
        time.sleep(0.02)
    return False


@contextmanager
def running_after(first: Session, statement: LiteralString, second: Session) -> Iterator[None]:
    """Both run the statement: the first one holds its lock, the second one waits for it."""
    first.execute("BEGIN")
    try:
        first.execute(statement)
        with running(second, statement):
            yield
    finally:
        first.execute("ROLLBACK")
