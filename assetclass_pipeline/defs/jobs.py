"""Jobs: which assets one run materialises together."""

import dagster as dg

CORRECTION_JOB = "correction_job"
DATA_QUALITY_JOB = "data_quality_job"

correction_job = dg.define_asset_job(
    CORRECTION_JOB,
    selection=(
        dg.AssetSelection.assets(
            "integrity_report", "market_data_backup", "corrected_market_data", "quality_report"
        )
        | dg.AssetSelection.checks_for_assets("symbols")
    ),
    description=(
        "Measure, back up, correct, prove and measure again: the months of the chosen partitions, "
        "or all rows without one. Options stand under resources, correction_options; with dry_run "
        "nothing is changed. A failed or terminated run goes on where it stopped by re-executing."
    ),
    executor_def=dg.in_process_executor,
)

data_quality_job = dg.define_asset_job(
    DATA_QUALITY_JOB,
    selection=(
        dg.AssetSelection.assets("quality_report") | dg.AssetSelection.checks_for_assets("symbols")
    ),
    description="Measure the data and check every threshold; nothing is changed.",
    executor_def=dg.in_process_executor,
)
