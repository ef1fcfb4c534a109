"""`python -m ... RUN_ID`: executes a created run of `correction_job`, as a run worker does."""

import sys

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run


def main() -> None:
    """Execute the run until it ends or is told to stop."""
    module = "assetclass_pipeline.definitions"
    job = ReconstructableRepository.for_module(module, "defs").get_reconstructable_job(
        "correction_job"
    )
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(sys.argv[1])
        if run is None:
            raise SystemExit(2)
        execute_run(job, run, instance)


if __name__ == "__main__":
    main()
