"""Downloads: a seat's files below /results, named by the seat's unguessable token and the file's own."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from sdlab.ui.results import FORMATS, Shelves
from sdlab.viewport.proxy import same_origin


def routes(shelves: Shelves) -> APIRouter:
    """Routes below /results. A file is always sent to be saved, never to be shown in place: the recording runs
    scripts, which have no business on this page."""
    router = APIRouter()

    @router.get("/results/{token}/{result_id}", include_in_schema=False)
    def download(token: str, result_id: str, request: Request) -> Response:
        if not same_origin(request.headers):
            return Response("a result is sent only to the page it belongs to", 403)
        shelf = shelves.get(token)
        found = shelf.file(result_id) if shelf is not None else None
        if found is None or not found[0].is_file():
            return Response("there is no such result, or its session has ended", 404)
        path, result = found
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-store"}
        return FileResponse(path, filename=result.name, media_type=FORMATS[result.kind].media_type, headers=headers)

    return router
