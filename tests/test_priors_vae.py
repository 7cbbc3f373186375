"""Latent space: half precision, the fallback to float32 when it overflows, and the low-memory mode."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models as tiny
import torch
from torch import nn

from sdlab.priors.diffusers import DiffusersModel, DiffusersPrior
from sdlab.priors.spaces import LatentSpace

CPU = torch.device("cpu")


class FakeVAE(nn.Module):
    """Downsamples by a convolution with weights of about `size`, and divides the result by `size`."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(block_out_channels=(1, 1), latent_channels=4, scaling_factor=0.5)
        g = torch.Generator().manual_seed(0)
        self.down = nn.Conv2d(3, 4, 2, 2, bias=False)
        self.up = nn.ConvTranspose2d(4, 3, 2, 2, bias=False)
        with torch.no_grad():
            for layer in (self.down, self.up):
                layer.weight.copy_(size * torch.rand(layer.weight.shape, generator=g) + size)
        self.requires_grad_(False)
        self.size = size
        self.seen: list[int] = []  # batch sizes

    def encode(self, x):
        self.seen.append(len(x))
        return SimpleNamespace(latents=self.down(x).float() / self.size)

    def decode(self, latent, return_dict):
        self.seen.append(len(latent))
        return (self.up(latent).float() / self.size,)


def picture(n: int = 2, size: int = 8) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)).requires_grad_()


def gradient(space: LatentSpace, rgb: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    z = space.encode(rgb)
    grad = scale * torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad(z, rgb, grad)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.stable_diffusion(tmp_path_factory.mktemp("vae") / "m")


def load(folder: Path, **knobs) -> DiffusersModel:
    defaults: dict[str, Any] = {"engine": "torch", "precision": "fp32"}
    return DiffusersPrior(path=str(folder), **(defaults | knobs)).load(CPU)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_used_where_it_holds(half):
    space, whole = LatentSpace(FakeVAE(1.0), 4, half), LatentSpace(FakeVAE(1.0), 4)
    rgb = picture()
    z = space.encode(rgb)
    assert z.dtype == torch.float32
    assert not torch.equal(z, whole.encode(rgb)), "half precision rounds"
    torch.testing.assert_close(z, whole.encode(rgb), rtol=0.02, atol=0.02)
    torch.testing.assert_close(space.decode(z.detach()), whole.decode(z.detach()), rtol=0.02, atol=0.02)
    torch.testing.assert_close(gradient(space, rgb), gradient(whole, rgb), rtol=0.05, atol=0.05)
    assert space.note == ""


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_a_vae_that_overflows_in_half_precision_computes_in_float32_from_then_on(what):
    vae = FakeVAE(1e6)
    space, whole = LatentSpace(vae, 4, torch.float16), LatentSpace(FakeVAE(1e6), 4)
    rgb = picture()
    x = rgb if what == "encode" else whole.encode(rgb).detach()
    with pytest.warns(UserWarning, match=r"the VAE overflows in float16, using float32 instead"):
        found = getattr(space, what)(x)
    assert torch.equal(found, getattr(whole, what)(x))
    assert space.note == "the VAE overflows in float16, using float32 instead"
    vae.seen.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(space.encode(rgb), whole.encode(rgb))
    assert vae.seen == [2], "half precision is not tried again"
    assert torch.equal(gradient(space, rgb), gradient(whole, rgb))


def test_a_non_finite_image_is_not_blamed_on_half_precision():
    space = LatentSpace(FakeVAE(1.0), 4, torch.float16)
    assert not space.encode(picture().detach() * float("nan")).isfinite().any()
    assert space.note == ""


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6])
def test_small_and_large_gradients_survive_half_precision(scale):
    rgb = picture()
    half = gradient(LatentSpace(FakeVAE(1.0), 4, torch.float16), rgb, scale) / scale
    torch.testing.assert_close(half, gradient(LatentSpace(FakeVAE(1.0), 4), rgb), rtol=0.02, atol=0.02)


def test_a_gradient_of_zero_stays_zero():
    rgb = picture()
    assert torch.equal(gradient(LatentSpace(FakeVAE(1.0), 4, torch.float16), rgb, 0.0), torch.zeros_like(rgb))


def test_the_note_is_the_models_own(folder, monkeypatch):
    model = load(folder)
    model.space.note = "the VAE is odd"
    assert model.engine_note == "the VAE is odd"
    model._notes.append("using torch instead")
    assert model.engine_note == "using torch instead; the VAE is odd"


@pytest.mark.parametrize("half", [None, torch.float16])
def test_one_image_at_a_time_gives_the_same_result(half):
    vae = FakeVAE(1.0)
    one, all_at_once = LatentSpace(vae, 4, half, one_by_one=True), LatentSpace(FakeVAE(1.0), 4, half)
    rgb = picture(3)
    torch.testing.assert_close(one.encode(rgb), all_at_once.encode(rgb))
    assert vae.seen == [1, 1, 1]
    vae.seen.clear()
    torch.testing.assert_close(gradient(one, rgb), gradient(all_at_once, rgb))
    assert vae.seen == [1] * 6, "each image once in the forward and once in the backward pass"
    vae.seen.clear()
    z = one.encode(rgb).detach()
    torch.testing.assert_close(one.decode(z), all_at_once.decode(z))


def kept(space: LatentSpace, rgb: torch.Tensor) -> int:
    """Count the values kept for the backward pass."""
    held: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, nn.Parameter):
            held[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        space.encode(rgb)
    return sum(held.values())


@pytest.mark.slow
def test_low_memory_gives_the_same_result_with_less_kept(folder):
    plain, low = load(folder), load(folder, low_memory=True)
    rgb = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.testing.assert_close(low.encode(rgb), plain.encode(rgb))
    assert isinstance(plain.space, LatentSpace)
    assert isinstance(low.space, LatentSpace)
    torch.testing.assert_close(gradient(low.space, rgb), gradient(plain.space, rgb))
    assert kept(low.space, rgb) < 0.1 * kept(plain.space, rgb)
    assert torch.equal(low.embed("a red bear").hidden, plain.embed("a red bear").hidden)


@pytest.mark.slow
def test_the_precision_of_the_vae_is_a_knob(folder, monkeypatch):
    from sdlab.priors import choice

    monkeypatch.setattr(choice, "cpu_has_bf16", lambda: True)
    rgb = torch.rand(1, 3, 64, 64)
    exact = load(folder).encode(rgb)
    assert torch.equal(load(folder, precision="bf16").encode(rgb), exact), "auto is fp32 on a CPU"
    bf16 = load(folder, vae_precision="bf16").encode(rgb)
    assert not torch.equal(bf16, exact)
    torch.testing.assert_close(bf16, exact, rtol=0.1, atol=0.05)
    with pytest.raises(ValueError, match=r"prior\.vae_precision = 'fp16' needs a GPU"):
        load(folder, vae_precision="fp16")
    with pytest.raises(ValueError, match=r"prior\.vae_precision = 'int4': must be one of auto, fp32, bf16, fp16"):
        load(folder, vae_precision="int4")
