"""Audit entries as a CSV or a JSON document, written as they come.

Belongs here: the two formats. Does not: which entries, and where they go.
"""

import csv
import json
from collections.abc import Iterable
from enum import StrEnum
from typing import TextIO

from assetclass_pipeline.model.audit import AuditRecord


class ExportFormat(StrEnum):
    """How entries are written."""

    CSV = "csv"
    JSON = "json"


def write_entries(entries: Iterable[AuditRecord], form: ExportFormat, out: TextIO) -> int:
    """Write entries under the names of their JSON form; returns how many.

    In CSV `parameters` are JSON text, and what is null is empty. `out` must leave line ends alone
    (`newline=""`).
    """
    return (_write_csv if form is ExportFormat.CSV else _write_json)(entries, out)


def _write_csv(entries: Iterable[AuditRecord], out: TextIO) -> int:
    names = [field.alias or name for name, field in AuditRecord.model_fields.items()]
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    number = 0
    for entry in entries:
        number += 1
        row = entry.model_dump(mode="json", by_alias=True)
        writer.writerow({**row, "parameters": json.dumps(row["parameters"])})
    return number


def _write_json(entries: Iterable[AuditRecord], out: TextIO) -> int:
    out.write("[")
    number = 0
    for number, entry in enumerate(entries, start=1):
        out.write("\n" if number == 1 else ",\n")
        out.write(json.dumps(entry.model_dump(mode="json", by_alias=True)))
    out.write("\n]\n")
    return number
