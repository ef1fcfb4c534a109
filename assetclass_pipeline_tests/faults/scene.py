"""A scene: a market with damaged rows, a journal of all that happens to them, and an application.

Belongs here: setting the scene and handing in its outcome. Does not: faults, and the verdict.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, LiteralString

import psycopg
import pytest

from assetclass_pipeline.settings import Settings
from assetclass_pipeline_tests.faults.fault_table import Outcome, hand_in
from assetclass_pipeline_tests.faults.journal import Journal, open_journal, xid_of
from assetclass_pipeline_tests.faults.verification import judge, rows_at_risk
from assetclass_pipeline_tests.faults.writers import NAME, Deed, Trade, Writers
from assetclass_pipeline_tests.market import Market, open_market

SYMBOLS = 20
# The server reads its log for the journal; there are two autovacuum-free databases at most.
SERVER_SETTINGS = {"wal_level": "logical", "shared_buffers": "32MB", "autovacuum": "off"}
# Waiting for something that must happen; the machine may be slow.
PATIENCE = 30.0


@dataclass
class Scene:
    """`market` is seen directly; `url` is where a correction goes, a proxy for example."""

    market: Market
    journal: Journal
    node: pytest.Item
    records: int
    server_url: Callable[[], str]
    theirs: set[int] = field(default_factory=set)
    settings_of_ours: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """Settings of the process that corrects."""
        return self.market.settings.model_copy(update=self.settings_of_ours)

    def reconnect(self) -> None:
        """After the server's end: look at it again."""
        with suppress(psycopg.Error):
            self.market.connection.close()
        connection = psycopg.connect(self.server_url(), autocommit=True)
        connection.execute("SET TimeZone TO 'UTC'")
        self.market = replace(self.market, connection=connection, dsn=self.server_url())

    def apply(self, statement: LiteralString, *values: object) -> None:
        """One change by the application."""
        while True:
            try:
                with psycopg.connect(self.server_url(), application_name=NAME) as connection:
                    self.theirs.add(xid_of(connection))
                    connection.execute(statement, values or None)
            except psycopg.errors.DeadlockDetected:
                # Two writers of the application were in each other's way.
                continue
            return

    def correctable(self) -> int:
        """Rows that a correction could still correct."""
        return int(
            self.market.value(
                "SELECT count(*) FROM market_data m JOIN symbols s ON s.ticker = m.symbol"
                " WHERE m.asset_class IS NULL OR m.asset_class = ''"
            )
        )

    @contextmanager
    def locked(self, statement: LiteralString) -> Iterator[None]:
        """Another session holds what `statement` locks."""
        with psycopg.connect(self.server_url(), application_name=NAME) as connection:
            connection.execute(statement)
            yield
            connection.rollback()

    def damage(self, every: int = 2) -> None:
        """The application forgets classes again: there is work for another operation."""
        self.apply(
            "UPDATE market_data SET asset_class = NULL WHERE id %% %s = 0 AND id <= %s",
            every,
            self.records,
        )

    def trading(self, *, deed: Deed | None = None, **how: Any) -> Writers:
        """The application at work, for a `with`."""
        return Writers(self.server_url, self.theirs, deed or Trade(self.records, SYMBOLS), **how)

    def hand_in(self, fault: str, tries: int, *, undoes: bool = False) -> Outcome:
        """Judge all that happened since the start; the outcome stands in the fault table.

        Call it when every operation has ended and nobody writes any more; `undoes` when each
        correction was rolled back.
        """
        changes = self.journal.read(self.market.connection)
        verdict = judge(self.market, self.journal.start, changes, self.theirs, undoes=undoes)
        outcome = Outcome(
            fault,
            tries,
            rows_at_risk(self.market),
            lost=verdict.lost,
            doubled=verdict.doubled,
            overwritten=verdict.overwritten,
        )
        hand_in(self.node, outcome)
        assert outcome.is_clean, (outcome, verdict)
        return outcome


@contextmanager
def open_scene(
    server_url: Callable[[], str],
    node: pytest.Item,
    *,
    records: int,
    missing_every: int = 1,
    **shape: Any,
) -> Iterator[Scene]:
    """A market of `records` rows in the database of `server_url`, where a journal is kept."""
    with open_market(server_url(), **shape) as market:
        market.fill(records, symbols=SYMBOLS, missing_every=missing_every)
        scene = Scene(market, open_journal(market), node, records, server_url)
        try:
            yield scene
        finally:
            with suppress(psycopg.Error):
                scene.reconnect()
                scene.journal.close(scene.market.connection)
                scene.market.connection.close()
