"""Measure finished runs: what the judge reads, entropies, fronts, distances to the prior's images, agreement with the
prompt, T3Bench, and diversity over seeds. The functions behind it are in `sdlab.metrics`.

Every run is measured on `views` images around the object, the ESD paper's 120 by default, of which every tenth is one
of the 12 of the Janus count. FID and KID compare them with images that the prior itself has for the prompt: a
gallery's own, or DDIM samples of a network. Runs that differ in nothing but the seed form a group, with the means of
its runs and their diversity.

A metric that a run does not allow is left out: what the judge reads, where the prior is not the toybox's; FID, where
there are no reference images; fronts, of images and of objects without a front.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab import headless
from sdlab.experiments.references import prior_images
from sdlab.experiments.run_folders import Made, images_from, images_of
from sdlab.metrics import diversity, entropies, images, t3bench, text
from sdlab.metrics.distances import fid, kid
from sdlab.metrics.networks import Captioner, Clip, ImageNet, Reward
from sdlab.priors.gallery import GalleryScores
from sdlab.settings import to_toml
from sdlab.toybox import judge, pictures, readings
from sdlab.toybox.words import VIEW_WORDS

VIEWS = 120  # as in section 6 of the ESD paper
REFERENCES = 1000  # of a gallery, as in the ESD paper; samples of a network take too long to be the default
CLIP_SCALE = 100.0  # at which CLIP's cosines become logits, the largest that its training allows

Tick = Callable[[int], object]  # receives the number of images just done
Row = dict[str, Any]


@dataclass(frozen=True)
class Tools:
    """The networks to measure with; None for those that are not wanted. `texts` are the prompts that R-precision tells
    a run's own from."""

    classifier: judge.Classifier = field(default_factory=judge.load)
    imagenet: ImageNet | None = None
    clip: Clip | None = None
    texts: tuple[str, ...] = ()
    reward: Reward | None = None
    captioner: Captioner | None = None


class Wanted(NamedTuple):
    """What to measure: images around the object (a multiple of 12), reference images (None: REFERENCES of a gallery
    and none of a network), and whether to run T3Bench."""

    views: int = VIEWS
    references: int | None = None
    t3bench: bool = False


# ---- one run -----------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """The metrics of a run by name, its images around the object, and their features for diversity."""

    made: Made
    row: Row
    shown: Float[Tensor, "n 3 S S"]
    features: Float[Tensor, "n d"] | None


class Measurer:
    """Measures runs; reference images of equal priors and prompts are made once. `tick` counts images."""

    def __init__(self, tools: Tools, wanted: Wanted, tick: Tick = lambda done: None) -> None:
        self.tools = tools
        self.wanted = wanted
        self.tick = tick
        self._references: dict[tuple[Any, str], dict[str, Tensor]] = {}  # features by network

    def images(self, runs: Sequence[Made]) -> int:
        """Return how many images measuring `runs` takes, as `tick` counts them."""
        references = {_reference_key(made): self.references_for(made) for made in runs}
        own = sum(self.wanted.views + (0 if made.flat or not self.wanted.t3bench else _t3_images()) for made in runs)
        return own + sum(references.values())

    def measure(self, made: Made) -> Measured:
        """Return the metrics of a run that it allows."""
        shown = images_of(made, self.wanted.views)
        prompt = made.settings.prompt.text
        row: Row = {
            "run": str(made.folder),
            "prompt": prompt,
            "loss": made.settings.active,
            "seed": made.settings.seed,
            "steps": made.step,
            **looks(shown),
        }
        if made.judged:
            row |= readings.readings(shown, prompt, self.tools.classifier, sides=not made.flat)
        if self.tools.imagenet is not None:
            p = self.tools.imagenet.chances(shown)
            row |= {"iq_imagenet": entropies.quality(p), "iv_imagenet": entropies.variety(p)}
        if self.tools.clip is not None:
            row |= matched(shown, prompt, self.tools.clip, self.tools.texts)
        self.tick(self.wanted.views)
        seen = {name: features(shown) for name, features in self._networks(made).items()}
        row |= self._apart(made, seen)
        row |= likeness(made)
        if self.wanted.t3bench and not made.flat:
            row |= self._t3bench(made, prompt)
        features = next(iter(seen.values()), None)  # the judge's, else ImageNet's
        if made.flat and len(shown) > 1:  # each image is a seed of its own
            row |= diverse(shown[:, None], None if features is None else features[:, None])
        return Measured(made, row, shown, features)

    def references_for(self, made: Made) -> int:
        """Return the number of reference images that a run is compared with."""
        if made.prior is None or not (made.judged or self.tools.imagenet):
            return 0
        given = self.wanted.references
        if given is None:
            return REFERENCES if isinstance(made.prior, GalleryScores) else 0
        return given

    def _apart(self, made: Made, seen: dict[str, Tensor]) -> Row:
        """Return FID and KID of a run's images to the prior's own, by the features `seen` in them."""
        if self.references_for(made) < 2 or any(len(features) < 2 for features in seen.values()):
            return {}
        known = self._reference_features(made)
        fids = {f"fid{name}": fid(features, known[name]) for name, features in seen.items()}
        return {**fids, **{f"kid{name}": kid(features, known[name]) for name, features in seen.items()}}

    def _reference_features(self, made: Made) -> dict[str, Tensor]:
        """Return the features of what the prior shows for the prompt of a run."""
        key = _reference_key(made)
        if key not in self._references:
            assert made.prior is not None
            rgb = prior_images(made.prior, made.settings.prompt.text, self.references_for(made), tick=self.tick)
            self._references[key] = {name: features(rgb) for name, features in self._networks(made).items()}
        return self._references[key]

    def _networks(self, made: Made) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return what computes features, by the suffix of the metrics' names."""
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        if made.judged:
            found[""] = lambda rgb: judge.features(self.tools.classifier, rgb)
        if self.tools.imagenet is not None:
            found["_imagenet"] = self.tools.imagenet.features
        return found

    # ---- T3Bench ---------------------------------------------------------------------------------------------

    def _t3bench(self, made: Made, prompt: str) -> Row:
        """Return quality and alignment: of the networks that are given, else of the judge ("lite")."""
        found: Row = {}
        facts = readings.facts_of(prompt) if made.judged else {}
        classifier = self.tools.classifier
        if self.tools.reward is not None:
            reward = self.tools.reward
            found["quality"] = t3bench.quality_of_reward(self._best(made, lambda rgb: reward.score(rgb, prompt)))
        elif facts:
            found["quality_lite"] = 100 * self._best(made, lambda rgb: readings.chance_of(rgb, facts, classifier))
        if self.tools.captioner is not None:
            cams = t3bench.cameras(t3bench.CAPTION_LEVEL, t3bench.CAPTION_FIELD, made.size, t3bench.CAPTION_DISTANCE)
            captions = self.tools.captioner.captions(images_from(made, cams))
            found["alignment"] = t3bench.alignment(t3bench.recall(prompt, captions))
        elif facts:
            cams = t3bench.cameras(t3bench.CAPTION_LEVEL, pictures.FOV_DEGREES, made.size, pictures.DISTANCE)
            said = readings.merged(images_from(made, cams), classifier)
            recalled = statistics.fmean(said[name] == value for name, value in facts.items())
            found["alignment_lite"] = t3bench.alignment(recalled)
        return found

    def _best(self, made: Made, score: Callable[[Tensor], Tensor]) -> float:
        """Return the score of an object over T3Bench's cameras and fields of view."""
        scores = []
        for fovy in t3bench.FIELDS_OF_VIEW:
            rgb = images_from(made, t3bench.cameras(t3bench.QUALITY_LEVEL, fovy, made.size))
            scores.append(score(rgb))
            self.tick(len(rgb))
        return t3bench.best(torch.stack(scores))


