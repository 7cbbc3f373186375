"""Adam with one parameter group per named parameter of a scene; rows can be added and removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sdlab.knobs import knob


@dataclass(frozen=True)
class OptimSettings:
    """Learning rates and Adam settings (eps 1e-15 as in 3DGS). `lr_x` is the rate of the scene's parameter `x`."""

    lr_means: float = knob(5e-3, 0.0, 1.0, "learning rate of positions", log=True)
    lr_quats: float = knob(5e-3, 0.0, 1.0, "learning rate of rotations", log=True)
    lr_log_scales: float = knob(1e-2, 0.0, 1.0, "learning rate of log-scales", log=True)
    lr_opacity_logits: float = knob(5e-2, 0.0, 1.0, "learning rate of opacity logits", log=True)
    lr_color_logits: float = knob(5e-2, 0.0, 1.0, "learning rate of colour logits", log=True)
    lr_sh: float = knob(2.5e-3, 0.0, 1.0, "learning rate of colours' harmonics (3DGS: 1/20 of the colour's)", log=True)
    lr_planes: float = knob(1e-2, 0.0, 1.0, "learning rate of a field's planes", log=True)
    lr_decoder: float = knob(1e-3, 0.0, 1.0, "learning rate of a field's decoder", log=True)
    lr_latents: float = knob(1e-2, 0.0, 1.0, "learning rate of images in the prior's space", log=True)
    lr_pixels: float = knob(2e-2, 0.0, 1.0, "learning rate of an illusion's pixels", log=True)
    lr_points: float = knob(3e-2, 0.0, 1.0, "learning rate of points in the plane", log=True)
    lr_mean: float = knob(1e-2, 0.0, 1.0, "learning rate of a Gaussian's mean", log=True)
    lr_log_std: float = knob(1e-2, 0.0, 1.0, "learning rate of a Gaussian's log standard deviation", log=True)
    beta1: float = knob(0.9, 0.0, 0.999, "decay of Adam's first moment")
    beta2: float = knob(0.99, 0.0, 0.99999, "decay of Adam's second moment")
    grad_clip: float = knob(
        0.0, 0.0, 1000.0, "clip w(t) residual elementwise to this magnitude (score debiasing: 2 rising to 8); 0 is off"
    )
    grad_rms: float = knob(
        0.0, 0.0, 10.0, "rescale w(t) residual to this root mean square, so that all losses pull equally; 0 is off"
    )
    ramp: int = knob(50, 0, 1000, "steps over which the rates ramp up again after the loss has changed")
    decay: float = knob(0.1, 0.001, 1.0, "factor by which all rates have decayed (exponentially) at the end of the run")

    def rates(self) -> dict[str, float]:
        """Return the learning rates by parameter name."""
        return {f.name[3:]: getattr(self, f.name) for f in fields(self) if f.name.startswith("lr_")}


class SceneOptimiser:
    """`torch.optim.Adam` over `scene.params`; the dict is updated in place when rows change."""

    def __init__(self, params: dict[str, Parameter], s: OptimSettings) -> None:
        self._params = params
        missing = [name for name in params if name not in s.rates()]
        if missing:
            raise ValueError(
                f"optim has no learning rate for the scene's parameter {missing[0]!r}: add lr_{missing[0]}"
            )
        groups = [{"params": [p], "name": name} for name, p in params.items()]
        self._adam = torch.optim.Adam(groups, lr=1.0, eps=1e-15, fused=True)  # one pass over each parameter
        self.adopt(s, 0.0)

    def adopt(self, s: OptimSettings, progress: float, since_toggle: int = 1_000_000) -> None:
        """Set rates and betas for a step at `progress` in [0, 1] of the planned run, `since_toggle` steps after the
        last change of loss."""
        rates = s.rates()
        fade = s.decay ** min(max(progress, 0.0), 1.0)
        fade *= min(1.0, (since_toggle + 1) / max(s.ramp, 1))
        for group in self._adam.param_groups:
            group["lr"] = rates[group["name"]] * fade
            group["betas"] = (s.beta1, s.beta2)

    def step(self, stop: Tensor | None = None) -> None:
        """Update the parameters; with `stop` (0-d float on their device) only if it is 0, without reading it."""
        self._adam.found_inf = stop  # pyright: ignore[reportAttributeAccessIssue]  # as torch.amp does
        self._adam.step()

    def zero_grad(self) -> None:
        self._adam.zero_grad(set_to_none=True)

    def replace_rows(self, new: Mapping[str, Tensor], kept: Tensor) -> None:
        """Set every parameter to `new[name]` [M, ...]; row i keeps the moments of old row kept[i] (-1: zeros)."""
        continues = (kept >= 0).float()
        source = kept.clamp_min(0)
        for group in self._adam.param_groups:
            name, old = group["name"], group["params"][0]
            fresh = Parameter(new[name])
            state = self._adam.state.pop(old, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == old.shape:
                    mask = continues.view(-1, *[1] * (value.dim() - 1)).to(value)
                    state[key] = value[source] * mask
            if state:
                self._adam.state[fresh] = state
            group["params"][0] = fresh
            self._params[name] = fresh

    def reset_moments(self, name: str) -> None:
        """Zero the first and second moments of one parameter."""
        state = self._adam.state.get(self._params[name], {})
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state:
                state[key].zero_()

    def rate(self, name: str) -> float:
        """Return the current learning rate of one parameter."""
        return next(float(group["lr"]) for group in self._adam.param_groups if group["name"] == name)

    def forget(self) -> None:
        """Reset Adam's moments and step counts, because the scale of the gradients has changed."""
        self._adam.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return Adam's step count and moments by parameter name (absent before the first step)."""
        return {
            g["name"]: {k: v.detach().clone() for k, v in self._adam.state[g["params"][0]].items()}
            for g in self._adam.param_groups
            if g["params"][0] in self._adam.state
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load moments for the current parameters; ValueError if a moment does not fit its parameter."""
        self._adam.state.clear()
        for group in self._adam.param_groups:
            name = group["name"]
            p = self._params[name]
            group["params"][0] = p
            if name not in state:
                continue
            entry = {k: v.clone() for k, v in state[name].items()}
            if entry["exp_avg"].shape != p.shape:
                found = tuple(entry["exp_avg"].shape)
                raise ValueError(f"optimiser state of {name} has shape {found}, the scene has {tuple(p.shape)}")
            # fused Adam needs the step count on the parameter's device, too
            self._adam.state[p] = {k: v.to(p.device if k == "step" else p) for k, v in entry.items()}
