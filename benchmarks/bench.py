"""What every group of benchmarks gets: the server, its sizes, templates that are built only once.

Belongs here: choices of the command line that all groups share. Does not: the groups.
"""

from dataclasses import dataclass, field

from benchmarks import data
from benchmarks.databases import Databases
from benchmarks.measures import Progress


@dataclass(frozen=True)
class Bench:
    """One run of the benchmarks; `rows` is None where each group has its own number."""

    databases: Databases
    progress: Progress
    rounds: int = 3
    rows: int | None = None
    quick: bool = False
    _templates: dict[int, str] = field(default_factory=dict)

    def size(self, of_its_own: int) -> int:
        """Rows that a group works on."""
        return of_its_own if self.rows is None else self.rows

    def template(self, rows: int) -> str:
        """Name of the template with so many rows; the first call builds it."""
        if rows not in self._templates:
            self.progress(f"Making {rows:,} rows")
            self._templates[rows] = data.build(self.databases, rows)
        return self._templates[rows]

    def forget(self, rows: int) -> None:
        """Drop a template that no other group needs."""
        self.databases.drop(self._templates.pop(rows))
