"""A process that corrects, for tests that kill it: DSN, correctionId and options as arguments."""

import json
import sys

from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.model.options import parse_options
from assetclass_pipeline.settings import load_settings


def main() -> None:
    """Correct until done."""
    dsn, correction_id, options, settings = sys.argv[1:]
    correct(
        dsn,
        load_settings(**json.loads(settings)),
        CorrectionRequest(correction_id, parse_options(json.loads(options)), requested_by="test"),
    )


if __name__ == "__main__":
    main()
