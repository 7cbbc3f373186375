"""T3Bench (He et al. 2023, "T3Bench: Benchmarking current progress in text-to-3D generation", arXiv 2310.02977).

The protocol, with the constants of its authors' program:

prompts    three lists of 100: a single object with its attributes; a single object with its surroundings; multiple
           objects. The authors had GPT-4 propose prompts and dropped those too similar to others.
quality    162 cameras on the vertices of an icosphere (an icosahedron subdivided twice) at distance 2.2 from an object
           that fits into the unit cube [-1, 1]^3, with five fields of view each. A reward model scores every image; of
           a camera the best field of view counts. Scores are smoothed over neighbouring vertices three times, and the
           best camera counts, on a scale where 50 is a reward of 0 and 20 points are one unit of it.
alignment  captions of the 12 views of the icosahedron, merged into one; a language model rates from 1 to 5 how much of
           the prompt the caption recalls. Here the rating is the recall of words (`recall`), without such a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.cameras import look_at
from sdlab.types import Cameras

RADIUS = 2.2  # distance of the cameras in world units
FIELDS_OF_VIEW = (60.0, 45.0, 36.0, 30.0, 24.0)  # vertical, in degrees
CAPTION_FIELD, CAPTION_DISTANCE = 60.0, RADIUS**2  # of captioned views; the authors' program scales them twice
QUALITY_LEVEL, CAPTION_LEVEL = 2, 0  # subdivisions of the icosahedron: 162 and 12 vertices
SMOOTHINGS = 3
REWARD_ZERO, REWARD_UNIT = 50.0, 20.0
WORST, BEST = 1.0, 5.0  # alignment
SMALL_WORDS = frozenset(
    ("a", "an", "and", "at", "by", "for", "in", "is", "it", "next", "of", "on", "the", "to", "with")
)


@cache
def icosphere(level: int) -> tuple[Float[Tensor, "V 3"], tuple[tuple[int, ...], ...]]:
    """Return the vertices of an icosahedron subdivided `level` times, on the unit sphere, and each one's neighbours."""
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=level)
    neighbours = tuple(tuple(map(int, near)) for near in mesh.vertex_neighbors)
    return torch.tensor(mesh.vertices, dtype=torch.float32), neighbours


def cameras(level: int, fovy: float, size: int, distance: float = RADIUS) -> Cameras:
    """Return the cameras on the vertices of `icosphere(level)`, at `distance` from the origin and looking at it; `fovy`
    in degrees, images of `size` pixels."""
    vertices, _ = icosphere(level)
    azimuth = torch.rad2deg(torch.atan2(vertices[:, 1], vertices[:, 0]))
    elevation = torch.rad2deg(torch.asin(vertices[:, 2].clamp(-1, 1)))
    return look_at(azimuth, elevation, torch.full((len(vertices),), distance), fovy, size, size)


def smoothed(scores: Float[Tensor, "V"], neighbours: tuple[tuple[int, ...], ...]) -> Float[Tensor, "V"]:
    """Return the mean of each vertex' score and those of its neighbours."""
    return torch.stack([(scores[i] + scores[list(near)].sum()) / (1 + len(near)) for i, near in enumerate(neighbours)])


def best(scores: Float[Tensor, "F V"]) -> float:
    """Return the score of an object from those of its images with F fields of view at the V = 162 cameras."""
    _, neighbours = icosphere(QUALITY_LEVEL)
    smooth = scores.amax(0).double()
    for _ in range(SMOOTHINGS):
        smooth = smoothed(smooth, neighbours)
    return float(smooth.max())


def quality_of_reward(reward: float) -> float:
    """Return a reward of ImageReward (mean 0, standard deviation 1 over its own data) on the scale of T3Bench."""
    return REWARD_ZERO + REWARD_UNIT * reward


def recall(prompt: str, captions: Sequence[str]) -> float:
    """Return the share of the prompt's words that occur in a caption, without SMALL_WORDS; 1 if it has no others."""
    wanted = _words(prompt) - SMALL_WORDS
    found = set().union(*map(_words, captions))
    return len(wanted & found) / len(wanted) if wanted else 1.0


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))


def alignment(recall: float) -> float:
    """Return a recall in [0, 1] on the scale from 1 to 5."""
    return WORST + (BEST - WORST) * recall
