"""The smallest definitions with a `correction_job`: it sleeps as long as a tag says."""

import time

import dagster as dg


@dg.asset(pool="market_data")
def corrected_market_data(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    deadline = time.monotonic() + float(context.run.tags.get("seconds", "0"))
    while time.monotonic() < deadline:
        time.sleep(0.1)
    return dg.MaterializeResult()


defs = dg.Definitions(
    assets=[corrected_market_data],
    jobs=[dg.define_asset_job("correction_job", [corrected_market_data])],
    executor=dg.in_process_executor,
)
