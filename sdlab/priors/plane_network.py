"""A small network trained on a plane, next to the exact prior it was trained on.

Trained as in the JSD paper (Do and Hua 2025, supplement 4): two layers embed the timestep; the point and that embedding
pass through fully connected layers of width 128 with LayerNorm and ReLU; Adam at 1e-3 with cosine decay, batches of
128, mean squared error of the noise, 1000 epochs. Our choices where the paper says nothing: 1280 sampled points (10
batches per epoch), four hidden layers, an embedding of width 32, and a learned vector for each place, replaced in a
tenth of the samples by the vector for all places. Training takes seconds and is deterministic given the seed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdlab.priors import Progress
from sdlab.priors.mixture import Plane
from sdlab.types import N_TIMESTEPS, Cond

POINTS = 1280
EPOCHS = 1000
BATCH = 128
LR = 1e-3
DROPPED = 0.1
HIDDEN = 128
LAYERS = 4
EMBEDDING = 32


class Denoiser(nn.Module):
    """Point [B, 2], t [B] and place [B] -> noise [B, 2]; place K stands for all K places."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, EMBEDDING), nn.ReLU(), nn.Linear(EMBEDDING, EMBEDDING))
        self.place = nn.Embedding(places + 1, EMBEDDING)
        width, layers = 2 + EMBEDDING, []
        for _ in range(LAYERS):
            layers += [nn.Linear(width, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU()]
            width = HIDDEN
        self.body = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, points: Tensor, t: Tensor, place: Tensor) -> Tensor:
        told = self.time(t.to(points.dtype)[:, None] / N_TIMESTEPS) + self.place(place)
        return self.body(torch.cat([points, told], 1))


def trained(plane: Plane, progress: Progress, epochs: int = EPOCHS) -> Denoiser:
    """Train a network on `plane`; all randomness comes from the seed in its configuration."""
    g = torch.Generator().manual_seed(plane.config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plane.config.seed)
        network = Denoiser(len(plane.names))
    everything = plane.mixture("")
    place = torch.multinomial(everything.weights, POINTS, replacement=True, generator=g)
    centres, spread = everything.means.flatten(1).float()[place], everything.stds.float()[place, None]
    points = centres + spread * torch.randn(POINTS, 2, generator=g)
    adam = torch.optim.Adam(network.parameters(), lr=LR, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs)
    for epoch in range(epochs):
        if epoch % 50 == 0:
            progress(f"training a small network on the plane: {100 * epoch // epochs} %")
        for rows in torch.randperm(POINTS, generator=g).split(BATCH):
            t = torch.randint(N_TIMESTEPS, (len(rows),), generator=g)
            noise = torch.randn(len(rows), 2, generator=g)
            told = torch.where(torch.rand(len(rows), generator=g) < DROPPED, len(plane.names), place[rows])
            alpha, sigma = (x.view(-1, 1).float().cpu() for x in plane.marginal(t.to(plane.device)))
            adam.zero_grad(set_to_none=True)
            answer = network(alpha * points[rows] + sigma * noise, t, told)
            nn.functional.mse_loss(answer, noise).backward()
            adam.step()
        schedule.step()
    return network.requires_grad_(False).eval()


class TrainedPlane(Plane):
    """The plane with a trained network for `eps`; `log_density` is still exact."""

    def __init__(self, plane: Plane, progress: Progress, epochs: int = EPOCHS) -> None:
        super().__init__(plane.config, plane.device)
        self.name = "plane, trained"
        self._network = trained(plane, progress, epochs).to(plane.device)
        self.n_parameters = sum(p.numel() for p in self._network.parameters())
        self.engine_name = "torch"

    def embed(self, text: str) -> Cond:
        """Return the exact plane's conditioning, with the number of the place as an extra."""
        name = self.place_in(text)
        number = self.names.index(name) if name else len(self.names)
        return Cond(super().embed(text).hidden, {"place": torch.tensor([number], device=self.device)})

    @torch.no_grad()
    def eps(self, z_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the network's prediction, in the dtype of z_t."""
        answer = self._network(z_t.flatten(1).float(), t, cond.extra["place"])
        return answer.view_as(z_t).to(z_t.dtype)
