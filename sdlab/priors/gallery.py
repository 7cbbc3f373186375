"""A prior without a network: a text stands for a gallery of images, and the noise prediction is exact.

A perfect network that has learned exactly these images would predict what `sdlab.priors.closed_form` computes. Nothing
is trained or downloaded: images are rendered, or read from files, when a text is first used, at any resolution.

Conditioning is one weight per gallery, so a mixture of texts is a mixture of galleries: Perp-Neg's interpolation
between two views is exact as well. The same t means less noise at a higher resolution, because neighbouring pixels
carry the same information; `shift` scales the signal-to-noise ratio by (32 / size)^2 (Hoogeboom et al. 2023, "simple
diffusion", eq. 4), relative to the 32 pixels of the toybox's network.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdlab.console import Remark
from sdlab.knobs import knob
from sdlab.meshes.read import UPS
from sdlab.pictures import resize
from sdlab.priors import PriorConfig, Progress, silent
from sdlab.priors.closed_form import CANDIDATES, Background, Gallery, compile_kernels, posterior_mean
from sdlab.priors.galleries import SHARED, Order, drawn
from sdlab.priors.sources import Source
from sdlab.priors.trainable import RenderNet, Trainable
from sdlab.types import N_TIMESTEPS, Cond

SOURCES = ("toybox", "folder", "mesh")
SLOTS = 512  # texts that sessions can use at the same time
BASE_SIZE = 32  # pixels, at which the schedule is not shifted
SIZE_STEP = 16
SHOWN = 40  # characters of a text in a status line


def alphas_cumprod(snr_factor: float = 1.0) -> Float[Tensor, " T"]:
    """Return alpha_t^2 at t = 0 .. 999 in float64, of the cosine schedule (Nichol and Dhariwal 2021) with its
    signal-to-noise ratio multiplied by `snr_factor`."""
    steps = torch.arange(N_TIMESTEPS + 1, dtype=torch.float64) / N_TIMESTEPS
    level = torch.cos((steps + 0.008) / 1.008 * math.pi / 2).square()
    betas = (1 - level[1:] / level[:-1]).clamp(max=0.999)
    squared = torch.cumprod(1 - betas, 0)
    ratio = snr_factor * squared / (1 - squared)
    return ratio / (1 + ratio)


@dataclass(frozen=True)
class GalleryPrior(PriorConfig):
    """Exact scores of images: of the toybox's world, of a folder, or of a mesh seen from all sides; no downloads."""

    kind: ClassVar[str] = "gallery"

    source: str = knob(
        "toybox",
        help="toybox: images rendered to fit the prompt; folder: your own pictures; mesh: an object from all sides",
        apply="rebuild",
        choices=SOURCES,
    )
    path: str = knob("", hi=500, help="the folder of pictures (or a ZIP), or the mesh file", apply="rebuild")
    up: str = knob("auto", help="vertical axis of a mesh file; auto: by its format", apply="rebuild", choices=UPS)
    turn: float = knob(
        0.0, -180.0, 180.0, "degrees by which a mesh is turned, seen from above, so that it faces +x", apply="rebuild"
    )
    one_object: bool = knob(
        False,
        help="toybox: the images of a text show one object from twelve sides, instead of a new one each",
        apply="rebuild",
    )
    front_share: float = knob(0.6, 0.0, 1.0, "share of one object's images that show its front", apply="rebuild")
    size: int = knob(64, 16, 256, "side of the images in pixels, a multiple of 16", apply="rebuild")
    images: int = knob(1024, 1, 16384, "images per text; about 21 kB each at 64 pixels", apply="rebuild")
    null_images: int = knob(4096, 1, 65536, "images of the empty text, which shows everything", apply="rebuild")
    candidates: int = knob(
        CANDIDATES,
        0,
        4096,
        "images evaluated at full size after ranking all by block means; 0: all, in float64",
        apply="rebuild",
    )
    spread: float = knob(0.0, 0.0, 1.0, "standard deviation around each image, in units of z", apply="rebuild")
    background: float = knob(0.8, 0.0, 1.0, "mean brightness of the unknown background", apply="rebuild")
    background_std: float = knob(0.35, 0.01, 1.0, "standard deviation of the unknown background", apply="rebuild")
    shift: bool = knob(True, help="more noise at higher resolutions, so that t means the same", apply="rebuild")
    seed: int = knob(0, 0, 2**20, "seed of the images", apply="rebuild")

    def __post_init__(self) -> None:
        if self.size % SIZE_STEP:
            raise ValueError(f"prior.size = {self.size}: must be a multiple of {SIZE_STEP}")
        if self.one_object and self.source != "toybox":
            raise ValueError(f"prior.one_object = true with prior.source = {self.source}: only the toybox has it")

    def load(self, device: torch.device, progress: Progress = silent) -> GalleryScores:
        """Open the source; images are drawn when texts are prepared. ValueError for a path without usable images."""
        progress(f"gallery prior: opening the {self.source}")
        return GalleryScores(self, self._source(progress), device)

    def _source(self, progress: Progress) -> Source:
        if self.source == "toybox":
            from sdlab.priors.sources.toybox import ToyboxSource

            return ToyboxSource(self.front_share if self.one_object else None)
        if not self.path.strip():
            what = "a folder of pictures or a ZIP" if self.source == "folder" else "a GLB, OBJ, STL or PLY file"
            raise ValueError(f"prior.path is empty: prior.source = {self.source} needs {what}")
        if self.source == "folder":
            from sdlab.priors.sources.folder import FolderSource

            return FolderSource(
                self.path,
                "prior.path",
                lambda done, total: progress(f"gallery prior: {done:,} of {total:,} files read"),
            )
        from sdlab.priors.sources.mesh import MeshSource

        return MeshSource(self.path, "prior.path", self.up, self.turn)


