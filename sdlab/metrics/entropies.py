"""Entropies in nats of what a classifier reads in the views of an object.

Inception Quality and Variety (Wang et al. 2024, "Taming Mode Collapse in Score Distillation", eq. 10) take a classifier
p(y|x) of images and views g(theta, c) of the object theta from N cameras c:

    IQ = E_c H[p(y | g(theta, c))]      how undecided single views are; lower is better
    IV = H[E_c p(y | g(theta, c))]      how different they are as a whole; higher is better

IQ <= IV <= ln K for K labels. Which labels y are is up to the classifier: objects, as ImageNet's in the paper, or view
words, for which IV measures directly whether all sides look alike.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def entropy(p: Float[Tensor, "*n K"]) -> Float[Tensor, "*n"]:
    """Return the entropy in nats of distributions over the last dimension, 0 for a certain one and ln K for a uniform
    one; 0 ln 0 counts as 0."""
    return (0 - torch.special.xlogy(p, p).sum(-1)).clamp(min=0)


def quality(p: Float[Tensor, "N K"]) -> float:
    """Return IQ of the label probabilities of N views."""
    return float(entropy(p.double()).mean())


def variety(p: Float[Tensor, "N K"]) -> float:
    """Return IV of the label probabilities of N views."""
    return float(entropy(p.double().mean(0)))
