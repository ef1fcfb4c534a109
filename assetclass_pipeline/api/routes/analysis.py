"""`analyze`, `preview`, `validate`: calls that read the whole table while the caller waits.

Belongs here: what is asked of the engine. Does not: when it is ended (connections.py).
"""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.api.access import Caller, require
from assetclass_pipeline.api.conditional import tagged
from assetclass_pipeline.api.connections import run_cancellable
from assetclass_pipeline.api.envelope import Envelope, answer
from assetclass_pipeline.api.schemas import CorrectionBody, Nothing
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.engine.analysis import analyse
from assetclass_pipeline.engine.preview import preview as preview_correction
from assetclass_pipeline.engine.validation import validate as validate_now
from assetclass_pipeline.model.preview import Preview
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.model.validation import Validation
from assetclass_pipeline.settings import Settings

router = APIRouter(tags=["measure"])

# Of two reports of the same data only these differ.
_OF_THE_MEASUREMENT = ("generated_at", "analysis_duration_seconds", "effort")


@router.get(
    "/analyze",
    response_model=Envelope[IntegrityReport],
    responses={304: {"description": "As the caller has it already (If-None-Match)"}},
)
async def analyze(
    request: Request,
    _: Annotated[Caller, require(Role.VIEWER)],
    top: Annotated[int, Query(ge=1, le=1000, description="symbols in bySymbol at most")] = 50,
) -> Response:
    """The integrity report, by a fresh scan: totals, scores, breakdowns, issues, advice."""
    settings: Settings = request.app.state.settings

    def measure(connection: Connection[TupleRow]) -> IntegrityReport:
        tables = inspect_market_tables(connection, settings, for_writing=False)
        return analyse(connection, tables, settings, worst=top)

    report = await run_cancellable(request, measure)
    said = f"{report.total_records:,} rows, {report.correctable:,} of them correctable."
    return tagged(report, said, apart_from=_OF_THE_MEASUREMENT).answer(request)


@router.post("/preview", response_model=Envelope[Preview])
async def preview(
    request: Request,
    _: Annotated[Caller, require(Role.OPERATOR)],
    body: Annotated[CorrectionBody | None, Body()] = None,
) -> Response:
    """What a correction with these options would change, and roughly how long it would take.

    Nothing is changed, whatever `dryRun` says.
    """
    settings: Settings = request.app.state.settings
    options = (body or CorrectionBody()).options

    def look(connection: Connection[TupleRow]) -> Preview:
        tables = inspect_market_tables(connection, settings, for_writing=False)
        return preview_correction(connection, tables, settings, options)

    found = await run_cancellable(request, look)
    said = f"{found.records:,} rows would change in {found.batches:,} batches."
    return answer(request, found, said)


@router.post("/validate", response_model=Envelope[Validation])
async def validate(
    request: Request,
    _: Annotated[Caller, require(Role.OPERATOR)],
    _body: Annotated[Nothing | None, Body()] = None,
) -> Response:
    """Whether every threshold is met now, by a fresh scan; what is wrong, with samples."""
    settings: Settings = request.app.state.settings

    def check(connection: Connection[TupleRow]) -> Validation:
        tables = inspect_market_tables(connection, settings, for_writing=False)
        return validate_now(connection, tables, settings)

    found = await run_cancellable(request, check)
    if found.passed:
        return answer(request, found, "Every threshold is met.")
    return answer(request, found, f"Not met: {', '.join(found.failed_thresholds)}.")
