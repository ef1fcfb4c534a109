"""Ranges of `seq` that the ledger lacks, handed out piece by piece.

Belongs here: which planned rows come next. Does not: what is done with them.
"""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from assetclass_pipeline.engine.plan import Segment


@dataclass(frozen=True)
class Batch:
    """Planned rows [first_seq, last_seq] of one leaf."""

    leaf: int
    first_seq: int
    last_seq: int

    @property
    def records(self) -> int:
        """Rows planned in it."""
        return self.last_seq - self.first_seq + 1

    def halves(self) -> tuple["Batch", "Batch"]:
        """The same rows as two batches."""
        middle = self.first_seq + self.records // 2
        return Batch(self.leaf, self.first_seq, middle - 1), Batch(self.leaf, middle, self.last_seq)


class OpenRanges:
    """What is left of a plan, in its order; threads take from it.

    Only the ranges are kept, not their batches: a billion rows are a million batches.
    """

    def __init__(self, segments: Iterable[Segment], gaps: Iterable[tuple[int, int]]) -> None:
        gaps = list(gaps)
        self._left: deque[Batch] = deque()
        for segment in segments:
            for first, last in gaps:
                first_seq, last_seq = max(first, segment.first_seq), min(last, segment.last_seq)
                if first_seq <= last_seq:
                    self._left.append(Batch(segment.leaf, first_seq, last_seq))
        self._guard = threading.Lock()

    @property
    def is_empty(self) -> bool:
        """Whether everything was taken."""
        return not self._left

    def take(self, records: int) -> Batch | None:
        """The next batch, of `records` rows or the rest of its leaf; None when nothing is left."""
        with self._guard:
            if not self._left:
                return None
            open_range = self._left.popleft()
            end = min(open_range.first_seq + records - 1, open_range.last_seq)
            if end < open_range.last_seq:
                rest = Batch(open_range.leaf, end + 1, open_range.last_seq)
                self._left.appendleft(rest)
            return Batch(open_range.leaf, open_range.first_seq, end)
