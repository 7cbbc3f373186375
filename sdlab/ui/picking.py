"""Presets, files and lessons give the lane in focus other settings, as far as no lock forbids it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdlab import settings as catalogue
from sdlab.links import PRESET
from sdlab.settings import Settings
from sdlab.ui.desk import Desk
from sdlab.ui.links import NO_PRESET

if TYPE_CHECKING:
    from sdlab.ui.page import Page


def pick_file(page: Page, desk: Desk, text: str, name: str, remark: str = "") -> bool:
    """Let the lane in focus have the settings in the text of a file, about which the user should know `remark`, and
    return whether no lock forbids it. ValueError that says what is wrong with the file `name`."""
    wanted = page.visitors.read(text, name)
    if gone := catalogue.uploads_of(text):
        remark = f"upload again what these settings were used with: {gone}"
    return pick(page, desk, None, wanted, remark)


def pick_preset(page: Page, desk: Desk, name: str) -> None:
    """Let the lane in focus have a preset that the server offers."""
    wanted = page.visitors.fit(catalogue.preset(name))
    pick(page, desk, name, catalogue.with_prompt_of(wanted, desk.focus.settings))


def pick(page: Page, desk: Desk, preset: str | None, wanted: Settings, remark: str = "") -> bool:
    """Let the lane in focus have the settings of a preset or a file, about which the user should know `remark`, as far
    as no knob is locked; return False if that leaves nothing."""
    lane = desk.focus
    desk.offer = None  # it was to continue a run of other settings
    if desk.opened is not None:
        link = desk.opened.link
        try:
            if link.locks(PRESET):
                raise ValueError(NO_PRESET)
            wanted = link.kept(lane.settings, wanted)
        except ValueError as e:
            desk.forget("preset")  # the page shows the one that was picked
            lane.say("error", str(e))
            return False
    if catalogue.needs_new_run(wanted, lane.settings):
        page.replace(desk, lane, wanted, preset)
    else:
        lane.pick(preset, wanted)
    desk.focus.remark = remark
    return True
