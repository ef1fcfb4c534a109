"""What a correction would do: the answer of a preview."""

from typing import Any

from pydantic import Field

from assetclass_pipeline.model.operation import Change
from assetclass_pipeline.model.preflight import Preflight
from assetclass_pipeline.model.quality import SecondsRange
from assetclass_pipeline.model.wire import WireModel


class PreviewSample(WireModel):
    """One row that would change."""

    id: Any
    symbol: str
    timestamp: str | None
    before: str | None
    after: str


class ClassChange(WireModel):
    """Rows that would go from one class to another."""

    from_: str | None = Field(alias="from")
    to: str
    records: int


class Preview(WireModel):
    """Exact counts and an estimate; nothing was written."""

    records: int
    batches: int
    batch_size: int
    workers: int
    estimated_seconds: SecondsRange
    samples: list[PreviewSample]
    changes: list[ClassChange]
    symbols: list[Change]
    risks: list[str]
    preflight: Preflight
