"""Presets, files and lessons give the lane in focus other settings, as far as no lock forbids it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdlab import settings as catalogue
from sdlab.examples import Example
from sdlab.links import PRESET
from sdlab.live.messages import Pause, Resume
from sdlab.settings import Settings
from sdlab.ui.desk import Desk
from sdlab.ui.lane import Lane
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
    as no knob is locked; return False if that leaves nothing, or no seat."""
    lane = desk.focus
    desk.offer = None  # it was to continue a run of other settings
    wanted = wanted.with_losses_of(lane.settings)  # a lesson may have been read under another version of an own loss
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
    if page.needs_new_run(lane, wanted):
        if not page.replace(desk, lane, wanted, preset):
            return False
    else:
        lane.pick(preset, wanted)
    desk.focus.remark = remark
    return True


def open_example(page: Page, desk: Desk, example: Example) -> None:
    """Let the lane in focus begin an example, with a second lane if it has two; that of an example before it closes.
    Other lanes stay; a lesson ends."""
    desk.walk = None
    if desk.focus.is_beside:
        desk.look_at(next((lane for lane in desk.lanes if not lane.is_beside), desk.focus))
    before = desk.focus
    for other in desk.lanes:
        if other.is_beside and other is not before:
            page.close(other)
    before.send(Pause())
    if not pick(page, desk, example.preset, example.settings):
        return
    lane = desk.focus
    lane.is_beside = False
    if lane is before:
        lane.begin()
    else:  # the run is new
        lane.send(Resume())
    if example.beside is not None:
        _open_beside(page, desk, lane, example.preset, example.beside)


def _open_beside(page: Page, desk: Desk, lane: Lane, preset: str, settings: Settings) -> None:
    """Start a run beside `lane`, which keeps the focus."""
    if desk.opened is not None:
        settings = desk.opened.link.kept(lane.settings, settings)
    other = page.add(desk, settings, preset)
    if other is not None:
        other.is_beside = True
        other.send(Resume())
        desk.look_at(lane)
