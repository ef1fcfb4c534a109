"""Months of market data: the calendar of partitions and the time range that a run covers.

Belongs here: date arithmetic. Does not: Dagster's partition classes, SQL.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Self


@dataclass(frozen=True)
class TimeRange:
    """Rows with start <= timestamp < end (UTC, naive); None leaves a side open.

    A range that is open at the start also holds the rows without a timestamp, so that the months
    of a calendar together hold every row.
    """

    start: datetime | None = None
    end: datetime | None = None

    @property
    def is_everything(self) -> bool:
        """Whether it leaves no row out."""
        return self.start is None and self.end is None


EVERYTHING = TimeRange()


@dataclass(frozen=True)
class Calendar:
    """The months from `first_month` to `last_month`, both included.

    Keys are written as Dagster's monthly partitions are ("2024-01-01"). Rows before the first
    month belong to it, rows after the last month to the last.
    """

    first_month: date
    last_month: date

    @classmethod
    def until_now(cls, first_month: date) -> Self:
        """Months up to the current one (UTC)."""
        today = datetime.now(UTC).date()
        return cls(first_month, max(first_month, today.replace(day=1)))

    @property
    def starts(self) -> list[datetime]:
        """First instant of each month."""
        months = (self.last_month.year - self.first_month.year) * 12 + (
            self.last_month.month - self.first_month.month
        )
        return [_month_after(self.first_month, number) for number in range(months + 1)]

    @property
    def keys(self) -> list[str]:
        """Partition keys, oldest first."""
        return [start.strftime("%Y-%m-%d") for start in self.starts]

    def key_at(self, position: int | None) -> str:
        """Key for what `width_bucket` counts: 1 is the first month, 0 before it, None NULL."""
        keys = self.keys
        return keys[min(max((position or 1) - 1, 0), len(keys) - 1)]

    def key_of(self, moment: datetime) -> str:
        """Key of the month that holds `moment` (naive UTC)."""
        later = [key for key, start in zip(self.keys, self.starts, strict=True) if start <= moment]
        return later[-1] if later else self.keys[0]

    def range_of(self, first_key: str, last_key: str) -> TimeRange:
        """Rows of the months `first_key` to `last_key`, both included; edge months are open.

        Raises ValueError for a key that is not in the calendar.
        """
        starts, keys = self.starts, self.keys
        first, last = keys.index(first_key), keys.index(last_key)
        return TimeRange(
            start=None if first == 0 else starts[first],
            end=None if last == len(keys) - 1 else starts[last + 1],
        )

    def months_in(self, scope: TimeRange) -> list[str]:
        """Keys of the months that `scope` touches."""
        ends: list[datetime | None] = [after for _, after in pairwise(self.starts)]
        return [
            key
            for key, start, end in zip(self.keys, self.starts, [*ends, None], strict=True)
            if (scope.end is None or start < scope.end)
            and (scope.start is None or end is None or end > scope.start)
        ]


def _month_after(first: date, number: int) -> datetime:
    years, month = divmod(first.month - 1 + number, 12)
    return datetime(first.year + years, month + 1, 1)  # noqa: DTZ001 - naive UTC by contract
