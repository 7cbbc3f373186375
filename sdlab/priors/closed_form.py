"""The closed-form score of a gallery: what a perfect network that knows exactly these images would predict.

Karras et al. 2022 ("Elucidating the design space of diffusion-based generative models", appendix B.3) call it the
ideal denoiser. Image i leaves the share T_i [P] of each pixel uncovered and has the premultiplied colour F_i [C, P].
The background is one colour b per channel, independent of the image, b ~ N(m, tau^2) in rgb. In the prior's space
x = 2 rgb - 1,

    x = X_i + 2 T_i (b - m),    X_i = 2 (F_i + T_i m) - 1,

so that a gallery is a mixture of low-rank Gaussians N(X_i, s^2 I + 4 tau^2 T_i T_i^T) in each channel. Without the
background term a random background would decide which image is nearest. With z_t = alpha x + sigma noise, v = sigma^2 +
alpha^2 s^2, k = 4 alpha^2 tau^2, n_i = <T_i, T_i> and r = z_t - alpha X_i, Woodbury's identity gives

    log p_i(z_t)   = sum over channels of -(|r|^2 - k <T_i, r>^2 / (v + k n_i)) / (2 v) - log(v + k n_i) / 2 + const
    E[b - m | i]   = 2 alpha tau^2 <T_i, r> / (v + k n_i)
    E[x0 | i]      = X_i + 2 T_i E[b - m | i], moved towards z_t / alpha by alpha^2 s^2 / v of the way.

The posterior mean is the sum of E[x0 | i] weighted by p_i, and eps = (z_t - alpha x0) / sigma.

With `candidates` None, `posterior_mean` evaluates all images in float64. With a number it works in float32 on two
levels. Means of f x f pixels are a gallery too, of smaller images under noise of variance v / f^2. Their posterior
over all images selects the likeliest `candidates`. These divide their share of it by their likelihoods at full size;
all other images keep their weights and enter as block means, enlarged. At low noise only candidates matter; at high
noise thousands of images have similar weights, but their details hardly change them.

Blocks are as small as the time for a pass over all images allows (`block_size`), because images of one text differ in
details. For the toybox's images at 32 and 64 pixels, with CANDIDATES, the root mean square error of eps stays below
1e-3 up to t = 700 of the gallery prior's schedule and below 5e-3 above, even if z_t comes from a render that resembles
no image; the tests check this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sdlab.channel import rest
from sdlab.priors import closed_form_kernels as kernels
from sdlab.priors.closed_form_kernels import f32

CANDIDATES = 256
COARSE_PIXELS = 2**20  # of all block means of a gallery; a pass over them takes about as long as 256 images of 64^2
COARSE_SIDE = 16  # fewer pixels a side do not tell images apart
NEGLIGIBLE = 1e-7  # posterior weight up to which an image is left out of a float32 mean
CHUNK = 2**20  # pixels converted to floats at a time, which bounds the memory of an evaluation in torch


class Background(NamedTuple):
    """The colour behind an image, N(mean, std^2) for each channel, in rgb units."""

    mean: float = 0.8
    std: float = 0.35


def block_size(count: int, size: int) -> int:
    """Return the smallest divisor f of `size` for which `count` images of (size / f)^2 pixels fit COARSE_PIXELS.

    f = 1 means that there is nothing to gain from ranking. The side size / f is at least COARSE_SIDE, even if that
    exceeds COARSE_PIXELS.
    """
    divisors = [f for f in range(1, size + 1) if size % f == 0 and (f == 1 or size // f >= COARSE_SIDE)]
    return next((f for f in divisors if count * (size // f) ** 2 <= COARSE_PIXELS), divisors[-1])


@dataclass(frozen=True, eq=False)
class Gallery:
    """N images as premultiplied rgb and coverage, uint8 [N, 4, S, S]; scores are exact for these 8-bit images.

    `coarse` [N, 4, S / factor, S / factor] holds the means of blocks of `factor` x `factor` pixels, also in 8 bits;
    None if `factor` is 1. An image takes 4 S^2 (1 + 1 / factor^2) bytes, 4 S^2 if `factor` is 1.
    """

    rgba: Tensor
    background: Background
    factor: int
    coarse: Tensor | None

    @staticmethod
    def of(rgba: Tensor, background: Background, factor: int | None = None) -> Gallery:
        """Prepare uint8 [N, 4, S, S] for ranking at S / factor pixels, by default as `block_size` recommends.

        Raises ValueError for another dtype or shape, or if `factor` does not divide S.
        """
        if rgba.dtype != torch.uint8 or rgba.ndim != 4 or rgba.shape[1] != 4 or rgba.shape[2] != rgba.shape[3]:
            raise ValueError(f"images {rgba.dtype} {tuple(rgba.shape)}: expected uint8 [N, 4, S, S]")
        count, size = len(rgba), rgba.shape[-1]
        if count == 0:
            raise ValueError("a gallery without images: there is nothing to predict from")
        if factor is None:
            factor = block_size(count, size)
        if size % factor:
            raise ValueError(f"images of {size} pixels cannot be reduced by a factor of {factor}")
        rgba = rgba.contiguous()
        if factor == 1:
            return Gallery(rgba, background, 1, None)
        parts = (F.avg_pool2d(part.float(), factor).round().to(torch.uint8) for part in rgba.split(_chunk(rgba)))
        return Gallery(rgba, background, factor, torch.cat(list(parts)))

    def __len__(self) -> int:
        return len(self.rgba)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return self.rgba.nbytes + (0 if self.coarse is None else self.coarse.nbytes)

    def to(self, device: torch.device) -> Gallery:
        """Return the gallery on `device`."""
        coarse = None if self.coarse is None else self.coarse.to(device)
        return Gallery(self.rgba.to(device), self.background, self.factor, coarse)


class Query(NamedTuple):
    """One row of z_t [C, P] with alpha and v = sigma^2 + alpha^2 spread^2."""

    z: Tensor
    alpha: float
    v: float


@torch.no_grad()
def posterior_mean(
    galleries: Sequence[Gallery],
    weights: Tensor,
    z_t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    spread: float = 0.0,
    candidates: int | None = None,
) -> Tensor:
    """Return E[x0 | z_t] under a mixture of galleries.

    z_t [B, 3, S, S]; alpha, sigma [B] or [B, 1, 1, 1]; weights [B, G], the share of each gallery for each row
    (negative ones count as 0; they need not sum to 1); `spread` is s, the standard deviation around an image;
    `candidates` is the number of images of each gallery evaluated at full size, None for all images in float64. The
    result has the shape and dtype of z_t, and no gradient. On one machine a row has the same bits whatever the other
    rows are. Raises ValueError if a row has no positive weight or the images have another size than z_t.
    """
    shares = weights.tolist()
    if not all(any(share > 0 for share in row) for row in shares):
        raise ValueError("a row's gallery weights are all zero: there is nothing to predict from")
    for gallery in galleries:
        expected = (3, *gallery.rgba.shape[2:])
        if z_t.shape[1:] != expected:
            raise ValueError(f"z_t {tuple(z_t.shape)}: images of this gallery are {expected}")
    z = z_t.to(torch.float64 if candidates is None else torch.float32)
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    for i, (a, s, row) in enumerate(zip(alpha.flatten().tolist(), sigma.flatten().tolist(), shares, strict=True)):
        rest()
        q = Query(z[i].flatten(1).contiguous(), a, s**2 + (a * spread) ** 2)
        logs, means = [], []
        for gallery, share in zip(galleries, row, strict=True):
            if share > 0:
                log, mean = _posterior_mean(gallery, q, candidates)
                logs.append(log + math.log(share / len(gallery)))
                means.append(mean)
        together = torch.softmax(torch.stack(logs), 0).to(z.dtype)
        x0 = (together[:, None, None] * torch.stack(means)).sum(0)
        if spread > 0:
            x0 = x0 + a * spread**2 / q.v * (q.z - a * x0)
        out[i] = x0.view_as(out[i])
    return out.to(z_t.dtype)


def compile_kernels() -> None:
    """Compile what the first approximate `posterior_mean` on a CPU would compile, unless numba has cached it."""
    gallery = Gallery.of(torch.zeros(2, 4, 2, 2, dtype=torch.uint8), Background(), 2)
    posterior_mean([gallery], torch.ones(1, 1), torch.zeros(1, 3, 2, 2), torch.ones(1), torch.ones(1), candidates=1)


def _posterior_mean(gallery: Gallery, q: Query, candidates: int | None) -> tuple[Tensor, Tensor]:
    """Return (log sum_i p_i, posterior mean [3, P]) of one row, without the effect of the spread on the mean."""
    images = torch.arange(len(gallery), device=gallery.rgba.device)
    if candidates is None or candidates >= len(gallery) or gallery.coarse is None:
        log, shift = _likelihoods(gallery.rgba, images, q, gallery.background)
        mean, total = _weighted_sum(
            gallery.rgba, images, torch.softmax(log, 0).to(q.z.dtype), shift, gallery.background
        )
        return torch.logsumexp(log, 0), mean / total

    side = gallery.rgba.shape[-1]
    blocks = F.avg_pool2d(q.z.view(3, side, side), gallery.factor)
    blurred = Query(blocks.flatten(1), q.alpha, q.v / gallery.factor**2)
    coarse_log, coarse_shift = _likelihoods(gallery.coarse, images, blurred, gallery.background)
    best = coarse_log.topk(candidates, sorted=False).indices
    posterior = torch.softmax(coarse_log, 0).float()
    share = posterior[best].sum()
    posterior[best] = 0
    others, total = _weighted_sum(gallery.coarse, images, posterior, coarse_shift, gallery.background)

    log, shift = _likelihoods(gallery.rgba, best, q, gallery.background)
    mean, more = _weighted_sum(gallery.rgba, best, share * torch.softmax(log, 0).float(), shift, gallery.background)
    if total > 0:
        others = F.interpolate(others.view_as(blocks)[None], (side, side), mode="bilinear", align_corners=False)
        mean += others.view_as(mean)
    return torch.logsumexp(log, 0) - share.log(), mean / (total + more)


def _compiled(x: Tensor) -> bool:
    """Return whether the kernels can evaluate `x`; everything else takes the equivalent path in torch."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _likelihoods(images: Tensor, chosen: Tensor, q: Query, background: Background) -> tuple[Tensor, Tensor]:
    """Return log p_i [K], up to a constant shared by images of one size, and E[b - m | i] [K, 3] of `chosen` [K]."""
    if _compiled(q.z):
        log, shift = q.z.new_empty(len(chosen), dtype=torch.float64), q.z.new_empty(len(chosen), 3)
        scalars = (q.alpha, q.v, background.mean, background.std**2)
        arrays = (images.flatten(2).numpy(), chosen.numpy(), q.z.numpy())
        kernels.likelihoods(*arrays, *scalars, log.numpy(), shift.numpy())
        return log, shift
    k = 4 * q.alpha**2 * background.std**2
    logs, shifts = [], []
    for some in chosen.split(_chunk(images)):
        x, holes = unpacked(images[some], background, q.z.dtype)
        r = q.z - q.alpha * x
        hole_r = torch.einsum("np,ncp->nc", holes, r)
        denominator = q.v + k * holes.square().sum(1).double()
        explained = k * hole_r.double().square().sum(1) / denominator
        logs.append((explained - r.square().sum((1, 2)).double()) / (2 * q.v) - 1.5 * denominator.log())
        shifts.append((2 * q.alpha * background.std**2 * hole_r / denominator[:, None]).to(q.z.dtype))
    return torch.cat(logs), torch.cat(shifts)


