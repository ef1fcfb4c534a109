"""Applications at work on the market table: bars come in, prices change, bars are deleted.

Run as a program (`python -m benchmarks.writers`) it is the process that writes: it reads one line
of JSON (the fields of Load), says "ready", and writes until its standard input is closed, at most
`most_seconds`; then it prints a Report. A process of its own, because the engine's threads would
hold up the latencies of writers beside them. Does not belong here: what the latencies are compared
with (concurrency.py), whether the writers' work was respected (respect.py).
"""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import IO

import psycopg

# Ten transactions in turn. A hand-made class in between proves that nobody's class is overwritten.
PATTERN = (
    "insert", "price", "prices", "insert", "price", "delete", "insert", "price", "class", "price",
)  # fmt: skip
ROWS_OF_MANY = 50
# Every fifth bar comes in as damaged as the old ones: an engine that starts before it must not
# take it for one that it planned.
INSERTS_TO_A_DAMAGED_ONE = 5
BY_HAND = "BY_HAND"

_INSERT = """
INSERT INTO market_data (symbol, "timestamp", open, high, low, close, volume, asset_class)
VALUES (%(symbol)s, now(), %(price)s, %(price)s, %(price)s, %(price)s, 1, %(asset_class)s)
RETURNING id
"""
_PRICE = "UPDATE market_data SET close = %s, updated_at = now() WHERE id = %s"
_PRICES = """
UPDATE market_data m SET close = %s, updated_at = now()
FROM unnest(%s::bigint[]) wanted (id) WHERE m.id = wanted.id
"""
_CLASS = "UPDATE market_data SET asset_class = %s, updated_at = now() WHERE id = %s"
_DELETE = "DELETE FROM market_data WHERE id = %s"
_KNOWN_SYMBOLS = "SELECT ticker, asset_class FROM symbols WHERE ticker LIKE 'SYM%'"
_LAST_ID = "SELECT max(id) FROM market_data"


@dataclass(frozen=True)
class Load:
    """What to do: transactions a second in all, on so many connections."""

    dsn: str
    per_second: float = 100.0
    connections: int = 8
    most_seconds: float = 900.0
    seed: int = 1


@dataclass(frozen=True)
class Commit:
    """One transaction: when it was due (monotonic clock), and seconds from then to its commit."""

    due: float
    latency: float
    kind: str


@dataclass
class Report:
    """What the writers did and left: prices and hand-made classes by id, ids of deleted rows.

    `inserted` holds symbol, price and class by id. `last_id` is the last row of before.
    """

    last_id: int
    ran_out: bool = False
    commits: list[Commit] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    prices: dict[int, int] = field(default_factory=dict)
    by_hand: list[int] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    inserted: dict[int, tuple[str, int, str | None]] = field(default_factory=dict)

    def add(self, other: "Report") -> None:
        """Join what another connection did to other rows."""
        self.commits += other.commits
        self.errors += other.errors
        self.prices |= other.prices
        self.by_hand += other.by_hand
        self.deleted += other.deleted
        self.inserted |= other.inserted

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """From the writing process's output."""
        read = json.loads(text)
        return cls(
            **{
                **read,
                "commits": [Commit(**commit) for commit in read["commits"]],
                "prices": {int(key): value for key, value in read["prices"].items()},
                "inserted": {
                    int(key): (symbol, price, asset_class)
                    for key, (symbol, price, asset_class) in read["inserted"].items()
                },
            }
        )


class Writers:
    """The writing process as its parent sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self) -> Report:
        """End the writing. Raises RuntimeError when it had ended before, or met errors."""
        output, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"The writers ended with status {self._process.returncode}.")
        report = Report.from_json(output)
        if report.ran_out:
            raise RuntimeError(
                "The writers stopped by themselves before the correction ended: use fewer rows."
            )
        if report.errors:
            raise RuntimeError(
                f"{len(report.errors)} transactions of the writers failed; the first: "
                f"{report.errors[0]}"
            )
        return report


@contextmanager
def writers(load: Load) -> Iterator[Writers]:
    """Writers at work from here to their `stop`, or at most to the end of the context."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.writers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _begin(process, load)
            yield Writers(process)
        finally:
            if process.poll() is None:
                process.kill()


def _begin(process: subprocess.Popen[str], load: Load) -> None:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("The writers have no pipes.")
    process.stdin.write(json.dumps(asdict(load)) + "\n")
    process.stdin.flush()
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError("The writers could not begin; see above.")


