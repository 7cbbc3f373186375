"""Training of the toybox prior, resumable from any checkpoint.

Recipe: the text encoder first learns to read captions (`sdlab.training.reading`), then trains together with the U-Net.
Prediction is v (arXiv 2202.00512) with the weight min(snr + 1, 5) / (snr + 1). In terms of x0 this is min(snr + 1, 5):
that paper's SNR + 1 weight, capped as in min-SNR (arXiv 2303.09556), so that the noisy end, where the words decide what
the image shows, counts in full. For eps the weight is min-SNR's own min(snr, 5) / snr. Muon
(https://kellerjordan.github.io/posts/muon/) trains every matrix and, flattened to one, every inner convolution; AdamW
trains the rest. A sample teaches two to three times as much as with AdamW alone. The learning rate is constant and
decays over the last quarter of the planned samples as 1 - sqrt (arXiv 2405.18392); by samples rather than time, so that
a resumed run equals an uninterrupted one. EMA of the weights, 10 % caption dropout for classifier-free guidance,
mirrored images where the mirror image is true to the caption, timesteps stratified over the batch (one from each of
`batch` equal strata: the same marginal, less variance), bfloat16 autocast. No torch.compile: with torch 2.13 on a CPU
in bfloat16 it is 20 % faster but leaves the middle of the U-Net without gradients.

The constant rate lets a run be extended: the state before the decay is kept (plateau.pt), and a run resumed with more
samples continues from there.

Every random draw of step k comes from `StepRng(seed, k)` and the order of the images from (seed, epoch), so a
checkpoint needs no generator states: weights, average, optimisers and the step are the whole state.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from tqdm import tqdm

from sdlab.priors.prediction import native_target
from sdlab.rng import StepRng
from sdlab.toybox import model
from sdlab.toybox.pictures import DATA_VERSION, Pool, kept_pool
from sdlab.toybox.progress import Meter
from sdlab.training.reading import learn_to_read

CHECKPOINT, PLATEAU, LOG, WEIGHTS = "checkpoint.pt", "plateau.pt", "log.json", "toybox"
SNR_CAP = 5.0
CAPTION_DROPOUT = 0.1
WARMUP_STEPS = 200
FALL = 0.25  # final fraction of the steps over which the learning rate decays
FINAL_RATE = 0.01  # learning rate at the end, relative to the peak
RESIDENT = 0.5  # maximum fraction of a GPU's free memory for the images
LOG_SAMPLES = 12_800  # between two lines of the log


@dataclass(frozen=True)
class Plan:
    """Training settings of a run, stored in its checkpoint; a resumed run takes them from there."""

    samples: int
    batch: int = 32  # on one CPU thread, larger batches are no faster per sample
    lr: float = 2e-3
    ema: float = 0.9995
    pictures: int = 300_000
    seed: int = 0
    reading: int = 48_000  # captions for the text encoder's pre-training; none if the run starts from weights
    start: str = ""  # toybox folder with the initial weights
    shape: model.Shape = field(default_factory=model.Shape)

    @property
    def steps(self) -> int:
        return math.ceil(self.samples / self.batch)

    @property
    def plateau(self) -> int:
        """The first step of the learning-rate decay."""
        return self.steps - int(FALL * self.steps)


def optimisers_for(
    box: model.Toybox, lr: float
) -> tuple[list[tuple[nn.Parameter, nn.Parameter]], list[torch.optim.Optimizer]]:
    """Return Muon and AdamW, and pairs (weight, matrix [out, in] sharing its storage) of the weights that Muon trains.

    Muon trains whatever maps features to features: not embeddings, nor the layers that read or write pixels. Raises
    ValueError if torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"training needs torch 2.9 or later (torch.optim.Muon); this is {torch.__version__}")
    matrices, rest = [], []
    for name, weight in [*box.unet.named_parameters(), *box.text_encoder.named_parameters()]:
        if weight.ndim > 1 and not any(part in name for part in ("conv_in", "conv_out", "embedding")):
            matrices.append((weight, nn.Parameter(weight.detach().view(len(weight), -1))))
        else:
            rest.append(weight)
    muon = torch.optim.Muon([m for _, m in matrices], lr=lr, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    return matrices, [muon, adamw]


class Trainer:
    """Networks, average and optimisers of one run; `step` counts the steps done."""

    def __init__(self, plan: Plan, pool: Pool, device: torch.device) -> None:
        self.plan = plan
        self.pool = pool
        self.device = device
        self.step = 0
        self.box = model.build(plan.shape, plan.seed)
        if plan.start:
            model.adopt(self.box, Path(plan.start))
        self.box.to(device)
        self.box.unet.train()
        self.box.text_encoder.train()
        self.weights = self.box.parameters()
        self.average = [w.detach().clone() for w in self.weights]
        self.matrices, self.optimisers = optimisers_for(self.box, plan.lr)
        self.tokens = model.encode_captions(self.box.tokenizer, pool.captions).to(torch.int16)
        self.no_caption = model.encode_captions(self.box.tokenizer, [""])[0]
        self.may_mirror = torch.from_numpy(pool.may_mirror)
        self.alphas_cumprod = self.box.scheduler.alphas_cumprod.to(device)
        snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
        self.prediction = plan.shape.prediction
        predicts_v = self.prediction == "v_prediction"
        self.weight = (snr + 1).clamp(max=SNR_CAP) / (snr + 1) if predicts_v else snr.clamp(max=SNR_CAP) / snr
        self._order = (-1, torch.empty(0, dtype=torch.long))
        self._resident: Tensor | None = None
        if device.type == "cuda":
            self.box.unet.set_attn_processor(AttnProcessor2_0())  # fused attention is faster there
            if pool.rgb.nbytes < RESIDENT * torch.cuda.mem_get_info(device)[0]:
                self._resident = torch.from_numpy(np.asarray(pool.rgb)).to(device)

    def learn_to_read(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Train the text encoder alone (`sdlab.training.reading`) before the first step; takes about a minute.

        Raises KeyboardInterrupt if `stop()` returns True, since there is nothing to save yet.
        """
        meter = Meter("text encoder, captions", self.plan.reading)

        def progress(done: int, share: float) -> None:
            if stop():
                raise KeyboardInterrupt
            meter(done, f"{share:.1%} correct")

        learn_to_read(self.box, self.plan.reading, self.plan.seed, progress)
        with torch.no_grad():
            for mine, learnt in zip(self.average, self.weights, strict=True):
                mine.copy_(learnt)

    def rate(self) -> float:
        """Return the learning rate of the next step: linear warm-up, constant, then decay as 1 - sqrt."""
        fallen = max(self.step - self.plan.plateau, 0) / max(self.plan.steps - self.plan.plateau, 1)
        share = FINAL_RATE + (1 - FINAL_RATE) * (1 - math.sqrt(min(fallen, 1.0)))
        return self.plan.lr * share * min(1.0, (self.step + 1) / WARMUP_STEPS)

    def picture_indices(self) -> Tensor:
        """Return this step's image indices [batch]: position step * batch in an endless sequence of shuffled epochs."""
        n, found = len(self.pool), []
        at, left = self.step * self.plan.batch, self.plan.batch
        while left > 0:
            epoch, offset = divmod(at, n)
            if self._order[0] != epoch:
                self._order = (
                    epoch,
                    torch.randperm(n, generator=StepRng(self.plan.seed, epoch)("order")),
                )
            found.append(self._order[1][offset : offset + left])
            at, left = at + len(found[-1]), left - len(found[-1])
        return torch.cat(found)

    def pixels(self, which: Tensor) -> Tensor:
        """Return these images on the device: [B, 3, S, S] in [0, 1]."""
        if self._resident is not None:
            chosen = self._resident[which.to(self.device)]
        else:
            chosen = torch.from_numpy(self.pool.rgb[which.numpy()]).to(self.device)
        return chosen.float() / 255

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the next step's batch on the device.

        (z0 [B, C, H, W] in [-1, 1], tokens [B, 77], t [B], noise like z0).
        """
        size, rng = self.plan.batch, StepRng(self.plan.seed, self.step)
        which = self.picture_indices()
        rgb = self.pixels(which)
        mirror = self.may_mirror[which] & (torch.rand(size, generator=rng("mirror")) < 0.5)
        rgb = torch.where(mirror.to(self.device)[:, None, None, None], rgb.flip(-1), rgb)
        tokens = self.tokens[which].long()
        dropped = torch.rand(size, generator=rng("dropout")) < CAPTION_DROPOUT
        tokens = torch.where(dropped[:, None], self.no_caption, tokens)
        strata = torch.arange(size) + torch.rand(size, generator=rng("timestep"))
        t = (strata * (1000 / size)).long().clamp(max=999)
        z0 = self.box.encode(rgb)
        own = torch.Generator(self.device).manual_seed(rng("noise").initial_seed())
        noise = torch.randn(z0.shape, generator=own, device=self.device)
        return z0, tokens.to(self.device), t.to(self.device), noise

    def train_step(self) -> Tensor:
        """Take one optimiser step and return its weighted loss, a 0-d tensor not yet synchronised with the device."""
        z0, tokens, t, noise = self.batch()
        alpha_bar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        z_t = alpha * z0 + sigma * noise
        target = native_target(self.prediction, z0, noise, alpha, sigma)
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = self.box.text_encoder(tokens)[0]
            out = self.box.unet(z_t, t, encoder_hidden_states=hidden, return_dict=False)[0]
        errors = F.mse_loss(out.float(), target, reduction="none").mean((1, 2, 3))
        loss = (errors * self.weight[t]).mean()
        for weight in self.weights:
            weight.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for weight, matrix in self.matrices:
            assert weight.grad is not None
            matrix.grad = weight.grad.view_as(matrix)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate()
            optimiser.step()
        self.step += 1
        keep = min(self.plan.ema, (1 + self.step) / (10 + self.step))  # a shorter memory early on
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [w.detach() for w in self.weights], 1 - keep)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Return the checkpoint: plan, data version, step, weights, average and optimiser states."""
        return {
            "plan": asdict(self.plan),
            "data_version": DATA_VERSION,
            "step": self.step,
            "weights": [w.detach() for w in self.weights],
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint made by `state`."""
        with torch.no_grad():
            for mine, kept in zip(self.weights, state["weights"], strict=True):
                mine.copy_(kept)
            for mine, kept in zip(self.average, state["average"], strict=True):
                mine.copy_(kept)
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.step = state["step"]


def plan_of(state: dict[str, Any]) -> Plan:
    """Return the plan stored in a checkpoint."""
    kept = dict(state["plan"])
    shape = kept.pop("shape")
    return Plan(**kept, shape=model.Shape(**{**shape, "channels": tuple(shape["channels"])}))


def read_checkpoint(out: Path, name: str = CHECKPOINT) -> dict[str, Any]:
    """Read a checkpoint of the run in `out`.

    Raises ValueError if it is missing, damaged, or was trained on another version of the images.
    """
    path = out / name
    if not path.exists():
        raise ValueError(f"--resume: no checkpoint {path}; omit --resume to start a new run there")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"--resume: checkpoint {path} cannot be read ({type(error).__name__})") from error
    if state["data_version"] != DATA_VERSION:
        raise ValueError(
            f"--resume: {path} was trained on images of version {state['data_version']},"
            f" but this code renders version {DATA_VERSION}; start a new run"
        )
    return state


def resumed(out: Path, samples: int | None) -> tuple[Plan, dict[str, Any]]:
    """Return the plan and the state to continue with.

    If `samples` differs from the checkpoint's plan, the state must precede the decay under both plans: either the
    checkpoint itself or, once its rate has started to decay, the saved plateau. Raises ValueError if there is no such
    state, or as `read_checkpoint` does.
    """
    state = read_checkpoint(out)
    old = plan_of(state)
    if samples is None or samples == old.samples:
        return old, state
    plan = replace(old, samples=samples)
    if state["step"] > old.plateau:
        state = read_checkpoint(out, PLATEAU)
    if state["step"] > plan.plateau:
        least = math.ceil(state["step"] * old.batch / (1 - FALL))
        raise ValueError(f"--samples: too few, {out} is already past its constant rate; at least {least} needed")
    return plan, state


def save_state(trainer: Trainer, path: Path) -> None:
    """Write the checkpoint atomically."""
    draft = path.with_suffix(".part")
    torch.save(trainer.state(), draft)
    os.replace(draft, path)


def write_checkpoint(trainer: Trainer, out: Path, log: list[dict[str, float]]) -> None:
    """Write the checkpoint, the log, and the averaged weights in the diffusers layout."""
    save_state(trainer, out / CHECKPOINT)
    (out / LOG).write_text(json.dumps(log, indent=1) + "\n")
    model.save(trainer.box, out / WEIGHTS, list(trainer.average))


def say(line: str) -> None:
    print(line, flush=True)


def samples_for(minutes: float, plan: Plan, pool: Pool, device: torch.device) -> int:
    """Return how many samples fit into `minutes`, from the speed of a throw-away trainer measured for 20 seconds."""
    trial = Trainer(plan, pool, device)
    for _ in range(3):  # warm-up: the first steps include allocations
        trial.train_step()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < 20:
        trial.train_step()
        steps += 1
    per_second = steps * plan.batch / (time.perf_counter() - started)
    say(f"measured {per_second:.0f} samples/s")
    return max(int(per_second * 60 * minutes), plan.batch)


def load_pool(plan: Plan, data: Path, threads: int, stop: Callable[[], bool] = lambda: False) -> Pool:
    """Return the images of `plan`, rendered unless `data` holds them. Raises KeyboardInterrupt if `stop()`."""
    meter = Meter("training images", plan.pictures)

    def progress(done: int) -> None:
        if stop():
            raise KeyboardInterrupt
        meter(done)

    return kept_pool(data, plan.seed, plan.pictures, threads, progress)


def train(
    out: Path,
    data: Path,
    plan: Plan,
    *,
    minutes: float | None = None,
    resume: bool = False,
    longer: int | None = None,
    device: torch.device | None = None,
    threads: int = 2,
    checkpoint_minutes: float = 5.0,
    stop: Callable[[], bool] = lambda: False,
) -> Trainer:
    """Train into `out` (checkpoint.pt, log.json, toybox/) until `plan.samples` are done or `stop()` returns True.

    With `resume` the plan comes from the checkpoint and `plan` is ignored; `longer` is its new number of samples. With
    `minutes` a new run derives its number of samples from the measured speed. Raises ValueError if there is nothing to
    resume, if a new run would overwrite an old one, or if the loss is not finite.
    """
    device = device or torch.device("cpu")
    state = None
    if resume:
        plan, state = resumed(out, longer)
    elif (out / CHECKPOINT).exists():
        raise ValueError(f"--out: {out} already holds a run; add --resume to continue it, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    pool = load_pool(plan, data, threads, stop)
    if state is None and minutes is not None:
        plan = replace(plan, samples=samples_for(minutes, plan, pool, device))
    # the checkpoint holds the weights already, and the --start folder may no longer exist
    trainer = Trainer(plan if state is None else replace(plan, start=""), pool, device)
    trainer.plan = plan
    if state is None and plan.reading and not plan.start:
        trainer.learn_to_read(stop)
    log: list[dict[str, float]] = []
    if state is not None:
        trainer.load_state(state)
        log = [line for line in json.loads((out / LOG).read_text()) if line["samples"] <= trainer.step * plan.batch]
    n_weights = sum(w.numel() for w in trainer.weights)
    say(f"{n_weights / 1e6:.2f} M weights, {plan.samples} samples in batches of {plan.batch}, at step {trainer.step}")

    seconds_before = log[-1]["seconds"] if log else 0.0
    started = saved = time.perf_counter()
    began_at = trainer.step
    losses: list[Tensor] = []
    log_steps = max(LOG_SAMPLES // plan.batch, 1)
    while trainer.step < plan.steps and not stop():
        if trainer.step == plan.plateau:
            save_state(trainer, out / PLATEAU)
        losses.append(trainer.train_step())
        now = time.perf_counter()
        if trainer.step % log_steps == 0 or trainer.step == plan.steps:
            per_second = (trainer.step - began_at) * plan.batch / (now - started)
            seen = trainer.step * plan.batch
            loss = float(torch.stack(losses).mean())
            left = (plan.steps - trainer.step) * plan.batch / per_second
            log.append({"samples": seen, "loss": loss, "seconds": seconds_before + now - started})
            losses.clear()
            time_left = tqdm.format_interval(left)
            say(f"{seen}/{plan.samples} samples, loss {loss:.5f}, {per_second:.0f} samples/s, {time_left} left")
            if not math.isfinite(loss):
                raise ValueError(f"the loss is {loss} after {seen} samples; lower --lr (it was {plan.lr})")
        if now - saved > 60 * checkpoint_minutes:
            write_checkpoint(trainer, out, log)
            saved = now
    write_checkpoint(trainer, out, log)
    say(f"{'finished' if trainer.step >= plan.steps else 'stopped'}; weights in {out / WEIGHTS}")
    return trainer
