"""Where tests get programs from: a CI that could have them may not pass without."""

from pathlib import Path

import pytest

from assetclass_pipeline_tests.debian import find_programs

PACKAGE = ("prometheus", "prometheus", "promtool")


def program(directory: Path, name: str, script: str) -> None:
    file = directory / name
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on the PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setenv("CI", "true")
    return directory


def test_what_is_on_the_path_is_taken(path: Path, tmp_path: Path) -> None:
    for name in ("prometheus", "promtool"):
        program(path, name, "exit 0")
    assert find_programs(*PACKAGE, cache=tmp_path / "cache")["promtool"] == path / "promtool"


def test_without_a_package_manager_it_is_skipped(path: Path, tmp_path: Path) -> None:
    assert list(path.iterdir()) == []
    with pytest.raises(pytest.skip.Exception, match="no apt-get"):
        find_programs(*PACKAGE, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("on_ci", "outcome"),
    [("true", pytest.fail.Exception), ("", pytest.skip.Exception)],
)
def test_a_download_that_fails_is_a_failure_on_ci_only(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_ci: str,
    outcome: type[Exception],
) -> None:
    monkeypatch.setenv("CI", on_ci)
    program(path, "apt-get", "echo no such package >&2; exit 100")
    program(path, "dpkg-deb", "exit 0")
    with pytest.raises(outcome, match="no such package"):
        find_programs(*PACKAGE, cache=tmp_path / "cache")


def test_a_package_is_unpacked_once(path: Path, tmp_path: Path) -> None:
    program(path, "apt-get", f"echo once >> {tmp_path}/fetched; : > prometheus.deb")
    unpack = "/bin/mkdir -p unpacked/usr/bin; for p in prometheus promtool; do"
    program(path, "dpkg-deb", f"{unpack} : > unpacked/usr/bin/$p; done")
    cache = tmp_path / "cache"
    assert find_programs(*PACKAGE, cache=cache) == find_programs(*PACKAGE, cache=cache)
    assert (tmp_path / "fetched").read_text(encoding="utf-8") == "once\n"
