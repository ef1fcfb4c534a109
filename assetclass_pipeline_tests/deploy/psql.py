"""Running the scripts of deploy/sql with the real psql, and reading what it prints.

Belongs here: calls and their output. Does not: expectations.
"""

import csv
import io
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from assetclass_pipeline.database.embedded import Binaries
from assetclass_pipeline_tests.market import Market

SCRIPTS = Path(__file__).parents[2] / "deploy" / "sql"


class PsqlError(Exception):
    """A script that ended with an error; its text is what psql said."""


@dataclass(frozen=True)
class Psql:
    """psql of one PostgreSQL version, connected to one database."""

    binaries: Binaries
    url: str

    def start(self, script: str, *arguments: str, **variables: object) -> subprocess.Popen[str]:
        """Begin a script with psql's own arguments and with variables."""
        options = [f"--set={name}={value}" for name, value in variables.items()]
        return subprocess.Popen(
            [
                str(self.binaries.program("psql")),
                *("-X", "--csv", *arguments, *options),
                *(f"--file={SCRIPTS / script}.sql", self.url),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "PGOPTIONS": "-c TimeZone=UTC", "LC_ALL": "C"},
        )

    def run(self, script: str, *arguments: str, **variables: object) -> str:
        """Run a script to its end; what it printed. Raises PsqlError."""
        with self.start(script, *arguments, **variables) as process:
            output, complaints = process.communicate(timeout=120)
        if process.returncode:
            raise PsqlError(complaints)
        assert complaints == ""
        return output


def tables(market: Market) -> Mapping[str, object]:
    """Variables that name the tables of a market."""
    return {
        "market_schema": market.schema,
        "market_table": market.table,
        "symbols_schema": market.schema,
        "symbols_table": market.symbols,
    }


def section(output: str, title: str) -> list[dict[str, str]]:
    """The table below a line that begins with `title`, as CSV gives it."""
    lines = output.splitlines(keepends=True)
    (start,) = (number for number, line in enumerate(lines) if line.startswith(title))
    reader = csv.reader(io.StringIO("".join(lines[start + 1 :]), newline=""))
    header = next(reader)
    found = []
    for record in reader:
        if len(record) != len(header):
            break
        found.append(dict(zip(header, record, strict=True)))
    return found
