"""A prior around another one, which passes on all that it does not do itself."""

from __future__ import annotations

from typing import Any

from sdlab.types import Prior

MEMBERS = {*Prior.__annotations__, *(name for name in vars(Prior) if not name.startswith("_"))}


class WrappedPrior:
    """Base of priors that are `_prior` in everything but what their class defines.

    The members of `Prior` are properties: from Python 3.12, `isinstance` does not ask `__getattr__` for them.
    """

    def __init__(self, prior: Prior) -> None:
        self._prior = prior

    def __getattr__(self, name: str) -> Any:
        if name == "_prior":  # before it is set, as in a copy
            raise AttributeError(name)
        return getattr(self._prior, name)


for _name in MEMBERS:
    setattr(WrappedPrior, _name, property(lambda self, name=_name: getattr(self._prior, name)))
