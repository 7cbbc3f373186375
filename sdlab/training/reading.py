"""Pre-training of the toybox's text encoder: it learns to read captions before the first image is used.

Large text-to-image models start from a text encoder that already understands captions (CLIP, T5). Here it is trained
for about a minute to predict the facts of an image from its caption alone, which is cheap because nothing is rendered.
Without it, all captions initially look much alike to the U-Net, which takes tens of thousands of samples to discover
that captions matter at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdlab.rng import StepRng
from sdlab.toybox import model, pictures, words
from sdlab.toybox.words import Facts

BATCH, RATE = 128, 2e-3
QUESTIONS: dict[str, tuple[str, ...]] = {
    "object": tuple(words.OBJECTS),
    "colour": tuple(words.COLOURS),
    "view": ("", *words.VIEW_WORDS),
    "second": ("", *words.SECONDS),
    "second_colour": ("", *words.COLOURS),
    "material": tuple(pictures.MATERIALS),
    "pattern": tuple(pictures.PATTERNS),
    "style": ("", "painting"),
}


class Reader(nn.Module):
    """Answers every question from the mean of a caption's hidden states and its last one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({q: nn.Linear(2 * width, len(answers)) for q, answers in QUESTIONS.items()})
        self.flaws = nn.Linear(2 * width, len(words.DESCRIPTORS))

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Map hidden [B, L, D] to logits [B, answers] per question, and `flaws` [B, descriptors]."""
        features = torch.cat([hidden.mean(1), hidden[:, -1]], 1)
        return {**{q: head(features) for q, head in self.heads.items()}, "flaws": self.flaws(features)}


def answers_to(facts: Sequence[Facts]) -> dict[str, Tensor]:
    """Return the index of each question's answer [B], and `flaws` [B, descriptors] of 0 and 1."""
    found = {q: torch.tensor([known.index(getattr(f, q)) for f in facts]) for q, known in QUESTIONS.items()}
    flaws = torch.tensor([[float(word in f.corruptions) for word in words.DESCRIPTORS] for f in facts])
    return {**found, "flaws": flaws}


def right(logits: dict[str, Tensor], answers: dict[str, Tensor]) -> float:
    """Return the fraction of questions, descriptors aside, that are answered correctly."""
    return sum(float((logits[q].argmax(1) == answers[q]).float().mean()) for q in QUESTIONS) / len(QUESTIONS)


def learn_to_read(
    box: model.Toybox, captions: int, seed: int, progress: Callable[[int, float], None] = lambda done, share: None
) -> None:
    """Train `box.text_encoder` on `captions` captions, without rendering their images; deterministic for a seed.

    `progress` is called with the number of captions read and the fraction of correct answers in the latest batch.
    """
    device = next(box.text_encoder.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(StepRng(seed, 0)("reader").initial_seed() % 2**31)
        reader = Reader(box.text_encoder.config.hidden_size).to(device)
    weights = [*box.text_encoder.parameters(), *reader.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-2)
    steps = math.ceil(captions / BATCH)
    for step in range(steps):
        # indices count down from the end of the range, which no training image reaches
        shots = [pictures.describe(seed, 2**31 - 1 - step * BATCH - i) for i in range(BATCH)]
        tokens = model.encode_captions(box.tokenizer, [s.caption for s in shots]).to(device)
        answers = {q: a.to(device) for q, a in answers_to([s.facts for s in shots]).items()}
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        logits = reader(box.text_encoder(tokens)[0])
        loss = torch.stack([F.cross_entropy(logits[q], answers[q]) for q in QUESTIONS]).sum()
        loss = loss + 10 * F.binary_cross_entropy_with_logits(logits["flaws"], answers["flaws"])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        progress((step + 1) * BATCH, right(logits, answers))
