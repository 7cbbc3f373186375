"""Loading models in the diffusers layout, converting their predictions to eps, and refusing the unsupported ones."""

from __future__ import annotations

import functools
import json
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import tiny_models as tiny
import torch

from sdlab.priors import parts
from sdlab.priors import text as text_module
from sdlab.priors.diffusers import DiffusersModel, DiffusersPrior
from sdlab.priors.files import files_to_download
from sdlab.priors.hub import ASSETS
from sdlab.types import BoundPrior, Cond, Prior, cat_conds

CPU = torch.device("cpu")
EDGES = torch.tensor([0, 1, 500, 998, 999])


def load(folder: Path, **knobs) -> DiffusersModel:
    return DiffusersPrior(path=str(folder), **({"engine": "torch", "precision": "fp32"} | knobs)).load(CPU)


def conds(model: DiffusersModel, n: int, text: str = "a red bear") -> Cond:
    return cat_conds([model.embed(text)] * n)


def noisy(model: DiffusersModel, n: int) -> torch.Tensor:
    return torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> Path:
    return tiny.pixel_model(tmp_path_factory.mktemp("pixel") / "tiny")


@pytest.fixture
def broken(pixel, tmp_path) -> Path:
    """A copy of the pixel model that a test may damage."""
    return Path(shutil.copytree(pixel, tmp_path / "model"))


# ---- reading ----------------------------------------------------------------------------------------------------


def test_a_pixel_model_is_a_frozen_prior(pixel):
    model = load(pixel)
    assert isinstance(model, Prior)
    assert (model.name, model.shape, model.image_size) == ("tiny", (3, 8, 8), 8)
    assert (model.engine_name, model.engine_note, model.prediction_type) == ("torch fp32", "", "epsilon")
    assert not any(p.requires_grad for p in model.unet.parameters())
    assert not model.unet.training
    assert model.n_parameters > sum(p.numel() for p in model.unet.parameters())


def test_eps_equals_the_saved_networks_output(pixel):
    from diffusers import UNet2DConditionModel

    model = load(pixel)
    z_t, cond = noisy(model, 5), conds(model, 5)
    unet = UNet2DConditionModel.from_pretrained(pixel / "unet").eval()
    with torch.no_grad():
        expected = unet(z_t, EDGES, encoder_hidden_states=cond.hidden).sample
    torch.testing.assert_close(model.eps(z_t, EDGES, cond), expected)


def test_half_precision_files_are_loaded_if_there_are_no_others(pixel, broken):
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (broken / part / f"{stem}.safetensors").rename(broken / part / f"{stem}.fp16.safetensors")
    whole, half = load(pixel), load(broken)
    z_t = noisy(whole, 5)
    torch.testing.assert_close(half.eps(z_t, EDGES, conds(half, 5)), whole.eps(z_t, EDGES, conds(whole, 5)))


def test_the_configuration_is_a_value():
    config = DiffusersPrior(path="somewhere")
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(DiffusersPrior(path="somewhere"))


