"""`python -m assetclass_pipeline.api [--port PORT]`: one process of the API.

More of them, each on a port of its own, can stand behind one proxy.
"""

import argparse
import sys

from assetclass_pipeline.api.serve import serve
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.settings import load_settings


def main() -> int:
    """Serve; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m assetclass_pipeline.api")
    parser.add_argument("--port", type=int, help="instead of ASSETCLASS_API_PORT")
    port = parser.parse_args().port
    try:
        serve(load_settings() if port is None else load_settings(api_port=port))
    except AssetClassError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
