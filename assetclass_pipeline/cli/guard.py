"""`python -m assetclass_pipeline.cli.guard DIRECTORY [POSTGRES]`: the end of a killed `up`.

It ends the services, removes DIRECTORY and stops the embedded server in POSTGRES. `up` holds the
other end of its standard input: end of file without the word `done` means that `up` died without
stopping anything. Only SIGKILL and the like do that, so this is a process of its own.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from assetclass_pipeline.cli.marked_processes import (
    MARK_VARIABLE,
    end_processes,
    marked_processes,
)

# Runs in progress write their last batch and their final state meanwhile.
_PATIENCE = 30.0


def main() -> int:
    """Wait for the owner; returns 0, or 1 when a process could not be ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    directory, *embedded = map(Path, sys.argv[1:])
    if sys.stdin.buffer.read().strip() == b"done":
        return 0
    left = end_processes(marked_processes(os.environ[MARK_VARIABLE]), patience=_PATIENCE)
    shutil.rmtree(directory, ignore_errors=True)
    for server in embedded:
        _stop_database(server)
    return 1 if left else 0


def _stop_database(directory: Path) -> None:
    from assetclass_pipeline.database.embedded import EmbeddedServer  # noqa: PLC0415 - seldom needed

    # The killed `up` can no longer leave; whoever leaves last stops the server.
    with EmbeddedServer(directory):
        pass


if __name__ == "__main__":
    sys.exit(main())
