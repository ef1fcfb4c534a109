"""Ports for servers of tests.

Belongs here: choosing one. Does not: whatever listens there.
"""

import random
import socket
from contextlib import suppress
from typing import Final

# Below those that the system hands out by itself, to whoever listens on port 0 and to each
# connection: another test's process might be given one between our choice and its use.
_OURS: Final = range(10_000, 30_000)
_chance = random.SystemRandom()


def free_port() -> int:
    """A port of the loopback interface on which nobody listens, nor will by chance."""
    while True:
        port = _chance.choice(_OURS)
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port
