"""Cameras that orbit the origin, their view words, and the background behind the object.

Conventions are in `sdlab.types`. Sampling follows threestudio: azimuths are stratified over the batch, so that every
step sees the object from all around; elevations are uniform in degrees or on the sphere, with equal probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdlab.knobs import knob
from sdlab.rng import StepRng
from sdlab.types import Cameras

VIEW_WORDS = ("front view", "side view", "back view", "overhead view")


@dataclass(frozen=True)
class CameraSettings:
    """Camera distribution and background."""

    views: int = knob(2, 1, 16, "images per step; more is steadier and slower")
    distance_min: float = knob(2.8, 0.5, 20.0, "nearest camera, in scene units (the object fits a radius of 1)")
    distance_max: float = knob(3.1, 0.5, 20.0, "farthest camera")
    elevation_min: float = knob(-15.0, -80.0, 89.0, "lowest camera, degrees above the horizon")
    elevation_max: float = knob(70.0, -80.0, 89.0, "highest camera, degrees above the horizon")
    fovy: float = knob(40.0, 10.0, 100.0, "vertical field of view in degrees")
    resolution: int = knob(
        0, 0, 1024, "render size in pixels; 0 is the prior's own size, other sizes are resized to it"
    )
    background: str = knob(
        "mixed",
        help="background colour; a fixed colour can bleed into the object; mixed is white or random, half each",
        choices=("mixed", "random", "white", "black", "gray"),
    )

    def __post_init__(self) -> None:
        for low, high in (("distance_min", "distance_max"), ("elevation_min", "elevation_max")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"camera.{low} = {getattr(self, low):g} is above camera.{high} = {getattr(self, high):g}: "
                    "the first must not exceed the second"
                )


def look_at(azimuth: Tensor, elevation: Tensor, distance: Tensor, fovy: float, width: int, height: int) -> Cameras:
    """Return cameras at the given angles [B] in degrees and distances [B], looking at the origin, +z up.

    `fovy` is the vertical field of view in degrees. Elevations are clamped to +-89.9 degrees, since straight up and
    straight down leave the roll undefined.
    """
    places = zip(azimuth.tolist(), elevation.tolist(), distance.tolist(), strict=True)
    viewmats = torch.tensor([_viewmat(a, min(max(e, -89.9), 89.9), r) for a, e, r in places])
    focal = 0.5 * height / math.tan(math.radians(fovy) / 2)
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return Cameras(
        viewmats,
        K.repeat(len(viewmats), 1, 1),
        width,
        height,
        azimuth.float(),
        elevation.float(),
        distance.float(),
    )


def _viewmat(a: float, e: float, r: float) -> list[list[float]]:
    """Return the world-to-camera matrix for azimuth `a` and elevation `e` in degrees and distance `r`.

    Rows are right, down, forward. Plain Python, because torch takes longer for so few numbers, especially just after
    the network has flushed the CPU caches.
    """
    sin_a, cos_a = math.sin(math.radians(a)), math.cos(math.radians(a))
    sin_e, cos_e = math.sin(math.radians(e)), math.cos(math.radians(e))
    return [
        [-sin_a, cos_a, 0.0, 0.0],
        [sin_e * cos_a, sin_e * sin_a, -cos_e, 0.0],
        [-cos_e * cos_a, -cos_e * sin_a, -sin_e, r],
        [0.0, 0.0, 0.0, 1.0],
    ]


def sample_cameras(s: CameraSettings, rng: StepRng, size: int) -> Cameras:
    """Sample this step's `s.views` cameras for images of `size` x `size` pixels."""
    g = rng("camera")
    n = s.views
    slots, turn, us, coins, ds = (torch.rand(k, generator=g).tolist() for k in (n, 1, n, n, n))
    z_min, z_max = (math.sin(math.radians(v)) for v in (s.elevation_min, s.elevation_max))
    azimuth, elevation, distance = [], [], []
    for i, (slot, u, coin, d) in enumerate(zip(slots, us, coins, ds, strict=True)):
        azimuth.append(((i + slot) / n + turn[0]) % 1.0 * 360.0 - 180.0)
        if coin < 0.5:
            elevation.append(s.elevation_min + u * (s.elevation_max - s.elevation_min))
        else:
            elevation.append(math.degrees(math.asin(min(max(z_min + u * (z_max - z_min), -1.0), 1.0))))
        distance.append(s.distance_min + d * (s.distance_max - s.distance_min))
    azimuth, elevation, distance = (torch.tensor(x) for x in (azimuth, elevation, distance))
    return look_at(azimuth, elevation, distance, s.fovy, size, size)


def turntable(n: int, s: CameraSettings, size: int, elevation: float = 15.0) -> Cameras:
    """Return `n` cameras on a full circle at the middle of the distance range, starting at the front."""
    azimuth = torch.arange(n) * (360.0 / n)
    azimuth = (azimuth + 180.0) % 360.0 - 180.0
    distance = torch.full((n,), 0.5 * (s.distance_min + s.distance_max))
    return look_at(azimuth, torch.full((n,), elevation), distance, s.fovy, size, size)


def degrees_from_front(azimuth: float) -> float:
    """Return the angle between a camera at `azimuth` (degrees) and the front, 0 to 180."""
    return abs((azimuth + 180.0) % 360.0 - 180.0)


def view_word(azimuth: float, elevation: float, front_angle: float = 45.0, overhead_angle: float = 55.0) -> str:
    """Return the view word of one camera (degrees); `front_angle` is the half-width of front and of back."""
    if elevation > overhead_angle:
        return "overhead view"
    from_front = degrees_from_front(azimuth)
    if from_front <= front_angle:
        return "front view"
    if from_front >= 180.0 - front_angle:
        return "back view"
    return "side view"


def sample_background(s: CameraSettings, rng: StepRng) -> Tensor:
    """Sample one colour per view, [views, 3] in [0, 1]."""
    n = s.views
    g = rng("background")
    random = torch.rand(n, 3, generator=g)
    white = torch.ones(n, 3)
    if s.background == "mixed":
        return torch.where(torch.rand(n, 1, generator=g) < 0.5, white, random)
    fixed = {"white": 1.0, "gray": 0.5, "black": 0.0}
    return random if s.background == "random" else white * fixed[s.background]


def transforms_of(cams: Cameras) -> dict[str, Any]:
    """Return cameras of one size as transforms.json, the format of instant-ngp and nerfstudio, without images.

    Matrices take the camera (OpenGL: x right, y up, looking along -z) to the world (z up), lengths are world units.
    """
    to_world = torch.linalg.inv(cams.viewmats.double())
    to_world[:, :, 1:3] *= -1  # from OpenCV's axes
    K, width, height = cams.Ks[0].tolist(), cams.width, cams.height
    return {
        "camera_model": "OPENCV",
        "camera_angle_x": 2 * math.atan(0.5 * width / K[0][0]),
        **{"w": width, "h": height, "fl_x": K[0][0], "fl_y": K[1][1], "cx": K[0][2], "cy": K[1][2]},
        "frames": [{"transform_matrix": matrix} for matrix in to_world.tolist()],
    }
