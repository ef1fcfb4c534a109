"""A standby takes over in mid-correction, and the last commits are lost with the primary.

Replication is asynchronous, so they had been confirmed: what the running process knows is wrong
then, and ledger and table must agree again in the end.
"""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from assetclass_pipeline.database.embedded import find_binaries
from assetclass_pipeline.engine import plan
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline_tests.faults.clients import (
    InThread,
    batches,
    finish,
    operation_now,
    request,
    wait_until,
)
from assetclass_pipeline_tests.faults.fault_table import Tries
from assetclass_pipeline_tests.faults.scene import (
    SERVER_SETTINGS,
    SYMBOLS,
    Scene,
    open_scene,
)
from assetclass_pipeline_tests.faults.victim import Victim
from assetclass_pipeline_tests.faults.writers import Trade, Writers
from assetclass_pipeline_tests.standby import make_standby

RECORDS = 4_000
OPTIONS: dict[str, object] = {"batch_size": 25, "workers": 2}
NO_SIGNALS = dict.fromkeys(
    (
        "lag_bytes",
        "lag_seconds",
        "slot_wal_bytes",
        "archive_backlog",
        "blocked_seconds",
        "oldest_transaction_seconds",
    )
)
SETTINGS = {
    **SERVER_SETTINGS,
    "fsync": "off",
    "wal_keep_size": "512MB",
    "wal_retrieve_retry_interval": "100ms",
    # So that the primary keeps what the journal on the standby needs.
    "hot_standby_feedback": "on",
    "wal_receiver_status_interval": "1s",
}


@dataclass
class Pair:
    """A primary, and the standby that is to take over from it."""

    primary: Victim
    standby: Victim

    def url(self, attributes: str = "read-write") -> str:
        """The one of the two that has these attributes, as libpq finds it."""
        one, two = (conninfo_to_dict(each.url()) for each in (self.primary, self.standby))
        return make_conninfo(
            self.primary.url(),
            host=f"{one['host']},{two['host']}",
            port=f"{one['port']},{two['port']}",
            target_session_attrs=attributes,
        )

    def there(self, statement: str) -> object:
        """A value on the standby."""
        with psycopg.connect(self.standby.url(), autocommit=True) as session:
            row = session.execute(statement.encode()).fetchone()
        return None if row is None else row[0]

    def stop_receiving(self) -> None:
        """Nothing that is committed from now on reaches the standby."""
        with psycopg.connect(self.standby.url(), autocommit=True) as session:
            session.execute("ALTER SYSTEM SET primary_conninfo = ''")
            session.execute("SELECT pg_reload_conf()")
        self._wait_there("SELECT count(*) = 0 FROM pg_stat_wal_receiver")
        # It has read to the end of what it has, and looks for more.
        self._wait_there(
            "SELECT wait_event = 'RecoveryRetrieveRetryInterval' FROM pg_stat_activity"
            " WHERE backend_type = 'startup'"
        )

    def _wait_there(self, statement: str) -> None:
        assert wait_until(lambda: bool(self.there(statement)), unless=lambda: False)

    def take_over(self, theirs: set[int]) -> None:
        """Promote it. Of `theirs` only transactions stay that it knows of."""
        # It will use the numbers of the lost ones again.
        next_xid = int(str(self.there("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")))
        theirs.difference_update([xid for xid in theirs if xid >= next_xid])
        assert self.there("SELECT pg_promote(true, 60)") is True


