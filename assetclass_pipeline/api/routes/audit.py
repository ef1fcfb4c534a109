"""`GET audit/rows/{row_id}`: how a row came by its value.

Belongs here: what may be asked. Does not: looking it up (engine/row_history.py).
"""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from assetclass_pipeline.api.access import Caller, require
from assetclass_pipeline.api.connections import DatabaseConnection
from assetclass_pipeline.api.envelope import Envelope, answer
from assetclass_pipeline.engine.row_history import row_history
from assetclass_pipeline.model.row_history import RowHistory
from assetclass_pipeline.model.token import Role

router = APIRouter(tags=["watch"])

_LONGEST = 200


# A key may hold slashes, like BTC/USD.
@router.get("/audit/rows/{row_id:path}", response_model=Envelope[RowHistory])
def history_of_row(
    request: Request,
    _caller: Annotated[Caller, require(Role.VIEWER)],
    connection: DatabaseConnection,
    row_id: Annotated[str, Path(min_length=1, max_length=_LONGEST, examples=["4711"])],
    symbol: Annotated[
        str | None,
        Query(max_length=_LONGEST, description="where several rows have this id: of this symbol"),
    ] = None,
    timestamp: Annotated[
        str | None, Query(max_length=_LONGEST, description="and of this time, ISO 8601")
    ] = None,
) -> Response:
    """Who changed this row, when, from what to what, why, and whether it can be put back."""
    settings = request.app.state.settings
    found = row_history(connection, settings, row_id, symbol=symbol, timestamp=timestamp)
    return answer(request, found)
