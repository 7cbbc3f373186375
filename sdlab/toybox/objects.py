"""The objects of the toybox by name, alone or with a second one ("wearing a hat", "on a box")."""

from __future__ import annotations

from functools import cache

from sdlab.toybox.animals import ANIMALS
from sdlab.toybox.solids import Builder, Model, Table
from sdlab.toybox.things import THINGS

OBJECTS: dict[str, Model] = {**ANIMALS, **THINGS}


@cache
def table(name: str, variant: int = 0) -> Table:
    """The constant parts of one object; ValueError names the objects there are."""
    if name not in OBJECTS:
        raise ValueError(f"no object {name!r} in the toybox; it has {', '.join(OBJECTS)}")
    builder = Builder()
    OBJECTS[name].build(builder, variant)
    return builder.table(OBJECTS[name].scale)
