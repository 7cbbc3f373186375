"""How well images match their texts, from cosine similarities of CLIP or of any network that embeds both.

CLIP score    the mean similarity of the images of an object to its prompt, as the "CLIP distance" of the ESD paper
              (Wang et al. 2024, section 6); Hessel et al. 2021 (arXiv 2104.08718) multiply it by 2.5
R-precision   the share of images to which no other prompt is more similar than their own (Park et al. 2021, "Benchmark
              for compositional text-to-image synthesis"; with renders, Jain et al. 2022, "Zero-shot text-guided object
              generation with Dream Fields", section 4)
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


def similarities(images: Float[Tensor, "n d"], texts: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Return the cosine of every image's embedding with every text's."""
    return normalize(images, dim=1) @ normalize(texts, dim=1).T


def score(cosines: Float[Tensor, "n m"], own: Int[Tensor, "n"]) -> float:
    """Return the mean cosine, in [-1, 1], of image i with text own[i]."""
    return float(cosines.gather(1, own[:, None]).double().mean())


def r_precision(cosines: Float[Tensor, "n m"], own: Int[Tensor, "n"]) -> float:
    """Return the share of images i whose most similar text is own[i]; a draw with another text counts as wrong.

    1 / m is expected of a network that knows nothing. Raises ValueError for fewer than two texts.
    """
    if cosines.shape[1] < 2:
        raise ValueError(f"R-precision among {cosines.shape[1]} text: at least 2 different texts are needed")
    right = cosines.gather(1, own[:, None])
    return float(((cosines >= right).sum(1) == 1).double().mean())
