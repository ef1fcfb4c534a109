"""The crew: several workers on disjoint ranges, more or fewer of them as the tempo says.

Belongs here: threads, turns and pauses. Does not: a batch itself (batches.py).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.batches import Worker
from assetclass_pipeline.engine.plan import require_stored
from assetclass_pipeline.engine.ranges import OpenRanges
from assetclass_pipeline.engine.work import Work, explain

_LOOK_AGAIN = 0.1


def open_ranges(work: Work) -> OpenRanges:
    """What the ledger lacks: the whole plan, or a resume's rest."""
    with transaction(work.holder.connection, work.holder.settings, read_only=True) as cursor:
        require_stored(work.holder, cursor, work.plan)
        gaps = cursor.execute(
            query("batch", "open_ranges"),
            {"correction_id": work.holder.correction_id, "planned": work.plan.planned},
        ).fetchall()
    return OpenRanges(work.plan.segments, gaps)


class Crew:
    """Workers until the ranges are empty or the operation stops.

    What went wrong is the `cause` of the holder's `stop`.
    """

    def __init__(self, work: Work, ranges: OpenRanges) -> None:
        self._work = work
        self._ranges = ranges
        self._workers: list[threading.Thread] = []

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Batches in flight end before the context does, whatever ends it."""
        try:
            yield
        except BaseException as error:
            # With a cause, or who waits at the gate would go in.
            self._work.holder.stop.because(explain(error, self._work))
            raise
        finally:
            for worker in self._workers:
                worker.join()

    def goes_on(self) -> bool:
        """Hire whom the tempo asks for; False when the last worker has ended."""
        wanted = self._work.tempo.pacing.workers
        while self._has_more() and len(self._workers) < wanted:
            number = len(self._workers) + 1
            worker = threading.Thread(target=self._run, args=(number,), name=f"worker {number}")
            self._workers.append(worker)
            worker.start()
        for worker in self._workers:
            worker.join(_LOOK_AGAIN)
            if worker.is_alive():
                return True
        return self._has_more()

    def _has_more(self) -> bool:
        return not self._ranges.is_empty and not self._work.holder.stop.is_set()

    def _run(self, number: int) -> None:
        worker = Worker(self._work, number)
        try:
            while self._has_more():
                wanted = self._work.tempo.pacing.workers
                if number > wanted:
                    # Somebody else may need the connection meanwhile.
                    worker.close()
                    self._work.holder.stop.wait(_LOOK_AGAIN)
                elif wanted > 1 and not worker.has_room():
                    self._go_on_with_fewer(number)
                else:
                    self._next_batch(worker)
        except Exception as error:  # noqa: BLE001 - a thread's error must reach the one who waits
            self._work.holder.stop.because(explain(error, self._work))
        finally:
            worker.close()

    def _go_on_with_fewer(self, number: int) -> None:
        """The server has no connection left: the last worker gives its own to the first one."""
        self._work.tempo.met_contention()
        self._work.holder.journal.tell("no_free_connection", worker=number)
        self._work.holder.stop.wait(_LOOK_AGAIN)

    def _next_batch(self, worker: Worker) -> None:
        work = self._work
        batch = self._ranges.take(work.tempo.pacing.batch_size)
        if batch is None:
            return
        records, seconds = worker.correct(batch)
        rest = work.tempo.took(records, seconds, of=batch.records)
        work.holder.pacing = work.tempo.pacing.model_dump(mode="json", by_alias=True)
        if rest:
            work.holder.stop.wait(rest)
