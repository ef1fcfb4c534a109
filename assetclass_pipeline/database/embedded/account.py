"""The system account that runs the server: ours, or an unprivileged one when we are root.

Belongs here: choosing it, handing files over to it, and making paths reachable for it.
"""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from assetclass_pipeline.database.embedded.binaries import Binaries
from assetclass_pipeline.errors import EmbeddedServerError

# initdb looks its account up by name, so a bare number without a passwd entry does not do.
_UNPRIVILEGED_NAMES = ("postgres", "nobody")
# Temporary directories come last: what nobody opens for some days is swept from them.
_PLACES_FOR_COPIES = (Path("/var/lib"), Path("/usr/local/var"))
_DESCRIPTOR_DIRECTORY = Path("/proc/self/fd")


@dataclass(frozen=True)
class Account:
    """A user and a group id of the system."""

    uid: int
    gid: int

    def may_enter(self, path: Path) -> bool:
        """Whether the account may pass through every directory above `path`."""
        above = {*path.parents, *path.resolve().parents}
        return all(self._has(directory.stat(), stat.S_IXUSR) for directory in above)

    def may_read(self, path: Path) -> bool:
        """Whether the account may reach and read the file `path`."""
        return self.may_enter(path) and self._has(path.stat(), stat.S_IRUSR)

    def _has(self, entry: os.stat_result, owner_bit: int) -> bool:
        if entry.st_uid == self.uid:
            return bool(entry.st_mode & owner_bit)
        if entry.st_gid == self.gid:
            return bool(entry.st_mode & owner_bit >> 3)
        return bool(entry.st_mode & owner_bit >> 6)


def server_account(directory: Path, data: Path) -> Account | None:
    """Who must run the server of this directory; None means: whoever we are.

    PostgreSQL refuses to run as root. Then the owner of the files runs it, if that is not root, so
    that they stay usable without root; else an unprivileged account of the system.

    Raises EmbeddedServerError when we are root and the system has no such account.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    for path in (data, directory):
        if path.exists() and (entry := path.stat()).st_uid != 0:
            return Account(entry.st_uid, entry.st_gid)
    import pwd  # noqa: PLC0415 - the module exists on POSIX only

    for name in _UNPRIVILEGED_NAMES:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(account.pw_uid, account.pw_gid)
    raise EmbeddedServerError(
        "PostgreSQL does not run as root, and this system has neither an account `postgres` nor "
        "`nobody` to run it. Start the command as an ordinary user."
    )


def hand_over(path: Path, account: Account | None) -> None:
    """Make the account the owner of one file or directory. Raises OSError."""
    if account is not None and sys.platform != "win32":
        os.chown(path, account.uid, account.gid)


def adopt(path: Path) -> None:
    """Give a file that root wrote to the owner of its directory. Raises OSError."""
    if sys.platform != "win32" and os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


@contextmanager
def reachable(path: Path, account: Account | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name by which the account can open `path`, and descriptors that a child must inherit.

    A directory like /root is closed to everyone else, and opening it up is not ours to do. A name
    through an inherited descriptor leads to the path without walking the directories above.
    """
    if account is None or account.may_enter(path):
        yield str(path), ()
        return
    if not _DESCRIPTOR_DIRECTORY.is_dir():
        raise EmbeddedServerError(
            f"Root cannot run PostgreSQL itself, and the account that would (uid {account.uid}) "
            f"may not enter {path.parent}. Set ASSETCLASS_HOME to a directory that every user can "
            "enter, or start the command as an ordinary user."
        )
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield str(_DESCRIPTOR_DIRECTORY / str(descriptor)), (descriptor,)
    finally:
        os.close(descriptor)


def reachable_binaries(binaries: Binaries, account: Account | None) -> Binaries:
    """The programs themselves, or a copy that the account can run.

    PostgreSQL resolves its own path to find its libraries, so the descriptor's name of `reachable`
    is no help here. The copy is made once per installation, owned by root and read-only for others.

    Raises OSError when the copy cannot be written, EmbeddedServerError when it has no place.
    """
    if account is None or account.may_read(binaries.program("postgres")):
        return binaries
    installation = binaries.bin_directory.parent
    program = binaries.program("postgres").stat()
    copy = _place_for_copies(account) / (
        f"assetclass-postgresql-{binaries.major}-{program.st_size:x}-{program.st_mtime_ns:x}"
    )
    if not _is_trusted(copy):
        copy = _copy_installation(installation, copy)
    return Binaries(copy / _within_copy(installation) / "bin", binaries.major, binaries.source)


def _place_for_copies(account: Account) -> Path:
    for place in (*_PLACES_FOR_COPIES, Path(tempfile.gettempdir())):
        if place.is_dir() and os.access(place, os.W_OK) and account.may_enter(place / "copy"):
            return place
    raise EmbeddedServerError(
        f"Root cannot run PostgreSQL itself, and the account that would (uid {account.uid}) can "
        "reach neither its programs nor a place for a copy of them. Install this project in a "
        "directory that every user can enter, or start the command as an ordinary user."
    )


def _within_copy(installation: Path) -> Path:
    # Two levels deep, because the wheel's programs look for their libraries three levels up.
    return Path(installation.parent.name, installation.name)


def _is_trusted(copy: Path) -> bool:
    # Anyone may create this name in the shared temporary directory; only root's own is believed.
    if not os.path.lexists(copy):
        return False
    entry = copy.lstat()
    return (
        stat.S_ISDIR(entry.st_mode)
        and entry.st_uid == 0
        and not entry.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def _copy_installation(installation: Path, copy: Path) -> Path:
    fresh = Path(tempfile.mkdtemp(prefix=f"{copy.name}-", dir=copy.parent))
    try:
        shutil.copytree(
            installation,
            fresh / _within_copy(installation),
            ignore=shutil.ignore_patterns("include", "*.a"),
        )
        libraries = installation.parent.parent / f"{installation.parent.name}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name)
        _open_for_reading(fresh)
        if os.path.lexists(copy):
            return copy if _is_trusted(copy) else fresh
        fresh.rename(copy)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return copy


def _open_for_reading(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if executable else 0o644)
