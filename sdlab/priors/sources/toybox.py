"""Images of the toybox's world: the prompt says what they show, and what it leaves open is drawn as in the data.

Captions of the data always name material, pattern, second object, view, painting and every flaw of an image, so a
prompt that names none of them stands for images without them. Captions may omit the object's colour: of a tree only if
it is green (`words.NATURAL`), of a car whatever it is.

The empty text stands for all images without flaws that are not paintings. Flawed images and paintings fill their
backgrounds, and in the empty text's gallery they pull the background of every render towards them, as a visible haze.

With `front_share`, a text instead stands for the views of one object: the same shape, colour and light in all images,
from twelve cameras around it. Cameras that see its front have more images than the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sdlab.priors.sources import Drawn, Source, as_bytes, unheard
from sdlab.priors.wordlist import WordList
from sdlab.toybox import judge, pictures, raytrace, words
from sdlab.toybox.filters import FILTERS
from sdlab.toybox.grammar import Reading, read
from sdlab.toybox.objects import OBJECTS, seconds_of
from sdlab.toybox.pictures import Shot
from sdlab.toybox.words import Facts

VERSION = 1  # raise it when images of the same key change
# First image of a gallery in the judge's series: beyond the images that the judge is trained and tested on.
FIRST, PER_SEED = 100_000_000, 1_000_000
MOST_FLAWS = 3  # descriptors on one image, as in the data
FLAW_WEIGHTS = (0.6, 0.28, 0.12)
CIRCLE = 12  # cameras around one object
CIRCLE_ELEVATION = 15.0  # of these cameras, in degrees; that of a turntable
CIRCLE_LAMP = math.radians(30.0)  # azimuth of the light on one object
TAN_HALF_FOV = math.tan(math.radians(pictures.FOV_DEGREES / 2))


class ToyboxSource(Source):
    """All images that the toybox can render, or the views of one object."""

    name = "toybox"

    def __init__(self, front_share: float | None = None) -> None:
        """With `front_share` in [0, 1], the images of a text show one object, this share of them its front."""
        self._front_share = front_share
        self.identity = f"toybox {pictures.DATA_VERSION}.{VERSION}"
        if front_share is not None:
            self.identity += f", one object, front share {front_share:g}"
        shown = words.word_list()
        self._words = WordList({g: tuple(entries) for g, entries in shown["groups"].items()}, tuple(shown["names"]))

    def key(self, text: str) -> str:
        """Return the facts that `text` states, in standard words; prompts that state the same share a gallery."""
        said = read(text)
        if self._front_share is not None:
            said = said._replace(view="")
        if said.says_nothing:
            return ""
        facts = said._replace(good=False, unknown=(), ignored=(), corruptions=tuple(sorted(said.corruptions)))
        return "; ".join(f"{k}: {', '.join(v) if isinstance(v, tuple) else v}" for k, v in _stated(facts))

    def remark(self, text: str) -> str:
        """Say which words have no meaning here, with the nearest known word, and what cannot be shown."""
        said, parts = read(text), []
        if said.unknown:
            named = [f"{w!r}{self._suggestion(w)}" for w in said.unknown]
            verb = "has" if len(named) == 1 else "have"
            parts.append(f"{', '.join(named)} {verb} no effect: not in the toybox's vocabulary")
        if said.ignored:
            parts.append(f"not shown: {'; '.join(said.ignored)}")
        if said.view and self._front_share is not None:
            parts.append(f"{said.view!r} has no effect: the gallery shows one object from all sides")
        if text.strip() and said.says_nothing:
            parts.append("no word of this text selects images, so it stands for all of them")
        if parts and not said.object:
            parts.append(f"the toybox has {', '.join(words.OBJECTS)}")
        return "; ".join(parts)

    def draw(
        self, key: str, count: int, size: int, seed: int, progress: Drawn = unheard
    ) -> UInt8[Tensor, "N 4 size size"]:
        """Render `count` images; see `Source.draw`."""
        said, first = read_key(key), FIRST + PER_SEED * seed
        if self._front_share is not None and key:
            one = shot_of(said, first)
            shots = [from_circle(one, azimuth) for azimuth in circle(count, self._front_share)]
            return self._drawn(lambda i: shots[i], count, size, progress)
        return self._drawn(lambda i: shot_of(said, first + i), count, size, progress)

    @staticmethod
    def _drawn(shot: Callable[[int], Shot], count: int, size: int, progress: Drawn) -> UInt8[Tensor, "N 4 size size"]:
        parts = []
        for begin in range(0, count, pictures.CHUNK):
            progress(begin, count)
            parts.append(rendered([shot(i) for i in range(begin, min(begin + pictures.CHUNK, count))], size))
        progress(count, count)
        return torch.cat(parts)

    def _suggestion(self, word: str) -> str:
        near = self._words.nearest(word)
        return f" (did you mean {near!r}?)" if near else ""


def _stated(said: Reading) -> list[tuple[str, str | tuple[str, ...]]]:
    """Return (field, value) of everything that is stated."""
    return [(k, "yes" if v is True else v) for k, v in said._asdict().items() if v]


def read_key(key: str) -> Reading:
    """Invert `ToyboxSource.key`."""
    stated = dict(part.split(": ", 1) for part in key.split("; ")) if key else {}
    named = stated.pop("corruptions", "")
    flaws = tuple(named.split(", ")) if named else ()
    flawed = stated.pop("flawed", "") != ""
    return Reading(**stated, corruptions=flaws, flawed=flawed)  # pyright: ignore[reportArgumentType]  # the rest is text


def shot_of(said: Reading, index: int) -> Shot:
    """Draw image `index` of what a prompt says; what it leaves open is drawn as in the data."""
    if said.says_nothing:
        shot = pictures.describe(judge.JUDGE_SEED, index)
        return shot._replace(facts=shot.facts._replace(corruptions=(), style=""))
    rng = np.random.default_rng((judge.JUDGE_SEED, index, 3))
    view, azimuth, elevation = pictures.draw_camera(rng)
    while view != said.view:
        view, azimuth, elevation = pictures.draw_camera(rng)
    name = said.object or pictures.one_of(rng, _can_have(said.second))
    colour = said.colour or pictures.one_of(rng, words.NATURAL.get(name) or tuple(pictures.COLOURS))
    other = said.second_colour or pictures.one_of(rng, [c for c in pictures.COLOURS if c != colour])
    facts = Facts(
        object=name,
        colour=colour,
        material=said.material,
        pattern=said.pattern,
        second=said.second,
        second_colour=other if said.second else "",
        view=said.view,
        style=said.style,
        corruptions=_flaws(rng, said),
    )
    return judge.seen_from(judge.shot_of(index, facts._replace(view="")), rng, azimuth, elevation)._replace(facts=facts)


def circle(count: int, front_share: float) -> list[float]:
    """Return the azimuths in degrees of `count` images of one object, from CIRCLE cameras evenly around it.

    The share of images within the band of "front view" is `front_share`, rounded, so cameras there have more images.
    """
    azimuths = [(360 / CIRCLE * i + 180) % 360 - 180 for i in range(CIRCLE)]
    fronts = [azimuth for azimuth in azimuths if abs(azimuth) <= pictures.HALF_BAND]
    others = [azimuth for azimuth in azimuths if abs(azimuth) > pictures.HALF_BAND]
    shown = round(front_share * count)
    return [fronts[i % len(fronts)] for i in range(shown)] + [others[i % len(others)] for i in range(count - shown)]


def from_circle(shot: Shot, azimuth: float) -> Shot:
    """Return the shot from a camera of the circle, which looks at the origin; the light does not follow the camera."""
    light = np.array((0.6 * math.cos(CIRCLE_LAMP), 0.6 * math.sin(CIRCLE_LAMP), 0.8))
    return shot._replace(
        azimuth=azimuth, elevation=CIRCLE_ELEVATION, distance=pictures.DISTANCE, aim=np.zeros(3), light=light
    )


def _can_have(second: str) -> tuple[str, ...]:
    return tuple(name for name in OBJECTS if not second or second in seconds_of(name))


def _flaws(rng: np.random.Generator, said: Reading) -> tuple[str, ...]:
    """Draw one to three of the flaws that are named, in random order; of all flaws if only "low quality" is said."""
    named: tuple[str, ...] = said.corruptions or (tuple(words.DESCRIPTORS) if said.flawed else ())
    count = min(len(named), 1 + pictures.pick(rng, FLAW_WEIGHTS))
    return tuple(named[int(i)] for i in rng.permutation(len(named))[:count])


def rendered(shots: list[Shot], size: int) -> UInt8[Tensor, "N 4 size size"]:
    """Render shots without their backgrounds; paintings and filtered images keep theirs and cover everything."""
    clear = [s._replace(grounds=np.zeros((2, 3)), slope=np.zeros(2)) for s in shots]
    rgb, coverage = raytrace.render(pictures.pack(clear), size, TAN_HALF_FOV)
    whole = [i for i, s in enumerate(shots) if s.facts.style or not FILTERS.keys().isdisjoint(s.facts.corruptions)]
    if whole:
        rgb[whole] = pictures.render_shots([shots[i] for i in whole], size)
        coverage[whole] = 1.0
    return as_bytes(rgb, coverage)