@pytest.mark.slow
def test_importing_the_family_imports_no_model_library():
    code = (
        "import sys, sdlab.priors.diffusers, sdlab.priors.mixture, sdlab.priors.choice;"
        "heavy = {'diffusers', 'transformers', 'openvino', 'huggingface_hub'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ASSETS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- predictions become eps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("betas", ["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_network_returns_the_noise_whatever_it_predicts(prediction, betas, tmp_path):
    model = load(tiny.pixel_model(tmp_path / "m", prediction_type=prediction, beta_schedule=betas))
    z0, noise = noisy(model, 10).chunk(2)
    alpha, sigma = model.marginal(EDGES)
    native = {"epsilon": noise, "v_prediction": alpha * noise - sigma * z0, "sample": z0}[prediction]
    model.engine = SimpleNamespace(name="perfect", forward=lambda z_t, t, hidden: native)
    eps = model.eps(alpha * z0 + sigma * noise, EDGES, conds(model, 5))
    torch.testing.assert_close(eps, noise, rtol=1e-4, atol=1e-4)


def test_twins_that_differ_in_prediction_type_differ_by_the_conversion(pixel, tmp_path):
    eps_twin, v_twin = load(pixel), load(tiny.pixel_model(tmp_path / "v", prediction_type="v_prediction"))
    z_t, cond = noisy(eps_twin, 5), conds(eps_twin, 5)
    alpha, sigma = eps_twin.marginal(EDGES)
    out = eps_twin.eps(z_t, EDGES, cond)
    torch.testing.assert_close(v_twin.eps(z_t, EDGES, cond), alpha * out + sigma * z_t)


def test_a_learned_variance_is_dropped(tmp_path):
    model = load(tiny.pixel_model(tmp_path / "six", out_channels=6))
    z_t, cond = noisy(model, 5), conds(model, 5)
    with torch.no_grad():
        both = model.unet(z_t, EDGES, encoder_hidden_states=cond.hidden).sample
    torch.testing.assert_close(model.eps(z_t, EDGES, cond), both[:, :3])


def test_eps_has_the_dtype_of_z_t(pixel):
    model = load(pixel)
    assert model.eps(noisy(model, 5).double(), EDGES, conds(model, 5)).dtype == torch.float64


def test_roles_are_one_batch_and_depend_on_the_text(pixel):
    model = load(pixel)
    bound = BoundPrior(model, {"pos": conds(model, 5), "uncond": conds(model, 5, "")})
    pos, uncond = bound.eps(noisy(model, 5), EDGES, "pos", "uncond")
    torch.testing.assert_close(pos, model.eps(noisy(model, 5), EDGES, conds(model, 5)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pos, uncond)


# ---- noise schedule ---------------------------------------------------------------------------------------------


def test_marginals_are_those_of_the_scheduler(pixel):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = torch.cumprod(1 - betas, 0)[EDGES].float()
    alpha, sigma = load(pixel).marginal(EDGES)
    assert alpha.shape == sigma.shape == (5, 1, 1, 1)
    torch.testing.assert_close(alpha.flatten() ** 2, expected)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


def test_zero_terminal_snr_never_divides_by_zero(tmp_path):
    knobs = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    model = load(tiny.pixel_model(tmp_path / "z", **knobs))
    alpha, sigma = model.marginal(EDGES)
    assert 0 < alpha[-1].item() <= 1e-3
    assert sigma.min().item() > 0
    z_t = noisy(model, 5)
    eps = model.eps(z_t, EDGES, conds(model, 5))
    torch.testing.assert_close(eps[-1], z_t[-1], rtol=0, atol=1e-3)  # at alpha = 0 everything is noise


def test_the_cosine_schedule_keeps_x0_at_its_noisy_end(tmp_path):
    """alpha_bar at t = 999 is 2.4e-9, and x0 must still be recoverable from eps."""
    knobs = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
    model = load(tiny.pixel_model(tmp_path / "cosine", **knobs))
    alpha, sigma = model.marginal(EDGES)
    steps = torch.arange(1001, dtype=torch.float64) / 1000
    alpha_bar = torch.cos((steps + 0.008) / 1.008 * torch.pi / 2) ** 2  # Nichol & Dhariwal 2021, eq. 17
    torch.testing.assert_close(
        alpha.flatten()[:4].double() ** 2, (alpha_bar / alpha_bar[0])[EDGES[:4] + 1], rtol=1e-3, atol=0
    )
    assert alpha[-1].item() == pytest.approx(1e-4)
    z0, noise = noisy(model, 10).chunk(2)
    z_t, v = alpha * z0 + sigma * noise, alpha * noise - sigma * z0
    model.engine = SimpleNamespace(name="perfect", forward=lambda z_t, t, hidden: v)
    eps = model.eps(z_t, EDGES, conds(model, 5))
    torch.testing.assert_close((z_t - sigma * eps) / alpha, z0, rtol=0, atol=1e-2)


def test_the_sampler_a_model_names_does_not_matter(pixel, broken):
    tiny.edit_json(broken / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler", skip_prk_steps=True)
    torch.testing.assert_close(load(broken).marginal(EDGES), load(pixel).marginal(EDGES))


# ---- words ------------------------------------------------------------------------------------------------------


def test_a_text_is_embedded_once_and_cached(pixel):
    model = load(pixel)
    first = model.embed("a red bear").hidden
    assert first.shape == (1, tiny.TOKENS, tiny.WIDTH)
    assert model.embed("a red bear").hidden is first
    assert not torch.allclose(first, model.embed("a blue bear").hidden)


def test_only_the_last_texts_are_cached(pixel, monkeypatch):
    monkeypatch.setattr(text_module, "KEPT_TEXTS", 2)
    model = load(pixel)
    first = model.embed("a").hidden
    for text in ("red", "a", "blue"):
        model.embed(text)
    assert model.embed("a").hidden is first
    red = model.embed("red").hidden
    for text in ("blue", "cat", "bear"):
        model.embed(text)
    assert model.embed("red").hidden is not red


def test_threads_may_embed_at_once(pixel):
    model, texts = load(pixel), [f"a {c} {o}" for c in ("red", "blue", "green") for o in ("bear", "cat", "car")] * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(model.embed, texts))
    fresh = load(pixel)
    for text, cond in zip(texts, found, strict=True):
        torch.testing.assert_close(cond.hidden, fresh.embed(text).hidden)


def test_words_beyond_the_limit_are_named(pixel):
    model = load(pixel)
    with pytest.warns(UserWarning, match=r"reads only the first 10 tokens; cut off: 'overhead', 'view'$"):
        long = model.embed("a red bear a blue cat a green car , overhead view")
    torch.testing.assert_close(long.hidden, model.embed("a red bear a blue cat a green car ,").hidden)
    assert "and 1982 more" in model.remark("bear " * 2000)


def test_unknown_words_are_named_once(pixel):
    with pytest.warns(UserWarning, match=r"does not know these words: 'Dragon', 'purple'$"):
        load(pixel).embed("a Dragon, a purple Dragon")


def test_a_prompt_it_can_read_gives_no_remark(pixel):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for text in ("", "a red bear, front view"):
            load(pixel).embed(text)


WORD_LIST = {
    "groups": {"objects": ["bear", "cat", "car"], "colours": ["red", "green"], "views": ["front view"]},
    "names": ["bear", "teddy bear", "cat", "car"],
}


@pytest.fixture
def listed(broken) -> Path:
    """A model with a word list."""
    (broken / "words.json").write_text(json.dumps(WORD_LIST))
    return broken


def test_a_model_with_a_word_list_says_what_it_does_not_know_and_what_it_knows(listed):
    remark = load(listed).remark("a grean bear, a Dragon!")
    assert remark == (
        "the model does not know these words: 'grean' (did you mean 'green'?), 'Dragon'. The model knows these words:\n"
        "objects: bear, cat, car\ncolours: red, green\nviews: front view"
    )


@pytest.mark.parametrize("text", ["a red", "red, front view", "a scart"])
def test_a_prompt_without_an_object_is_remarked_upon(listed, text):
    model = load(listed)
    assert "names no object that the model knows" in model.remark(text)
    assert "objects: bear, cat, car" in model.remark(text)


@pytest.mark.parametrize("text", ["", "a red bear", "A RED CAR,front view", "a cat!"])
def test_a_prompt_of_listed_words_gives_no_remark(listed, text):
    assert load(listed).remark(text) == ""


def test_a_negative_prompt_need_not_name_an_object(listed):
    model = load(listed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.embed("red, green")
        model.embed("")
    with pytest.warns(UserWarning, match="does not know these words: 'gloomy'. The model knows these words"):
        model.embed("red, gloomy")


@pytest.mark.parametrize(
    "content",
    [
        "half a {",
        "[]",
        "{}",
        b"\xff\xfe\x00",
        "[" * 60_000,
        json.dumps(WORD_LIST | {"names": []}),
        json.dumps(WORD_LIST | {"names": ["bear", 7]}),
        json.dumps(WORD_LIST | {"groups": {"objects": "bear"}}),
        json.dumps(WORD_LIST | {"groups": {"objects": ["x" * 61]}}),
        json.dumps(WORD_LIST | {"groups": {"objects": ["bear\n", "\x1b[2J"]}}),
        json.dumps(WORD_LIST | {"groups": {str(i): ["x"] * 900 for i in range(2)}}),
        json.dumps(WORD_LIST | {"more": "x" * 64_000}),
    ],
)
def test_an_invalid_word_list_is_ignored(broken, content):
    (broken / "words.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(UserWarning, match=r"ignoring \S+words\.json, which is not a valid word list"):
        model = load(broken)
    assert model.remark("a red dragon") == "the model does not know these words: 'dragon'"
    assert model.remark("a red") == ""


def test_a_saved_toybox_carries_its_words(tmp_path):
    from sdlab.toybox import model as toybox

    toybox.save(toybox.build(toybox.Shape(channels=(16, 32), text_width=32, text_layers=1)), tmp_path)
    remark = load(tmp_path).remark("a purpel dragon next to a red ball")
    assert "'purpel' (did you mean 'purple'?), 'dragon'; the prompt names no object" in remark
    for line in (
        "objects: bear, cat,",
        "colours: red,",
        "views: front view,",
        "styles:",
        "descriptors: oversaturated,",
    ):
        assert f"\n{line}" in remark
    assert load(tmp_path).remark("a grey kitty on a teal box, seen from behind, high quality") == ""


def test_t5_ignores_the_padding(pixel, broken):
    model = load(tiny.with_t5(broken))
    assert model.embed("a red bear").hidden.shape == (1, tiny.TOKENS, tiny.WIDTH)
    ids = torch.tensor([[1, 4, 5, 8, 2]])
    with torch.no_grad():
        unpadded = model.text.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(model.embed("a red bear").hidden[:, :5], unpadded)
    assert model.eps(noisy(model, 5), EDGES, conds(model, 5)).isfinite().all()


# ---- pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vae", ["AutoencoderKL", "AutoencoderTiny"])
def test_a_latent_model_encodes_with_gradient_and_decodes(vae, tmp_path):
    model = load(tiny.latent_model(tmp_path / "latent", vae=vae))
    assert (model.shape, model.image_size) == ((4, 8, 8), 16)
    rgb = torch.rand(2, 3, 16, 16, requires_grad=True)
    z = model.encode(rgb)
    assert z.shape == (2, 4, 8, 8)
    (z**2).sum().backward()
    assert rgb.grad is not None
    assert rgb.grad.isfinite().all()
    assert (rgb.grad.abs().amax((0, 1)) > 0).all()
    back = model.decode(100 * z.detach())
    assert back.shape == rgb.shape
    assert back.min().item() == 0
    assert back.max().item() <= 1
    assert model.eps(noisy(model, 5), EDGES, conds(model, 5)).shape == (5, 4, 8, 8)


def test_latents_are_the_scaled_mean_of_the_vae(tmp_path):
    from diffusers import AutoencoderKL

    model = load(tiny.latent_model(tmp_path / "latent"))
    vae = AutoencoderKL.from_pretrained(tmp_path / "latent" / "vae")
    rgb = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        mean = vae.encode(2 * rgb - 1).latent_dist.mode()
        torch.testing.assert_close(model.encode(rgb), 0.2 * (mean - 0.1))
        picture = (vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.decode(0.2 * (mean - 0.1)), picture)


def test_decoding_inverts_encoding(pixel):
    model = load(pixel)
    rgb = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(model.decode(model.encode(rgb)), rgb)
    large = torch.rand(2, 3, 32, 32, requires_grad=True)
    z = model.encode(large)
    assert z.shape == (2, 3, 8, 8)
    z.sum().backward()
    assert large.grad is not None
    assert (large.grad > 0).all()


# ---- pixels in blocks -------------------------------------------------------------------------------------------


def to_blocks(z: torch.Tensor, k: int) -> torch.Tensor:
    b, c, h, w = z.shape
    return z.reshape(b, c, h // k, k, w // k, k).permute(0, 1, 3, 5, 2, 4).reshape(b, c * k * k, h // k, w // k)


@pytest.mark.parametrize(("patch", "size"), [(2, 8), (3, 12), (4, 8)])
def test_a_network_on_blocks_is_a_prior_on_pixels(patch, size, tmp_path):
    model = load(tiny.pixel_model(tmp_path / "m", size, patch))
    assert (model.shape, model.image_size) == ((3 * patch**2, size // patch, size // patch), size)
    rgb = torch.rand(5, 3, size, size)
    z = model.encode(rgb)
    torch.testing.assert_close(z, to_blocks(2 * rgb - 1, patch), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.decode(z), rgb)
    cond = conds(model, 5)
    with torch.no_grad():
        expected = model.unet(to_blocks(2 * rgb - 1, patch), EDGES, encoder_hidden_states=cond.hidden).sample
    torch.testing.assert_close(model.eps(z, EDGES, cond), expected, rtol=0, atol=1e-6)


def test_larger_images_are_resized_before_they_become_blocks(tmp_path):
    model = load(tiny.pixel_model(tmp_path / "m", size=8, patch=2))
    large = torch.rand(1, 3, 24, 24)
    small = torch.nn.functional.interpolate(large, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(model.decode(model.encode(large)), small)


@pytest.mark.parametrize("patch", [1, 2])
def test_residuals_pull_every_pixel_to_the_image_the_network_knows(patch, tmp_path):
    knobs = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
    model = load(tiny.pixel_model(tmp_path / "m", patch=patch, **knobs))
    t = torch.tensor([300, 600])
    alpha, sigma = model.marginal(t)
    target, rgb = torch.rand(1, 3, 8, 8), torch.rand(2, 3, 8, 8, requires_grad=True)
    known = to_blocks(2 * target - 1, patch)

    def perfect_v(z_t, t, hidden):
        return alpha * (z_t - alpha * known) / sigma - sigma * known

    model.engine = SimpleNamespace(name="perfect", forward=perfect_v)
    z, noise = model.encode(rgb), noisy(model, 2)
    eps = model.eps((alpha * z + sigma * noise).detach(), t, conds(model, 2))
    z.backward(eps - noise)
    assert rgb.grad is not None
    # eps - noise = alpha / sigma (z - known); z = 2 rgb - 1 gives two factors of 2
    torch.testing.assert_close(-rgb.grad, 4 * alpha / sigma * (target - rgb.detach()), rtol=1e-3, atol=1e-4)


# ---- the Hub ----------------------------------------------------------------------------------------------------

REPO = (
    "README.md",
    "model_index.json",
    "v1-5.ckpt",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/merges.txt",
    "tokenizer/spiece.model",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/custom_code.py",
    "safety_checker/model.safetensors",
)


def test_only_one_set_of_safe_weights_is_downloaded():
    half = set(files_to_download(REPO, True, "o/n"))
    assert half == {
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/merges.txt",
        "tokenizer/spiece.model",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    }
    assert "words.json" in files_to_download([*REPO, "words.json", "unet/words.json"], True, "o/n")
    full = set(files_to_download(REPO, False, "o/n"))
    assert full ^ half == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
    }


def test_sharded_weights_come_with_their_index():
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert files_to_download(["unet/config.json", *shards, index], True, "o/n") == ["unet/config.json", *shards, index]


def test_a_repository_with_pickles_only_is_refused_before_the_download():
    with pytest.raises(RuntimeError, match=r"o/n/unet has weights only in pickle format.*can run code"):
        files_to_download(["unet/config.json", "unet/diffusion_pytorch_model.bin"], False, "o/n")


def test_an_unreachable_hub_is_explained(monkeypatch, tmp_path):
    """The client is the real one, so this covers whatever its installed version raises."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"'owner/name'.*no earlier download.*cannot be reached.*use 'toybox'"):
        DiffusersPrior(path="owner/name").load(CPU)


# ---- what cannot be read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "  ", "/nowhere/at/all", "../nowhere", "a/b/c"])
def test_a_path_that_does_not_exist_is_named(path):
    with pytest.raises(ValueError, match=r"prior\.path = '.*no such folder; it must be 'toybox'"):
        DiffusersPrior(path=path).load(CPU)


def test_a_folder_has_no_revisions(pixel):
    with pytest.raises(ValueError, match=r"prior\.revision = 'dev'.* is a folder"):
        load(pixel, revision="dev")


def test_a_file_is_not_a_folder(pixel):
    with pytest.raises(ValueError, match=r"is a file; it must be the folder"):
        load(pixel / "unet" / "config.json")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("https://huggingface.co/owner/name", "as a name, it is 'owner/name'"),
        ("https://huggingface.co/owner/name/tree/main", "as a name, it is 'owner/name'"),
        ("http://www.huggingface.co/owner/name?library=diffusers", "as a name, it is 'owner/name'"),
        (" hf.co/owner/name ", "as a name, it is 'owner/name'"),
        ("'/models/bear'", "without the quotes or blanks around it, it is '/models/bear'"),
        ('"owner/name"', "without the quotes or blanks around it, it is 'owner/name'"),
        (" owner/name", "without the quotes or blanks around it, it is 'owner/name'"),
        ("toybox ", "without the quotes or blanks around it, it is 'toybox'"),
    ],
)
def test_a_path_with_something_around_it_is_hinted_at(given, hint):
    with pytest.raises(ValueError, match=rf"prior\.path = .*no such folder.*; {re.escape(hint)}$"):
        DiffusersPrior(path=given).load(CPU)


def test_places_near_a_model_are_hinted_at(pixel, tmp_path):
    cached = tmp_path / "models--owner--a--name" / "snapshots" / "0123"
    shutil.copytree(pixel, cached)
    with pytest.raises(ValueError, match=r"Hub's cache; give the model's name, 'owner/a--name', or one of the folders"):
        load(cached.parents[1])
    assert load(cached).name == "0123"
    with pytest.raises(ValueError, match=rf"is a file; .*; give {re.escape(str(cached))}$"):
        load(cached / "unet" / "config.json")


@pytest.mark.parametrize("part", ["unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(part, broken):
    shutil.rmtree(broken / part)
    with pytest.raises(ValueError, match=rf"prior\.path = .*: {part}\S* missing\. The diffusers layout needs unet/"):
        load(broken)


def test_a_transformer_model_is_recognised(broken):
    (broken / "unet").rename(broken / "transformer")
    with pytest.raises(ValueError, match=r"unet/config.json missing.*contains a transformer, which is not supported"):
        load(broken)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not safetensors" + b])
def test_damaged_weights_are_named(part, damage, broken):
    (file,) = (broken / part).glob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RuntimeError, match=rf"{part}/{file.name} is damaged or incomplete.*copy or download"):
        load(broken)


def test_pickled_weights_are_refused(broken):
    (file,) = (broken / "unet").glob("*.safetensors")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(RuntimeError, match=r"unet has weights only in pickle format.*safetensors"):
        load(broken)


def test_absent_weights_are_named(broken):
    next((broken / "text_encoder").glob("*.safetensors")).unlink()
    with pytest.raises(RuntimeError, match=r"text_encoder has no weights: model\.safetensors is missing"):
        load(broken)


@pytest.mark.parametrize("variant", ["bf16", "non_ema", "fp32"])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_in_a_variant_that_is_not_read_are_named(part, variant, broken):
    (file,) = (broken / part).glob("*.safetensors")
    other = file.rename(file.with_suffix(f".{variant}.safetensors"))
    with pytest.raises(RuntimeError, match=rf"{part} has weights only in a variant .*\({other.name}\).*{file.name}$"):
        load(broken)
    other.rename(file)
    load(broken)  # the remedy of the message


def in_shards(place: Path, *which: int) -> None:
    """Split a part's weights into two files with an index, and keep only the files in `which`."""
    from safetensors.torch import load_file, save_file

    (whole,) = place.glob("*.safetensors")
    tensors = load_file(whole)
    names = sorted(tensors)
    shards = {f"{whole.stem}-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for i, (shard, held) in enumerate(shards.items(), 1):
        if i in which:
            save_file({name: tensors[name] for name in held}, place / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (place / f"{whole.name}.index.json").write_text(json.dumps(index))
    whole.unlink()


def test_weights_in_several_files_are_read(pixel, broken):
    for part in ("unet", "text_encoder"):
        in_shards(broken / part, 1, 2)
    whole, sharded = load(pixel), load(broken)
    z_t = noisy(whole, 5)
    torch.testing.assert_close(sharded.eps(z_t, EDGES, conds(sharded, 5)), whole.eps(z_t, EDGES, conds(whole, 5)))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_missing_shard_is_named(part, broken):
    in_shards(broken / part, 1)
    with pytest.raises(RuntimeError, match=rf"{part} lacks 1 of its weight files, such as \S+-00002-of-00002\.saf"):
        load(broken)


def test_an_index_that_names_no_files_is_named(broken):
    in_shards(broken / "unet", 1, 2)
    tiny.edit_json(broken / "unet" / "diffusion_pytorch_model.safetensors.index.json", weight_map=None)
    with pytest.raises(RuntimeError, match=r"index\.json must name the weight files"):
        load(broken)


def test_an_empty_tokenizer_is_named(broken):
    shutil.rmtree(broken / "tokenizer")
    (broken / "tokenizer").mkdir()
    with pytest.raises(RuntimeError, match=r"tokenizer cannot be loaded \(.*copy or download it again"):
        load(broken)


def test_a_tokenizer_without_its_configuration_is_named(broken):
    (broken / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(RuntimeError, match=r"tokenizer_config\.json, which names the padding token, is missing; copy"):
        load(broken)


def test_a_tokenizer_without_a_padding_token_is_named(broken):
    file = broken / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["pad_token"]
    file.write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"tokenizer_config\.json names no pad_token, .*; add the one that"):
        load(broken)


def test_a_prediction_type_without_a_value_is_named(broken):
    file = broken / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": None}))
    with pytest.raises(ValueError, match=r"prediction_type is null; set it to epsilon or"):
        load(broken)


def test_a_package_that_a_tokenizer_needs_is_named(broken, monkeypatch):
    """DeepFloyd IF has only SentencePiece's own file."""
    shutil.rmtree(broken / "tokenizer")
    (broken / "tokenizer").mkdir()
    (broken / "tokenizer" / "spiece.model").write_bytes(b"pieces")
    (broken / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    monkeypatch.setattr(parts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"SentencePiece format, which needs a package: pip install sentencepiece"):
        load(broken)


def test_weights_that_lack_tensors_are_refused(broken):
    from safetensors.torch import load_file, save_file

    (file,) = (broken / "unet").glob("*.safetensors")
    tensors = load_file(file)
    del tensors["conv_out.weight"]
    save_file(tensors, file)
    with pytest.raises(RuntimeError, match=r"lack 1 tensors that config\.json requires, such as conv_out\.weight"):
        load(broken)


def test_weights_of_another_network_are_refused(broken):
    tiny.edit_json(broken / "unet" / "config.json", block_out_channels=[16, 16])
    with pytest.raises(RuntimeError, match=r"unet cannot be loaded as UNet2DConditionModel"):
        load(broken)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet", {"_class_name": "UNet3D"}, r"unet/config\.json: UNet3D is not supported, only UNet2DConditionModel"),
        (
            "unet",
            {"addition_embed_type": "text_time"},
            r"addition_embed_type 'text_time' is not supported; use a network conditioned only on text",
        ),
        ("unet", {"num_class_embeds": 7}, r"num_class_embeds 7 is not supported"),
        ("unet", {"sample_size": [8, 16]}, r"sample_size is \[8, 16\]; it must be one number"),
        (
            "text_encoder",
            {"architectures": ["BertModel"]},
            r"text encoder BertModel is not supported, only CLIPTextModel",
        ),
        ("scheduler", {"prediction_type": "flow"}, r"prediction_type 'flow' is not supported, only epsilon"),
        ("scheduler", {"num_train_timesteps": 500}, r"500 timesteps are not supported, only 1000"),
        ("scheduler", {"beta_schedule": "odd"}, r"this is not a DDPM noise schedule"),
    ],
)
def test_an_unsupported_configuration_is_named(file, values, message, broken):
    name = "scheduler_config.json" if file == "scheduler" else "config.json"
    tiny.edit_json(broken / file / name, **values)
    with pytest.raises(ValueError, match=message):
        load(broken)


def test_broken_json_is_named(broken):
    (broken / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(RuntimeError, match=r"scheduler_config\.json is not valid JSON"):
        load(broken)


def test_a_latent_network_needs_its_vae(tmp_path):
    folder = tiny.latent_model(tmp_path / "latent")
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match=r"no vae/ folder and the network works on 4 channels; a pixel model has 3"):
        load(folder)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 9, 24])
def test_a_channel_count_that_fits_no_block_of_pixels_is_named(channels, tmp_path):
    folder = tiny.pixel_model(tmp_path / "m")
    tiny._save_unet(folder, channels, channels, 8, seed=0)
    with pytest.raises(ValueError, match=rf"on {channels} channels; .*3 k\^2 for blocks of k x k pixels \(12, 27, 48,"):
        load(folder)


def test_blocks_in_and_pixels_out_are_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"12 input and 3 output channels; the output must have as many channels as the input, or twice",
    ):
        load(tiny.pixel_model(tmp_path / "m", patch=2, out_channels=3))


def test_a_foreign_vae_is_named(tmp_path):
    folder = tiny.latent_model(tmp_path / "latent")
    tiny.edit_json(folder / "vae" / "config.json", _class_name="VQModel")
    with pytest.raises(ValueError, match=r"VQModel is not supported, only AutoencoderKL, AutoencoderTiny"):
        load(folder)


def test_a_text_encoder_of_another_width_is_named(broken, monkeypatch):
    monkeypatch.setattr(tiny, "WIDTH", 8)
    shutil.rmtree(broken / "text_encoder")
    tiny._save_text(broken, 0)
    with pytest.raises(ValueError, match=r"gives 8 numbers per token, but the U-Net expects 16"):
        load(broken)


def test_each_image_needs_conditioning(pixel):
    model = load(pixel)
    with pytest.raises(ValueError, match=r"2 images, 2 timesteps and conditioning for 1"):
        model.eps(noisy(model, 2), EDGES[:2], model.embed("a"))


def test_reading_draws_no_progress_bars(pixel, capfd):
    load(pixel)
    assert "Loading" not in capfd.readouterr().err


def test_half_precision_needs_a_gpu(pixel):
    with pytest.raises(ValueError, match=r"prior\.precision = 'fp16' needs a GPU.*'auto'"):
        load(pixel, precision="fp16")


# ---- torch.compile ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_network_agrees_with_the_plain_one(pixel, monkeypatch):
    """The graph is traced as on a GPU, but not compiled, since the machine may lack a compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = load(pixel), load(pixel, engine="compiled")
    assert (compiled.engine_name, compiled.engine_note) == ("torch.compile fp32", "")
    compiled.prepare([5])
    z_t = noisy(plain, 5)
    torch.testing.assert_close(compiled.eps(z_t, EDGES, conds(compiled, 5)), plain.eps(z_t, EDGES, conds(plain, 5)))
    assert (compiled.engine_name, compiled.engine_note) == ("torch.compile fp32", "")
    assert {n for n, _ in compiled.unet.named_parameters()} == {n for n, _ in plain.unet.named_parameters()}


def test_torch_is_the_fallback_for_a_network_that_cannot_be_compiled(pixel, monkeypatch):
    def compile_nothing(unet, **knobs):
        class Broken:
            parameters = unet.parameters

            def __call__(self, *args, **kwargs):
                raise RuntimeError("no working C++ compiler")

        return Broken()

    monkeypatch.setattr(torch, "compile", compile_nothing)
    plain, compiled = load(pixel), load(pixel, engine="compiled")
    compiled.prepare([5])
    assert compiled.engine_name == "torch fp32"
    assert compiled.engine_note == "torch.compile failed (no working C++ compiler), using torch instead"
    z_t = noisy(plain, 5)
    assert torch.equal(compiled.eps(z_t, EDGES, conds(compiled, 5)), plain.eps(z_t, EDGES, conds(plain, 5)))


# ---- memory -----------------------------------------------------------------------------------------------------

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_model_that_does_not_fit_in_memory_says_what_to_change(error, pixel, monkeypatch):
    from diffusers import UNet2DConditionModel

    def from_pretrained(*args, **kwargs):
        raise error

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", from_pretrained)
    with pytest.raises(RuntimeError, match=r"tiny in fp32 \(needs 0\.0 GB\); .* GB of .* GB are free\. .*prior\.path"):
        load(pixel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_size_of_a_model_is_known_before_it_is_loaded(dtype, tmp_path):
    folder = tiny.latent_model(tmp_path / "m")
    model = load(folder)
    vae = sum(p.numel() for p in model.space.model.parameters())
    expected = (model.n_parameters - vae) * dtype.itemsize + vae * 4  # the VAE stays float32
    assert parts.loaded_bytes(folder, dtype, torch.float32) == expected


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_step_that_does_not_fit_in_memory_names_its_batch_size(error, tmp_path):
    model = load(tiny.latent_model(tmp_path / "m"))

    def full(*args, **kwargs):
        raise error

    model.engine = SimpleNamespace(name="full", forward=full)
    with pytest.raises(RuntimeError, match=r"out of memory: the network with a batch of 5.*Lower camera\.views"):
        model.eps(noisy(model, 5), EDGES, conds(model, 5))
    model.space.model.encode = full
    with pytest.raises(RuntimeError, match=r"out of memory: encoding 2 images of 16 x 16 pixels"):
        model.encode(torch.rand(2, 3, 16, 16))


# ---- the bundled model ------------------------------------------------------------------------------------------


def test_a_missing_bundle_says_how_to_get_one(monkeypatch, tmp_path):
    from sdlab.priors import hub

    monkeypatch.setattr(hub, "ASSETS", tmp_path)
    with pytest.raises(RuntimeError, match=r"bundled prior is missing.*python -m sdlab toybox train"):
        DiffusersPrior().load(CPU)


@pytest.mark.skipif(not (ASSETS / "toybox").is_dir(), reason="assets/toybox is not there")
def test_the_bundled_model_removes_noise():
    model = DiffusersPrior(engine="torch", precision="fp32").load(CPU)
    assert (model.name, model.shape[0]) == ("toybox", 3)
    z0 = model.encode(torch.ones(2, 3, model.image_size, model.image_size))
    noise, t = noisy(model, 2), torch.tensor([100, 400])
    alpha, sigma = model.marginal(t)
    eps = model.eps(alpha * z0 + sigma * noise, t, conds(model, 2, ""))
    assert ((eps - noise).pow(2).mean() / noise.pow(2).mean()).item() < 0.5
