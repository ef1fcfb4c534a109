"""Reports as files: a page and its data, side by side, never over another's.

Belongs here: names and writing. Does not: what is in them.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from assetclass_pipeline.errors import ReportFileError
from assetclass_pipeline.reports.pages import Report, name_of, page, stamp
from assetclass_pipeline.settings import Settings


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written."""

    html: Path
    data: Path


def json_of(report: Report) -> str:
    """The data as one JSON document."""
    return json.dumps(report.model_dump(mode="json", by_alias=True), indent=2) + "\n"


def store(report: Report, settings: Settings) -> ReportFiles:
    """Write NAME-YYYYMMDD-HHMMSS.html and .json into the directory of reports.

    Raises ReportFileError.
    """
    stem = f"{name_of(report)}-{stamp(report.generated_at)}"
    html = page(report, settings)
    try:
        settings.reports.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            name = stem if number == 1 else f"{stem}-{number}"
            files = ReportFiles(
                settings.reports / f"{name}.html", settings.reports / f"{name}.json"
            )
            if files.html.exists():
                continue
            try:
                # Whoever makes the data's file owns both names.
                with files.data.open("x", encoding="utf-8") as data:
                    data.write(json_of(report))
            except FileExistsError:
                continue
            with files.html.open("x", encoding="utf-8") as written:
                written.write(html)
            return files
    except OSError as error:
        raise _cannot(settings.reports, error) from None
    raise AssertionError  # the numbers do not end


def write_page(report: Report, settings: Settings, out: Path) -> None:
    """Write the page to a file of the caller's choice. Raises ReportFileError where it exists."""
    html = page(report, settings)
    try:
        with out.open("x", encoding="utf-8") as written:
            written.write(html)
    except OSError as error:
        raise _cannot(out, error) from None


def _cannot(path: Path, error: OSError) -> ReportFileError:
    return ReportFileError(
        f"The report cannot be written to {path}: {error.strerror or error}. Name another place "
        "(--out, or ASSETCLASS_REPORTS_DIRECTORY); nothing is overwritten."
    )