@dataclass
class Failover:
    """The scene of one failover; the application goes over to the new primary as well."""

    pair: Pair
    scene: Scene
    deed: Trade
    writers: Writers
    lost: int = 0

    def wait_for_batches(self, number: int, correction: InThread) -> None:
        """Until so many more are done."""
        enough = batches(self.scene) + number
        assert wait_until(
            lambda: batches(self.scene) >= enough, unless=lambda: not correction.is_alive
        ), correction.error

    def planned(self) -> int:
        """Rows planned so far."""
        return int(
            self.scene.market.value(
                "SELECT coalesce(sum(records_planned), 0) FROM assetclass.operation"
            )
        )

    def cut(self) -> None:
        """What is committed from now on will be lost."""
        self.pair.stop_receiving()

    def happens(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """The primary dies, the standby takes over; `lost` are the batches it knows nothing of.

        `meanwhile` the standby can be read and not written.
        """
        confirmed = batches(self.scene)
        self.pair.primary.stop_immediately()
        self.writers.stop()
        survived = self.pair.there("SELECT count(*) FROM assetclass.operation_batch")
        self.lost = confirmed - int(str(survived))
        meanwhile()
        self.pair.take_over(self.scene.theirs)
        self.scene.reconnect()
        self.writers = self.scene.trading(deed=self.deed, pause=0.01)
        self.writers.__enter__()

    def hand_in(self) -> None:
        """What came late is the next operation's."""
        self.writers.stop()
        finish(self.scene, request(**OPTIONS))
        self.scene.hand_in("standby takes over", 1)


class Chain:
    """Servers of which each is the standby of the one before it, and takes over from it."""

    def __init__(self, first: Victim, stack: ExitStack) -> None:
        self._primary, self._stack = first, stack
        self._directories = (first.directory.parent / f"standby_{n}" for n in itertools.count(1))

    @contextmanager
    def failover(self, node: pytest.Item, **shape: Any) -> Iterator[Failover]:
        """A scene on the present primary and a new standby."""
        directory = next(self._directories)
        make_standby(self._primary.url(), self._primary.directory, directory, find_binaries())
        standby = self._stack.enter_context(Victim(directory, SETTINGS))
        pair = Pair(self._primary, standby)
        with open_scene(pair.url, node, **{"records": RECORDS, **shape}) as scene:
            let_standby_keep_journal(pair, scene)
            deed = Trade(scene.records, SYMBOLS)
            with scene.trading(deed=deed, pause=0.01) as writers:
                failover = Failover(pair, scene, deed, writers)
                try:
                    yield failover
                finally:
                    failover.writers.stop()
        self._primary = standby


def let_standby_keep_journal(pair: Pair, scene: Scene) -> None:
    """It alone survives. The primary must tell it from where on a slot may begin."""
    scene.journal.close(scene.market.connection)
    made = threading.Event()

    def make() -> None:
        pair.there(
            f"SELECT pg_create_logical_replication_slot('{scene.journal.slot}', 'test_decoding')"
        )
        made.set()

    thread = threading.Thread(target=make)
    thread.start()
    while not made.wait(0.02):
        scene.market.execute("SELECT pg_log_standby_snapshot()")
    thread.join()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """Servers of this file's own."""
    directory = tmp_path_factory.mktemp("chain")
    with ExitStack() as stack:
        yield Chain(stack.enter_context(Victim(directory / "first", SETTINGS)), stack)


Story = Callable[[Failover, random.Random], None]


def batches_are_lost(failover: Failover, chance: random.Random) -> None:
    """The running process does them again by itself."""
    lose_batches(failover, chance, failover.scene.server_url(), lambda _: None)


def the_address_leads_to_the_standby_before(failover: Failover, chance: random.Random) -> None:
    """As one that a load balancer moves does: to be read only for a while means waiting."""

    def let_it_try(correction: InThread) -> None:
        seen: set[int] = set()
        with psycopg.connect(failover.pair.standby.url(), autocommit=True) as session:

            def has_tried() -> bool:
                ours = session.execute(
                    "SELECT pid FROM pg_stat_activity WHERE application_name ~ '^assetclass: '"
                )
                seen.update(pid for (pid,) in ours.fetchall())
                return len(seen) > 3

            assert wait_until(has_tried, unless=lambda: not correction.is_alive), correction.error

    lose_batches(failover, chance, failover.pair.url("any"), let_it_try)


def lose_batches(
    failover: Failover, chance: random.Random, url: str, meanwhile: Callable[[InThread], None]
) -> None:
    asked = request(**OPTIONS)
    with InThread(failover.scene, asked, url=url) as correction:
        failover.wait_for_batches(chance.randint(1, 60), correction)
        failover.cut()
        failover.wait_for_batches(10, correction)
        failover.happens(lambda: meanwhile(correction))
        correction.join()
    assert failover.lost >= 10
    assert correction.operation is not None, correction.error
    assert correction.operation.status is Status.SUCCEEDED
    # The process writes what it has to tell when it leaves.
    events = operation_now(failover.scene, asked).events
    assert "batches_were_lost" in {event.event for event in events}


def the_operation_is_lost(failover: Failover, chance: random.Random) -> None:
    """The new primary has never heard of it: the process writes no more, and says so."""
    asked = request(**OPTIONS)
    failover.cut()
    with InThread(failover.scene, asked) as correction:
        failover.wait_for_batches(chance.randint(1, 60), correction)
        failover.happens()
        correction.join()
    assert isinstance(correction.error, AssetClassError), correction.error
    assert finish(failover.scene, asked).records_corrected > 0


def part_of_the_plan_is_lost(failover: Failover, chance: random.Random) -> None:
    """And the process does batches of it already."""
    asked = request(**OPTIONS)
    with InThread(failover.scene, asked) as correction:
        assert wait_until(lambda: failover.planned() > 0, unless=lambda: not correction.is_alive)
        failover.cut()
        failover.wait_for_batches(chance.randint(1, 30), correction)
        failover.happens()
        correction.join()
    assert isinstance(correction.error, AssetClassError), correction.error
    assert finish(failover.scene, asked).status is Status.SUCCEEDED


def chunks_are_lost_while_planning(failover: Failover, chance: random.Random) -> None:
    """Going on with the chunks after them would leave a hole in the plan for ever."""
    asked = request(**OPTIONS)
    with InThread(failover.scene, asked) as correction:
        assert wait_until(lambda: failover.planned() > 0, unless=lambda: not correction.is_alive)
        failover.cut()
        some = failover.planned() + chance.randint(1, 200)
        assert wait_until(lambda: failover.planned() >= some, unless=lambda: False)
        failover.happens()
        correction.join()
    assert "lost a part of the plan" in str(correction.error)
    assert finish(failover.scene, asked).status is Status.SUCCEEDED


def the_end_is_lost(failover: Failover, chance: random.Random) -> None:
    """It had succeeded; the new primary knows a running one whose process is gone."""
    asked = request(**OPTIONS)
    with InThread(failover.scene, asked) as correction:
        failover.wait_for_batches(chance.randint(1, 60), correction)
        failover.cut()
        correction.join()
    assert correction.operation is not None, correction.error
    failover.happens()
    assert failover.lost > 0
    assert operation_now(failover.scene, asked).status is Status.RUNNING
    assert finish(failover.scene, asked).status is Status.SUCCEEDED


PLANNED_LONG: dict[str, Any] = {"records": 12_000, "missing_every": 4}
STORIES: dict[Story, dict[str, Any]] = {
    batches_are_lost: {},
    # The throttle would see it too; but its signals may be off, and not every step asks it.
    the_address_leads_to_the_standby_before: {"throttle": NO_SIGNALS},
    the_operation_is_lost: {},
    the_end_is_lost: {},
    part_of_the_plan_is_lost: PLANNED_LONG,
    chunks_are_lost_while_planning: PLANNED_LONG,
}
# The others are tried by `make faults` only.
QUICK = (the_address_leads_to_the_standby_before, chunks_are_lost_while_planning)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of some thousand rows is made in many steps."""
    monkeypatch.setattr(plan, "PAGES_PER_CHUNK", 1)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("story", STORIES)
def test_takes_over(chain: Chain, request_node: pytest.Item, tries: Tries, story: Story) -> None:
    number_of_tries = tries(full=5, quick=1 if story in QUICK else 0)
    if not number_of_tries:
        pytest.skip("tried by `make faults`")
    for number in range(number_of_tries):
        with chain.failover(request_node, **STORIES[story]) as failover:
            story(failover, random.Random(number))  # noqa: S311 - no secret
            failover.hand_in()
