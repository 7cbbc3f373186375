"""What a hand-in says, compared with what its repetition gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sdlab.grading.replay import Repeated
from sdlab.handin.history import Told
from sdlab.live.tape import Print

NEAR_SIZE = 0.05  # relative difference of a parameter's root mean square that another machine may give
NEAR_READING = 0.05  # difference of a reading, relative to its size above 1
SAME_READING = 1e-3  # on the same machine: its judge may use other threads
SHOWN = 3  # changes in a message


def prints(told: Told, result: Repeated, exact: bool, name: str) -> list[str]:
    """Return where the prints of a stretch differ from those of its repetition, in words; [] if they agree."""
    agreed: Print | None = None
    for said in told.prints:
        found = result.prints.get(said.tick)
        if found is None:
            break  # the repetition ended before
        if not agree(said, found, exact):
            return [_where(told, agreed, said, exact, name)]
        agreed = said
    return []


def agree(said: Print, found: Print, exact: bool) -> bool:
    """Return whether two prints are of one scene: bit for bit, or else nearly."""
    if said.digest == found.digest:
        return said.step == found.step
    if exact or said.step != found.step or said.sizes.keys() != found.sizes.keys():
        return False
    return all(_near(said.sizes[k], found.sizes[k], NEAR_SIZE, 0.0) for k in said.sizes)


def readings(said: Mapping[str, float], found: Mapping[str, float], exact: bool) -> list[str]:
    """Return which readings differ, in words."""
    share, least = (SAME_READING, 0.01) if exact else (NEAR_READING, 1.0)
    shared = [name for name in said if name in found]
    return [
        f"{name} is {said[name]:g} in the hand-in and {found[name]:g} in the repetition"
        for name in shared
        if not _near(said[name], found[name], share, least)
    ]


def _near(a: float, b: float, share: float, least: float) -> bool:
    return abs(a - b) <= share * max(abs(a), abs(b), least)


def _where(told: Told, agreed: Print | None, differs: Print, exact: bool, name: str) -> str:
    """Return where a stretch begins to differ, and what happened there."""
    what = "the bits differ" if exact else f"a parameter differs by more than {100 * NEAR_SIZE:g} %"
    if agreed is None:
        return f"{name}: {what} from the start on"
    between = [made for tick, made in told.changes if made and agreed.tick <= tick < differs.tick]
    said = "; ".join(f"{path} = {value!r}" for made in between for path, value in made[:SHOWN])
    after = f", after the change {said}" if said else ""
    return f"{name}: {what} at step {differs.step}, and agree at step {agreed.step}{after}"


def same_runs(a: Sequence[Told], b: Sequence[Told]) -> bool:
    """Return whether two histories are the same runs: they share a stretch on which something happened, by its id."""
    return bool(_ids(a) & _ids(b))


def _ids(stretches: Iterable[Told]) -> set[str]:
    return {stretch.id for stretch in stretches if stretch.ticks}


def same_steps(a: Sequence[Told], b: Sequence[Told]) -> bool:
    """Return whether two histories made the same changes at the same ticks and came to the same bits."""
    mine, theirs = _steps(a), _steps(b)
    return bool(mine) and mine == theirs


def _steps(stretches: Iterable[Told]) -> list[tuple[object, ...]]:
    return [(s.ticks, s.changes, s.prints[-1].digest if s.prints else "") for s in stretches if s.ticks]
