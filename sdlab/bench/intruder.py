"""What a visitor can try against the run of another, from a page of the same server: by address, WebSocket and acts.

The intruder knows everything about its own seat, and of the other one the token of its view, which is in the address
of a frame and could be read over a shoulder. All attempts are made by the browser, with its origin and headers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from playwright.sync_api import Page as BrowserPage

NOTHING = (204, 205, 400, 403, 404, 405, 409, 413, 415, 421, 422, 429)  # statuses that tell and do nothing
# returns [status, text] of a request; of a WebSocket [101, first message] or [403, ""]
REQUEST = """async ({ method, path, body }) => {
  if (method === "WS") return await new Promise((done) => {
    const socket = new WebSocket(new URL(path, location.href.replace(/^http/, "ws")));
    socket.binaryType = "arraybuffer";
    socket.onmessage = () => { done([101, "a message"]); socket.close(); };
    socket.onclose = () => done([403, ""]);
    setTimeout(() => { done([403, ""]); socket.close(); }, 3000);
  });
  const headers = body === null ? {} : { "Content-Type": "application/json" };
  const sent = { method, headers, signal: AbortSignal.timeout(3000) };
  try {
    const answer = await fetch(path, body === null ? sent : { ...sent, body: JSON.stringify(body) });
    return [answer.status, answer.status === 204 ? "" : await answer.text()];
  } catch { return [0, ""]; }
}"""


class Seat(NamedTuple):
    """The names of a seat: token of the desk, name of the page, token of the view."""

    desk: str
    page: str
    view: str


class Attempt(NamedTuple):
    """A request, and what would be a success."""

    what: str
    method: str
    path: str
    body: Any = None


def attempts(own: Seat, other: Seat) -> list[Attempt]:
    """Return what the holder of seat `own` may try in order to read or steer the run of `other`, without its token."""
    guesses = {
        "the other's view": other.view,
        "a token near one's own": _next(own.desk),
        "a token near the other's": _next(other.desk),
        "a folder above": f"..%2F{other.desk}",
    }
    pause, cfg = {"do": "pause"}, {"do": "knob", "knob": "losses.sds.cfg", "value": 1.0}
    made = [Attempt("acts on the other's lane", "POST", f"do/{own.desk}", [{**pause, "lane": other.view}])]
    for name, token in guesses.items():
        made += [
            Attempt(f"news of {name}", "GET", f"news/{token}?page={own.page}"),
            Attempt(f"presence as {name}", "GET", f"here/{token}?page={own.page}"),
            Attempt(f"acts on {name}", "POST", f"do/{token}", [pause, cfg, {"do": "reset"}]),
            Attempt(f"an upload to {name}", "POST", f"uploads/{token}/scene.file?name=x.ply", {}),
            Attempt(f"results of {name}", "GET", f"results/{token}/1"),
            Attempt(
                f"the desk of {name}", "POST", "desk", {"token": token, "left": [token], "dark": False, "query": ""}
            ),
        ]
    made += [
        Attempt("the other's news under a guessed page", "GET", f"news/{other.view}?page={_next(other.page)}"),
        Attempt("the view near the other's", "WS", f"viewport/{_next(other.view)}"),
        Attempt("a view by the desk", "WS", f"viewport/{own.desk}"),
        Attempt("the flat view near the other's", "GET", f"flat/{_next(other.view)}/now"),
        Attempt("the API of Gradio", "GET", "gradio_api/info"),
        Attempt("a queue of Gradio", "POST", "gradio_api/queue/join", {"fn_index": 0, "data": [], "session_hash": "x"}),
        Attempt("a file of the server", "GET", "gradio_api/file=/etc/passwd"),
    ]
    return made


def _next(token: str) -> str:
    """Return a token that differs in its last character."""
    return token[:-1] + ("A" if token[-1:] != "A" else "B")


def succeeded(page: BrowserPage, own: Seat, others: Mapping[str, Seat], attempt: Attempt) -> str:
    """Make an attempt and return why it counts as a success, "" if it does not: an answer that names another seat, or
    one to a page without a desk that has more than a refusal."""
    status, text = page.evaluate(REQUEST, attempt._asdict())
    for name, seat in others.items():
        if any(secret in text for secret in seat):
            return f"{attempt.what}: status {status}, and the answer names {name}"
    if status in NOTHING or status == 0 or attempt.path.startswith(f"do/{own.desk}"):
        return ""
    if status == 101:
        return f"{attempt.what}: the WebSocket sent a message"
    told = _json(text)
    if isinstance(told, dict) and told.get("token", "") in ("", own.desk):  # it is told that it has no other desk
        return ""
    return f"{attempt.what}: status {status}, {text[:80]!r}"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
