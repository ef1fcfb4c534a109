"""A TCP proxy on the loopback between a client and PostgreSQL, which cuts and stalls connections.

Belongs here: forwarding, and the ways in which a network fails. Does not: when it shall.
"""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

# A simple query, its length, its text: how libpq sends what ends a transaction.
_COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
_CHUNK = 65_536
_RESET = struct.pack("ii", 1, 0)


class Moment(StrEnum):
    """When a connection is cut that says COMMIT."""

    BEFORE = "before it arrives"
    ON_ITS_WAY = "as soon as it is sent"
    AFTER = "when its answer is back"


class Link:
    """One connection of a client through the proxy."""

    def __init__(self, proxy: "Proxy", client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._flows = threading.Event()
        self._flows.set()
        self._swallows = threading.Event()
        self._cut = threading.Event()
        self._ending = threading.Lock()
        self._ended = 0
        self.threads = [
            threading.Thread(target=self._forward, args=(client, server, self._towards_server)),
            threading.Thread(target=self._forward, args=(server, client, self._towards_client)),
        ]
        for thread in self.threads:
            thread.daemon = True
            thread.start()

    @property
    def port(self) -> int:
        """Where the server sees the client: `client_port` of pg_stat_activity."""
        return int(self._server.getsockname()[1])

    @property
    def is_open(self) -> bool:
        """Whether it was not cut or closed."""
        return not self._cut.is_set()

    def cut(self) -> None:
        """Reset both ends, as a firewall or a cable does."""
        self._cut.set()
        self._flows.set()
        for end in (self._client, self._server):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Forward nothing any more; both ends stay open and are acknowledged by the kernel."""
        self._flows.clear()

    def flow(self) -> None:
        """Forward again, first what has waited."""
        self._flows.set()

    def _forward(
        self, source: socket.socket, target: socket.socket, pass_on: Callable[[bytes], bytes]
    ) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                self._flows.wait()
                target.sendall(pass_on(data))
        self.cut()
        self._close()

    def _close(self) -> None:
        # By the last of the two threads: a number that is free again would be another link's.
        with self._ending:
            self._ended += 1
            if self._ended == len(self.threads):
                self._client.close()
                self._server.close()

    def _towards_server(self, data: bytes) -> bytes:
        moment = self._proxy.take_commit(data)
        if moment is Moment.BEFORE:
            raise ConnectionError
        if moment is Moment.ON_ITS_WAY:
            self._server.sendall(data)
            raise ConnectionError
        if moment is Moment.AFTER:
            self._swallows.set()
        return data

    def _towards_client(self, data: bytes) -> bytes:
        if self._swallows.is_set():
            raise ConnectionError
        return data


class Proxy:
    """Listens on a port of its own, which stays the same whatever becomes of the server."""

    def __init__(self, server_url: Callable[[], str]) -> None:
        self._server_url = server_url
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._links: list[Link] = []
        self._at_commit: Moment | None = None
        self._commits_to_pass = 0
        self._changing = threading.Lock()
        self._refuses = False
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        self.cut_all()
        for link in self._links:
            for thread in link.threads:
                thread.join()

    def url(self) -> str:
        """The DSN of the server through the proxy."""
        host, port = self._listening.getsockname()
        return make_conninfo(self._server_url(), host=host, port=port)

    @property
    def links(self) -> list[Link]:
        """The open ones, oldest first."""
        with self._changing:
            return [link for link in self._links if link.is_open]

    def cut_all(self) -> None:
        """Cut every connection there is."""
        for link in self.links:
            link.cut()

    def refuse(self, *, refuses: bool = True) -> None:
        """Close new connections at once, as long as it refuses."""
        self._refuses = refuses

    def cut_at_commit(self, moment: Moment, *, after: int = 0) -> None:
        """Cut the connection that says COMMIT next; `after` so many others."""
        with self._changing:
            self._at_commit, self._commits_to_pass = moment, after

    def disarm(self) -> bool:
        """Cut at no COMMIT; whether one was cut since it was armed."""
        with self._changing:
            hit = self._at_commit is None
            self._at_commit = None
            return hit

    @property
    def is_armed(self) -> bool:
        """Whether the COMMIT to cut at is still to come."""
        return self._at_commit is not None

    def take_commit(self, data: bytes) -> Moment | None:
        """What to do with data on their way to the server."""
        if not data.endswith(_COMMIT):
            return None
        with self._changing:
            if self._at_commit is None:
                return None
            if self._commits_to_pass:
                self._commits_to_pass -= 1
                return None
            moment, self._at_commit = self._at_commit, None
            return moment

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            place = conninfo_to_dict(self._server_url())
            try:
                if self._refuses:
                    raise ConnectionError
                server = socket.create_connection((str(place["host"]), int(str(place["port"]))))
            except OSError:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changing:
                self._links.append(Link(self, client, server))