def _weighted_sum(
    images: Tensor, chosen: Tensor, weights: Tensor, shift: Tensor, background: Background
) -> tuple[Tensor, Tensor | float]:
    """Return sum_i w_i (X_i + 2 T_i E[b - m | i]) [3, P] and sum_i w_i over the images `chosen` [K].

    Weights that are 0, in float32 those up to NEGLIGIBLE, are left out of both sums.
    """
    least = NEGLIGIBLE if weights.dtype == torch.float32 else 0.0
    size = images[0, 0].numel()
    if _compiled(weights):
        out = weights.new_empty(3, size)
        arrays = (images.flatten(2).numpy(), chosen.numpy(), weights.numpy(), shift.numpy())
        return out, kernels.weighted_sum(*arrays, f32(background.mean), f32(least), out.numpy())
    used = torch.nonzero(weights > least)[:, 0]
    chosen, weights, shift = chosen[used], weights[used], shift[used]
    out = weights.new_zeros(3, size)
    for some, w, moved in zip(*(part.split(_chunk(images)) for part in (chosen, weights, shift)), strict=True):
        x, holes = unpacked(images[some], background, weights.dtype)
        out += torch.einsum("n,ncp->cp", w, x) + 2 * torch.einsum("nc,np->cp", w[:, None] * moved, holes)
    return out, weights.sum()


def _chunk(images: Tensor) -> int:
    """Return how many of `images` to convert to floats at a time."""
    return max(1, CHUNK // images[0, 0].numel())


def unpacked(rgba: Tensor, background: Background, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Convert uint8 [N, 4, S, S] to X [N, 3, P] and the uncovered share T [N, P]."""
    parts = rgba.flatten(2).to(dtype) / 255
    holes = 1 - parts[:, 3]
    return 2 * (parts[:, :3] + background.mean * holes[:, None]) - 1, holes
