"""Named SQL statements from the `.sql` files of this folder.

A block starts with `-- name: some_name` and ends at the next one. Values are bound (`%(name)s`);
`{name}` is filled with `psycopg.sql` objects only, so identifiers are quoted by the driver.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from psycopg import sql
from psycopg.abc import AdaptContext

_BLOCK = re.compile(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)
_PLACEHOLDER = re.compile(rb"%\(\w+\)s")
# A percent sign that is neither part of a placeholder nor doubled already, in the name of a type.
_LONE_PERCENT = re.compile(rb"%%|%(?!\(\w+\)s)")


class Statement(sql.Composed):
    """A statement, or a part of one, whose identifiers may hold percent signs.

    The driver takes each % of a statement that has placeholders for one of them, quoted or not;
    one without placeholders is sent as it stands. Which of both it is only the whole statement
    knows, so percent signs of names are doubled when it is rendered.
    """

    def as_bytes(self, context: AdaptContext | None = None) -> bytes:
        """SQL for `execute`: with values bound where there is a placeholder, else without."""
        leaves = [
            (isinstance(leaf, sql.Identifier), leaf.as_bytes(context)) for leaf in _leaves(self)
        ]
        rendered = [(named, bytes(text)) for named, text in leaves]
        if not any(_PLACEHOLDER.search(text) for named, text in rendered if not named):
            return b"".join(text for _, text in rendered)
        return b"".join(
            text.replace(b"%", b"%%") if named else _LONE_PERCENT.sub(b"%%", text)
            for named, text in rendered
        )


def _leaves(composed: sql.Composed) -> Iterator[sql.Composable]:
    for part in composed:
        if isinstance(part, sql.Composed):
            yield from _leaves(part)
        else:
            yield part


@cache
def _blocks(file: str) -> dict[str, str]:
    text = files(__package__).joinpath(f"{file}.sql").read_text(encoding="utf-8")
    return {name: body.strip() for name, body in _BLOCK.findall(text)}


def query(file: str, name: str, **parts: sql.Composable) -> Statement:
    """The statement `name` of `file`.sql with `parts` filled in.

    Raises KeyError when there is no such block or a part is missing.
    """
    text = _blocks(file)[name]
    return Statement([*sql.SQL(text).format(**parts)])
