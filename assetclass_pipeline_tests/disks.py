"""Small disks that tests fill up.

Belongs here: a file system of its own, and filling it. Does not: what is done on it.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(disk: Path, *, megabytes: int) -> Iterator[Path]:
    """A small file system of its own; needs the right to mount, else the test is skipped."""
    disk.mkdir()
    mount = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", disk],
        capture_output=True,
        check=False,
    )
    if mount.returncode != 0:
        pytest.skip("this machine allows no mounts")
    try:
        yield disk
    finally:
        subprocess.run(["/bin/umount", "-l", disk], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(65536))
