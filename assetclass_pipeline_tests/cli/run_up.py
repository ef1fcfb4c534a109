"""`python -m ...run_up MODULE`: `assetclass up` with other definitions than the real ones."""

import sys

from assetclass_pipeline.cli.up import run_services
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.settings import load_settings


def _report(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        run_services(load_settings(), report=_report, definitions_module=sys.argv[1])
    except AssetClassError as error:
        _report(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_status)
