"""The teacher's page and its routes below /teacher/, which only a classroom has.

The page itself is the same for everybody. All else needs the cookie that a PIN gives (`sdlab.ui.door`), which scripts
cannot read and browsers send with requests of this page only. Nothing here names the token of a desk.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from sdlab.ui.answers import NO_STORE, client_address
from sdlab.ui.classroom import Classroom
from sdlab.ui.door import Door, TooMany
from sdlab.ui.thumbnails import Kind
from sdlab.ui.wording import duration
from sdlab.web import capped_body, refusal

STATIC = Path(__file__).parent / "static" / "teacher"
FILES = {"teacher.css": "text/css"} | {path.name: "text/javascript" for path in STATIC.glob("*.js")}
COOKIE = "sdlab-teacher"
MOST_BYTES = 20_000  # of a request; a link is the largest part
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


def routes(classroom: Classroom, door: Door) -> APIRouter:
    """Return the routes below /teacher."""
    router = APIRouter(include_in_schema=False)

    def is_teacher(request: Request) -> bool:
        return door.admits(request.cookies.get(COOKIE, ""))

    @router.get("/teacher")
    def stripped() -> Response:
        return RedirectResponse("teacher/", 307)  # relative: a proxy may publish it below a path

    @router.get("/teacher/")
    def page() -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return FileResponse(STATIC / "teacher.html", media_type="text/html", headers=headers)

    @router.get("/teacher/code/{name}")
    def code(name: str) -> Response:
        if name not in FILES:
            return refusal("there is no such file", 404)
        return FileResponse(STATIC / name, media_type=FILES[name], headers={"Cache-Control": "no-cache"})

    @router.post("/teacher/pin")
    async def pin(request: Request) -> Response:
        said = await _said(request)
        if isinstance(said, Response):
            return said
        try:
            cookie = door.enter(str(said.get("pin", ""))[:100], client_address(request))
        except TooMany as e:
            return refusal(f"too many attempts: try again in {duration(max(float(e.args[0]), 1))}", 429)
        if cookie is None:
            return refusal("this is not the PIN", 403)
        answer = Response(status_code=204, headers=NO_STORE)
        secure = request.headers.get("origin", "").startswith("https:")
        answer.set_cookie(COOKIE, cookie, path=None, secure=secure, httponly=True, samesite="strict")
        return answer

    @router.post("/teacher/out")
    def out(request: Request) -> Response:
        door.leave(request.cookies.get(COOKIE, ""))
        return Response(status_code=204, headers=NO_STORE)

    @router.get("/teacher/room")
    async def room(request: Request) -> Response:
        if not is_teacher(request):
            return _closed()
        return JSONResponse(await run_in_threadpool(classroom.board), headers=NO_STORE)

    @router.get("/teacher/choices")
    def choices(request: Request) -> Response:
        return JSONResponse(classroom.choices(), headers=NO_STORE) if is_teacher(request) else _closed()

    @router.get("/teacher/picture/{key}/{kind}")
    def picture(key: str, kind: Kind, request: Request) -> Response:
        if not is_teacher(request):
            return _closed()
        seen = classroom.picture(key, kind)
        if seen is None:
            return refusal("there is no such picture", 404)
        return Response(seen, media_type="image/jpeg", headers=NO_STORE)

    @router.post("/teacher/do")
    async def do(request: Request) -> Response:
        if not is_teacher(request):
            return _closed()
        said = await _said(request)
        if isinstance(said, Response):
            return said
        try:
            return JSONResponse({"said": await run_in_threadpool(classroom.act, said)}, headers=NO_STORE)
        except ValueError as e:
            return refusal(str(e), 422)

    return router


def _closed() -> Response:
    return refusal("this needs the PIN", 401)


async def _said(request: Request) -> dict[str, Any] | Response:
    """Return the JSON object in the body of a request, or the response that refuses it."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return refusal("this must be application/json", 415)
    body = await capped_body(request, MOST_BYTES)
    if body is None:
        return refusal(f"the request is too large: at most {MOST_BYTES:,} bytes are allowed", 413)
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    return said if isinstance(said, dict) else refusal("this must be a JSON object", 422)
