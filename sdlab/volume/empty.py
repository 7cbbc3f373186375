"""Empty space: a coarse grid of where a volume may be visible, so that samples elsewhere are skipped (Mueller et al.
2022, Instant NGP, appendix E)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

CELLS = 40  # along each side of the cube
DECAY = 0.9  # of a cell's opacity from one update to the next, so that a cell empties only after several looks
VISIBLE = 0.002  # opacity of a cell above which it is occupied


class Occupancy:
    """The greatest recent opacity of each cell, `opacity` [G, G, G], for light that crosses its whole width."""

    def __init__(self, device: torch.device) -> None:
        self.opacity = torch.ones(CELLS, CELLS, CELLS, device=device)
        self.updates = 0

    @property
    def occupied(self) -> Tensor:
        """Cells that may be visible, bool [G, G, G]: those above VISIBLE and their neighbours.

        The look at a cell may miss a surface in its corner, and surfaces must be able to grow.
        """
        return max_pool3d(self.opacity[None], 3, 1, 1)[0] > VISIBLE

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
        seen = -torch.expm1(-width * density(places.view(-1, 3).to(self.opacity.device))).view(shape)
        self.opacity = torch.maximum(DECAY * self.opacity if self.updates else 0 * self.opacity, seen)
        self.updates += 1
