"""The description of the API: OpenAPI 3.1, and a page of it for people.

Belongs here: what is true of every call, roles and refusals. Does not: single calls.
"""

from collections.abc import Iterator
from functools import cache
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

from assetclass_pipeline.api.access import LEAST_ROLES
from assetclass_pipeline.api.envelope import Refusal

router = APIRouter()

_REASONS = {
    400: "A value, a header or the body cannot be used; the message names field and limit",
    401: "No token, or one that is not valid",
    403: "The role of the token may not do this",
    404: "There is nothing of this id, or nothing at this path",
    405: "The path does not take this method",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is declared as something other than JSON",
    429: "Too many requests; Retry-After says when there are some again",
    431: "The address and the headers are too large",
    500: "Something unexpected; the message says nothing of it, the log does",
    503: "The database is away or everything is in use; Retry-After says when to try again",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": reason} for status, reason in _REASONS.items()
}
"""Answers that any call may give."""

_BEARER = "token"
_SCHEMES = {
    _BEARER: {
        "type": "http",
        "scheme": "bearer",
        "description": "made by `assetclass tokens create`, or a JWT of the identity provider",
    }
}
_CORRELATION = {
    "name": "X-Correlation-ID",
    "in": "header",
    "required": False,
    "description": "an id of your own for this request, found again in logs and the audit log",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}$"},
}
_METHODS = ("get", "post", "put", "patch", "delete")


@cache
def describe(app: FastAPI, base_path: str) -> dict[str, Any]:
    """The OpenAPI document of the application."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        routes=app.routes,
    )
    for path, method, operation in _operations(document):
        # Never sent: what cannot be used is 400 INVALID_OPTIONS.
        operation["responses"].pop("422", None)
        operation.setdefault("parameters", []).append(_CORRELATION)
        call = f"{method.upper()} {path.removeprefix(base_path).lstrip('/')}"
        if call in LEAST_ROLES:
            operation["security"] = [{_BEARER: []}]
            operation["x-least-role"] = LEAST_ROLES[call].value
    components = document.setdefault("components", {})
    components["securitySchemes"] = _SCHEMES
    for name in ("HTTPValidationError", "ValidationError"):
        components.get("schemas", {}).pop(name, None)
    return document


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                yield path, method, methods[method]


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The calls for people, from the same document; nothing is loaded from elsewhere."""
    document = request.app.openapi()
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(operation.get('x-least-role', 'anybody'))}</td>"
        f"<td>{escape(operation.get('summary', ''))}</td></tr>"
        for path, method, operation in _operations(document)
    )
    return HTMLResponse(_PAGE.format(version=escape(document["info"]["version"]), rows=rows))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>AssetClass pipeline: API</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:.3rem .8rem .3rem 0;
border-bottom:1px solid #ddd;vertical-align:top}}</style></head><body>
<h1>AssetClass pipeline {version}</h1>
<p>Fields, examples and answers are in <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).
Send the header <code>Authorization: Bearer TOKEN</code>; <code>assetclass tokens create</code>
makes a token.</p>
<table><thead><tr><th>method</th><th>path</th><th>least role</th><th>what it does</th></tr></thead>
<tbody>{rows}</tbody></table></body></html>
"""
