"""Programs for tests that no Python package ships: from the PATH, or from Debian's package.

Belongs here: finding them, and unpacking a package without installing it. Does not: running them.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

CACHE = Path(sys.prefix) / "cache"
"""Goes with the virtual environment; one directory for each package."""

_DOWNLOAD_SECONDS = 240


def find_programs(package: str, *names: str, cache: Path = CACHE) -> dict[str, Path]:
    """Each program by its name: what is on the PATH, or unpacked in `cache`, or fetched into it.

    Without them the test is skipped, but fails on CI where they can be had.
    """
    cache = cache / package
    found = _on_path(names) or _unpacked(cache, names)
    if found is not None:
        return found
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {' and '.join(names)} on the PATH, and no {missing[0]} to fetch them")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "lock", timeout=2 * _DOWNLOAD_SECONDS):
        # Another test process may have been faster.
        problem = None if _unpacked(cache, names) else _fetch(package, cache)
    found = _unpacked(cache, names)
    if found is None:
        reason = f"Debian's package {package} could not be had: {problem}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _on_path(names: tuple[str, ...]) -> dict[str, Path] | None:
    found = {name: shutil.which(name) for name in names}
    if None in found.values():
        return None
    return {name: Path(path) for name, path in found.items() if path is not None}


def _unpacked(cache: Path, names: tuple[str, ...]) -> dict[str, Path] | None:
    found = {}
    for name in names:
        places = (cache / "package" / "usr" / folder / name for folder in ("bin", "sbin"))
        path = next((place for place in places if place.exists()), None)
        if path is None:
            return None
        found[name] = path
    return found


def _fetch(package: str, cache: Path) -> str | None:
    """Unpack the package without installing it; returns what went wrong."""
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        fetch = ["apt-get", "-o", "APT::Sandbox::User=", "download", package]
        problem = _run(fetch, directory)
        if problem is not None:
            # The list of packages may be missing or old; not everybody may write it.
            problem = _run(["apt-get", "update"], directory) or _run(fetch, directory)
        if problem is not None:
            return problem
        (archive,) = Path(directory).glob("*.deb")
        problem = _run(["dpkg-deb", "-x", str(archive), "unpacked"], directory)
        if problem is None:
            (Path(directory) / "unpacked").rename(cache / "package")
        return problem


def _run(command: list[str], directory: str) -> str | None:
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=_DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} took too long"
    return None if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip())
