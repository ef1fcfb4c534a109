"""What a benchmark needs to ask our services over HTTP: a process with a port and a token.

Belongs here: what every such process is given, its beginning and end. Does not: asking it.
"""

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.engine.tokens import create_token
from assetclass_pipeline.model.token import Role
from benchmarks.databases import settings_for


def free_port() -> int:
    """A port of the loopback that nobody listens on just now."""
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that nobody hears or speaks to, terminated at the end."""
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def make_token(dsn: str, role: Role) -> str:
    """A new token of the API over this database."""
    settings = settings_for(dsn)
    with connect(dsn, settings, purpose="benchmark") as connection:
        secret, _ = create_token(
            connection, settings, name=f"benchmark-{role}", role=role, lifetime=None,
            by="benchmark",
        )  # fmt: skip
    return secret


def environment(dsn: str, storage: str, home: str, **settings: str) -> Mapping[str, str]:
    """Whatever a process of ours is given, and none of the settings of this one."""
    ours = {
        "ASSETCLASS_DATABASE_URL": dsn,
        "ASSETCLASS_DAGSTER_DATABASE": storage,
        "ASSETCLASS_HOME": home,
        **settings,
    }
    others = {name: text for name, text in os.environ.items() if not name.startswith("ASSETCLASS_")}
    return {**others, **ours}
