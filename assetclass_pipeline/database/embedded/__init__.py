"""The embedded PostgreSQL: where its programs come from, its files, its start and its stop.

Belongs here: everything about running a server of our own. Does not: connections and SQL of the
pipeline, which only ever see the DSN. The ownership model stands in docs/decisions/0002.
"""

from assetclass_pipeline.database.embedded.binaries import (
    Binaries,
    binaries_in,
    find_binaries,
    system_binaries,
    wheel_binaries,
)
from assetclass_pipeline.database.embedded.server import EmbeddedServer, exit_on_termination

__all__ = [
    "Binaries",
    "EmbeddedServer",
    "binaries_in",
    "exit_on_termination",
    "find_binaries",
    "system_binaries",
    "wheel_binaries",
]
