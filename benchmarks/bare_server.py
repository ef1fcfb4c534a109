"""`python -m benchmarks.bare_server PORT`: what the API is measured against, a server of nothing.

Belongs here: the same uvicorn and Starlette, one short answer to every path. Does not: anything of
ours.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def _answer(_: Request) -> JSONResponse:
    return JSONResponse({"success": True})


if __name__ == "__main__":
    uvicorn.run(
        Starlette(routes=[Route("/{path:path}", _answer)]),
        port=int(sys.argv[1]),
        http="h11",
        log_level="warning",
        access_log=False,
    )
