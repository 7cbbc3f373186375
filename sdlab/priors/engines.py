"""Engines evaluate the frozen U-Net. Here: their protocol, and torch, either eager or through torch.compile.

`sdlab.priors.openvino` holds the third engine, and `sdlab.priors.choice` picks one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdlab.errors import first_line
from sdlab.machine import n_cores

COMPILED_SHAPES = 64  # batch sizes; beyond torch's usual 8, a network would run without being compiled


class Shapes(NamedTuple):
    """Static shapes of one compiled network."""

    z_t: tuple[int, ...]  # B C H W
    hidden: tuple[int, ...]  # B L D


class EngineFailure(RuntimeError):
    """An engine cannot run this network on this machine; the message tells the user why."""


@runtime_checkable
class Engine(Protocol):
    """Evaluates one frozen network, from any thread; `torch_threads` is the number of threads torch should use
    alongside."""

    name: str
    torch_threads: int

    def prepare(self, shapes: Shapes) -> None:
        """Do now what the first forward pass with these shapes would have to do. Raises EngineFailure."""
        ...

    def forward(
        self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], hidden: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B out H W"]:
        """Return the network's native prediction in float32, without gradient. Raises EngineFailure."""
        ...


class TorchEngine:
    """The reference: the module itself.

    On a CPU the weights stay float32 and bf16 means autocast; on a GPU the weights are in the requested precision.
    """

    def __init__(self, unet: nn.Module, precision: str, threads: int = 0) -> None:
        self.name = f"torch {precision}"
        self.torch_threads = threads or n_cores()
        self._unet = unet
        self._autocast = precision == "bf16" and next(unet.parameters()).device.type == "cpu"

    def prepare(self, shapes: Shapes) -> None:
        """Do nothing: eager torch needs no preparation."""

    @torch.no_grad()
    def forward(
        self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], hidden: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B out H W"]:
        weights = next(self._unet.parameters()).dtype
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            out = self._unet(z_t.to(weights), t, encoder_hidden_states=hidden.to(weights), return_dict=False)[0]
        return out.float()


class CompiledEngine(TorchEngine):
    """The module through torch.compile, compiled once per shape; a large network takes about a minute.

    Raises EngineFailure when compilation fails, for example without a C++ compiler.
    """

    def __init__(self, unet: nn.Module, precision: str, threads: int = 0) -> None:
        super().__init__(unet, precision, threads)
        self.name = f"torch.compile {precision}"
        import torch._dynamo.config as dynamo  # slow to import

        dynamo.recompile_limit = max(dynamo.recompile_limit, COMPILED_SHAPES)
        compiled: Any = torch.compile(unet, dynamic=False)
        self._unet = compiled
        self._device = next(unet.parameters()).device

    def prepare(self, shapes: Shapes) -> None:
        z_t, hidden = (torch.zeros(shape, device=self._device) for shape in shapes)
        self.forward(z_t, torch.zeros(len(z_t), dtype=torch.int64, device=self._device), hidden)

    def forward(
        self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], hidden: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B out H W"]:
        try:
            return super().forward(z_t, t, hidden)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:
            raise EngineFailure(f"torch.compile failed ({first_line(e)})") from e
