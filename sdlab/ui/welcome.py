"""What a first visitor meets: a recording while the page opens, examples to click, and a tour.

Their scripts are static/page/opening.js, examples.js and tour.js. The tour uses driver.js (static/vendor), which a
browser fetches when the tour starts. static/first.html is the page before Gradio has built it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

from sdlab.examples import FOLDER, OPENING, OPENING_END, Example
from sdlab.ui.wording import TITLE

STATIC = Path(__file__).parent / "static"
VENDOR = STATIC / "vendor"
TYPES = {".js": "text/javascript", ".css": "text/css", ".webp": "image/webp"}
FILES = {path.name: path for folder in (FOLDER, VENDOR) for path in sorted(folder.iterdir()) if path.suffix in TYPES}
HINT = "Click one: it opens and starts."

FILM = (  # low priority: it must not delay the page itself
    f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="page/{OPENING_END}.webp">'
    f'<img src="page/{OPENING}.webp" data-still="page/{OPENING_END}.webp" width="320" height="320" fetchpriority="low" '
    'alt="A recording: a ball of Gaussians grows into a red bear"></picture>'
)
RECORDING = (
    f'<figure class="opening">{FILM}'
    "<figcaption><span>A recording of a finished run. Yours is being prepared.</span>"
    '<button type="button" hidden>Stop</button></figcaption></figure>'
)
FIRST_SCREEN = (STATIC / "first.html").read_text(encoding="utf-8").replace("{title}", TITLE).replace("{film}", FILM)
OFFER = (
    '<div class="tour-offer" role="region" aria-label="Tour" hidden><span>New here?</span>'
    '<button type="button" data-tour>Take the tour</button>'
    '<button type="button" data-no aria-label="No tour">&times;</button></div>'
)
EXAMPLES = (  # a button of the title bar, as the next
    '<button type="button" data-examples aria-expanded="false" aria-controls="examples" title="Runs to open with one '
    'click">Examples</button>'
)
TOUR = '<button type="button" data-tour aria-label="Tour of the page" title="Tour">?</button>'


def examples(offered: Iterable[Example]) -> str:
    """Return the row of examples, as HTML."""
    return (
        '<section aria-label="Examples" hidden><ul>' + "".join(_card(example) for example in offered) + "</ul>"
        f'<p data-hint="{HINT}">{HINT}</p></section>'
    )


def _card(example: Example) -> str:
    text = html.escape(example.text)
    return (
        f'<li><button type="button" data-example="{html.escape(example.name)}" data-text="{text}" title="{text}">'
        f'<img src="page/{example.thumbnail}" alt="" width="112" height="84" loading="lazy">'
        f"<span>{html.escape(example.title)}</span></button></li>"
    )
