"""viser's browser client, one HTML file, with what an embedded view and a recording need."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path

import viser

STATIC = Path(__file__).parent / "static"

# viser reconnects only from a focused document, which a frame is not: a dropped socket would stay dropped.
RECONNECT = "<script>Document.prototype.hasFocus=function(){return !document.hidden}</script>"
# Its own panel has nothing that this page needs, and covers the scene on small screens; what it says of a machine
# without a GPU, the page says itself.
STYLE = """<style>
[data-floating-window], .mantine-Paper-root[style*="position: fixed"][style*="bottom: 0"], .mantine-Notification-root {
  display: none !important; }
</style>"""
# In a file of its own, that notice stays long enough to be read, where it leaves room for the scene.
NOTICE = """<style>
@media (max-width: 560px) { .mantine-Notification-root { display: none !important; } }
.mantine-Notification-root { animation: sdlab-fade 0.4s 8s forwards; }
@keyframes sdlab-fade { to { opacity: 0; visibility: hidden; } }
</style>"""
# viser gives a splat's corners as two numbers each where three.js reads three, so the bounding sphere gets the radius
# NaN and each view logs an error. The shader reads only x and y; z = 1e3 makes a sphere so large that the splats are
# never culled, as they never were with NaN.
CORNERS = ("new Float32Array([-2,-2,2,-2,2,2,-2,2]),2)", "new Float32Array([-2,-2,-1e3,2,-2,1e3,2,2,-1e3,-2,2,1e3]),3)")
# Splats, lines and images are not lit. The lights' shadows and the default environment map, which is decoded and
# filtered before the first picture, would only cost time.
LIGHTS = (
    "enableDefaultLights:!0,enableDefaultLightsShadows:!0,environmentMap:null",
    "enableDefaultLights:!1,enableDefaultLightsShadows:!1,environmentMap:{hdri_data:null}",
)
# The client's code comes compressed and is changed when it has been decoded.
CHANGES = f"""<script>{{
  const decode = TextDecoder.prototype.decode;
  TextDecoder.prototype.decode = function (...given) {{
    const text = decode.apply(this, given);
    if (text.length < 1e6) return text;
    TextDecoder.prototype.decode = decode;
    return {json.dumps((CORNERS, LIGHTS))}.reduce((code, [from, to]) => code.replace(from, to), text);
  }};
}}</script>"""


@functools.cache
def client_html() -> str:
    """Return the client as a page embeds it."""
    html = (Path(inspect.getfile(viser)).parent / "client" / "build" / "index.html").read_text(encoding="utf-8")
    ours = "".join(f"<script>{(STATIC / name).read_text(encoding='utf-8')}</script>" for name in ("line.js", "view.js"))
    return html.replace("<head>", f"<head>{RECONNECT}{ours}{CHANGES}{STYLE}", 1)
