"""Who uses one embedded server: the lock for start and stop, and one lock file per user.

A lock dies with its process, however that ends, so nobody is ever counted who is gone. Does not
belong here: what is done under the locks.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from assetclass_pipeline.database.embedded.account import adopt
from assetclass_pipeline.errors import EmbeddedServerError


class Users:
    """The users of one directory; `join` and `leave` are called under `exclusive`."""

    def __init__(self, directory: Path) -> None:
        self._start_lock = directory / "start.lock"
        self._directory = directory / "users"
        self._own: FileLock | None = None
        self._joined_by: int | None = None

    @property
    def joined(self) -> bool:
        """Whether this object counts as a user; a forked child of the user does not."""
        return self._own is not None and self._joined_by == os.getpid()

    @contextmanager
    def exclusive(self, timeout: float) -> Iterator[None]:
        """Nobody else starts, stops, joins or leaves inside.

        Raises EmbeddedServerError after `timeout` seconds, OSError when the file cannot be written.
        """
        lock = FileLock(self._start_lock, fallback_to_soft=False, thread_local=False)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            raise EmbeddedServerError(
                f"Another process has been starting or stopping the embedded PostgreSQL in "
                f"{self._start_lock.parent} for {timeout:g} s. Wait for it to end, or end it, and "
                "try again."
            ) from None
        try:
            adopt(self._start_lock)
            yield
        finally:
            lock.release()

    def join(self) -> bool:
        """Count as a user from now on; whether it did not before. Raises OSError."""
        if self.joined:
            return False
        self._directory.mkdir(exist_ok=True)
        adopt(self._directory)
        name = f"{os.getpid()}-{secrets.token_hex(4)}.lock"
        self._own = FileLock(self._directory / name, fallback_to_soft=False, thread_local=False)
        self._own.acquire(timeout=0)
        adopt(Path(self._own.lock_file))
        self._joined_by = os.getpid()
        return True

    def leave(self) -> None:
        """No longer count as a user."""
        if self._own is not None and self.joined:
            self._own.release()
            Path(self._own.lock_file).unlink(missing_ok=True)
        self._own = self._joined_by = None

    def anyone_else(self) -> bool:
        """Whether a living user besides this object is left; files of dead ones go away."""
        living = False
        own = None if self._own is None else Path(self._own.lock_file)
        for path in self._directory.glob("*.lock"):
            if path == own:
                continue
            probe = FileLock(path, fallback_to_soft=False, thread_local=False)
            try:
                probe.acquire(timeout=0)
            except Timeout:
                living = True
            else:
                path.unlink(missing_ok=True)
                probe.release()
        return living
