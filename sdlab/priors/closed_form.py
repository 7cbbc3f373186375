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

Evaluating all N images at full size is bound by memory. `posterior_mean` therefore ranks them by block means (the
noise of a block of f x f pixels has variance v / f^2) and evaluates the `candidates` best at full size in float32; with
`candidates` None it evaluates all of them in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEGLIGIBLE = 1e-6  # posterior weight below which an image is left out of a float32 mean
CHUNK = 256  # images evaluated at a time, which bounds the memory of an exact evaluation


class Background(NamedTuple):
    """The colour behind an image, N(mean, std^2) for each channel, in rgb units."""

    mean: float = 0.8
    std: float = 0.35


class Level(NamedTuple):
    """N images, or their block means, and the inner products needed by the likelihood."""

    x: Tensor  # [N, C P'] X
    holes: Tensor  # [N, P'] T
    xx: Tensor  # [N] |X|^2
    hx: Tensor  # [N, C] <T, X> per channel
    hh: Tensor  # [N] <T, T>


@dataclass(frozen=True, eq=False)
class Gallery:
    """N images as premultiplied rgb and coverage, uint8 [N, 4, S, S]; scores are exact for these 8-bit images.

    `coarse` holds the means of blocks of `factor` x `factor` pixels; `xx`, `hx`, `hh` are the inner products at full
    size.
    """

    rgba: Tensor
    background: Background
    factor: int
    coarse: Level
    xx: Tensor
    hx: Tensor
    hh: Tensor

    @staticmethod
    def of(rgba: Tensor, background: Background, factor: int) -> Gallery:
        """Prepare uint8 [N, 4, S, S] for ranking at S / factor pixels. ValueError for another dtype or shape."""
        if rgba.dtype != torch.uint8 or rgba.ndim != 4 or rgba.shape[1] != 4 or rgba.shape[2] != rgba.shape[3]:
            raise ValueError(f"images {rgba.dtype} {tuple(rgba.shape)}: expected uint8 [N, 4, S, S]")
        if rgba.shape[-1] % factor:
            raise ValueError(f"images of {rgba.shape[-1]} pixels cannot be reduced by a factor of {factor}")
        coarse, full = [], []
        for part in rgba.split(CHUNK):
            x, holes = unpacked(part, background, torch.float32)
            full.append(_products(x, holes))
            coarse.append(_block_means(x, holes, rgba.shape[-1], factor))
        merged = Level(*(torch.cat(parts) for parts in zip(*coarse, strict=True)))
        return Gallery(rgba, background, factor, merged, *(torch.cat(parts) for parts in zip(*full, strict=True)))

    def __len__(self) -> int:
        return len(self.rgba)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(part.nbytes for part in (self.rgba, *self.coarse, self.xx, self.hx, self.hh))

    def to(self, device: torch.device) -> Gallery:
        """Return the gallery on `device`."""
        coarse = Level(*(part.to(device) for part in self.coarse))
        rest = (part.to(device) for part in (self.xx, self.hx, self.hh))
        return Gallery(self.rgba.to(device), self.background, self.factor, coarse, *rest)


class Query(NamedTuple):
    """Noised images [R, C, S, S] with alpha and v = sigma^2 + alpha^2 spread^2, each [R]."""

    z: Tensor
    alpha: Tensor
    v: Tensor


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
    (negative ones count as 0; they need not sum to 1); `spread` is s, the standard deviation around an image. The
    result has the shape and dtype of z_t. Raises ValueError if a row has no positive weight.
    """
    dtype = torch.float64 if candidates is None else torch.float32
    alpha, sigma = alpha.reshape(-1).to(dtype), sigma.reshape(-1).to(dtype)
    query = Query(z_t.to(dtype), alpha, sigma**2 + (alpha * spread) ** 2)
    if not (weights > 0).any(1).all():
        raise ValueError("a row's gallery weights are all zero: there is nothing to predict from")
    logs: list[list[Tensor]] = [[] for _ in range(len(z_t))]
    means: list[list[Tensor]] = [[] for _ in range(len(z_t))]
    for gallery, share in zip(galleries, weights.T, strict=True):
        rows = torch.nonzero(share > 0)[:, 0]
        if len(rows) == 0:
            continue
        own = Query(query.z[rows], query.alpha[rows], query.v[rows])
        chosen = None if candidates is None else _ranked(gallery, own, candidates)
        for i, row in enumerate(rows.tolist()):
            one = Query(own.z[i].flatten(1), own.alpha[i], own.v[i])
            log, mean = _exact(gallery, one) if chosen is None else _among(gallery, one, chosen[i])
            logs[row].append(log + math.log(float(share[row]) / len(gallery)))
            means[row].append(mean)
    out = []
    for log, mean in zip(logs, means, strict=True):
        together = torch.softmax(torch.stack(log), 0)
        out.append(torch.einsum("g,gcp->cp", together, torch.stack(mean)))
    x0 = torch.stack(out).view_as(query.z)
    if spread > 0:
        a, v = alpha.view(-1, 1, 1, 1), query.v.view(-1, 1, 1, 1)
        x0 = x0 + a * spread**2 / v * (query.z - a * x0)
    return x0.to(z_t.dtype)


def _exact(gallery: Gallery, q: Query) -> tuple[Tensor, Tensor]:
    """Return (log sum_i p_i, posterior mean [C, P]) of one row over all images, directly in the row's dtype."""
    logs, shifts = [], []
    for part in gallery.rgba.split(CHUNK):
        x, holes = unpacked(part, gallery.background, q.z.dtype)
        r = q.z - q.alpha * x
        squares, hole_r, hh = r.square().sum((1, 2)), torch.einsum("np,ncp->nc", holes, r), holes.square().sum(1)
        log, shift = _likelihood(squares, hole_r, hh, q.alpha, q.v, gallery.background)
        logs.append(log)
        shifts.append(shift)
    log = torch.cat(logs)
    return torch.logsumexp(log, 0), _mean(gallery, torch.arange(len(log)), torch.softmax(log, 0), torch.cat(shifts), q)


