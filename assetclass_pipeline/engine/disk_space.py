"""How much disk a correction needs, and how much the server has where that can be seen.

Belongs here: bytes. Does not: disks of servers on other machines, which PostgreSQL tells nobody.
"""

import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from psycopg import Cursor
from psycopg.rows import TupleRow

from assetclass_pipeline.database.queries import query
from assetclass_pipeline.model.preflight import Finding, Severity

# Measured (design.md section 3): a row of the backup table with its index entry, and WAL.
BACKUP_BYTES_A_ROW = 110
WAL_BYTES_A_ROW = 1_200
# A bar of the guide's table, where the statistics do not know the table yet.
USUAL_ROW_BYTES = 120
USUAL_INDEX_BYTES = 40
# Of the new versions 70 % stay on their page where no index forbids it (plan.py).
SHARE_WITH_INDEX_ENTRIES = 0.3
_PORT_LINE = 3


@dataclass(frozen=True)
class RowBytes:
    """Average bytes of a row, and of its entries in all indexes."""

    row: float
    indexes: float


@dataclass(frozen=True)
class Need:
    """Bytes that a correction writes; `recycled_at` is how much WAL the server keeps by itself."""

    data: int
    wal: int
    recycled_at: int


@dataclass(frozen=True)
class Free:
    """Free bytes where the data is, and where the WAL is; None where it is the same disk."""

    data: int
    wal: int | None


def row_bytes(pages: int, index_pages: int, records: int, block_size: int) -> RowBytes:
    """Averages from the statistics; the usual ones where there are none."""
    if not records or not pages:
        return RowBytes(USUAL_ROW_BYTES, USUAL_INDEX_BYTES)
    return RowBytes(pages * block_size / records, index_pages * block_size / records)


def disk_need(records: int, of_row: RowBytes, *, reuses_space: bool, keeps_wal: int) -> Need:
    """What `records` corrected rows write: their plan, a new version each, index entries, WAL."""
    share = SHARE_WITH_INDEX_ENTRIES if reuses_space else 1
    each = BACKUP_BYTES_A_ROW + of_row.row + share * of_row.indexes
    return Need(round(records * each), records * WAL_BYTES_A_ROW, keeps_wal)


def free_disk(cursor: Cursor[TupleRow], embedded: Path) -> Free | None:
    """Free bytes of the server's disks; None unless its own files are readable from here.

    `embedded` is where the embedded server would keep its data: it may know its directory by a
    name that only its own process understands.
    """
    row = cursor.execute(query("preflight", "disk")).fetchone()
    if row is None:
        return None
    told, identifier, port = row
    for directory in ([Path(told)] if told else []) + [embedded]:
        try:
            if _is_this_server(directory, identifier, port):
                return _free_in(directory)
        except (OSError, ValueError, IndexError, struct.error):
            continue
    return None


def _free_in(directory: Path) -> Free:
    wal = directory / "pg_wal"
    free = shutil.disk_usage(directory).free
    if wal.stat().st_dev == directory.stat().st_dev:
        return Free(free, None)
    return Free(free, shutil.disk_usage(wal).free)


def _is_this_server(directory: Path, identifier: int, port: int) -> bool:
    """Whether these files are those of the server that answers.

    Behind a tunnel, or in a container, the same path means something else. pg_control begins with
    the system identifier; a standby beside its primary has it too, but another port.
    """
    with (directory / "global" / "pg_control").open("rb") as control:
        (found,) = struct.unpack("=Q", control.read(8))
    lines = (directory / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    # The function returns a signed number, the file holds an unsigned one.
    return found == identifier % 2**64 and int(lines[_PORT_LINE]) == port


def judge_disk(need: Need, free: Free | None) -> Finding:
    """Refused where it cannot fit, a warning where it fits only if WAL is recycled in time."""
    wanted = (
        f"Backup and new row versions need about {readable(need.data)}, WAL up to "
        f"{readable(need.wal)}"
    )
    if free is None:
        return Finding(
            code="DISK_UNKNOWN",
            severity=Severity.INFO,
            message=f"{wanted}. The server's disk cannot be seen from here: make sure that "
            "it has so much room.",
        )
    left = f"{readable(free.data)} are free" + (
        "" if free.wal is None else f" for data and {readable(free.wal)} for WAL"
    )
    if _lacks(need, free, min(need.wal, need.recycled_at)):
        return Finding(
            code="DISK_TOO_SMALL",
            severity=Severity.REFUSE,
            message=f"{wanted}, and {left}: a full disk would stop the correction, and a full "
            "WAL disk the server. Make room, or correct in parts with maxRecordsToProcess.",
        )
    if _lacks(need, free, need.wal):
        return Finding(
            code="DISK_TIGHT",
            severity=Severity.WARN,
            message=f"{wanted}, and {left}: enough only while WAL is recycled. Watch "
            "replication slots and the archiver, which can hold it, or make room.",
        )
    return Finding(code="DISK_SUFFICIENT", severity=Severity.INFO, message=f"{wanted}; {left}.")


def _lacks(need: Need, free: Free, wal: int) -> bool:
    if free.wal is None:
        return need.data + wal > free.data
    return need.data > free.data or wal > free.wal


def readable(amount: float) -> str:
    """Bytes in the unit that a person would say, in powers of 1000 as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:  # noqa: PLR2004 - the next unit
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"
