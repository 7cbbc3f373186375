"""What is new on a page's desk, below /news, named by the desk's unguessable token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from sdlab.web import same_origin


def routes(poll: Callable[[str, str], dict[str, Any]]) -> APIRouter:
    """Routes below /news; `poll` answers for a token and the name of the page that asks (`Page.poll`)."""
    router = APIRouter()

    @router.get("/news/{token}", include_in_schema=False)
    def news(token: str, request: Request, page: str = "") -> Response:
        if not same_origin(request.headers):
            return Response("what is new is told only to the page it belongs to", 403)
        return JSONResponse(poll(token, page), headers={"Cache-Control": "no-store"})

    return router
