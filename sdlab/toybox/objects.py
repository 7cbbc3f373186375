"""The objects of the toybox by name, alone or with a second one ("wearing a hat", "on a box")."""

from __future__ import annotations

from functools import cache

from sdlab.toybox.animals import ANIMALS
from sdlab.toybox.relations import allowed, compose, fitted
from sdlab.toybox.solids import Builder, Model, Table
from sdlab.toybox.things import THINGS

OBJECTS: dict[str, Model] = {**ANIMALS, **THINGS}


def named(name: str) -> Model:
    """The model of this name; ValueError names the objects there are."""
    if name not in OBJECTS:
        raise ValueError(f"no object {name!r} in the toybox; it has {', '.join(OBJECTS)}")
    return OBJECTS[name]


def seconds_of(name: str) -> tuple[str, ...]:
    """The second objects that this one can have: of hat, scarf, box and ball."""
    return allowed(named(name))


@cache
def table(name: str, variant: int = 0, second: str = "") -> Table:
    """The constant parts of one object, with its second one if `second` is not empty.

    ValueError: the name, the variant or the second is not one there is; the message says which there are.
    """
    model, choice = named(name), seconds_of(name)
    if not 0 <= variant < model.variants:
        raise ValueError(f"the {name} has variants 0 to {model.variants - 1}, not {variant}")
    if second and second not in choice:
        raise ValueError(f"the {name} cannot have {second!r} as its second object; it can have {', '.join(choice)}")
    builder = Builder()
    model.build(builder, variant)
    main = builder.table(model.scale)
    return compose(main, model, second) if second else fitted(main)
