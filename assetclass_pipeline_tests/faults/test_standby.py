"""A standby falls behind, or vanishes, or takes over, while a correction runs beside writers.

With asynchronous replication the last commits are lost when a standby takes over: the operation
must notice, and ledger and table must agree again in the end.
"""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import psutil
import psycopg
import pytest

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.database.embedded import find_binaries
from assetclass_pipeline.engine.control import tune
from assetclass_pipeline.engine.correction import CorrectionRequest
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline.model.tuning import Tuning
from assetclass_pipeline_tests.faults.clients import (
    InThread,
    batches,
    finish,
    operation_now,
    request,
    wait_until,
)
from assetclass_pipeline_tests.faults.fault_table import Tries
from assetclass_pipeline_tests.faults.scene import PATIENCE, SERVER_SETTINGS, Scene, open_scene
from assetclass_pipeline_tests.faults.victim import Victim
from assetclass_pipeline_tests.faults.writers import Writers
from assetclass_pipeline_tests.standby import STANDBY, make_standby

RECORDS = 4_000
WORKERS = 2
OPTIONS: dict[str, object] = {"batch_size": 25, "workers": WORKERS}
KIB = 1024
MISSING = f"Standby {STANDBY} is not streaming"
# The writers alone write more than this while a standby stays away.
LIMITS = {"lag_bytes": 256 * KIB, "lag_seconds": 1, "standbys": [STANDBY]}
MIB = 1024 * KIB
SLOT = "slot_of_standby"
# More than the journal's own slot ever keeps while it is read all the time.
SLOT_LIMITS = {"lag_bytes": None, "lag_seconds": None, "slot_wal_bytes": 16 * MIB}
# Processes are killed here, no machine loses its memory: nothing needs to wait for the disk.
SETTINGS = {
    **SERVER_SETTINGS,
    "fsync": "off",
    "wal_keep_size": "512MB",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "100ms",
}


