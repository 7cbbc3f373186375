"""Plug in a prior of your own: exact scores of "images that show a disc in the prompt's colour"."""

import math
from pathlib import Path

import torch

from sdlab.live.session import Session
from sdlab.settings import preset
from sdlab.types import Cond

SIZE, STD, GREY = 32, 0.1, (0.5, 0.5, 0.5)
COLOURS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 0.7, 0.2), "blue": (0.1, 0.2, 1.0)}
DISC = (torch.linspace(-1, 1, SIZE)[:, None] ** 2 + torch.linspace(-1, 1, SIZE) ** 2 < 0.3).float()


class Discs:
    name, commit, engine_name, engine_note, torch_threads = "discs", "", "exact", "", 1
    shape, image_size, device = (3, SIZE, SIZE), SIZE, torch.device("cpu")

    def embed(self, text: str) -> Cond:
        return Cond(torch.tensor([c for name, c in COLOURS.items() if name in text] or [GREY])[:1, None])

    def remark(self, text: str) -> str:
        return "" if any(name in text for name in COLOURS) else f"known colours: {', '.join(COLOURS)}"

    def encode(self, rgb):
        return 2 * rgb - 1

    def decode(self, z):
        return (z / 2 + 0.5).clamp(0, 1)

    def marginal(self, t):
        angle = (t.float() / 1000 * math.pi / 2).view(-1, 1, 1, 1)
        return angle.cos(), angle.sin()

    def eps(self, z_t, t, cond):
        alpha, sigma = self.marginal(t)
        mean = 1 - 2 * DISC * (1 - cond.hidden.view(-1, 3, 1, 1))
        return sigma * (z_t - alpha * mean) / (alpha**2 * STD**2 + sigma**2)

    def prepare(self, batch_sizes) -> None: ...

    def prepare_texts(self, texts, progress) -> None: ...

    def trainable(self, how: str, rank: int):
        raise ValueError("this prior has no network to train")


def main(name: str = "mixture", steps: int = 300, out: Path = Path("out/05")) -> Session:
    changes = [("prompt.text", "a blue disc"), ("steps", steps)]
    session = Session(preset(name).patch_all(changes), load=lambda config, device, progress: Discs())
    session.run(until=steps)
    session.export(out)
    return session


if __name__ == "__main__":
    main()
