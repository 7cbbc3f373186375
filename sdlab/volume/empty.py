"""Empty space: a coarse grid of where a volume may be visible, so that samples elsewhere are skipped (Mueller et al.
2022, Instant NGP, appendix E)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool3d

from sdlab.transfer import upload

CELLS = 40  # along each side of the cube
DECAY = 0.9  # of a cell's opacity from one update to the next, so that a cell empties only after several looks
VISIBLE = 0.002  # opacity of a cell above which it is occupied


class Occupancy:
    """What is known of each cell; all [G, G, G].

    opacity   the greatest recent opacity, for light that crosses the whole width of the cell
    occupied  whether a cell or a neighbour is above VISIBLE: the look at a cell may miss a surface in its corner, and
              surfaces must be able to grow
    """

    def __init__(self, device: torch.device) -> None:
        self.restore(torch.ones(CELLS, CELLS, CELLS, device=device), 0)

    def restore(self, opacity: Tensor, updates: int) -> None:
        """Continue from saved opacities, after a number of updates."""
        self.opacity, self.updates = opacity, updates
        self.occupied = max_pool3d(opacity[None], 3, 1, 1)[0] > VISIBLE

    def cells(self, count: int, bound: float) -> tuple[Tensor, Tensor]:
        """Return the cells that may be visible in a grid with `count` along each side of the cube: their indices
        [M, 3] and their centres [M, 3] in the world."""
        finer = interpolate(self.occupied[None, None].float(), size=(count,) * 3, mode="nearest")[0, 0]
        index = torch.nonzero(finer)
        return index, (index + 0.5) * (2 * bound / count) - bound

    @torch.no_grad()
    def update(self, density: Callable[[Tensor], Tensor], bound: float) -> None:
        """Look at one random place in each cell; `density` maps places [M, 3] to densities [M] per unit of length.

        Places are a function of the number of updates, so that a resumed run looks at the same.
        """
        generator = torch.Generator().manual_seed(self.updates)
        shape = (CELLS,) * 3
        corners = torch.stack(torch.meshgrid(*(torch.arange(CELLS) for _ in shape), indexing="ij"), -1)
        width = 2 * bound / CELLS
        places = (corners + torch.rand(*shape, 3, generator=generator)) * width - bound
        seen = -torch.expm1(-width * density(upload(places.view(-1, 3), self.opacity.device))).view(shape)
        kept = DECAY * self.opacity if self.updates else torch.zeros_like(seen)
        self.restore(torch.maximum(kept, seen), self.updates + 1)
