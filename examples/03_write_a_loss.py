"""Write a loss and use it: SDS that follows the prompt only where the prior's two predictions differ most.

In the project itself, a loss is a file in sdlab/losses/; see CONTRIBUTING.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from sdlab.knobs import knob
from sdlab.live.session import Session
from sdlab.losses import Distillation
from sdlab.settings import preset
from sdlab.types import BoundPrior, Guidance, Noised


@dataclass(frozen=True)
class Focused(Distillation):
    """Guidance, restricted to the places where it is strongest."""

    kind: ClassVar[str] = "focused"
    title: ClassVar[str] = "Focused"
    paper: ClassVar[str] = "this example"
    formula: ClassVar[str] = "w(t) s mask (eps_c - eps_u)"
    look_for: ClassVar[str] = "parts that the prompt names, before everything else"

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale")
    share: float = knob(0.5, 0.01, 1.0, "fraction of the values that count")

    def gradient(self, x: Noised, model: BoundPrior, aux: Any) -> Guidance:
        eps_c, eps_u = model.eps(x.z_t, x.t, "pos", "uncond")
        direction = eps_c - eps_u
        mask = direction.abs() >= direction.abs().flatten().quantile(1 - self.share)
        return Guidance(self.cfg * mask * direction, {"pos": eps_c, "uncond": eps_u})


def main(name: str = "toybox", steps: int = 300, out: Path = Path("out/03")) -> Session:
    s = preset(name).patch("steps", steps)
    session = Session(replace(s, active="focused", losses=s.losses.replace("focused", Focused(share=0.3))))
    session.run(until=steps)
    session.export(out)
    return session


if __name__ == "__main__":
    main()
