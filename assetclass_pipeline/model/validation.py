"""The answer of a validation: passed or not, what is wrong, and the scores."""

from typing import Any

from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.model.wire import WireModel


class ValidationProblem(WireModel):
    """Rows with one kind of error, and some of them."""

    type: str
    records: int
    message: str
    samples: list[dict[str, Any]]


class Validation(WireModel):
    """Whether all thresholds are met, measured by a fresh scan."""

    passed: bool
    failed_thresholds: list[str]
    errors: list[ValidationProblem]
    report: IntegrityReport
