"""The application: sessions that insert, change and delete rows while a correction runs.

Belongs here: what they write, and noting whose transactions these were. Does not: what we write.
"""

import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import LiteralString, Self

import psycopg

from assetclass_pipeline_tests.faults.journal import xid_of
from assetclass_pipeline_tests.market import MarketConnection

NAME = "application"
FIRST_NEW_ID = 10_000_000
# A class that no reference holds: it must stand until its writer changes it.
THEIR_CLASS = "THEIRS"

_INSERT: LiteralString = (
    'INSERT INTO market_data (id, symbol, "timestamp", asset_class)'
    " VALUES (%s, %s, timestamp '2023-06-01' + %s * interval '1 s', %s)"
)
_PRICE: LiteralString = "UPDATE market_data SET close = close + 1 WHERE id = %s"
_CLASS: LiteralString = "UPDATE market_data SET asset_class = %s WHERE id = %s"
_DELETE: LiteralString = "DELETE FROM market_data WHERE id = %s"

Deed = Callable[[MarketConnection, random.Random], None]


class Writers:
    """Sessions that write until the context ends; each lost connection is opened again.

    `theirs` gets the number of every transaction before it may commit. Errors that an application
    would see, other than a connection that was lost, are in `refusals`.
    """

    def __init__(
        self,
        url: Callable[[], str],
        theirs: set[int],
        deed: Deed,
        *,
        sessions: int = 2,
        pause: float = 0.005,
        seed: int = 0,
    ) -> None:
        self.refusals: list[str] = []
        self.committed = 0
        self._url, self._theirs, self._deed, self._pause = url, theirs, deed, pause
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(f"{seed} {number}",))
            for number in range(sessions)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End them; nobody writes any more when this returns."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _write(self, seed: str) -> None:
        chance = random.Random(seed)  # noqa: S311 - no secret
        while not self._over.is_set():
            try:
                with psycopg.connect(self._url(), application_name=NAME) as connection:
                    self._write_on(connection, chance)
            except psycopg.OperationalError as error:
                if error.sqlstate is not None and not error.sqlstate.startswith(("57P", "08")):
                    self.refusals.append(str(error))
                time.sleep(0.02)

    def _write_on(self, connection: MarketConnection, chance: random.Random) -> None:
        while not self._over.wait(self._pause):
            self._theirs.add(xid_of(connection))
            self._deed(connection, chance)
            connection.commit()
            self.committed += 1


class Trade:
    """One transaction of a busy application, on rows 1 to `records` and on new ones."""

    def __init__(self, records: int, symbols: int) -> None:
        self._records, self._symbols = records, symbols
        self._next = FIRST_NEW_ID
        self._counting = threading.Lock()

    def __call__(self, connection: MarketConnection, chance: random.Random) -> None:
        """Insert, change a price, a class, or delete: each about as often as it happens."""
        what = chance.random()
        row = chance.randint(1, self._records)
        if what < 0.3:
            self._insert(connection, chance)
        elif what < 0.7:
            # In one order, so that two of them do not stand in each other's way.
            for each in sorted(chance.randint(1, self._records) for _ in range(3)):
                connection.execute(_PRICE, (each,))
        elif what < 0.9:
            connection.execute(_CLASS, (f"{THEIR_CLASS} {chance.randint(1, 9)}", row))
        else:
            connection.execute(_DELETE, (row,))

    def _insert(self, connection: MarketConnection, chance: random.Random) -> None:
        with self._counting:
            self._next += 1
            number = self._next
        symbol = f"S{chance.randrange(self._symbols)}"
        asset_class = chance.choice([None, None, "", THEIR_CLASS])
        connection.execute(_INSERT, (number, symbol, number - FIRST_NEW_ID, asset_class))


def against_the_order(records: int) -> Deed:
    """Transactions that lock rows from the last to the first, where a batch goes up."""

    def write(connection: MarketConnection, chance: random.Random) -> None:
        rows = sorted((chance.randint(1, records) for _ in range(8)), reverse=True)
        for row in rows:
            connection.execute(_PRICE, (row,))
            time.sleep(0.001)

    return write
