"""Training of the judge (`sdlab.toybox.judge`) on ground-truth images of its own series."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sdlab.rng import StepRng
from sdlab.toybox import pictures
from sdlab.toybox.judge import QUESTIONS, SIZE, WIDTHS, Classifier, Truth, accuracy, true_pictures
from sdlab.toybox.progress import Meter

MORE_SECONDS = 0.4  # fraction of single-object images that get a second object, since pairs are the hardest
LOSS_WEIGHTS = {"object": 1.0, "colour": 1.0, "view": 1.0, "second": 1.0, "second_colour": 0.7}
LEFT_OUT = -100  # cross_entropy's ignore_index


class Plan(NamedTuple):
    """Training settings of a judge. The same plan on one thread gives the same judge."""

    samples: int = 600_000
    pictures: int = 120_000
    batch: int = 128
    lr: float = 4e-3
    seed: int = 0

    @property
    def steps(self) -> int:
        return max(self.samples // self.batch, 1)


def answers_of(truths: Sequence[Truth]) -> dict[str, Tensor]:
    """Return answer indices, int64 [n] per question; LEFT_OUT where a question does not apply."""
    known = {name: {answer: i for i, answer in enumerate(answers)} for name, answers in QUESTIONS.items()}
    return {
        name: torch.tensor([numbers.get(getattr(t, name), LEFT_OUT) for t in truths]) for name, numbers in known.items()
    }


def augmented(rgb: Tensor, rng: torch.Generator) -> Tensor:
    """Augment rgb [B, 3, S, S] in [0, 1] the way a sample or a render could vary while showing the same thing.

    Images are mirrored at random (every toybox word stays true), shifted by up to two pixels (the same for the whole
    batch), and changed in saturation, blur and noise, each by its own amount.
    """
    n, size = len(rgb), rgb.shape[-1]

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=rng)

    rgb = torch.where(draw(0, 1) < 0.5, rgb.flip(-1), rgb)
    down, right = torch.randint(0, 5, (2,), generator=rng).tolist()
    rgb = F.pad(rgb, (2, 2, 2, 2), mode="replicate")[..., down : down + size, right : right + size]
    gray = rgb.mean(1, keepdim=True)
    rgb = gray + (rgb - gray) * draw(0.88, 1.2)
    softer = F.avg_pool2d(rgb, 3, stride=1, padding=1, count_include_pad=False)
    rgb = torch.lerp(rgb, softer, draw(-0.5, 1.0).clamp(min=0))
    strength = 0.08 * draw(0, 1) ** 2
    return (rgb + strength * torch.randn(rgb.shape, generator=rng)).clamp(0, 1)


class Trainer:
    """A classifier with its optimiser and images; `step` counts the steps done."""

    def __init__(self, plan: Plan, rgb: Tensor, truths: Sequence[Truth], widths: Sequence[int] = WIDTHS) -> None:
        self.plan = plan
        self.rgb = rgb
        self.answers = answers_of(truths)
        self.step = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            self.classifier = Classifier(widths=widths).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(self.classifier.parameters(), lr=plan.lr, weight_decay=0.05, fused=True)
        self._order = (-1, torch.empty(0, dtype=torch.long))

    def rate(self) -> float:
        """Return the learning rate: linear warm-up over the first 5 % of the steps, then cosine decay to zero."""
        done = (self.step + 1) / self.plan.steps
        return self.plan.lr * min(done / 0.05, 0.5 + 0.5 * math.cos(math.pi * done))

    def which(self) -> Tensor:
        """Return the image indices [batch] of this step; every epoch is shuffled and drops its last, partial batch."""
        batch = min(self.plan.batch, len(self.rgb))
        epoch, i = divmod(self.step, len(self.rgb) // batch)
        if self._order[0] != epoch:
            self._order = epoch, torch.randperm(len(self.rgb), generator=StepRng(self.plan.seed, epoch)("order"))
        return self._order[1][i * batch : (i + 1) * batch]

    def train_step(self) -> float:
        """Take one optimiser step and return its loss."""
        self.classifier.train()
        which = self.which()
        x = augmented(self.rgb[which].float() / 255, StepRng(self.plan.seed, self.step)("augment"))
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.classifier(x.contiguous(memory_format=torch.channels_last))
        losses = [
            weight * F.cross_entropy(logits[name].float(), self.answers[name][which], reduction="sum") / len(which)
            for name, weight in LOSS_WEIGHTS.items()
        ]
        loss = torch.stack(losses).sum()
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())


def samples_for(minutes: float, rgb: Tensor, truths: Sequence[Truth], plan: Plan) -> int:
    """Return how many samples fit into `minutes`, from the speed of a throw-away trainer measured for 10 seconds."""
    trial = Trainer(plan, rgb, truths)
    for _ in range(3):  # warm-up: the first steps include allocations
        trial.train_step()
    started, before = time.perf_counter(), trial.step
    while time.perf_counter() - started < 10:
        trial.train_step()
    per_second = (trial.step - before) * plan.batch / (time.perf_counter() - started)
    return max(int(per_second * 60 * minutes), plan.batch)


def train(plan: Plan, *, minutes: float | None = None, checked: int = 8000) -> Classifier:
    """Train a judge; `facts` of the result holds its accuracy on `checked` images that it never saw.

    With `minutes`, the number of samples is as many as fit into that time, rendering not included. Raises ValueError if
    the loss is not finite.
    """
    meter = Meter("training images", plan.pictures)
    rgb, truths = true_pictures(0, plan.pictures, more_seconds=MORE_SECONDS, progress=meter, size=SIZE)
    if minutes is not None:
        plan = plan._replace(samples=samples_for(minutes, rgb, truths, plan))
    trainer = Trainer(plan, rgb, truths)
    meter = Meter("training", plan.steps * plan.batch)
    recent = math.nan
    while trainer.step < plan.steps:
        loss = trainer.train_step()
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} after {trainer.step} steps; lower --lr (it was {plan.lr})")
        recent = loss if math.isnan(recent) else 0.98 * recent + 0.02 * loss
        meter(trainer.step * plan.batch, f"loss {recent:.3f}")
    classifier = trainer.classifier.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    classifier.requires_grad_(False).eval()
    shares, _, _ = accuracy(classifier, checked)
    classifier.facts = {
        "data_version": pictures.DATA_VERSION,
        "training": plan._asdict(),
        "accuracy": {name: {"right": s.right, "of": s.of} for name, s in shares.items()},
    }
    return classifier
