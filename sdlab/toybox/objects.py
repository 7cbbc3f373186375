"""The objects of the toybox by name, alone or with a second object ("wearing a hat", "on a box")."""

from __future__ import annotations

from functools import cache

from sdlab.toybox.animals import ANIMALS
from sdlab.toybox.relations import allowed, compose, fitted
from sdlab.toybox.solids import Builder, Model, Table
from sdlab.toybox.things import THINGS

OBJECTS: dict[str, Model] = {**ANIMALS, **THINGS}


def named(name: str) -> Model:
    """Return the model with this name. Raises ValueError, listing all objects, if there is none."""
    if name not in OBJECTS:
        raise ValueError(f"the toybox has no object {name!r}; it has {', '.join(OBJECTS)}")
    return OBJECTS[name]


def seconds_of(name: str) -> tuple[str, ...]:
    """Return the second objects that this object can have, out of hat, scarf, box and ball."""
    return allowed(named(name))


@cache
def table(name: str, variant: int = 0, second: str = "") -> Table:
    """Return the constant parts of an object, and of its second object if `second` is not empty.

    Raises ValueError, listing the valid values, if the name, the variant or the second object is not available.
    """
    model, choice = named(name), seconds_of(name)
    if not 0 <= variant < model.variants:
        raise ValueError(f"the {name} has no variant {variant}; allowed are 0 to {model.variants - 1}")
    if second and second not in choice:
        raise ValueError(f"the {name} cannot have {second!r} as its second object; it can have {', '.join(choice)}")
    builder = Builder()
    model.build(builder, variant)
    main = builder.table(model.scale)
    return compose(main, model, second) if second else fitted(main)