class _Schedule:
    """Transactions that are due at a fixed rate, whether or not the ones before are done.

    Whoever is free takes the next one, late or not. So a stall delays all that come due in it, and
    counts for each of them: a loop that waits for its answer before it asks again would hide them.
    """

    def __init__(self, per_second: float) -> None:
        self._begin = time.monotonic()
        self._per_second = per_second
        self._numbers = count()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Nothing more is due."""
        self._stopped.set()

    def take(self) -> tuple[int, float] | None:
        """Number and due time of the next transaction, when it is due; None after `stop`."""
        with self._lock:
            number = next(self._numbers)
        due = self._begin + number / self._per_second
        if self._stopped.wait(max(0.0, due - time.monotonic())):
            return None
        return number, due


class _Writer(threading.Thread):
    """One connection. It alone touches the rows whose id leaves its number as the remainder.

    So each row's last writer is known without asking the database in which order they committed.
    """

    def __init__(
        self,
        number: int,
        load: Load,
        connection: psycopg.Connection,
        report: Report,
        classes: dict[str, str],
    ) -> None:
        super().__init__(name=f"writer {number}", daemon=True)
        self._number, self._load, self._connection = number, load, connection
        self._classes, self._symbols = classes, sorted(classes)
        # The same rows in every run; nobody's secret depends on it.
        self._random = random.Random(load.seed * 1000 + number)  # noqa: S311 - see above
        self.report = report
        self._gone: set[int] = set()
        self._schedule: _Schedule | None = None

    def begin(self, schedule: _Schedule) -> None:
        """Start to write what this schedule says."""
        self._schedule = schedule
        self.start()

    def run(self) -> None:
        try:
            while self._schedule is not None and (due := self._schedule.take()) is not None:
                self._do(self._connection, *due)
        except psycopg.Error as error:
            self.report.errors.append(f"connection lost: {error}")

    def _do(self, connection: psycopg.Connection, number: int, due: float) -> None:
        kind = PATTERN[number % len(PATTERN)]
        try:
            self._write(connection, kind, number)
        except psycopg.Error as error:
            if connection.closed:
                raise
            self.report.errors.append(f"{kind}: {error}")
        else:
            self.report.commits.append(Commit(due, time.monotonic() - due, kind))

    def _write(self, connection: psycopg.Connection, kind: str, number: int) -> None:
        """One transaction; noted only once it has committed. The number is the price: unique."""
        if kind == "insert":
            self._insert(connection, number)
        elif kind == "price":
            row = self._pick()
            connection.execute(_PRICE, (number, row))
            self.report.prices[row] = number
        elif kind == "prices":
            rows = sorted({self._pick() for _ in range(ROWS_OF_MANY)})
            connection.execute(_PRICES, (number, rows))
            self.report.prices |= dict.fromkeys(rows, number)
        elif kind == "class":
            row = self._pick()
            connection.execute(_CLASS, (BY_HAND, row))
            self.report.by_hand.append(row)
        else:
            row = self._pick()
            connection.execute(_DELETE, (row,))
            self._gone.add(row)
            self.report.deleted.append(row)

    def _insert(self, connection: psycopg.Connection, number: int) -> None:
        symbol = self._random.choice(self._symbols)
        damaged = len(self.report.inserted) % INSERTS_TO_A_DAMAGED_ONE == 0
        asset_class = None if damaged else self._classes[symbol]
        values = {"symbol": symbol, "price": number, "asset_class": asset_class}
        row = connection.execute(_INSERT, values).fetchall()[0][0]
        self.report.inserted[row] = (symbol, number, asset_class)

    def _pick(self) -> int:
        """Any old row of ours that we have not deleted."""
        step = self._load.connections
        while True:
            row = self._random.randrange(self._number + 1, self.report.last_id + 1, step)
            if row not in self._gone:
                return row


def write(load: Load, until: IO[str], begun: Callable[[], None]) -> Report:
    """Write until `until` is closed, at most `most_seconds`; `begun` is called at the start."""
    with ExitStack() as stack:
        connections = [
            stack.enter_context(psycopg.connect(load.dsn, autocommit=True))
            for _ in range(load.connections)
        ]
        classes: dict[str, str] = dict(connections[0].execute(_KNOWN_SYMBOLS).fetchall())
        last_id = int(connections[0].execute(_LAST_ID).fetchall()[0][0])
        workers = [
            _Writer(number, load, connection, Report(last_id), classes)
            for number, connection in enumerate(connections)
        ]
        schedule = _Schedule(load.per_second)
        for worker in workers:
            worker.begin(schedule)
        begun()
        in_time = _closed(until).wait(load.most_seconds)
        schedule.stop()
        report = Report(last_id, ran_out=not in_time)
        for worker in workers:
            worker.join()
            report.add(worker.report)
        return report


def _closed(stream: IO[str]) -> threading.Event:
    """Set when the stream ends."""
    closed = threading.Event()

    def wait() -> None:
        stream.read()
        closed.set()

    threading.Thread(target=wait, daemon=True).start()
    return closed


if __name__ == "__main__":
    wanted = Load(**json.loads(sys.stdin.readline()))
    print(write(wanted, sys.stdin, lambda: print("ready", flush=True)).to_json())
