"""`python -m ...run_up MODULE [PORT]`: `assetclass up --port` with definitions of one's choice."""

import sys

from assetclass_pipeline.cli.up import run_services
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.settings import load_settings


def _report(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        module, *port = sys.argv[1:]
        chosen = {"webserver_port": port[0]} if port else {}
        run_services(load_settings(**chosen), report=_report, definitions_module=module)
    except AssetClassError as error:
        _report(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_status)
