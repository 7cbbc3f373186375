"""What a render shows besides colours: depth, opacity, normals, and how many Gaussians cover a pixel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdlab.pictures import to_uint8
from sdlab.types import Cameras, Render, ScreenInfo

MODES = ("color", "depth", "opacity", "normals", "count")
SOLID = 0.5  # alpha from which a pixel has a depth and a normal


class Shown(NamedTuple):
    """One view in one mode."""

    picture: np.ndarray  # uint8 [H, W, 3]
    legend: str  # what its colours mean, "" for colours themselves


def show(mode: str, render: Render, cams: Cameras, background: Tensor) -> Shown:
    """Return the first view of `render`, seen by the first of `cams`, in one of MODES; `background` is rgb [3].

    Raises ValueError for an unknown mode, and for the count of a scene without Gaussians.
    """
    behind = background.to(render.rgb)[:, None, None]
    match mode:
        case "color":
            return Shown(to_uint8(render.rgb[:1])[0], "")
        case "opacity":
            return Shown(_grey(render.alpha[0, 0]), "Opacity: black is empty, white is opaque")
        case "depth":
            return _depth(render, behind)
        case "normals":
            return _normals(render, cams, behind)
        case "count":
            return _count(render)
    raise ValueError(f"render mode {mode!r}; there are {', '.join(MODES)}")


def distances(render: Render) -> Tensor:
    """Return the mean depth [H, W] of what the first view sees along the optical axis, nan where alpha < SOLID."""
    alpha, depth = render.alpha[0, 0], render.depth[0, 0]
    return torch.where(alpha >= SOLID, depth / alpha.clamp_min(SOLID), torch.nan)


def normals(render: Render, cams: Cameras) -> Tensor:
    """Return unit normals [H, W, 3] in the world of the surface at `distances`, nan where there is none; they face the
    camera."""
    z, K = distances(render), cams.Ks[0].to(render.depth)
    rows, columns = (torch.arange(n, device=z.device) + 0.5 for n in z.shape)
    x, y = (columns - K[0, 2]) / K[0, 0], (rows[:, None] - K[1, 2]) / K[1, 1]
    places = torch.stack([x * z, y * z, z], -1)  # [H, W, 3] in the camera's frame
    across, down = (_difference(places, dim) for dim in (1, 0))
    facing = normalize(torch.linalg.cross(down, across), dim=-1)  # y runs down, z away from the camera
    return facing @ cams.viewmats[0, :3, :3].to(facing)


def covering(info: ScreenInfo, height: int, width: int) -> Tensor:
    """Return how many Gaussians of the first view have a pixel within their radius, [H, W] int64; the radius of the
    rasterisers, about three standard deviations, taken in x and in y."""
    radii, at = info.radii[0], info.means2d[0].detach()
    drawn = (radii if radii.ndim == 1 else radii.amin(-1)) > 0
    reach = radii[drawn].expand(2, -1).T if radii.ndim == 1 else radii[drawn]
    low, high = at[drawn] - reach, at[drawn] + reach
    limits = torch.tensor([width, height], device=at.device)
    low, high = (edge.floor().long().clamp_min(0).minimum(limits) for edge in (low, high + 1))
    corners = torch.zeros(height + 1, width + 1, dtype=torch.int64, device=at.device)
    for x, y, sign in ((low, low, 1), (high, low, -1), (low, high, -1), (high, high, 1)):
        corners.index_put_((y[:, 1], x[:, 0]), torch.full_like(x[:, 0], sign), accumulate=True)
    return corners.cumsum(0).cumsum(1)[:height, :width]


def _difference(places: Tensor, dim: int) -> Tensor:
    """Return the difference of neighbours along `dim`: the smaller of both sides, which does not reach over an edge."""
    ahead = torch.diff(places, dim=dim, append=torch.full_like(places.narrow(dim, 0, 1), torch.nan))
    behind = torch.roll(ahead, 1, dim)
    sizes = [torch.nan_to_num(d.square().sum(-1, keepdim=True), nan=torch.inf) for d in (ahead, behind)]
    return torch.where(sizes[0] <= sizes[1], ahead, behind)


def _grey(values: Tensor) -> np.ndarray:
    return to_uint8(values.expand(1, 3, *values.shape))[0]


def _depth(render: Render, behind: Tensor) -> Shown:
    z = distances(render)
    seen = z[~z.isnan()]
    if not len(seen):
        return Shown(to_uint8(behind.expand(1, 3, *z.shape))[0], "Depth: nothing opaque in sight")
    near, far = float(seen.quantile(0.01)), float(seen.quantile(0.99))
    rgb = _mapped((far - z) / max(far - near, 1e-6), "viridis")
    return Shown(_over(rgb, z, behind), f"Depth: yellow {near:.2f}, violet {far:.2f} world units from the camera")


def _normals(render: Render, cams: Cameras, behind: Tensor) -> Shown:
    found = normals(render, cams)
    rgb = (found / 2 + 0.5).permute(2, 0, 1)
    return Shown(_over(rgb, found[..., 0], behind), "Normals: red faces the front (+x), green the left (+y), blue up")


def _count(render: Render) -> Shown:
    if render.info is None:
        raise ValueError("this scene has no Gaussians to count")
    number = covering(render.info, *render.alpha.shape[-2:])
    most = max(int(number.max()), 1)
    picture = to_uint8(_mapped(number / most, "magma")[None])[0]
    return Shown(picture, f"Gaussians per pixel: black 0, pale {most}")


def _mapped(values: Tensor, colours: str) -> Tensor:
    """Return the colours [3, H, W] of values [H, W] in [0, 1]."""
    from matplotlib import colormaps

    rgb = colormaps[colours](values.nan_to_num().clamp(0, 1).cpu().numpy())[..., :3]
    return torch.from_numpy(np.ascontiguousarray(rgb)).float().permute(2, 0, 1)


def _over(rgb: Tensor, known: Tensor, behind: Tensor) -> np.ndarray:
    """Return rgb [3, H, W] where `known` [H, W] is a number, and `behind` [3, 1, 1] elsewhere."""
    return to_uint8(torch.where(known.isnan().to(rgb.device), behind.to(rgb), rgb)[None])[0]
