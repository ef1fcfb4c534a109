"""The two tables that others fill: known to Dagster, materialised by nobody here."""

import dagster as dg

from assetclass_pipeline.settings import Settings

GROUP = "asset_class"
OWNERS = ("team:data-engineering",)
TAGS = {"domain": "market-data"}


def source_specs(settings: Settings) -> list[dg.AssetSpec]:
    """`symbols` and `market_data`, with the names that the settings give their tables."""
    return [
        dg.AssetSpec(
            "symbols",
            description="The truth: which asset class each ticker belongs to. Filled elsewhere.",
            metadata={"dagster/table_name": f"{settings.symbols_schema}.{settings.symbols_table}"},
            group_name=GROUP,
            owners=OWNERS,
            tags=TAGS,
            kinds={"postgres", "table"},
        ),
        dg.AssetSpec(
            "market_data",
            description=(
                "Price bars with the denormalised column asset_class, which feeds leave NULL, "
                "empty or wrong. Filled elsewhere."
            ),
            metadata={"dagster/table_name": f"{settings.market_schema}.{settings.market_table}"},
            group_name=GROUP,
            owners=OWNERS,
            tags=TAGS,
            kinds={"postgres", "table"},
        ),
    ]
