"""A process that uses an embedded server, for tests that signal, kill or race such processes.

Prints the DSN when it has started, then stays a user until its standard input ends.
"""

import argparse
import os
import pwd
import sys
from pathlib import Path

from assetclass_pipeline.database.embedded import EmbeddedServer, exit_on_termination
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.errors import EmbeddedServerError


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--start-timeout", type=float, default=120)
    parser.add_argument("--without-stop", action="store_true", help="leave that to atexit")
    parser.add_argument("--account", help="become this user first")
    arguments = parser.parse_args()
    if arguments.account is not None:
        become(arguments.account)
    exit_on_termination()
    server = EmbeddedServer(
        arguments.directory,
        start_timeout=arguments.start_timeout,
        settings={"fsync": "off", "shared_buffers": "16MB"},
    )
    try:
        print(server.start(), flush=True)  # noqa: T201 - the answer to the test
        sys.stdin.read()
        if not arguments.without_stop:
            server.stop()
    except EmbeddedServerError as error:
        sys.exit(f"EmbeddedServerError: {error}")


def become(name: str) -> None:
    # Not before the interpreter starts, because that may stand in a closed directory. For the same
    # reason whatever is imported late has to be imported now.
    query("embedded", "database_exists")
    account = pwd.getpwnam(name)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


if __name__ == "__main__":
    main()
