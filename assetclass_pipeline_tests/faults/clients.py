"""The process, or the thread, that corrects, for tests that kill it, stop it or cut it off.

Belongs here: starting one, dying at a chosen moment, running one to its end. Does not: faults that
come from outside.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self
from uuid import uuid4

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.engine.operations import get_operation
from assetclass_pipeline.engine.rollback import RollbackRequest, roll_back
from assetclass_pipeline.engine.running import Observer
from assetclass_pipeline.errors import AssetClassError, OperationInProgressError
from assetclass_pipeline.model.operation import Operation, Phase
from assetclass_pipeline.model.options import parse_options
from assetclass_pipeline.model.rollback import parse_rollback_options
from assetclass_pipeline.settings import Settings
from assetclass_pipeline_tests.faults.scene import PATIENCE, Scene

DAY = 86_400.0
# For a whole operation of small batches; a busy machine is no reason to call it hung.
LONGEST = 240.0

Asked = CorrectionRequest | RollbackRequest


@dataclass(frozen=True)
class Death:
    """kill -9 so many seconds after a phase was entered; STARTING begins with the process."""

    phase: Phase
    after: float


@dataclass
class Ended:
    """How a client ended; `code` is that of its error, None after a success or a kill."""

    killed: bool
    code: str | None
    message: str
    entered: dict[Phase, float]
    finished: float

    def duration(self, phase: Phase) -> float:
        """Seconds from entering a phase to entering the next one."""
        begins = self.entered[phase]
        return min([at for at in self.entered.values() if at > begins] + [self.finished]) - begins


def request(**options: object) -> CorrectionRequest:
    """A new operation; the same request again resumes it."""
    return CorrectionRequest(str(uuid4()), parse_options(options), requested_by="test")


def undo_request(rollback_of: str, **options: object) -> RollbackRequest:
    """A new rollback; the same request again resumes it."""
    chosen = parse_rollback_options(options)
    return RollbackRequest(str(uuid4()), rollback_of, chosen, requested_by="test")


def run(dsn: str, settings: Settings, asked: Asked, observe: Observer | None = None) -> Operation:
    """An operation of either kind, to its end."""
    if isinstance(asked, RollbackRequest):
        return roll_back(dsn, settings, asked, observe=observe)
    return correct(dsn, settings, asked, observe=observe)


def finish(scene: Scene, asked: Asked) -> Operation:
    """Run it to its end, as soon as the dead one is given up and its locks are gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return run(scene.server_url(), scene.settings, asked)
        except OperationInProgressError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def operation_now(scene: Scene, asked: Asked) -> Operation:
    """How it stands."""
    with connect(scene.server_url(), scene.settings, purpose="test") as connection:
        return get_operation(connection, scene.settings, asked.correction_id)


def batches(scene: Scene) -> int:
    """Batches in the ledger, of all operations."""
    return int(scene.market.value("SELECT count(*) FROM assetclass.operation_batch"))


def wait_until(happened: Callable[[], bool], *, unless: Callable[[], bool]) -> bool:
    """Whether it happened; False when `unless` did before. Fails after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if unless():
            return False
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return True


class InThread:
    """A correction in a thread of the test's process; `holds` is set once it has claimed."""

    def __init__(
        self,
        scene: Scene,
        asked: CorrectionRequest,
        *,
        url: str | None = None,
        observe: Callable[[Operation], None] | None = None,
    ) -> None:
        self.operation: Operation | None = None
        self.error: BaseException | None = None
        self.holds = threading.Event()
        self._call = (url or scene.server_url(), scene.settings, asked)
        self._also = observe
        # A daemon, so that one that hangs cannot keep the tests from ending.
        self._thread = threading.Thread(target=self._run, name="the correction", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(LONGEST)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._thread.is_alive()

    def join(self, patience: float = LONGEST) -> None:
        """Wait for its end. Fails when it does not come."""
        self._thread.join(patience)
        assert not self._thread.is_alive(), "the correction hangs"

    def _observe(self, operation: Operation) -> None:
        self.holds.set()
        if self._also is not None:
            self._also(operation)

    def _run(self) -> None:
        dsn, settings, asked = self._call
        try:
            self.operation = correct(dsn, settings, asked, observe=self._observe)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        finally:
            self.holds.set()


class InProcess:
    """A correction in a process of its own, forked from one that has everything imported."""

    def __init__(
        self,
        scene: Scene,
        asked: Asked,
        *,
        death: Death | None = None,
        jumping_clock: bool = False,
    ) -> None:
        self.asked = asked
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload([__name__])
        self._hears, self._says = forks.Pipe(duplex=False)
        self.process: BaseProcess = forks.Process(
            target=_run_client,
            args=(self._says, (scene.server_url(), scene.settings, asked), death, jumping_clock),
            daemon=True,
        )

    def __enter__(self) -> Self:
        self.process.start()
        self._says.close()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self._hears.close()

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def ended(self, patience: float = LONGEST) -> Ended:
        """Wait for its end. Fails when it does not come."""
        self.process.join(patience)
        assert self.process.exitcode is not None, "the correction hangs"
        entered: dict[Phase, float] = {}
        code, message = None, ""
        finished = time.monotonic()
        while self._hears.poll():
            try:
                said = self._hears.recv()
            except EOFError:
                break
            if isinstance(said[0], Phase):
                entered.setdefault(*said)
            else:
                code, message, finished = said
        killed = self.process.exitcode == -signal.SIGKILL
        assert killed or self.process.exitcode == 0, self.process.exitcode
        return Ended(killed, code, message, entered, finished)


@dataclass
class _Doom:
    """Ends its own process in the middle of something: no handler runs, nothing is closed."""

    death: Death | None
    armed: bool = field(default=False)

    def entered(self, phase: Phase) -> None:
        if self.death is None or self.armed or phase is not self.death.phase:
            return
        self.armed = True
        if self.death.after <= 0:
            _die()
        timer = threading.Timer(self.death.after, _die)
        timer.daemon = True
        timer.start()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run_client(
    says: "Connection[Any, Any]",
    call: tuple[str, Settings, Asked],
    death: Death | None,
    jumping_clock: bool,
) -> None:
    if jumping_clock:
        _let_clock_jump()
    doom = _Doom(death)

    def observe(operation: Operation) -> None:
        says.send((operation.phase, time.monotonic()))
        doom.entered(operation.phase)

    says.send((Phase.STARTING, time.monotonic()))
    doom.entered(Phase.STARTING)
    code, message = None, ""
    try:
        run(*call, observe=observe)
    except AssetClassError as error:
        code, message = error.code, str(error)
    says.send((code, message, time.monotonic()))


def _let_clock_jump() -> None:
    """Every look at the clock of this process finds it a day ahead or a day behind."""
    now = time.time
    looks = iter(lambda: True, False)
    away = {"days": 1}

    def jump() -> float:
        next(looks)
        away["days"] = -away["days"]
        return away["days"] * DAY

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(seconds=jump())

    time.time = lambda: now() + jump()
    for name, module in [*sys.modules.items()]:
        if (
            name.startswith("assetclass_pipeline.")
            and getattr(module, "datetime", None) is datetime
        ):
            module.__dict__["datetime"] = Jumping
