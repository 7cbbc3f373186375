"""An auxiliary network with its optimiser, which a loss trains alongside the scene.

Its state is tensors and plain values by parameter name, so that a checkpoint can hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor, nn

from sdlab.rng import StepRng


def initialised(make: Callable[[], nn.Module], rng: StepRng, stream: str) -> nn.Module:
    """Call `make()` with torch's random initialisation drawn from `rng(stream)`, leaving the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng(stream).initial_seed())
        return make()


class FittedNet:
    """`net`, an AdamW of its trainable parameters, and the number of steps taken (`fitted`)."""

    def __init__(
        self, net: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0
    ) -> None:
        self.net = net
        self.fitted = 0
        self._beside: ThreadPoolExecutor | None = None
        self._named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self._adam = torch.optim.AdamW(
            list(self._named.values()), lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )

    def descend(self, loss: Tensor, lr: float) -> None:
        """Take one step of the optimiser at rate `lr`; skip it if the loss or a gradient is not finite."""
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        self._step(loss.detach(), lr)

    def descend_in_two(self, one: Callable[[], Tensor], other: Callable[[], Tensor], lr: float) -> None:
        """Take the step of `descend` for the sum of two losses, computed and differentiated in parallel.

        Each runs in one thread, and the gradients are added in this order, so that the result does not depend on the
        processor's load. torch's own threads would split every small operation instead, and the threads of two runs
        would wait for each other.
        """
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1, "sdlab-lesson", torch.set_num_threads, (1,))
        self._adam.zero_grad(set_to_none=True)
        coming = self._beside.submit(self._differentiated, other)
        try:
            loss, grads = self._differentiated(one)
        finally:
            wait([coming])
        more, added = coming.result()
        for p, *found in zip(self._named.values(), grads, added, strict=True):
            for grad in (g for g in found if g is not None):
                if p.grad is None:  # in the weight's memory format: the fused optimiser goes by address
                    p.grad = torch.empty_like(p).copy_(grad)
                else:
                    p.grad += grad
        self._step(loss + more, lr)

    def _differentiated(self, part: Callable[[], Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        with torch.enable_grad():
            loss = part()
            return loss.detach(), torch.autograd.grad(loss, list(self._named.values()), allow_unused=True)

    def _step(self, loss: Tensor, lr: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = lr
        # half precision may overflow in the backward pass alone
        grads = [p.grad for p in self._named.values() if p.grad is not None]
        fine = torch.isfinite(loss) & torch.isfinite(torch.nn.utils.get_total_norm(grads, foreach=True))
        # as torch.amp does: the optimiser decides on the device, without a synchronisation to read the loss
        self._adam.found_inf = (~fine).float()  # pyright: ignore[reportAttributeAccessIssue]
        self._adam.step()
        self.fitted += 1

    def to(self, device: torch.device) -> None:
        """Move the trained parameters and the optimiser's moments, and drop the gradients of the last step. The rest of
        the network may be the prior's own tensors, which stay where they are."""
        self._adam.zero_grad(set_to_none=True)
        for p in self._named.values():
            p.data = p.data.to(device)
        for state in self._adam.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    state[key] = value.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return {"fitted", "net": name -> tensor, "adam": name -> moments} of the trained parameters; copies."""
        return {
            "fitted": self.fitted,
            "net": {name: p.detach().clone() for name, p in self._named.items()},
            "adam": {
                name: {k: v.detach().clone() for k, v in self._adam.state[p].items()}
                for name, p in self._named.items()
                if p in self._adam.state
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state. ValueError if it belongs to another network."""
        shapes = {name: tuple(p.shape) for name, p in self._named.items()}
        given = {name: tuple(value.shape) for name, value in state["net"].items()}
        if shapes != given:
            odd = sorted(set(shapes.items()) ^ set(given.items()))[0][0]
            raise ValueError(f"auxiliary network: the saved {odd} does not fit; it was made with other knobs")
        self._adam.state.clear()
        with torch.no_grad():
            for name, p in self._named.items():
                p.copy_(state["net"][name])
        for name, moments in state["adam"].items():
            p = self._named[name]
            # in the weight's memory format: the fused optimiser walks both by address
            self._adam.state[p] = {
                k: torch.empty_like(p).copy_(v) if v.shape == p.shape else v.clone() for k, v in moments.items()
            }
        self.fitted = int(state["fitted"])
