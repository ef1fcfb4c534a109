"""What callers send and what only the API answers; everything else is in model/.

Belongs here: bodies of requests, with the guide's examples. Does not: what an option means.
"""

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from assetclass_pipeline.model.operation import Kind, OperationStatus, Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.model.wire import WireModel

Reason = Annotated[
    str | None, Field(None, min_length=1, max_length=1000, description="why, for the audit")
]
Ticket = Annotated[
    str | None, Field(None, min_length=1, max_length=200, description="which ticket asks for it")
]
CorrectionId = Annotated[str, StringConstraints(min_length=1, max_length=100)]

_ID = "6f1c1d8e-3d0a-4c55-9a53-0f6d1a2b3c4d"


class CorrectionBody(CorrectionOptions):
    """Options of a correction, and why it is asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "batchSize": 1000,
                    "createBackup": True,
                    "onlyProcessNullAssetClass": True,
                    "validateAfterEachBatch": True,
                    "dryRun": False,
                },
                {
                    "batchSize": 500,
                    "maxRecordsToProcess": 10000,
                    "createBackup": True,
                    "onlyProcessNullAssetClass": True,
                    "overwriteExistingValues": False,
                    "validateAfterEachBatch": True,
                    "timeout": "01:00:00",
                    "dryRun": False,
                },
                {"maxRecordsToProcess": 50000, "batchSize": 500, "timeout": "03:00:00"},
            ]
        }
    )

    reason: Reason = None
    ticket: Ticket = None

    @property
    def options(self) -> CorrectionOptions:
        """What the engine is asked for."""
        said = {name: getattr(self, name) for name in CorrectionOptions.model_fields}
        return CorrectionOptions.model_validate(said)


class RollbackBody(RollbackOptions):
    """Which correction is undone, how much of it, and why."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "correctionId": _ID,
                    "reason": "Data quality issues detected",
                    "validateAfterRollback": True,
                },
                {"correctionId": _ID},
                {"correctionId": _ID, "targetSymbols": ["AAPL"], "dryRun": True},
            ]
        }
    )

    correction_id: CorrectionId = Field(description="of the correction that is undone")
    reason: Reason = None
    ticket: Ticket = None

    @property
    def options(self) -> RollbackOptions:
        """What the engine is asked for."""
        said = {name: getattr(self, name) for name in RollbackOptions.model_fields}
        return RollbackOptions.model_validate(said)


class OperationBody(WireModel):
    """Which operation is meant; without it, the active one."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"correctionId": _ID}]})

    correction_id: CorrectionId | None = Field(None, description="unset: the active operation")


class Nothing(WireModel):
    """A body without fields; none is fine too."""


class Accepted(WireModel):
    """What was asked for: `status` as it stands, `statusUrl` where to look."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "correctionId": _ID,
                    "kind": "correction",
                    "status": "requested",
                    "statusUrl": f"/api/etl/asset-class-correction/status/{_ID}",
                }
            ]
        }
    )

    correction_id: str
    kind: Kind
    status: Status
    status_url: str


class StatusPage(OperationStatus):
    """The active operation and the newest ended ones; `nextCursor` leads to those before them."""

    next_cursor: str | None
