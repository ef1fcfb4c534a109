"""Standbys that tests make of a running server.

Belongs here: the files of one. Does not: what is done to it, and what is expected then.
"""

import os
import shutil
import subprocess
from pathlib import Path

from psycopg.conninfo import make_conninfo

from assetclass_pipeline.database.embedded import Binaries

# The application_name that it streams under.
STANDBY = "standby_one"


def make_standby(
    primary_url: str, source: Path, target: Path, binaries: Binaries, *, slot: str = ""
) -> None:
    """The files of a standby that streams from the primary under the name STANDBY.

    Of two directories of embedded servers; `slot` is one of the primary's, which must exist.
    """
    target.mkdir(mode=0o755)
    subprocess.run(
        [
            *(binaries.program("pg_basebackup"), "-D", target / "data", "-X", "stream"),
            *("--checkpoint=fast", "--no-sync", "-d", primary_url),
        ],
        check=True,
        capture_output=True,
    )
    shutil.copy(source / "password", target / "password")
    (target / "data" / "standby.signal").touch()
    source_of_wal = make_conninfo(primary_url, application_name=STANDBY, dbname=None)
    with (target / "data" / "postgresql.auto.conf").open("a") as configuration:
        configuration.write(f"primary_conninfo = '{source_of_wal}'\n")
        configuration.write(f"primary_slot_name = '{slot}'\n")
    owner = (source / "data").stat()
    for path in [target / "data", *(target / "data").rglob("*")]:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
