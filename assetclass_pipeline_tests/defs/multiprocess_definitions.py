"""The real definitions with Dagster's default executor: each step in a process of its own."""

import dagster as dg

from assetclass_pipeline.definitions import build_defs

defs = build_defs(executor=dg.multiprocess_executor)
