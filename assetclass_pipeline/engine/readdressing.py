"""Fresh addresses for planned rows after VACUUM FULL, CLUSTER or the like gave a leaf a new file.

Belongs here: one scan of that leaf, chunk by chunk. Does not: rows that merely moved within it,
which the sweep finds by key.
"""

import threading

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.market_tables import Leaf
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.plan import PAGES_PER_CHUNK, index_keys, look_at_file
from assetclass_pipeline.engine.session import Session
from assetclass_pipeline.engine.work import Work

# One at a time: the others need the same addresses.
_guard = threading.Lock()


def take_addresses_afresh(work: Work, session: Session, leaf_oid: int) -> None:
    """Give every planned row of the leaf that no batch has done yet its present address.

    Rows that are not found keep their old one: their batch skips them, the sweep explains them.
    """
    leaf = work.leaves[leaf_oid]
    with _guard:
        pages, file_node = work.holder.attempt_to_write(session, _look_at, work, session, leaf)
        if not work.plan.was_rewritten(leaf_oid, file_node):
            return
        work.holder.attempt_to_write(session, _index_keys, work, session)
        for page in range(0, pages, PAGES_PER_CHUNK):
            end = min(page + PAGES_PER_CHUNK, pages)
            work.holder.attempt_to_write(session, _one_chunk, work, session, leaf, page, end)
        work.holder.attempt_to_write(session, _remember, work, session, leaf, file_node)
        work.holder.journal.tell("addresses_taken_afresh", table=f"{leaf.schema}.{leaf.table}")


def _look_at(work: Work, session: Session, leaf: Leaf) -> tuple[int, int | None]:
    with transaction(session.connection, work.holder.settings, read_only=True) as cursor:
        return look_at_file(cursor, leaf)


def _index_keys(work: Work, session: Session) -> None:
    # It reads the whole plan, which takes longer than the statements of a batch.
    with (
        session.at_work(work.holder.longest_scan),
        transaction(session.connection, work.holder.settings, statement_timeout="0") as cursor,
    ):
        index_keys(cursor, work.plan)


def _one_chunk(work: Work, session: Session, leaf: Leaf, page: int, end: int) -> None:
    with transaction(session.connection, work.holder.settings) as cursor:
        cursor.execute(
            query("plan", "readdress_chunk", backup=work.plan.identifier, leaf=leaf.identifier),
            {
                **work.holder.key,
                "leaf": leaf.oid,
                "first_address": f"({page},0)",
                "end_address": f"({end},0)",
                "planned": work.plan.planned,
            },
        )


def _remember(work: Work, session: Session, leaf: Leaf, file_node: int | None) -> None:
    after = work.plan.model_copy(deep=True)
    after.file_nodes[leaf.oid] = file_node
    with transaction(session.connection, work.holder.settings) as cursor:
        work.holder.update_with(cursor, "set_plan", after.stored)
    work.plan.file_nodes[leaf.oid] = file_node
