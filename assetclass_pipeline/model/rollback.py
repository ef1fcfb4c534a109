"""The options of a rollback: one model for REST bodies, CLI flags and Dagster config.

Belongs here: what to undo and how, limits, contradictions. Does not: how it is carried out.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.options import (
    ClockDuration,
    Pace,
    RetryOptions,
    describe_problems,
    require_timeout,
)
from assetclass_pipeline.model.wire import WireModel

_Month = Annotated[str, StringConstraints(pattern=r"^\d{4}-(0[1-9]|1[0-2])-01$")]
_Text = Annotated[str, StringConstraints(min_length=1)]


class RollbackOptions(WireModel):
    """What to undo of a correction; the defaults restore every row that nobody changed since.

    `target_symbols`, `partitions` and `row_ids` narrow each other: a row must be in all that are
    given.
    """

    validate_after_rollback: bool = Field(
        True, description="measure the table again at the end, by a fresh scan"
    )
    target_symbols: list[_Text] | None = Field(
        None, min_length=1, max_length=10_000, description="only rows of these symbols; unset: all"
    )
    partitions: list[_Month] | None = Field(
        None, min_length=1, max_length=10_000, description='only these months, like "2024-03-01"'
    )
    row_ids: list[_Text] | None = Field(
        None, min_length=1, max_length=10_000, description="only rows with these ids, as text"
    )
    dry_run: bool = Field(
        False, description="tell rows, conflicts and the effect on the scores; change nothing"
    )
    take_backup_value: bool = Field(
        False, description="also overwrite rows that were changed since the correction"
    )
    batch_size: int | None = Field(
        None, ge=1, le=10_000, description="rows of one batch at most; unset: by rows planned"
    )
    pace: Pace = Field(Pace.BALANCED, description="gentle, balanced or fast")
    workers: int | None = Field(
        None, ge=1, le=16, description="connections that write at once; unset: by pace"
    )
    timeout: ClockDuration = Field(
        timedelta(hours=2),
        description='longest duration, "HH:MM:SS" from 1 minute to 24 hours',
        json_schema_extra={"default": "02:00:00"},
    )
    retry: RetryOptions | None = Field(
        None, description="tries of a batch and their waits; unset: from the settings"
    )

    @model_validator(mode="after")
    def _check_timeout(self) -> Self:
        require_timeout(self.timeout)
        return self

    @property
    def validate_after_each_batch(self) -> bool:
        """Each restored value is read back, always."""
        return True

    @property
    def is_partial(self) -> bool:
        """Whether it is about some rows of the correction only."""
        return (self.target_symbols, self.partitions, self.row_ids) != (None, None, None)


def parse_rollback_options(values: Mapping[str, object]) -> RollbackOptions:
    """Options from untrusted values (camelCase or snake_case names).

    Raises InvalidOptionsError naming each field and its limit.
    """
    try:
        return RollbackOptions.model_validate(values)
    except ValidationError as error:
        raise InvalidOptionsError(describe_problems(error)) from None
