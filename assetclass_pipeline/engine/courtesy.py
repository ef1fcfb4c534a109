"""Courtesy to everybody else on the server: batches wait while the throttle has a reason.

Belongs here: looking again and again, closing and opening the gate, counting the waits. Does not:
the signals and their limits (throttle.py, model/throttle.py).
"""

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from assetclass_pipeline.engine.holding import Holder
from assetclass_pipeline.engine.retry import what_it_said
from assetclass_pipeline.engine.throttle import Throttle
from assetclass_pipeline.errors import CorrectionFailedError, InvalidOptionsError
from assetclass_pipeline.model.throttle import Reason, ThrottleLimits, with_changes

_CLOSER = "throttle"


class Courtesy:
    """A thread that looks at the throttle's signals while an operation writes.

    Until its first look has ended no batch starts. A wait that lasts becomes an event, once.
    """

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._throttle = Throttle(holder.connect, holder.settings)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="throttle", daemon=True)
        self._held_since: float | None = None
        self._told_starved = False

    def __enter__(self) -> Self:
        self._close(["The throttle has not looked yet."])
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=10)
        self._holder.gate.open(_CLOSER)

    def _watch(self) -> None:
        """Without it nobody would open the gate or close it: then the operation ends."""
        try:
            self._watch_until_the_end()
        except Exception as error:  # noqa: BLE001 - a thread's error must reach those who work
            self._holder.stop.because(
                CorrectionFailedError(
                    f"The throttle of operation {self._holder.correction_id} broke: "
                    f"{what_it_said(error)}. Everything committed stays; run it again to go on."
                )
            )

    def _watch_until_the_end(self) -> None:
        looked_at = time.monotonic()
        with self._throttle as throttle:
            while not self._ended.is_set():
                throttle.limits = self._limits()
                reasons = throttle.reasons()
                now = time.monotonic()
                self._count(reasons, now - looked_at, now)
                looked_at = now
                if reasons:
                    self._close([reason.message for reason in reasons])
                else:
                    self._holder.gate.open(_CLOSER)
                self._ended.wait(throttle.limits.poll_seconds)

    def _close(self, reasons: Sequence[str]) -> None:
        self._holder.gate.close(_CLOSER, reasons, to_writers_only=True)

    def _limits(self) -> ThrottleLimits:
        limits = self._holder.settings.throttle
        try:
            return with_changes(limits, self._holder.tuning.throttle or {})
        except InvalidOptionsError:
            # Checked when it was asked for; another version of this program may have been asked.
            return limits

    def _count(self, reasons: Sequence[Reason], seconds: float, now: float) -> None:
        if not reasons:
            self._held_since, self._told_starved = None, False
            return
        if self._held_since is None:
            self._held_since = now
        else:
            for signal in {reason.signal for reason in reasons}:
                self._holder.journal.waited(signal, seconds)
        held = now - self._held_since
        if held >= self._throttle.limits.starved_after_seconds and not self._told_starved:
            self._told_starved = True
            self._holder.journal.tell(
                "starved",
                seconds=round(held, 1),
                reasons=" ".join(reason.message for reason in reasons),
            )
