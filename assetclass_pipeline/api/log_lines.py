"""The log of the API: one JSON object a line, on standard error.

Belongs here: its form. Does not: what is logged.
"""

import json
import logging
from datetime import UTC, datetime

from assetclass_pipeline.model.audit import source


class JsonLines(logging.Formatter):
    """Time, level, where from, message, the request's correlation id, and a record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; whatever the message holds, it stays one line."""
        at_work = source.get()
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "correlationId": None if at_work is None else at_work.correlation_id,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json() -> None:
    """From now on everything that this process logs goes to standard error in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # A request to somebody else's service may hold a secret in its address.
    logging.getLogger("httpx").setLevel(logging.WARNING)
