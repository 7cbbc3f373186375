"""The stretches of runs as a hand-in tells them, and how they are read from one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from sdlab.handin.checked import Checked, document, number, print_in, whole
from sdlab.live.tape import MOST_CHANGES, MOST_PRINTS, Changes, Place, Print, Stretch
from sdlab.settings import Settings

MOST_STRETCHES = 500  # of a hand-in
MOST_TOLD = 2 * MOST_CHANGES  # of a stretch, with the empty ones after those that were rolled back
MOST_AT_ONCE = 500  # knobs in a change
MOST_REMARKS = 100
ID = 40  # characters


@dataclass(frozen=True)
class Told:
    """A stretch as a hand-in tells it. It begins with the settings file `settings`, or, if that is "", at `origin`:
    the id of another stretch, with ticks and changes there; with neither, from a checkpoint."""

    id: str
    lacks: str  # what it would need besides the hand-in to be repeated, "" for nothing
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


@runtime_checkable
class Writer(Protocol):
    """Writes what a hand-in may say of settings. Both return also what it then lacks, "" for nothing."""

    def settings(self, settings: Settings) -> tuple[str, str]:
        """Keep settings in a file of the hand-in, and return its name."""
        ...

    def changes(self, changes: Changes) -> tuple[Changes, str]: ...


def told(stretches: Iterable[Stretch], writer: Writer) -> list[dict[str, Any]]:
    """Return stretches as JSON."""
    return [_told(stretch, writer) for stretch in stretches]


def _told(stretch: Stretch, writer: Writer) -> dict[str, Any]:
    origin: Any = None
    lacks = []
    if isinstance(stretch.origin, Settings):
        name, lack = writer.settings(stretch.origin)
        origin, lacks = {"settings": name}, [lack]
    elif stretch.origin is not None:
        place = stretch.origin
        origin = {"stretch": place.stretch.id, "tick": place.tick, "changes": place.changes}
    changes: list[Any] = []
    for tick, made in tuple(stretch.changes):
        said, lack = (None, "") if made is None else writer.changes(made)
        changes.append([tick, None if said is None else [list(one) for one in said]])
        lacks.append(lack)
    return {
        "id": stretch.id,
        "lacks": "; ".join(dict.fromkeys(lack for lack in lacks if lack)),
        "from": origin,
        "began": round(stretch.began, 3),
        "ticks": stretch.tick,
        "changes": changes,
        "prints": [[p.tick, p.step, p.digest, dict(p.sizes)] for p in tuple(stretch.prints)],
        "remarks": [list(remark) for remark in tuple(stretch.remarks)[:MOST_REMARKS]],
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
            origin = start.text("stretch", ID), start.whole("tick"), start.whole("changes", MOST_TOLD)
    changes = tuple(_change(row, given.where) for row in given.rows("changes", MOST_TOLD))
    prints = tuple(print_in(row, given.where) for row in given.rows("prints", MOST_PRINTS + 2))
    remarks = tuple(_remark(row, given.where) for row in given.rows("remarks", MOST_REMARKS))
    for what, ticks in (("changes", [t for t, _ in changes]), ("prints", [p.tick for p in prints])):
        if ticks != sorted(ticks):
            raise ValueError(f"{given.where}: its {what} are not in order")
    return Told(
        given.text("id", ID),
        given.text("lacks"),
        settings,
        origin,
        given.number("began"),
        given.whole("ticks"),
        changes,
        prints,
        remarks,
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


def _remark(row: Any, where: str) -> tuple[int, str]:
    tick, text = _pair(row, f"{where}: a remark")
    if not isinstance(text, str):
        raise ValueError(f"{where}: a remark must be a text")
    return int(number(tick, f"{where}: the tick of a remark")), text[:200]


def _pair(row: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(row, list) or len(row) != 2:
        raise ValueError(f"{where} must be a pair")
    return row[0], row[1]
