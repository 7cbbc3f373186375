"""The stretches of runs as a hand-in tells them, and how they are read from one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdlab.handin.checked import Checked, document, number, whole
from sdlab.live.tape import MOST_CHANGES, MOST_PRINTS, Changes, Place, Print, Stretch
from sdlab.settings import Settings

MOST_STRETCHES = 500  # of a hand-in
MOST_AT_ONCE = 500  # knobs in a change
MOST_REMARKS = 100
ID = 40  # characters


@dataclass(frozen=True)
class Told:
    """A stretch as a hand-in tells it. It begins with the settings file `settings`, or, if that is "", at `origin`:
    the id of another stretch, with ticks and changes there; with neither, from a checkpoint."""

    id: str
    settings: str
    origin: tuple[str, int, int] | None
    began: float  # seconds since 1970
    ticks: int
    changes: tuple[tuple[int, Changes | None], ...]
    prints: tuple[Print, ...]
    remarks: tuple[tuple[int, str], ...]


# ---- writing -----------------------------------------------------------------------------------------------------


def closure(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Return the stretches and all that they come from, each after its origin, at most `MOST_STRETCHES`."""
    found: dict[Stretch, None] = {}
    for stretch in stretches:
        line = [stretch]
        while isinstance(origin := line[-1].origin, Place) and origin.stretch not in found:
            line.append(origin.stretch)
        found |= dict.fromkeys(reversed(line))
    return list(found)[-MOST_STRETCHES:]


def told(stretches: Iterable[Stretch], written: Callable[[Settings], str]) -> list[dict[str, Any]]:
    """Return stretches as JSON; `written` keeps settings in a file of the hand-in and returns its name."""
    return [_told(stretch, written) for stretch in stretches]


def _told(stretch: Stretch, written: Callable[[Settings], str]) -> dict[str, Any]:
    origin: Any = None
    if isinstance(stretch.origin, Settings):
        origin = {"settings": written(stretch.origin)}
    elif stretch.origin is not None:
        place = stretch.origin
        origin = {"stretch": place.stretch.id, "tick": place.tick, "changes": place.changes}
    return {
        "id": stretch.id,
        "from": origin,
        "began": round(stretch.began, 3),
        "ticks": stretch.tick,
        "changes": [[tick, None if made is None else [list(one) for one in made]] for tick, made in [*stretch.changes]],
        "prints": [[p.tick, p.step, p.digest, dict(p.sizes)] for p in [*stretch.prints]],
        "remarks": [list(remark) for remark in [*stretch.remarks][:MOST_REMARKS]],
    }


# ---- reading -----------------------------------------------------------------------------------------------------


def read(text: str, settings: Mapping[str, str]) -> tuple[Told, ...]:
    """Return the stretches in a hand-in's history. ValueError that says what is wrong with it."""
    found: dict[str, Told] = {}
    for given in document(text, "history.json").tables("stretches", MOST_STRETCHES):
        stretch = _read(given)
        if stretch.id in found:
            raise ValueError(f"{given.where}: there are two stretches {stretch.id}")
        if stretch.settings and stretch.settings not in settings:
            raise ValueError(f"{given.where}: there is no {stretch.settings[:60]}")
        if stretch.origin is not None and stretch.origin[0] not in found:
            raise ValueError(f"{given.where}: it comes from a stretch that is not told before it")
        found[stretch.id] = stretch
    return tuple(found.values())


def _read(given: Checked) -> Told:
    settings, origin = "", None
    if given.has("from"):
        start = given.table("from")
        if start.has("settings"):
            settings = start.text("settings", 100)
        else:
            origin = start.text("stretch", ID), start.whole("tick"), start.whole("changes", MOST_CHANGES)
    changes = tuple(_change(row, given.where) for row in given.rows("changes", MOST_CHANGES))
    prints = tuple(_print(row, given.where) for row in given.rows("prints", MOST_PRINTS + 2))
    remarks = tuple(_remark(row, given.where) for row in given.rows("remarks", MOST_REMARKS))
    for what, ticks in (("changes", [t for t, _ in changes]), ("prints", [p.tick for p in prints])):
        if ticks != sorted(ticks):
            raise ValueError(f"{given.where}: its {what} are not in order")
    return Told(
        given.text("id", ID), settings, origin, given.number("began"), given.whole("ticks"), changes, prints, remarks
    )


def _change(row: Any, where: str) -> tuple[int, Changes | None]:
    tick, made = _pair(row, f"{where}: a change")
    if made is not None:
        if not isinstance(made, list) or len(made) > MOST_AT_ONCE:
            raise ValueError(f"{where}: a change must be a list of at most {MOST_AT_ONCE} knobs")
        made = tuple(_pair(one, f"{where}: a change of a knob") for one in made)
        if not all(isinstance(path, str) and isinstance(value, (str, int, float, bool)) for path, value in made):
            raise ValueError(f"{where}: a change must name a knob and its value")
    return whole(tick, f"{where}: the tick of a change"), made


def _print(row: Any, where: str) -> Print:
    if not isinstance(row, list) or len(row) != 4 or not isinstance(row[2], str) or len(row[2]) > 64:
        raise ValueError(f"{where}: a print must be [tick, step, digest, sizes]")
    sizes = Checked(where, {"sizes": row[3]}).numbers("sizes")
    return Print(whole(row[0], f"{where}: a tick"), whole(row[1], f"{where}: a step"), row[2], sizes)


def _remark(row: Any, where: str) -> tuple[int, str]:
    tick, text = _pair(row, f"{where}: a remark")
    if not isinstance(text, str):
        raise ValueError(f"{where}: a remark must be a text")
    return int(number(tick, f"{where}: the tick of a remark")), text[:200]


def _pair(row: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(row, list) or len(row) != 2:
        raise ValueError(f"{where} must be a pair")
    return row[0], row[1]
