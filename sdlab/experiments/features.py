"""Do features see what FID is to measure? Distances between sets of true images of the toybox, at 64 pixels.

For each object, images of a prompt are compared with others of the same prompt as they are (the floor), blurred over 3
and 5 pixels, and noised, and with images of the other objects. Features that can be trusted order the floor before
slight and strong damage, and damage before another object. By the judge, and with `imagenet` by ImageNet's features.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from sdlab import machine
from sdlab.metrics.distances import fid, kid
from sdlab.metrics.networks import imagenet as load_imagenet
from sdlab.progress import progress_bar
from sdlab.toybox import judge
from sdlab.toybox.figures import plain_facts

OBJECTS = (("bear", "red"), ("car", "blue"), ("teapot", "green"))
SIZE = 64
NOISE = {"noised, 0.05": 0.05, "noised, 0.15": 0.15}  # standard deviation
BLUR = {"blurred, 3 pixels": 3, "blurred, 5 pixels": 5}


def run(out: Path | None = None, quick: bool = False, imagenet: bool = False) -> dict[str, Any]:
    """Measure, print a table, write JSON to `out`, and return the results. Raises ValueError if ImageNet's features are
    not installed."""
    count = 16 if quick else 128
    classifier = judge.load()
    networks: dict[str, Callable[[Tensor], Tensor]] = {"judge": lambda rgb: judge.features(classifier, rgb)}
    if imagenet:
        network = load_imagenet()
        networks[network.name] = network.features
    references = {name: true_images(name, colour, 0, count) for name, colour in OBJECTS}
    fresh = {name: true_images(name, colour, count, count) for name, colour in OBJECTS}
    sets = {name: {"as they are": fresh[name], **damaged(fresh[name])} for name in fresh}
    images = count * sum(1 + len(each) for each in sets.values()) * len(networks)
    with progress_bar(images, "image") as bar:
        rows = [row for name in networks for row in _rows(name, networks[name], references, sets, bar.update)]
    result = {"images": count, "size": SIZE, "rows": rows, "machine": machine.processor()}
    _print(result)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def true_images(name: str, colour: str, first: int, count: int) -> Float[Tensor, "n 3 S S"]:
    """Return true images of an object in a colour, in [0, 1], from image `first` of the judge's held-out series on."""
    facts = plain_facts(name, colour)
    shots = [judge.shot_of(judge.HELD_OUT + first + i, facts) for i in range(count)]
    return judge.render(shots, SIZE).float() / 255


def damaged(rgb: Float[Tensor, "n 3 S S"]) -> dict[str, Float[Tensor, "n 3 S S"]]:
    """Return images blurred and noised, by what was done to them."""
    draws = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(0))
    blurred = {what: avg_pool2d(pad(rgb, (n // 2,) * 4, mode="replicate"), n, 1) for what, n in BLUR.items()}
    return {**blurred, **{what: (rgb + std * draws).clamp(0, 1) for what, std in NOISE.items()}}


def _rows(
    network: str,
    features: Callable[[Tensor], Tensor],
    references: dict[str, Tensor],
    sets: dict[str, dict[str, Tensor]],
    tick: Callable[[int], object],
) -> list[dict[str, Any]]:
    """Return the distances of every set to the references, by one network."""
    started = time.perf_counter()

    def read(rgb: Tensor) -> Tensor:
        found = features(rgb)
        tick(len(rgb))
        return found

    known = {name: read(rgb) for name, rgb in references.items()}
    seen = {name: {what: read(rgb) for what, rgb in each.items()} for name, each in sets.items()}
    images = sum(map(len, known.values())) + sum(len(rgb) for each in seen.values() for rgb in each.values())
    ms = round(1e3 * (time.perf_counter() - started) / images, 1)
    pairs = [(name, what, known[name], rgb) for name, each in seen.items() for what, rgb in each.items()]
    pairs += [(a, f"a {b}", known[a], seen[b]["as they are"]) for a in known for b in seen if a != b]
    return [
        {"features": network, "object": a, "against": b, "fid": fid(x, y), "kid": kid(x, y), "ms_per_image": ms}
        for a, b, x, y in pairs
    ]


def _print(result: dict[str, Any]) -> None:
    print(f"{result['images']} against {result['images']} images of {SIZE} pixels")
    print(f"{'features':20}{'object':8}{'against':20}{'FID':>10}{'KID x1000':>12}")
    for row in result["rows"]:
        print(f"{row['features']:20}{row['object']:8}{row['against']:20}{row['fid']:10.3f}{1000 * row['kid']:12.2f}")
    for name, ms in {row["features"]: row["ms_per_image"] for row in result["rows"]}.items():
        print(f"{name}: {ms} ms per image")
