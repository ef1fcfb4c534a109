"""Named SQL statements from the `.sql` files of this folder.

A block starts with `-- name: some_name` and ends at the next one. Values are bound (`%(name)s`);
`{name}` is filled with `psycopg.sql` objects only, so identifiers are quoted by the driver.
"""

import re
from functools import cache
from importlib.resources import files

from psycopg import sql

_BLOCK = re.compile(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)


@cache
def _blocks(file: str) -> dict[str, str]:
    text = files(__package__).joinpath(f"{file}.sql").read_text(encoding="utf-8")
    return {name: body.strip() for name, body in _BLOCK.findall(text)}


def query(file: str, name: str, **parts: sql.Composable) -> sql.Composed:
    """The statement `name` of `file`.sql with `parts` filled in.

    Raises KeyError when there is no such block or a part is missing.
    """
    text = _blocks(file)[name]
    return sql.SQL(text).format(**parts)
