"""The flags of preview, execute and rollback: one for each option.

Belongs here: names of flags and what their values become. Does not: limits and defaults, which are
the model's and whose descriptions the help page shows.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import BaseModel

from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.options import CorrectionOptions, Pace, parse_options
from assetclass_pipeline.model.rollback import RollbackOptions, parse_rollback_options


class _Flag(NamedTuple):
    """A flag, the type of its value, and what stands for the value on the help page."""

    names: str
    kind: Any
    metavar: str | None = None


_PACING = {
    "batch_size": _Flag("--batch-size", int),
    "pace": _Flag("--pace", Pace),
    "timeout": _Flag("--timeout", str, "HH:MM:SS"),
    "workers": _Flag("--workers", int),
}
_CORRECTION = {
    "max_records_to_process": _Flag("--max-records", int),
    "create_backup": _Flag("--backup/--no-backup", bool),
    "target_symbols": _Flag("--target-symbol", list[str], "SYMBOL"),
    "only_process_null_asset_class": _Flag("--only-missing/--no-only-missing", bool),
    "overwrite_existing_values": _Flag("--overwrite-existing", bool),
    "validate_after_each_batch": _Flag("--validate-batches/--no-validate-batches", bool),
    "dry_run": _Flag("--dry-run", bool),
    **_PACING,
}
_ROLLBACK = {
    "dry_run": _Flag("--dry-run", bool),
    "target_symbols": _Flag("--target-symbol", list[str], "SYMBOL"),
    "partitions": _Flag("--partition", list[str], "YYYY-MM-01"),
    "row_ids": _Flag("--row-id", list[str], "ID"),
    "take_backup_value": _Flag("--take-backup-value", bool),
    "validate_after_rollback": _Flag("--validate/--no-validate", bool),
    **_PACING,
}

_Flags = Mapping[str, _Flag]
_Command = Callable[..., None]

Chosen = Mapping[str, object]
"""Options by field name, only those that were given."""


def with_correction_flags(command: _Command) -> _Command:
    """Give a command every flag of a correction; it gets them as `chosen`."""
    return _with_flags(command, _CORRECTION, CorrectionOptions)


def with_rollback_flags(command: _Command) -> _Command:
    """Give a command every flag of a rollback; it gets them as `chosen`."""
    return _with_flags(command, _ROLLBACK, RollbackOptions)


def _with_flags(command: _Command, flags: _Flags, model: type[BaseModel]) -> _Command:
    signature = inspect.signature(command)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "chosen"]

    @wraps(command)
    def with_flags(**values: object) -> None:
        chosen = {name: values.pop(name) for name in flags}
        given = {name: value for name, value in chosen.items() if value not in (None, [])}
        command(chosen=given, **values)

    options = [_parameter(name, flag, model) for name, flag in flags.items()]
    # Typer asks inspect, which looks there first; mypy knows no such attribute of a function.
    shown = signature.replace(parameters=[*options, *own])
    with_flags.__signature__ = shown  # type: ignore[attr-defined] # as inspect documents it
    return with_flags


def _parameter(name: str, flag: _Flag, model: type[BaseModel]) -> inspect.Parameter:
    said = _help(name, model)
    option = typer.Option(flag.names, help=said, metavar=flag.metavar, show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[flag.kind | None, option],
    )


def _help(name: str, model: type[BaseModel]) -> str:
    field = model.model_fields[name]
    described = (field.description or name).replace('"', "")
    sentence = described[0].upper() + described[1:]
    if name == "pace":
        sentence += f" ({field.get_default()})"
    return f"{sentence}."


def correction_options(chosen: Chosen) -> CorrectionOptions:
    """The options that were chosen. Raises InvalidOptionsError naming flags and their limits."""
    if chosen.get("only_process_null_asset_class") and chosen.get("overwrite_existing_values"):
        raise InvalidOptionsError(
            "--only-missing and --overwrite-existing contradict each other: leave one of them out."
        )
    try:
        return parse_options(_by_alias(chosen, CorrectionOptions))
    except InvalidOptionsError as error:
        raise _naming_flags(error, _CORRECTION, CorrectionOptions) from None


def rollback_options(chosen: Chosen) -> RollbackOptions:
    """The options that were chosen. Raises InvalidOptionsError naming flags and their limits."""
    try:
        return parse_rollback_options(_by_alias(chosen, RollbackOptions))
    except InvalidOptionsError as error:
        raise _naming_flags(error, _ROLLBACK, RollbackOptions) from None


def _by_alias(chosen: Chosen, model: type[BaseModel]) -> dict[str, object]:
    return {model.model_fields[name].alias or name: value for name, value in chosen.items()}


def _naming_flags(
    error: InvalidOptionsError, flags: _Flags, model: type[BaseModel]
) -> InvalidOptionsError:
    """The error with flags in place of the API's field names."""
    message = str(error)
    for name, flag in flags.items():
        alias = model.model_fields[name].alias or name
        message = re.sub(rf"\b{alias}\b", flag.names.split("/", maxsplit=1)[0], message)
    return InvalidOptionsError(f"Options cannot be used: {message}.")