@dataclass
class Pair:
    """A primary and the standby that streams from it."""

    primary: Victim
    standby: Victim

    def there(self) -> psycopg.Connection[tuple[object, ...]]:
        """A session on the standby."""
        return psycopg.connect(self.standby.url(), autocommit=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two servers of this file's own."""
    directory = tmp_path_factory.mktemp("pair")
    with Victim(directory / "one", SETTINGS) as primary, standby_of(primary, "two") as standby:
        yield Pair(primary, standby)


@contextmanager
def standby_of(primary: Victim, name: str) -> Iterator[Victim]:
    """A standby in a directory beside the primary's."""
    directory = primary.directory.parent / name
    make_standby(primary.url(), primary.directory, directory, find_binaries())
    with Victim(directory, SETTINGS) as standby:
        yield standby


@contextmanager
def replay_paused(pair: Pair) -> Iterator[None]:
    """It receives and does not replay, as for a long query there."""
    with pair.there() as session:
        session.execute("SELECT pg_wal_replay_pause()")
        try:
            yield
        finally:
            session.execute("SELECT pg_wal_replay_resume()")


@contextmanager
def receiver_stalled(pair: Pair) -> Iterator[None]:
    """The connection between the two stays open, and nothing is read from it."""
    with pair.there() as session:
        row = session.execute("SELECT pid FROM pg_stat_wal_receiver").fetchone()
    assert row is not None
    with stopped([int(str(row[0]))]):
        yield


@contextmanager
def machine_stopped(pair: Pair) -> Iterator[None]:
    """No process of it does anything."""
    postmaster = psutil.Process(pair.standby.pid)
    with stopped([postmaster.pid, *(child.pid for child in postmaster.children())]):
        yield


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def gone(pair: Pair) -> Iterator[None]:
    """Its server has crashed; it comes back, and catches up, after that."""
    pair.standby.stop_immediately()
    try:
        yield
    finally:
        pair.standby.start()


Fault = Callable[[Pair], AbstractContextManager[None]]


@dataclass
class Watched:
    """A running correction, and writers beside it."""

    scene: Scene
    writers: Writers
    asked: CorrectionRequest
    correction: InThread

    def ended(self) -> bool:
        return not self.correction.is_alive

    def wait_for_batches(self, number: int) -> bool:
        """Whether so many more were done before the correction ended."""
        enough = batches(self.scene) + number
        return wait_until(lambda: batches(self.scene) >= enough, unless=self.ended)

    def is_held(self, because: str) -> bool:
        """Whether the operation comes to wait and says why, before it has ended."""
        return wait_until(lambda: self._stands_still(because), unless=self.ended)

    def _stands_still(self, because: str) -> bool:
        """Whether it says so and writes nothing while the application does.

        What it says may be half a second old: then it goes on, and is looked at again.
        """
        if not self._says(because):
            return False
        held, enough = batches(self.scene), self.writers.committed + 50
        assert wait_until(lambda: self.writers.committed >= enough, unless=lambda: False)
        # Each worker may have been in a batch.
        return self._says(because) and batches(self.scene) <= held + WORKERS

    def _says(self, because: str) -> bool:
        return any(because in reason for reason in operation_now(self.scene, self.asked).throttle)


@contextmanager
def watched(scene: Scene, writers: Writers) -> Iterator[Watched]:
    """A new correction, which must succeed."""
    asked = request(**OPTIONS)
    with InThread(scene, asked) as correction:
        assert correction.holds.wait(PATIENCE)
        yield Watched(scene, writers, asked, correction)
        correction.join()
    assert correction.operation is not None, correction.error
    assert correction.operation.status is Status.SUCCEEDED


def befall(pair: Pair, scene: Scene, faults: list[Fault], because: str) -> float:
    """Let faults happen one by one in the middle of as many corrections as it takes.

    Each fault must be told as the reason why it waits; returns the seconds that it waited so.
    """
    chance = random.Random(1)  # noqa: S311 - no secret
    left, waited = faults[::-1], 0.0
    with scene.trading(pause=0.01) as writers:
        for _ in range(3 * len(faults)):
            with watched(scene, writers) as watching:
                while left and watching.wait_for_batches(chance.randint(1, 20)):
                    with left[-1](pair):
                        happened = watching.is_held(because)
                    if happened:
                        left.pop()
            waited += sum(operation_now(scene, watching.asked).waits.values())
            if not left:
                break
            scene.damage()
    assert not left, "the corrections did not wait"
    finish(scene, request(**OPTIONS))
    return waited


@pytest.mark.timeout(900)
def test_falls_behind_and_catches_up(pair: Pair, request_node: pytest.Item, tries: Tries) -> None:
    ways: list[Fault] = [replay_paused, receiver_stalled, machine_stopped]
    faults = ways * tries(full=6, quick=1)
    with open_scene(pair.primary.url, request_node, records=RECORDS, throttle=LIMITS) as scene:
        assert befall(pair, scene, faults, f"Standby {STANDBY} ") > 0
        scene.hand_in("standby falls behind", len(faults))


@pytest.mark.timeout(900)
def test_vanishes_and_comes_back(pair: Pair, request_node: pytest.Item, tries: Tries) -> None:
    """A standby that should be there and is not means wait, whatever its last lag was."""
    crashes = tries(full=15, quick=1)
    with open_scene(pair.primary.url, request_node, records=RECORDS, throttle=LIMITS) as scene:
        assert befall(pair, scene, [gone] * crashes, MISSING) > 0
        scene.hand_in("standby vanishes", crashes)


def test_vanishes_for_good_and_the_operator_goes_on_without_it(
    pair: Pair, request_node: pytest.Item
) -> None:
    with open_scene(pair.primary.url, request_node, records=RECORDS, throttle=LIMITS) as scene:
        with gone(pair), scene.trading() as writers, watched(scene, writers) as watching:
            assert watching.is_held(MISSING)
            assert batches(scene) == 0
            with connect(scene.server_url(), scene.settings, purpose="test") as connection:
                changes = Tuning(throttle={"standbys": None})
                tune(connection, scene.settings, watching.asked.correction_id, changes, by="anna")
        tuned = [event.actor for event in operation_now(scene, watching.asked).events]
        assert "anna" in tuned
        finish(scene, request(**OPTIONS))
        scene.hand_in("standby vanishes", 1)


def after_much_wal(fault: Fault) -> Fault:
    """The same fault, and the primary writes more than the slot may keep meanwhile."""

    @contextmanager
    def happens(pair: Pair) -> Iterator[None]:
        with fault(pair), psycopg.connect(pair.primary.url(), autocommit=True) as session:
            for _ in range(5):
                session.execute(
                    "SELECT pg_logical_emit_message(false, 'test', repeat('x', %s))", [4 * MIB]
                )
            yield

    return happens


@contextmanager
def streaming_from_slot(pair: Pair) -> Iterator[None]:
    """What the standby has not received is kept for it."""
    with psycopg.connect(pair.primary.url(), autocommit=True) as session:

        def use(slot: str) -> None:
            with pair.there() as there:
                there.execute(f"ALTER SYSTEM SET primary_slot_name = '{slot}'".encode())
                there.execute("SELECT pg_reload_conf()")
            is_used = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
            assert wait_until(
                lambda: session.execute(is_used, [SLOT]).fetchone() == (bool(slot),),
                unless=lambda: False,
            )

        session.execute("SELECT pg_create_physical_replication_slot(%s, true)", [SLOT])
        use(SLOT)
        try:
            yield
        finally:
            use("")
            session.execute("SELECT pg_drop_replication_slot(%s)", [SLOT])


@contextmanager
def journal_being_read(scene: Scene) -> Iterator[None]:
    """Its slot is one like others, and would hold the corrections up for ever."""
    over = threading.Event()

    def read() -> None:
        with psycopg.connect(scene.server_url(), autocommit=True) as session:
            while not over.wait(0.05):
                # Without it the server does not know how far the slot's WAL can be given up.
                session.execute("SELECT pg_log_standby_snapshot()")
                scene.journal.read(session)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.timeout(900)
def test_its_slot_keeps_too_much_wal(pair: Pair, request_node: pytest.Item, tries: Tries) -> None:
    """A standby that is behind, or gone, does not lose its place then, but the disk fills up."""
    ways = [after_much_wal(fault) for fault in (receiver_stalled, gone, machine_stopped)]
    faults = (ways * 5)[: tries(full=15, quick=1)]
    with (
        open_scene(pair.primary.url, request_node, records=RECORDS, throttle=SLOT_LIMITS) as scene,
        streaming_from_slot(pair),
        ExitStack() as reading,
    ):
        reading.enter_context(journal_being_read(scene))
        assert befall(pair, scene, faults, f"Replication slot {SLOT} ") > 0
        reading.close()
        scene.hand_in("standby's slot keeps too much", len(faults))
