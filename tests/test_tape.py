"""Tapes: what they keep of a run, and within which limits."""

import torch
from torch.nn import Parameter

from sdlab.live import tape
from sdlab.live.tape import Place, Stretch, Tape, print_of
from sdlab.settings import default_settings

PARAMS = {"b": Parameter(torch.tensor([3.0, 4.0])), "a": Parameter(torch.zeros(0, 2))}


def test_a_print_tells_apart_single_bits_and_names():
    one = print_of(3, 2, PARAMS)
    assert (one.tick, one.step, one.sizes) == (3, 2, {"a": 0.0, "b": 5 / 2**0.5})
    assert print_of(3, 2, dict(reversed(PARAMS.items()))).digest == one.digest
    nudged = {**PARAMS, "b": torch.nextafter(PARAMS["b"].detach(), torch.tensor(9.0))}
    assert print_of(3, 2, nudged).digest != one.digest
    assert print_of(3, 2, {"c": PARAMS["b"], "a": PARAMS["a"]}).digest != one.digest


def test_a_stretch_on_which_nothing_happened_stands_for_where_it_came_from():
    first = Stretch(default_settings("mixture"))
    first.move(1, PARAMS)
    first.note([("seed", 3)])
    there = first.place
    assert (there.tick, there.changes) == (1, 1)
    second = Stretch(there)
    assert second.place == there
    second.move(2, PARAMS)
    assert second.place == Place(second, 1, 0)


def test_changes_that_were_rolled_back_keep_their_numbers():
    stretch = Stretch(None)
    for n in range(3):
        stretch.note([("seed", n)])
    stretch.undo(1)
    assert stretch.changes == [(0, (("seed", 0),)), (0, None), (0, None), (0, ())]


def test_a_tape_is_bounded(monkeypatch):
    monkeypatch.setattr(tape, "MOST_STRETCHES", 3)
    monkeypatch.setattr(tape, "MOST_CHANGES", 5)
    kept = Tape()
    stretches = [Stretch(None) for _ in range(6)]
    for stretch in stretches:
        kept.add(stretch, 0, PARAMS)
        stretch.move(1, PARAMS)
    assert kept.stretches == tuple(stretches[3:])
    assert kept.dropped == 3
    for n in range(9):
        stretches[-1].note([("seed", n)])
    assert len(stretches[-1].changes) == 5
    assert stretches[-1].remarks == [(1, tape.TOO_MANY)]


def test_a_stretch_that_is_jumped_over_is_forgotten():
    kept, used = Tape(), Stretch(None)
    kept.add(used, 0, PARAMS)
    used.move(1, PARAMS)
    kept.add(Stretch(used.place), 1, PARAMS)
    last = Stretch(used.place)
    kept.add(last, 1, PARAMS)
    assert kept.stretches == (used, last)
    assert kept.dropped == 0


def test_a_long_stretch_has_prints_at_even_intervals(monkeypatch):
    monkeypatch.setattr(tape, "MOST_PRINTS", 8)
    kept, stretch = Tape(), Stretch(None)
    kept.add(stretch, 0, PARAMS)
    for n in range(1, 500):
        stretch.move(n, PARAMS)
    ticks = [p.tick for p in stretch.prints]
    assert ticks == list(range(0, 500, ticks[1]))
    assert len(ticks) <= 8
