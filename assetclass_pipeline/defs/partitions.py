"""The months of market data as Dagster's partitions.

Belongs here: the calendar in Dagster's words. Does not: which rows a month holds (model/months.py).
"""

import dagster as dg

from assetclass_pipeline.settings import Settings

PARTITION_TAG = "dagster/partition"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"


def monthly_partitions(settings: Settings) -> dg.MonthlyPartitionsDefinition:
    """Months (UTC) from `first_month` to the current one, whose rows arrive already."""
    return dg.MonthlyPartitionsDefinition(start_date=settings.first_month.isoformat(), end_offset=1)
