"""The disk of the backup table is full: a clear end, nothing changed, and resumed with space."""

import os
import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from assetclass_pipeline.engine.correction import CorrectionRequest
from assetclass_pipeline.errors import CorrectionFailedError
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline_tests.disks import mounted
from assetclass_pipeline_tests.faults.clients import InThread, finish, operation_now, request
from assetclass_pipeline_tests.faults.fault_table import Tries
from assetclass_pipeline_tests.faults.scene import Scene, open_scene
from assetclass_pipeline_tests.faults.victim import Victim

RECORDS = 20_000
OPTIONS = {"batch_size": 1000, "workers": 2}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system that the server's account can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        with mounted(Path(name) / "disk", megabytes=64) as disk:
            yield disk


@pytest.fixture
def scene(small_disk: Path, victim: Victim, request_node: pytest.Item) -> Iterator[Scene]:
    """New tables of the role go to the small disk; the market tables stand elsewhere."""
    owner = (victim.directory / "data").stat()
    os.chown(small_disk, owner.st_uid, owner.st_gid)
    with open_scene(victim.url, request_node, records=RECORDS) as scene:
        execute = scene.market.connection.execute
        execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(str(small_disk)))
        execute("ALTER ROLE CURRENT_USER SET default_tablespace = small")
        yield scene


def leave_free(disk: Path, free: int) -> None:
    """Fill the disk up to so many bytes."""
    size = max(0, shutil.disk_usage(disk).free - free)
    (disk / "filler").write_bytes(bytes(size))


@pytest.mark.timeout(900)
def test_full_in_the_middle_of_the_plan(small_disk: Path, scene: Scene, tries: Tries) -> None:
    chance = random.Random(8)  # noqa: S311 - no secret
    times = tries(full=10, quick=4)
    # How much an undisturbed one needs: table and index.
    first = finish(scene, request(**OPTIONS))
    needed = scene.market.value(
        "SELECT pg_total_relation_size({}::regclass)", sql.Literal(first.backup_table)
    )
    for number in range(times):
        scene.damage(every=1)
        asked = request(**OPTIONS, create_backup=number % 2 == 0)
        leave_free(small_disk, int(needed * (number + chance.random() * 0.8) / times))
        assert_refused_without_a_change(scene, asked)
        (small_disk / "filler").unlink()
        resumed = finish(scene, asked)
        assert resumed.status is Status.SUCCEEDED
        assert resumed.records_corrected == RECORDS
    scene.hand_in("disk full for the backup table", times)


def assert_refused_without_a_change(scene: Scene, asked: CorrectionRequest) -> None:
    before = scene.market.versions()
    with InThread(scene, asked) as correction:
        correction.join()
    assert isinstance(correction.error, CorrectionFailedError), correction.error
    # Of the last page a part may have found its place.
    assert re.search("No space left on device|wrote only", str(correction.error))
    assert operation_now(scene, asked).status is Status.FAILED
    assert scene.market.versions() == before
