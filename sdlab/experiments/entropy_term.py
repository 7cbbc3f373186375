"""How large ESD's own term is: lambda only mixes psi with the camera and without it.

With exact scores of a scene's views, psi_camera is the noise, since one camera sees one image, and psi_none is the
score of the mixture of all views. They differ only at timesteps where the views' diffused images overlap; elsewhere the
nearest view is the camera's own. `sizes` measures |psi_none - psi_camera| / |eps^ - psi_camera|, ESD's term relative to
the residual of VSD, with exact scores and with a trained psi. Where the exact ratio is near 0, lambda mixes nothing but
the errors of a trained psi.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdlab.auxiliary.score import ExactScores, Score
from sdlab.guidance import guide
from sdlab.prompts import PromptBank
from sdlab.rng import StepRng
from sdlab.scenes import Scene
from sdlab.settings import Settings
from sdlab.step import bind_prior
from sdlab.types import Cameras, Noised, Prior

DRAWS = 4  # noises per view and timestep
TIMES = (100, 300, 500, 700, 800, 900, 980)


class Size(NamedTuple):
    """ESD's term relative to the residual of VSD at one timestep; `learnt` is None without a trained psi."""

    t: int
    exact: float
    learnt: float | None


@torch.no_grad()
def sizes(
    scene: Scene, cams: Cameras, s: Settings, prior: Prior, aux: Any = None, times: Sequence[int] = TIMES
) -> list[Size]:
    """Measure on the scene's renders on white from `cams`, for the active loss of `s`, which is VSD or ESD.

    `aux` is the psi of a run; the learnt ratio needs one that has been trained.
    """
    z0 = prior.encode(scene.render(cams, torch.ones(len(cams), 3)).rgb)
    bank = PromptBank(prior)
    asked = {"exact": ExactScores(), **({"learnt": aux} if isinstance(aux, Score) else {})}
    found = []
    for time in times:
        t = torch.full((len(cams),), time, device=z0.device)
        alpha, sigma = prior.marginal(t)
        squares = {name: [0.0, 0.0] for name in asked}
        for k in range(DRAWS):
            rng = StepRng(s.seed, k)
            noise = rng.randn(f"entropy term {time}", z0)
            x = Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)
            model = bind_prior(prior, s, bank, cams, rng, 1.0)
            guided, _ = guide(model, x.z_t, x.t, s.loss.cfg)  # pyright: ignore[reportAttributeAccessIssue]  # it has
            for name, psi in asked.items():
                own, together = psi.ask(x, model, (True, False))
                squares[name][0] += _square(together - own)
                squares[name][1] += _square(guided - own)
        ratio = {name: round((term / residual) ** 0.5, 4) for name, (term, residual) in squares.items()}
        found.append(Size(time, ratio["exact"], ratio.get("learnt")))
    return found


def _square(x: Tensor) -> float:
    return float(x.double().square().sum())
