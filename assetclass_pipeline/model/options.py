"""The options of a correction: one model for REST bodies, CLI flags and Dagster config.

Belongs here: limits, defaults and contradictions. Does not: how an option is carried out.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.refused_values import own_words
from assetclass_pipeline.model.wire import WireModel

SHORTEST_TIMEOUT = timedelta(minutes=1)
LONGEST_TIMEOUT = timedelta(hours=24)
_CLOCK = re.compile(r"([0-9]{1,2}):([0-5][0-9]):([0-5][0-9])")


class Pace(StrEnum):
    """How hard a correction presses the server."""

    GENTLE = "gentle"
    BALANCED = "balanced"
    FAST = "fast"


WORKERS_BY_PACE = {Pace.GENTLE: 1, Pace.BALANCED: 2, Pace.FAST: 4}
"""Connections of one correction where `workers` is not given."""


def _parse_clock(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    match = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('write it as "HH:MM:SS", like "02:00:00"')
    hours, minutes, seconds = (int(part) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def _print_clock(value: timedelta) -> str:
    minutes, seconds = divmod(int(value.total_seconds()), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


# Schemas know only the anchored form, and no groups.
_ClockText = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}:[0-5][0-9]:[0-5][0-9]$")]
ClockDuration = Annotated[
    timedelta,
    BeforeValidator(_parse_clock, json_schema_input_type=_ClockText),
    PlainSerializer(_print_clock, return_type=str),
]


def require_timeout(value: timedelta) -> None:
    """Return when an operation may take so long. Raises ValueError."""
    if not SHORTEST_TIMEOUT <= value <= LONGEST_TIMEOUT:
        raise ValueError("timeout must be from 00:01:00 to 24:00:00")


class RetryOptions(WireModel):
    """How a batch that met a transient error is tried again."""

    tries: int = Field(3, ge=1, le=20, description="tries of one batch in all")
    first_wait: float = Field(5, ge=0, le=300, description="seconds before the second try")
    longest_wait: float = Field(300, ge=0, le=3600, description="seconds a wait may grow to")


class CorrectionOptions(WireModel):
    """What to correct and how; the defaults correct every missing row that is mappable."""

    batch_size: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="rows of one batch (transaction) at most; unset: 500 to 5000 by rows planned",
    )
    pace: Pace = Field(Pace.BALANCED, description="gentle, balanced or fast")
    max_records_to_process: int | None = Field(
        None, ge=1, description="stop planning after so many rows; unset: all"
    )
    create_backup: bool = Field(
        True,
        description="keep the before-values in a backup table; without it nothing can be undone",
    )
    target_symbols: list[Annotated[str, StringConstraints(min_length=1)]] | None = Field(
        None, min_length=1, max_length=10_000, description="only rows of these symbols; unset: all"
    )
    only_process_null_asset_class: bool = Field(
        True, description="only missing rows (NULL or empty asset_class)"
    )
    overwrite_existing_values: bool = Field(
        False, description="also correct mismatched rows: values that differ from their symbol's"
    )
    validate_after_each_batch: bool = Field(
        True, description="read each written value back inside its batch's transaction"
    )
    dry_run: bool = Field(False, description="plan, sample and estimate; change nothing")
    timeout: ClockDuration = Field(
        timedelta(hours=2),
        description='longest duration, "HH:MM:SS" from 1 minute to 24 hours',
        json_schema_extra={"default": "02:00:00"},
    )
    retry: RetryOptions | None = Field(
        None, description="tries of a batch and their waits; unset: from the settings"
    )
    workers: int | None = Field(
        None, ge=1, le=16, description="connections that write at once; unset: by pace"
    )

    @model_validator(mode="before")
    @classmethod
    def _overwriting_alone_means_not_only_missing(cls, data: object) -> object:
        """`overwriteExistingValues: true` alone is no contradiction; both said true is one."""
        if not isinstance(data, dict):
            return data
        said = {to_camel(key): value for key, value in data.items()}
        if said.get("overwriteExistingValues") and "onlyProcessNullAssetClass" not in said:
            return {**data, "onlyProcessNullAssetClass": False}
        return data

    @model_validator(mode="after")
    def _check_contradictions(self) -> Self:
        if self.only_process_null_asset_class and self.overwrite_existing_values:
            raise ValueError(
                "onlyProcessNullAssetClass and overwriteExistingValues contradict each other: "
                "set one of them to false"
            )
        require_timeout(self.timeout)
        return self

    @property
    def worker_count(self) -> int:
        """Connections that write at once."""
        return self.workers or WORKERS_BY_PACE[self.pace]


def parse_options(values: Mapping[str, object]) -> CorrectionOptions:
    """Options from untrusted values (camelCase or snake_case names).

    Raises InvalidOptionsError naming each field and its limit.
    """
    try:
        return CorrectionOptions.model_validate(values)
    except ValidationError as error:
        raise InvalidOptionsError(describe_problems(error)) from None


def describe_problems(error: ValidationError) -> str:
    """One line for each field that cannot be used, without echoing long input."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        field = ".".join(str(part) for part in problem["loc"])
        message = own_words(problem["msg"])
        if problem["type"] == "extra_forbidden":
            message = "unknown option; see the list of options"
        lines.append(f"{field}: {message}" if field else message)
    return "; ".join(lines)