def _t3_images() -> int:
    vertices, _ = t3bench.icosphere(t3bench.QUALITY_LEVEL)
    return len(t3bench.FIELDS_OF_VIEW) * len(vertices)


def _reference_key(made: Made) -> tuple[Any, str]:
    return made.settings.prior, made.settings.prompt.text


# ---- metrics of images -------------------------------------------------------------------------------------------


def looks(rgb: Float[Tensor, "n 3 S S"]) -> Row:
    """Return the mean saturation and sharpness of images in [0, 1]."""
    return {"saturation": float(images.saturation(rgb).mean()), "sharpness": float(images.sharpness(rgb).mean())}


def matched(rgb: Float[Tensor, "n 3 S S"], prompt: str, clip: Clip, others: Sequence[str]) -> Row:
    """Return CLIP's agreement with the prompt: score, R-precision among `others`, entropies of the view words."""
    seen = clip.images(rgb)
    own = torch.zeros(len(rgb), dtype=torch.long)
    texts = list(dict.fromkeys([prompt, *others]))
    cosines = text.similarities(seen, clip.texts(texts))
    found: Row = {"clip": text.score(cosines, own)}
    if len(texts) > 1:
        found["r_precision"] = text.r_precision(cosines, own)
    views = text.similarities(seen, clip.texts([f"{prompt}, {word}" for word in VIEW_WORDS]))
    p = (CLIP_SCALE * views).softmax(1)
    return {**found, "iq_clip": entropies.quality(p), "iv_clip": entropies.variety(p)}


def likeness(made: Made) -> Row:
    """Return the PSNR to the object that the prior knows, if it knows one: a mesh seen from all sides."""
    found = None if made.prior is None else headless.likeness(made.scene, made.settings, made.prior)
    return {} if found is None else {"psnr": found}


# ---- groups ------------------------------------------------------------------------------------------------------


def groups_of(runs: Sequence[Measured]) -> list[list[Measured]]:
    """Return the runs that differ in nothing but the seed, two or more together, in their order. Of copies of a run,
    which have the same seed, the first is in it."""
    found: dict[tuple[str, int], dict[int, Measured]] = {}
    for run in runs:
        settings = run.made.settings
        found.setdefault((to_toml(settings.patch("seed", 0)), run.made.step), {}).setdefault(settings.seed, run)
    return [list(group.values()) for group in found.values() if len(group) > 1]


def group_row(group: Sequence[Measured]) -> Row:
    """Return the means of the metrics of a group and its diversity over seeds."""
    rows = [run.row for run in group]
    means = {
        name: statistics.fmean(row[name] for row in rows)
        for name in rows[0]
        if isinstance(rows[0][name], (int, float))
        and name not in ("seed", "steps")
        and all(name in row for row in rows)
    }
    same = {name: rows[0][name] for name in ("prompt", "loss", "steps")}
    features = [run.features for run in group if run.features is not None]
    shown = torch.stack([run.shown for run in group])
    apart = diverse(shown, torch.stack(features) if len(features) == len(group) else None)
    return {"runs": [row["run"] for row in rows], "seeds": [row["seed"] for row in rows], **same, **means, **apart}


def diverse(rgb: Float[Tensor, "R N 3 S S"], features: Float[Tensor, "R N d"] | None) -> Row:
    """Return the diversity of R results of N views each, by pixels and, if there are some, by features."""
    found: Row = {"diversity_pixels": diversity.of_pixels(rgb)}
    return found if features is None else {"diversity": diversity.of_features(features), **found}
