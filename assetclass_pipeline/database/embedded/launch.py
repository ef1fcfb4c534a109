"""Starting PostgreSQL's programs as child processes, and reading what their failures mean.

Belongs here: the environment, session and account of a child. Does not: which program, and why.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from assetclass_pipeline.database.embedded.account import Account

_DISK_FULL = "The disk is full: free some space, or set ASSETCLASS_HOME to a directory elsewhere."
_ADVICE = {
    "No space left on device": _DISK_FULL,
    "Check free disk space": _DISK_FULL,
    "Disk quota exceeded": (
        "The disk quota is used up: free some space, or set ASSETCLASS_HOME elsewhere."
    ),
    "Read-only file system": (
        "The file system is read-only: set ASSETCLASS_HOME to a directory that can be written."
    ),
    "Permission denied": (
        "Set ASSETCLASS_HOME to a directory that you own, or run as the owner of this one."
    ),
    "could not create shared memory": (
        "The system gives no shared memory: end other servers, or raise its limits."
    ),
}
_GENERAL_ADVICE = "Repair what is named here and try again."
# PostgreSQL writes its log in segments of 16 MB; below that it cannot be trusted to start.
_LEAST_FREE_SPACE = 16 * 1024 * 1024


def advice(text: str, directory: Path) -> str:
    """What to do about a failure, from PostgreSQL's or the system's own words."""
    for sign, what in _ADVICE.items():
        if sign in text:
            return what
    if directory.exists() and shutil.disk_usage(directory).free < _LEAST_FREE_SPACE:
        # The server's own complaint did not fit on the disk either.
        return _DISK_FULL
    return _GENERAL_ADVICE


class Child(subprocess.Popen[bytes]):
    """A child that may go on running after we have ended: the server, while others use it."""

    def __del__(self) -> None:
        """Spare the reader the warning that a child is still running."""


def launch(
    command: Sequence[str],
    *,
    output: int | IO[bytes],
    account: Account | None,
    descriptors: tuple[int, ...],
) -> Child:
    """Start one of PostgreSQL's programs as `account`. Raises OSError."""
    return Child(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=_environment(),
        # Ours may be closed to the account, and PostgreSQL looks around where it starts.
        cwd=Path(command[0]).parent,
        # Ctrl-C goes to every process of the terminal's foreground group; the server is stopped by
        # its owner, in order, so it must not be one of them.
        start_new_session=True,
        umask=0o077,
        pass_fds=descriptors,
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
    )


def _environment() -> dict[str, str]:
    # PGDATA, PGPORT and the like are about some other server; LC_ALL keeps messages readable here.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "LC_")) and name not in {"LANG", "LANGUAGE"}
    }
    return kept | {"LC_ALL": "C"}