def _among(gallery: Gallery, q: Query, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as `_exact` for the images `chosen` [K], from inner products: one pass over 8-bit values."""
    background = gallery.background
    raw = gallery.rgba[chosen].flatten(2).to(q.z.dtype)  # [K, 4, P] in 0 .. 255
    sums = q.z.sum(1)
    # X = 2 (F + m T) - 1 and T = 1 - A / 255
    hole_z = sums - raw[:, 3] @ q.z.T / 255  # [K, C]
    x_z = 2 * (raw[:, :3].flatten(1) @ q.z.flatten()) / 255 + 2 * background.mean * hole_z.sum(1) - sums.sum()
    squares = q.z.square().sum() - 2 * q.alpha * x_z + q.alpha**2 * gallery.xx[chosen]
    hole_r = hole_z - q.alpha * gallery.hx[chosen]
    log, shift = _likelihood(squares, hole_r, gallery.hh[chosen], q.alpha, q.v, background)
    posterior = torch.softmax(log, 0)
    kept = torch.nonzero(posterior > NEGLIGIBLE)[:, 0]
    posterior = posterior[kept] / posterior[kept].sum()
    return torch.logsumexp(log, 0), _mean(gallery, chosen[kept], posterior, shift[kept], q)


def _likelihood(
    squares: Tensor, hole_r: Tensor, hh: Tensor, alpha: Tensor, v: Tensor, background: Background
) -> tuple[Tensor, Tensor]:
    """Return log p_i [..., N], up to a constant shared by images of one size, and E[b - m | i] [..., N, C].

    The inputs are |r|^2 [..., N], <T, r> [..., N, C] and <T, T> [N].
    """
    k = 4 * alpha**2 * background.std**2
    denominator = v + k * hh
    explained = k * hole_r.square().sum(-1) / denominator
    log = (explained - squares) / (2 * v) - hole_r.shape[-1] / 2 * denominator.log()
    return log, 2 * alpha[..., None] * background.std**2 * hole_r / denominator[..., None]


def _mean(gallery: Gallery, images: Tensor, posterior: Tensor, shift: Tensor, q: Query) -> Tensor:
    """Return sum_i posterior_i E[x0 | i] [C, P], without the correction for the spread."""
    mean = torch.zeros_like(q.z)
    for some, p, moved in zip(images.split(CHUNK), posterior.split(CHUNK), shift.split(CHUNK), strict=True):
        x, holes = unpacked(gallery.rgba[some], gallery.background, q.z.dtype)
        mean += torch.einsum("n,ncp->cp", p, x) + 2 * torch.einsum("nc,np->cp", p[:, None] * moved, holes)
    return mean


def unpacked(rgba: Tensor, background: Background, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Convert uint8 [N, 4, S, S] to X [N, 3, P] and the uncovered share T [N, P]."""
    parts = rgba.flatten(2).to(dtype) / 255
    holes = 1 - parts[:, 3]
    return 2 * (parts[:, :3] + background.mean * holes[:, None]) - 1, holes


def _products(x: Tensor, holes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return |X|^2 [N], <T, X> [N, C] and <T, T> [N] for X [N, C, P] and T [N, P]."""
    return x.square().sum((1, 2)), torch.einsum("np,ncp->nc", holes, x), holes.square().sum(1)


def _block_means(x: Tensor, holes: Tensor, size: int, factor: int) -> Level:
    x = F.avg_pool2d(x.unflatten(2, (size, size)), factor).flatten(2)
    holes = F.avg_pool2d(holes.view(-1, 1, size, size), factor).flatten(1)
    return Level(x.flatten(1), holes, *_products(x, holes))


def _ranked(gallery: Gallery, q: Query, candidates: int) -> Tensor:
    """Return indices [R, min(candidates, N)] of the likeliest images by block means."""
    coarse = gallery.coarse
    z = F.avg_pool2d(q.z, gallery.factor).flatten(2)  # [R, C, P']
    alpha, v = q.alpha[:, None], q.v[:, None] / gallery.factor**2
    squares = z.square().sum((1, 2))[:, None] - 2 * alpha * (z.flatten(1) @ coarse.x.T) + alpha**2 * coarse.xx
    hole_r = (z.flatten(0, 1) @ coarse.holes.T).unflatten(0, z.shape[:2]).mT - alpha[..., None] * coarse.hx
    log, _ = _likelihood(squares, hole_r, coarse.hh, alpha, v, gallery.background)
    return log.topk(min(candidates, len(gallery)), 1).indices
