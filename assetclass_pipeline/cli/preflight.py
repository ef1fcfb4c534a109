"""`python -m assetclass_pipeline.cli.preflight MODULE`: what `up` does before the first service.

With `--definitions-only` behind it, the definitions are loaded, as `doctor` wants it, and no more.

In a process of its own, because it imports the definitions and all of Dagster: `up` stays small,
and definitions that cannot be loaded end this process only. Writes one readable reason to standard
output when it fails; the traceback goes to standard error.
"""

import importlib
import sys
import traceback
from pathlib import Path

import dagster as dg

from assetclass_pipeline.defs.instance import end_dead_runs, open_instance
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.settings import load_settings

DEFINITIONS_ONLY = "--definitions-only"


def main() -> int:
    """Load the definitions, create Dagster's tables, end dead runs; returns the exit status."""
    try:
        definitions = importlib.import_module(sys.argv[1]).defs
        dg.Definitions.validate_loadable(definitions)
    except Exception as error:  # noqa: BLE001 - definitions may raise anything at import
        traceback.print_exc()
        _say(f"The definitions cannot be loaded. {_reason(error)}")
        return 1
    if DEFINITIONS_ONLY in sys.argv:
        return 0
    settings = load_settings()
    if settings.database_url is None:
        _say("ASSETCLASS_DATABASE_URL must be set for this command; `assetclass up` does that.")
        return 2
    try:
        with open_instance(settings, settings.database_url.get_secret_value()) as instance:
            for run_id in end_dead_runs(instance):
                _say(f"Run {run_id} had lost its process; it is marked as failed now.")
    except AssetClassError as error:
        _say(str(error))
        return error.exit_status
    return 0


def _reason(error: BaseException) -> str:
    """Type, message and the innermost place: what a person needs to mend the definitions."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
