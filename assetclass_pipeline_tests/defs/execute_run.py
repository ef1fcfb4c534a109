"""`python -m ... RUN_ID`: executes a created run of one of our jobs, as a run worker does."""

import sys

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run


def main() -> None:
    """Execute the run until it ends or is told to stop."""
    repository = ReconstructableRepository.for_module("assetclass_pipeline.definitions", "defs")
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(sys.argv[1])
        if run is None:
            raise SystemExit(2)
        execute_run(repository.get_reconstructable_job(run.job_name), run, instance)


if __name__ == "__main__":
    main()
