"""The flags of preview and execute: one for each option of a correction.

Belongs here: names of flags and what their values become. Does not: limits and defaults, which are
model.options' and whose descriptions the help page shows.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, NamedTuple

import typer

from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.options import CorrectionOptions, Pace, parse_options


class _Flag(NamedTuple):
    """A flag, the type of its value, and what stands for the value on the help page."""

    names: str
    kind: Any
    metavar: str | None = None


_FLAGS = {
    "batch_size": _Flag("--batch-size", int),
    "pace": _Flag("--pace", Pace),
    "max_records_to_process": _Flag("--max-records", int),
    "create_backup": _Flag("--backup/--no-backup", bool),
    "target_symbols": _Flag("--target-symbol", list[str], "SYMBOL"),
    "only_process_null_asset_class": _Flag("--only-missing/--no-only-missing", bool),
    "overwrite_existing_values": _Flag("--overwrite-existing", bool),
    "validate_after_each_batch": _Flag("--validate-batches/--no-validate-batches", bool),
    "dry_run": _Flag("--dry-run", bool),
    "timeout": _Flag("--timeout", str, "HH:MM:SS"),
    "workers": _Flag("--workers", int),
}

Chosen = Mapping[str, object]
"""Options by field name, only those that were given."""


def with_correction_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every flag of a correction; it gets them as `chosen`."""
    signature = inspect.signature(command)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "chosen"]

    @wraps(command)
    def with_flags(**values: object) -> None:
        chosen = {name: values.pop(name) for name in _FLAGS}
        given = {name: value for name, value in chosen.items() if value not in (None, [])}
        command(chosen=given, **values)

    flags = [_parameter(name, flag) for name, flag in _FLAGS.items()]
    with_flags.__signature__ = signature.replace(parameters=[*flags, *own])  # type: ignore[attr-defined]
    return with_flags


def _parameter(name: str, flag: _Flag) -> inspect.Parameter:
    option = typer.Option(flag.names, help=_help(name), metavar=flag.metavar, show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[flag.kind | None, option],
    )


def _help(name: str) -> str:
    field = CorrectionOptions.model_fields[name]
    described = (field.description or name).replace('"', "")
    sentence = described[0].upper() + described[1:]
    if name in {"batch_size", "pace"}:
        sentence += f" ({field.get_default()})"
    return f"{sentence}."


def correction_options(chosen: Chosen) -> CorrectionOptions:
    """The options that were chosen. Raises InvalidOptionsError naming flags and their limits."""
    if chosen.get("only_process_null_asset_class") and chosen.get("overwrite_existing_values"):
        raise InvalidOptionsError(
            "--only-missing and --overwrite-existing contradict each other: leave one of them out."
        )
    by_alias = {
        CorrectionOptions.model_fields[name].alias or name: value for name, value in chosen.items()
    }
    try:
        return parse_options(by_alias)
    except InvalidOptionsError as error:
        raise InvalidOptionsError(_name_flags(str(error))) from None


def _name_flags(message: str) -> str:
    """The message with flags in place of the API's field names."""
    for name, flag in _FLAGS.items():
        alias = CorrectionOptions.model_fields[name].alias or name
        message = re.sub(rf"\b{alias}\b", flag.names.split("/", maxsplit=1)[0], message)
    return f"Options cannot be used: {message}."
