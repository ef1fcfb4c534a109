"""Resources: the database with the market tables, and the options of a correction.

Belongs here: what assets, checks and schedules are given. Does not: what they do with it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import dagster as dg
from psycopg import Connection
from psycopg.rows import TupleRow
from pydantic import BaseModel, Field

from assetclass_pipeline.database.connections import connect, open_database
from assetclass_pipeline.database.market_tables import MarketTables, inspect_market_tables
from assetclass_pipeline.defs.runs import cover_all_months
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.model.options import CorrectionOptions, RetryOptions, parse_options
from assetclass_pipeline.settings import Settings

DATABASE = "database"
CORRECTION_OPTIONS = "correction_options"
CALENDAR = "calendar"


@dataclass(frozen=True)
class MarketDatabase:
    """The way to the market tables; nothing is connected until something is asked for."""

    settings: Settings

    @contextmanager
    def address(self) -> Iterator[str]:
        """The DSN while the context lives. Raises EmbeddedServerError."""
        with open_database(self.settings) as dsn:
            yield dsn

    @contextmanager
    def tables(self, *, purpose: str) -> Iterator[tuple[Connection[TupleRow], MarketTables]]:
        """A connection and the inspected market tables.

        Raises DatabaseUnavailableError and MarketTablesError.
        """
        with self.address() as dsn, connect(dsn, self.settings, purpose=purpose) as connection:
            yield connection, inspect_market_tables(connection, self.settings, for_writing=False)


def database_resource(settings: Settings) -> dg.ResourceDefinition:
    """MarketDatabase as a resource without config: a DSN must not show up in the UI."""
    return dg.ResourceDefinition(
        resource_fn=lambda _: MarketDatabase(settings),
        description="PostgreSQL with the market tables, as the ASSETCLASS_* settings name it.",
    )


def calendar_resource(settings: Settings) -> dg.ResourceDefinition:
    """The Calendar of this moment, for steps over months.

    Before such a step starts, a run that names no partition is given all months.
    """

    def calendar_of(context: dg.InitResourceContext) -> Calendar:
        calendar = Calendar.until_now(settings.first_month)
        if context.run is not None and context.instance is not None:
            cover_all_months(context.run, context.instance, calendar)
        return calendar

    return dg.ResourceDefinition(
        resource_fn=calendar_of,
        description="The months of market data. A run that names no partition covers all of them.",
    )


def described(defaults: BaseModel, name: str) -> Any:  # noqa: ANN401 - pydantic's field type
    """A config field like the model's own: its default, in its JSON form, and its description.

    So neither is written twice.
    """
    default = defaults.model_dump(mode="json", by_alias=False)[name]
    return Field(default=default, description=type(defaults).model_fields[name].description)


_retry = partial(described, RetryOptions())
_option = partial(described, CorrectionOptions())


class RetryConfig(dg.Config):
    """How a batch that met a transient error is tried again."""

    tries: int = _retry("tries")
    first_wait: float = _retry("first_wait")
    longest_wait: float = _retry("longest_wait")


class CorrectionOptionsResource(dg.ConfigurableResource[Any]):
    """What to correct and how: the options of a correction, as REST and CLI have them.

    The launchpad checks types only; limits and contradictions are checked when the run starts.
    """

    batch_size: int = _option("batch_size")
    pace: str = _option("pace")
    max_records_to_process: int | None = _option("max_records_to_process")
    create_backup: bool = _option("create_backup")
    target_symbols: list[str] | None = _option("target_symbols")
    only_process_null_asset_class: bool = _option("only_process_null_asset_class")
    overwrite_existing_values: bool = _option("overwrite_existing_values")
    validate_after_each_batch: bool = _option("validate_after_each_batch")
    dry_run: bool = _option("dry_run")
    timeout: str = _option("timeout")
    retry: RetryConfig | None = _option("retry")
    workers: int | None = _option("workers")

    def options(self) -> CorrectionOptions:
        """The options, with every limit checked.

        Raises InvalidOptionsError naming each field and its limit.
        """
        return parse_options(values_of(self, CorrectionOptions))


def values_of(config: BaseModel, options: type[BaseModel]) -> Mapping[str, object]:
    """What a config says of the options, as plain values; they are yet to be checked."""
    said = config.model_dump()
    return {name: said[name] for name in options.model_fields}


def correction_run_config(options: CorrectionOptions) -> dict[str, Any]:
    """Run config with which a run of `correction_job` carries out `options`."""
    config = options.model_dump(mode="json", by_alias=False, exclude_none=True)
    return {"resources": {CORRECTION_OPTIONS: {"config": config}}}
