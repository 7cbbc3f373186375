"""The links of one server's page: what they may say here, and the link to what a lane shows.

The grammar is in `sdlab.links`, the page's part in static/page/link.js and share.js.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdlab import links
from sdlab.lessons import Walk, listed
from sdlab.links import ALL, CLOSED, PRESET, Link
from sdlab.settings import Settings
from sdlab.ui.lane import Lane
from sdlab.ui.uploads import without_uploads
from sdlab.ui.visitors import Visitors

PARTS = {  # of the page that a link can hide -> what the page calls them; page.css has a rule for each
    "prompt": "Prompt",
    "buttons": "Start, Pause, Step, Reset",
    "losses": "Choice of the loss",
    "formula": "Formula and source",
    "knobs": "Knobs of the loss",
    "preset": "Presets",
    "settings": "All other settings",
    "help": "Explanations of the knobs",
    "branch": "Branch here",
    "timeline": "Timeline",
    "lens": "Lens",
    "charts": "Charts",
    "compare": "Compare losses",
    "results": "Results",
    "examples": "Examples",
    "tour": "Tour",
    "link": "Link button",
    "lessons": "Lessons button",
}
LOCKABLE = {  # what the page offers to lock -> what it calls it; links can name any group or knob
    PRESET: "Presets and files",
    "active": "Loss",
    "losses": "Knobs of the losses",
    "prompt": "Prompt and wording",
    "steps": "Length of the run",
    "seed": "Seed",
    "camera": "Cameras",
    "schedule": "Schedule",
    "guidance": "Guidance",
    "optim": "Learning rates",
    "prior": "Prior",
    "scene": "Scene",
    ALL: "Everything",
}
FIXED = "it is fixed on this server"
NO_PRESET = "presets and settings files are locked by the link that opened this page"


class Links:
    """Reads links as the policy of a server allows, and writes them. `trusted` links may choose files and models where
    the page itself may."""

    def __init__(self, visitors: Visitors, trusted: bool = False) -> None:
        self._visitors = visitors
        self._own = visitors.settings
        self._closed = {**({} if trusted else CLOSED), **dict.fromkeys(visitors.locked, FIXED)}
        self._presets = visitors.offered if trusted else links.that_load_nothing(visitors.offered, self._own)
        self.lessons = [lesson for lesson in listed() if lesson.preset in self._presets]
        self._starts = {lesson.name: lesson.starts for lesson in self.lessons}

    def read(self, query: str, preset: str | None = None) -> Link:
        """Return what a query says; without one, the server's own settings, which are `preset`."""
        if not query.removeprefix("?"):
            return Link(self._own, preset)
        return links.read(query, self._own, self._presets, PARTS, self._closed, self._visitors.admitted, self._starts)

    def told(
        self, settings: Settings, preset: str | None, edited: int | None, link: Link, walk: Walk | None = None
    ) -> dict[str, Any]:
        """Return what a page opened by `link` is told: the query of `settings`, which are `preset` or near it, with
        remarks about what it cannot hold. `edited` is the step at which the run was last changed, if it was; `walk` is
        the learner's way through the lesson that is open."""
        shared, uploads = without_uploads(settings)
        place = (walk.lesson.name, walk.page) if walk is not None and walk.lesson.name in self._starts else None
        preset, base = self._base(shared, preset, place)
        remarks = [f"{name} was uploaded and has to be uploaded again" for name in uploads.values()]
        remarks += [f"{path} is not part of the link: {self._closed[path]}" for path in self._missing(shared, base)]
        if edited is not None:
            remarks.append(f"the run was changed at step {edited}: the link begins with the settings as they are now")
        return {
            "query": links.write(shared, preset, base, closed=self._closed, place=place),
            "plain": settings == self._own and place is None,  # the page opens like this without a link
            "hide": link.hide,
            "lock": link.lock,
            "text": link.text,
            "problems": link.problems,
            "remarks": remarks,
        }

    def _missing(self, settings: Settings, base: Settings) -> list[str]:
        return links.left_out(settings, base, self._closed)

    def _base(
        self, settings: Settings, preset: str | None, place: tuple[str, int] | None
    ) -> tuple[str | None, Settings]:
        """Return the preset, and its settings, from which a link describes `settings` in few words; None for the
        lesson at `place`, or if only the server's own have the same files and models."""
        kinds = (settings.prior.kind, settings.scene.kind)
        if place is not None:
            base = self._starts[place[0]][place[1]]
            if (base.prior.kind, base.scene.kind) == kinds:
                return None, base
        found = self._presets.get(preset or "")
        if found is None or (found.prior.kind, found.scene.kind) != kinds:
            preset = links.nearest(settings, self._presets)
        base = self._presets[preset] if preset is not None else self._own
        if self._missing(settings, base) and not self._missing(settings, self._own):
            return None, self._own
        return preset, base


class Opened:
    """A link that a page was opened with, which its desk keeps."""

    def __init__(self, links: Links, link: Link) -> None:
        self.link = link
        self._links = links

    def key(self, lane: Lane, walk: Walk | None = None) -> tuple[Any, ...]:
        """Return what `told` depends on."""
        place = None if walk is None else (walk.lesson.name, walk.page)
        return lane.seat.id, lane.settings, lane.preset, _edited(lane), place

    def told(self, lane: Lane, walk: Walk | None = None) -> dict[str, Any]:
        """Return what the page is told about links while it shows `lane`, in a lesson or not."""
        return self._links.told(lane.settings, lane.preset, _edited(lane), self.link, walk)


def _edited(lane: Lane) -> int | None:
    """Return the last step at which a run was changed, None if it still is as it began."""
    entries: Sequence[Any] = lane.seat.session.timeline.entries()
    return max((entry.step for entry in entries if entry.kind == "change" and entry.step > 0), default=None)