class GalleryScores:
    """The `Prior` of a `GalleryPrior`; safe to call from any thread.

    `Cond.hidden` [B, 1, SLOTS] holds one weight per slot; a slot stands for a gallery as long as a conditioning of
    its text is alive.
    """

    def __init__(self, config: GalleryPrior, source: Source, device: torch.device) -> None:
        self.name = f"gallery of {source.name}"
        self.commit = ""
        self.config = config
        self.source = source
        self.shape: tuple[int, int, int] = (3, config.size, config.size)
        self.image_size = config.size
        self.device = device
        self.engine_name = "exact" if config.candidates == 0 else "closed form"
        self.torch_threads = 1
        self.prediction_type = "epsilon"
        self.n_parameters = 0
        self.trains_from_scratch = True  # see `sdlab.auxiliary.score.TrainsScore.untrained_aux`
        self._background = Background(config.background, config.background_std)
        squared = alphas_cumprod((BASE_SIZE / config.size) ** 2 if config.shift else 1.0)
        self._alpha = squared.sqrt().float().to(device)
        self._sigma = (1 - squared).sqrt().float().to(device)
        self._lock = threading.Lock()
        self._slots: dict[str, int] = {}  # key of the source -> slot, least recently embedded first
        self._conds: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()

    @property
    def engine_note(self) -> str:
        """What the source says about itself, such as files that were skipped, or ""."""
        return self.source.note

    # ---- texts -------------------------------------------------------------------------------------------

    def prepare(self, batch_sizes: Iterable[int]) -> None:
        """Compile the kernels of `sdlab.priors.closed_form`; batch sizes do not matter."""
        if self.device.type == "cpu" and self.config.candidates:
            compile_kernels()

    def prepare_texts(self, texts: Iterable[str], progress: Progress = silent) -> None:
        """Draw the galleries of `texts` that are not in memory, reporting the time left. ValueError as the source's."""
        wanted = {self.source.key(text): text for text in texts}
        orders = {key: self._order(key) for key in wanted}
        missing = [key for key, order in orders.items() if SHARED.find(order) is None]
        pace = _Pace(sum(orders[key].count for key in missing), progress)
        for key in missing:
            self._gallery(key, pace.of(wanted[key], orders[key].count))

    def embed(self, text: str) -> Cond:
        """Return the weights of one text, drawing its gallery if needed; warn about words without effect.

        Raises RuntimeError if sessions use more than `SLOTS` different texts at once.
        """
        remark = self.source.remark(text)
        if remark:
            warnings.warn(remark, Remark, stacklevel=2)
        key = self.source.key(text)
        self._gallery(key)
        with self._lock:
            found = self._conds.get(key)
            if found is None:
                found = torch.zeros(1, 1, SLOTS, device=self.device)
                found[..., self._slot(key)] = 1.0
                self._conds[key] = found
            self._slots[key] = self._slots.pop(key)  # most recently used
            return Cond(found)

    def remark(self, text: str) -> str:
        """Return which words of the prompt have no effect, and what it stands for instead; "" if all have."""
        return self.source.remark(text)

    def _slot(self, key: str) -> int:
        """Return the slot of `key`, taking one from a text that nobody uses if all are taken."""
        if key in self._slots:
            return self._slots[key]
        if len(self._slots) < SLOTS:
            slot = len(self._slots)
        else:
            unused = next((k for k in self._slots if k not in self._conds), None)
            if unused is None:
                raise RuntimeError(f"this prior serves {SLOTS} texts at once, and all are in use: try again later")
            slot = self._slots.pop(unused)
        self._slots[key] = slot
        return slot

    def _order(self, key: str) -> Order:
        c = self.config
        count = c.null_images if key == "" else c.images
        available = self.source.available(key)
        return Order(
            self.source.identity,
            key,
            count if available is None else min(count, available),
            c.size,
            c.seed,
            self._background,
            str(self.device),
        )

    def _gallery(self, key: str, report: Any = None) -> Gallery:
        order = self._order(key)
        return SHARED.get(order, lambda: drawn(self.source, order, None, *([report] if report else [])))

    # ---- images ------------------------------------------------------------------------------------------

    def encode(self, rgb: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 size size"]:
        """Return z = 2 rgb - 1, resized to the gallery's size; differentiable."""
        return 2 * resize(rgb, self.shape[1:]) - 1

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "B 3 size size"]) -> Float[Tensor, "B 3 size size"]:
        """Invert `encode`; clamped to [0, 1]."""
        return (z / 2 + 0.5).clamp(0, 1)

    def marginal(self, t: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 1 1 1"], Float[Tensor, "B 1 1 1"]]:
        """Return alpha and sigma."""
        return self._alpha[t].view(-1, 1, 1, 1), self._sigma[t].view(-1, 1, 1, 1)

    @torch.no_grad()
    def eps(self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], cond: Cond) -> Float[Tensor, "B C H W"]:
        """Return (z_t - alpha E[x0 | z_t]) / sigma in the dtype of z_t; ValueError if batch sizes differ."""
        weights = cond.hidden[:, 0]
        if not len(z_t) == len(t) == len(weights):
            raise ValueError(
                f"{len(z_t)} images, {len(t)} timesteps and conditioning for {len(weights)}: "
                "the three batch sizes must be equal"
            )
        alpha, sigma = self.marginal(t)
        keys, shares = self._used(weights)
        galleries = [self._gallery(key) for key in keys]
        x0 = posterior_mean(galleries, shares, z_t, alpha, sigma, self.config.spread, self.config.candidates or None)
        return ((z_t - alpha * x0) / sigma).to(z_t.dtype)

    def _used(self, weights: Float[Tensor, "B slots"]) -> tuple[list[str], Float[Tensor, "B G"]]:
        """Return the keys of all slots with a weight, and their weights.

        Keys are sorted, since the order of slots depends on what other sessions used first, and a sum of floats on the
        order of its terms.
        """
        slots = torch.nonzero((weights > 0).any(0))[:, 0].tolist()
        with self._lock:
            named = {slot: key for key, slot in self._slots.items()}
        keys = sorted(slots, key=lambda slot: named[slot])
        return [named[slot] for slot in keys], weights[:, keys]

    def trainable(self, how: str, rank: int) -> Trainable:
        """Return a small network that is trained from scratch; a gallery has no weights for `how` and `rank`."""
        network = RenderNet(self.shape).to(self.device)
        return Trainable(network, "v_prediction", self.marginal)


class _Pace:
    """Words the progress of drawing `total` images, with the time left."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total = total
        self._progress = progress
        self._before = 0  # images of finished galleries
        self._started = time.monotonic()

    def of(self, text: str, count: int) -> Any:
        """Return the callback for the gallery of `text`, which has `count` images."""
        shown = f"{text[:SHOWN]}..." if len(text) > SHOWN else text

        def report(done: int, total: int) -> None:
            drawn_so_far = self._before + done
            passed = time.monotonic() - self._started
            left = passed / drawn_so_far * (self._total - drawn_so_far) if drawn_so_far else 0.0
            name = f"'{shown}'" if shown else "everything (the empty text)"
            remaining = f", {math.ceil(left)} s left" if left > 0 else ""
            self._progress(f"drawing {count} images of {name}: {100 * drawn_so_far // self._total} %{remaining}")
            if done >= total:
                self._before += count

        return report
