"""The requests of the operators' guide, as data: what its JSON blocks and curl commands send.

Belongs here: method, path, body, what curl adds by itself, whether a token is shown. Does not: what
is expected of the answers.
"""

from dataclasses import dataclass

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
"""What `curl -d` declares unless it is told otherwise."""

PLACEHOLDERS = ("your-operation-id-here", "OPERATION_ID")
"""Stand where the id of an operation has to be put."""


@dataclass(frozen=True)
class Asked:
    """One request; `where` is the heading in the guide."""

    where: str
    method: str
    call: str
    has_token: bool = True
    body: str | None = None
    content_type: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.method} {self.call}"

    @property
    def headers(self) -> dict[str, str]:
        """As curl sends them, but for the token."""
        said = {"User-Agent": "curl/8.5.0", "Accept": "*/*"}
        return said if self.content_type is None else {**said, "Content-Type": self.content_type}

    def naming(self, correction_id: str) -> str | None:
        """The body with this id in place of the guide's placeholder."""
        body = self.body
        for placeholder in PLACEHOLDERS:
            body = body and body.replace(f'"{placeholder}"', f'"{correction_id}"')
        return body


GUIDE = (
    Asked(
        "Execute (standard)",
        "POST",
        "execute",
        body="""{
    "batchSize": 1000,
    "createBackup": true,
    "onlyProcessNullAssetClass": true,
    "validateAfterEachBatch": true,
    "dryRun": false
}""",
        content_type=JSON,
    ),
    Asked(
        "Execute (conservative)",
        "POST",
        "execute",
        body="""{
    "batchSize": 500,
    "maxRecordsToProcess": 10000,
    "createBackup": true,
    "onlyProcessNullAssetClass": true,
    "overwriteExistingValues": false,
    "validateAfterEachBatch": true,
    "timeout": "01:00:00",
    "dryRun": false
}""",
        content_type=JSON,
    ),
    Asked(
        "Rollback operation",
        "POST",
        "rollback",
        body="""{
    "correctionId": "your-operation-id-here",
    "reason": "Data quality issues detected",
    "validateAfterRollback": true
}""",
        content_type=JSON,
    ),
    Asked("Health check", "GET", "health"),
    Asked("Data quality assessment", "GET", "analyze"),
    Asked(
        "Proactive correction",
        "POST",
        "preview",
        body='{"batchSize": 1000, "dryRun": false}',
        content_type=JSON,
    ),
    Asked(
        "Proactive correction",
        "POST",
        "execute",
        body='{"batchSize": 1000, "createBackup": true}',
        content_type=JSON,
    ),
    Asked("Performance analysis", "GET", "metrics"),
    Asked("Another operation is running", "GET", "status", has_token=False),
    Asked("High error rate", "GET", "analyze", has_token=False),
    Asked(
        "High error rate",
        "POST",
        "execute",
        has_token=False,
        body='{"batchSize": 100, "createBackup": true}',
        content_type=FORM,
    ),
    Asked("Poor data quality", "POST", "validate", has_token=False),
    Asked(
        "Poor data quality",
        "POST",
        "rollback",
        has_token=False,
        body='{"correctionId": "OPERATION_ID"}',
        content_type=FORM,
    ),
    Asked(
        "Operation timeout",
        "POST",
        "execute",
        body="""{
    "maxRecordsToProcess": 50000,
    "batchSize": 500,
    "timeout": "03:00:00"
}""",
        content_type=JSON,
    ),
    Asked("Complete rollback", "GET", "status", has_token=False),
    Asked(
        "Complete rollback",
        "POST",
        "rollback",
        has_token=False,
        body='{"correctionId": "OPERATION_ID"}',
        content_type=JSON,
    ),
)

EMERGENCY = r"""
set -euo pipefail
OPERATION_ID=$(curl -s -X GET "$HOST/api/etl/asset-class-correction/status" | \
  jq -r '.data.recentOperations[0].correctionId')
curl -s -X POST "$HOST/api/etl/asset-class-correction/rollback" \
  -H "Content-Type: application/json" \
  -d "{\"correctionId\": \"$OPERATION_ID\"}"
"""
"""The last two of them, as a shell runs them."""

JQ = """#!/bin/sh
# Where jq is not installed: the one filter that is asked for.
exec "$PYTHON" -c '
import json, sys
assert sys.argv[1:] == ["-r", ".data.recentOperations[0].correctionId"], sys.argv
print(json.load(sys.stdin)["data"]["recentOperations"][0]["correctionId"])
' "$@"
"""
