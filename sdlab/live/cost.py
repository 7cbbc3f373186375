"""What a step of some settings costs: seconds of drawing, evaluations of networks, memory.

Estimates for deciding what a shared server accepts, not for planning a run. The figures were measured on one core of a
CPU with `python -m sdlab.bench raster` and the default preset; they hold to about a factor of two.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from sdlab.harmonics import COUNTS
from sdlab.live.state import Run, with_begun
from sdlab.scenes.field import Field
from sdlab.scenes.splats import Splats
from sdlab.settings import Settings
from sdlab.types import PERP_ROLES, Prior

SPLAT_SECONDS = 1.2e-6  # per Gaussian and view, forward and backward
PAIR_SECONDS = 1e-7  # per Gaussian, tile that its box touches, and view
PIXEL_SECONDS = 4e-8  # per pixel and view
HARMONIC_SECONDS, HARMONIC_BYTES = 1e-7, 25  # per coefficient of a Gaussian's harmonics (of all channels) and view
SAMPLE_SECONDS, SAMPLE_BYTES = 4e-7, 120  # per sample of a volume, forward and backward
WIDTH = 32  # of a volume's decoder, beyond which a sample costs more
SCENE_SECONDS = 2e-6  # per Gaussian: optimiser, density control
SPLAT_BYTES, PAIR_BYTES, PIXEL_BYTES = 600, 16, 100  # that the passes of all views hold at once
EXTENT = 2.5  # half-width of a Gaussian's box in standard deviations, for an opacity of 0.1
TILE = 8  # pixels
NEAREST = 0.25  # scene units
LESSON_BYTES = 2e6  # that the backward pass of psi holds per image of 64 x 64 pixels
SIDE = DEFAULT_SIDE = 64  # pixels; the side that counts as one image, and that of a prior not loaded yet


class Load(NamedTuple):
    """What a step of a run works on: its settings, the Gaussians that it has now, and the side of the images that its
    prior takes, in pixels."""

    settings: Settings
    present: int
    prior_side: int

    @staticmethod
    def of(settings: Settings, prior: Prior | None = None, present: int = 0) -> Load:
        """Return the load of `settings` with `prior`, None while it is not loaded."""
        side = prior.image_size if prior is not None else getattr(settings.prior, "size", DEFAULT_SIDE)
        return Load(settings, present, side)

    @staticmethod
    def both(settings: Settings, run: Run) -> list[Load]:
        """Return the loads of `settings` at the next step of `run` and, where they differ, after its next reset."""
        if run.state is None or settings.scene.kind != run.begun.scene.kind:
            return [Load.of(settings, run.prior)]
        count = int(run.state.scene.stats().get("n_gaussians", 0))
        now = with_begun(settings, run.begun)
        return [Load.of(s, run.prior, count) for s in ([now] if now == settings else [now, settings])]

    @property
    def gaussians(self) -> int:
        """Gaussians that the scene has or may get."""
        scene = self.settings.scene
        return max(self.present, scene.n_init, scene.max_gaussians) if isinstance(scene, Splats) else 0

    @property
    def side(self) -> int:
        """Side of the renders in pixels."""
        return self.settings.camera.resolution or self.prior_side

    @property
    def views(self) -> int:
        """Images per step."""
        return self.settings.scene.batch(self.settings.camera)

    @property
    def samples(self) -> float:
        """Samples along the rays of all views, if none is in empty space; in units of one of a decoder with the default
        width."""
        scene = self.settings.scene
        if not isinstance(scene, Field):
            return 0.0
        return self.views * self.side**2 * scene.samples * max(scene.hidden / WIDTH, 1.0)

    @property
    def pairs(self) -> float:
        """(Gaussian, tile) pairs per view, if all Gaussians have their largest size."""
        s = self.settings
        if not isinstance(s.scene, Splats):
            return 0.0
        focal = 0.5 * self.side / math.tan(math.radians(s.camera.fovy) / 2)
        sigma = s.scene.scale_max * focal / max(s.camera.distance_min, NEAREST)
        box = min(2 * EXTENT * sigma + TILE, self.side + TILE)
        return self.gaussians * max(box / TILE, 1.0) ** 2

    @property
    def harmonics(self) -> int:
        """Coefficients of all Gaussians' harmonics; those of the three channels count as one."""
        scene = self.settings.scene
        return self.gaussians * COUNTS[scene.sh_degree] if isinstance(scene, Splats) else 0

    @property
    def drawing_seconds(self) -> float:
        """Time of rendering one step's views and differentiating the renders, on one core of a CPU."""
        if isinstance(self.settings.scene, Field):
            return SAMPLE_SECONDS * self.samples
        if not isinstance(self.settings.scene, Splats):
            return 0.0
        per_view = SPLAT_SECONDS * self.gaussians + PAIR_SECONDS * self.pairs + PIXEL_SECONDS * self.side**2
        per_view += HARMONIC_SECONDS * self.harmonics
        return self.views * per_view + SCENE_SECONDS * self.gaussians

    @property
    def evaluations(self) -> float:
        """Images of 64 x 64 pixels, or as many of another size as have that number of pixels, that networks evaluate in
        one step of the active loss."""
        s = self.settings
        # Perp-Neg asks for more roles in every guided pass, which without it has two
        perp = (len(PERP_ROLES) - 1) * s.loss.calls().count(2) if s.perp_neg else 0
        return self.views * (s.loss.evaluations()[0] + perp) * (self.prior_side / SIDE) ** 2

    @property
    def lesson(self) -> float:
        """Such images in one training step of the active loss's auxiliary."""
        if not self.settings.loss.evaluations()[1]:
            return 0.0
        return self.views * int(getattr(self.settings.loss, "every", 1)) * (self.prior_side / SIDE) ** 2

    @property
    def lessons(self) -> float:
        """Such images in all training steps of one step."""
        return self.lesson * int(getattr(self.settings.loss, "lessons", 1))

    @property
    def step_bytes(self) -> float:
        """Memory that one step needs besides what the run keeps, on the CPU."""
        drawn = SAMPLE_BYTES * self.samples
        if isinstance(self.settings.scene, Splats):
            per_view = SPLAT_BYTES * self.gaussians + PAIR_BYTES * self.pairs + PIXEL_BYTES * self.side**2
            per_view += HARMONIC_BYTES * self.harmonics
            drawn = self.views * per_view
        return drawn + LESSON_BYTES * self.lesson
