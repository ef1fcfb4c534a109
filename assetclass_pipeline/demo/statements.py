"""Named SQL blocks of `database/queries`, for the demo alone.

Gives way to the database room's own loader, which has the same signature.
"""

import re
from importlib import resources

from psycopg import sql


def query(file: str, name: str) -> sql.SQL:
    """The block `name` of `database/queries/<file>.sql`; KeyError when there is none."""
    room = resources.files("assetclass_pipeline.database") / "queries"
    text = (room / f"{file}.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    blocks = dict(zip(parts[1::2], parts[2::2], strict=True))
    return sql.SQL(blocks[name].strip())
