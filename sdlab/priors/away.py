"""A model of which only the files are here: its networks are loaded by another process, which has a GPU for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from sdlab.priors import Progress, parts
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.priors.hub import find_model
from sdlab.types import Cond

AWAY = "this run's network is on a GPU during its bursts only, and cannot be asked between them"


class AwayPrior:
    """The `Prior` of a model that is evaluated elsewhere. A scene can be built and drawn with it, since it knows the
    shape of its images; whatever needs the networks raises ValueError."""

    engine_name = "torch, in bursts on a GPU"
    engine_note = ""
    torch_threads = 1

    def __init__(self, folder: Path, name: str, commit: str, shape: tuple[int, int, int], image_size: int) -> None:
        self.folder = folder  # with its files
        self.name = name
        self.commit = commit
        self.shape = shape
        self.image_size = image_size
        self.device = torch.device("cpu")

    def remark(self, text: str) -> str:
        return ""

    def prepare_texts(self, texts: Iterable[str], progress: Callable[[str], None]) -> None:
        """Do nothing: the process with the networks reads them."""

    def prepare(self, batch_sizes: Iterable[int]) -> None:
        """Do nothing: there is no network here to compile."""

    def embed(self, text: str) -> Cond:
        _refuse()

    def encode(self, rgb: Tensor) -> Tensor:
        _refuse()

    def decode(self, z: Tensor) -> Tensor:
        _refuse()

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        _refuse()

    def eps(self, z_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        _refuse()

    def trainable(self, how: str, rank: int) -> Any:
        _refuse()


def find_away(config: DiffusersPrior, progress: Progress) -> AwayPrior:
    """Return the model of `config`; download it first if it is on the Hub, so that no time of a GPU is spent on that.

    Raises ValueError and RuntimeError as `DiffusersPrior.load` does."""
    half = config.precision != "fp32"
    folder, commit = find_model(config.path, config.revision, half, parts.require_support, progress)
    progress(f"reading {config.path}")
    _import_libraries()
    return AwayPrior(folder, config.path, commit, *parts.shape_in(folder))


def _import_libraries() -> None:
    """Import now what loads networks: a process that is forked while another thread imports it would wait forever."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # noqa: F401
    from transformers import AutoTokenizer, CLIPTextModel  # noqa: F401


def _refuse() -> NoReturn:
    raise ValueError(AWAY)
