"""Every loss on tiny versions of every supported model, with random weights, loaded and run as in a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from sdlab.auxiliary.score import Score
from sdlab.live.session import Session
from sdlab.priors.diffusers import DiffusersModel, DiffusersPrior
from sdlab.rng import StepRng
from sdlab.settings import Settings, default_settings, losses
from sdlab.types import Cond, cat_conds

CPU = torch.device("cpu")
MAKERS = {
    "sd-1.5": lambda folder: tiny.stable_diffusion(folder, "1.5"),
    "sd-2.1": lambda folder: tiny.stable_diffusion(folder, "2.1"),
    "sd-2.1-v": lambda folder: tiny.stable_diffusion(folder, "2.1", prediction_type="v_prediction"),
    "deepfloyd-if": tiny.deepfloyd_if,
}
# the parts of the published configurations that affect module names and shapes
SD15: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
VAE: dict[str, Any] = tiny.STABLE_VAE | {"block_out_channels": (128, 256, 512, 512)}
SD21 = SD15 | {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True}
ATTENTIONS = 16 * 2 * 4  # blocks of Stable Diffusion's U-Net, self and cross attention, q k v out


def read(folder: Path) -> DiffusersModel:
    return DiffusersPrior(path=str(folder), engine="torch", precision="fp32").load(CPU)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def models(folders) -> dict[str, DiffusersModel]:
    return {name: read(folder) for name, folder in folders.items()}


def short(loss: str, **knobs) -> Settings:
    """Settings of a run of `loss` with default knobs, but few Gaussians and no warm-up."""
    s = default_settings().patch_all(
        [("active", loss), ("scene.n_init", 50), ("scene.max_gaussians", 60), ("camera.views", 2), ("steps", 20)]
    )
    own = {"warm_up": 0, **knobs}
    return s.patch_all([(p, v) for n, v in own.items() if (p := f"losses.{loss}.{n}") in s.knobs()])


def begun(settings: Settings, model: DiffusersModel) -> Session:
    session = Session(settings, load=lambda config, device, progress: model)
    session.prepare()
    return session


def parameters(session: Session) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in session.state.scene.params.items()}


# ---- loading ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_model_is_loaded_with_its_shape_and_prediction_type(models):
    facts = {name: (m.shape, m.image_size, m.prediction_type) for name, m in models.items()}
    assert facts == {
        "sd-1.5": ((4, 8, 8), 64, "epsilon"),
        "sd-2.1": ((4, 8, 8), 64, "epsilon"),
        "sd-2.1-v": ((4, 8, 8), 64, "v_prediction"),
        "deepfloyd-if": ((3, 16, 16), 16, "epsilon"),
    }


@pytest.mark.parametrize(("name", "published"), [("sd-1.5", SD15), ("sd-2.1", SD21)])
def test_modules_have_the_names_of_the_published_model(name, published, models):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**published)
        vae = AutoencoderKL(**VAE)
    assert set(models[name].unet.state_dict()) == set(unet.state_dict())
    assert set(models[name].space.model.state_dict()) == set(vae.state_dict())


def test_clip_reads_77_tokens_with_the_weights_in_the_file(folders, models):
    from safetensors.torch import load_file

    model = models["sd-1.5"]
    assert model.embed("a red bear").hidden.shape == (1, 77, tiny.WIDTH)
    assert not torch.equal(model.embed("a red bear").hidden, model.embed("a red view").hidden)
    assert model.remark("a red bear, front view") == ""
    held = {name.removeprefix("text_model."): p for name, p in model.text.model.state_dict().items()}
    saved = load_file(folders["sd-1.5"] / "text_encoder" / "model.safetensors")
    assert len(held) > 10
    for name, p in held.items():
        assert torch.equal(p, saved[f"text_model.{name}"])


def test_old_names_of_the_vaes_attention_are_understood(folders, models):
    from safetensors.torch import load_file

    saved = load_file(folders["sd-1.5"] / "vae" / "diffusion_pytorch_model.safetensors")
    held = models["sd-1.5"].space.model.state_dict()
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
        assert torch.equal(
            held[f"encoder.mid_block.attentions.0.{new}.weight"], saved[f"encoder.mid_block.attentions.0.{old}.weight"]
        )


def test_an_sdxl_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"'text_time' is not supported; .*1\.5 or 2\.1.*not SDXL"):
        read(tiny.stable_diffusion_xl(tmp_path / "xl"))


# ---- every loss on each -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model")  # cuts prompts off: its tokens are letters
@pytest.mark.parametrize("loss", losses())
@pytest.mark.parametrize("name", MAKERS)
def test_every_loss_takes_steps(name, loss, models):
    session = begun(short(loss), models[name])
    before = parameters(session)
    session.run(until=2)
    assert session.state.step == 2
    assert session.state.skipped == 0
    after = parameters(session)
    assert all(p.isfinite().all() for p in after.values())
    assert not torch.equal(after["means"], before["means"]), "the scene follows the loss"
    report = session.report
    assert report is not None
    assert report.x.z0.shape[1:] == models[name].shape
    assert all(float(value) == float(value) for value in report.stats.values())
    assert float(report.stats["grad_rms"]) > 0
    aux = session.state.aux.get(session.settings.loss.aux_name())
    assert aux is None or aux.fitted >= 2


class AsV:
    """An engine that converts the eps of `model` to v."""

    name, torch_threads = "twin", 1

    def __init__(self, model: DiffusersModel) -> None:
        self._model = model

    def forward(self, z_t, t, hidden):
        alpha, sigma = self._model.marginal(t)
        return (self._model.eps(z_t, t, Cond(hidden)) - sigma * z_t) / alpha

    def prepare(self, shapes) -> None:
        """Do nothing."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model")
@pytest.mark.parametrize("loss", losses())
def test_twins_that_predict_eps_and_v_take_the_same_step(loss, folders, models):
    """The v twin is loaded from its own folder, but its network is replaced by the other one, converted to v."""
    twin = read(folders["sd-2.1-v"])
    twin.engine = AsV(models["sd-2.1"])
    twin.trainable = models["sd-2.1"].trainable  # both train the same auxiliary
    residuals = []
    for model in (models["sd-2.1"], twin):
        session = begun(short(loss), model)
        # in the first step the scene equals its reference
        session.run(until=2 if session.settings.loss.needs_reference else 1)
        assert session.report is not None
        residuals.append(session.report.guidance.residual)
    size = float(residuals[0].abs().max())
    assert size > 0
    torch.testing.assert_close(*residuals, rtol=1e-3, atol=1e-3 * size)


# ---- LoRA on the real modules -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd-1.5", "deepfloyd-if"])
def test_sessions_with_loras_of_their_own_share_the_prior_and_nothing_else(name, models):
    model = models[name]
    torch.set_num_threads(1)  # sessions change it, and rounding depends on it
    held = {n: (p.data_ptr(), p.clone()) for n, p in model.unet.state_dict(keep_vars=True).items()}
    z_t = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([100, 700]), cat_conds([model.embed("a red bear")] * 2)
    said = model.eps(z_t, t, cond)

    alone = begun(short("vsd", rank=2, lr=1e-2), model)
    alone.run(until=4)
    one, other = begun(short("vsd", rank=2, lr=1e-2), model), begun(short("esd", rank=5, lr=1e-2), model)
    for until in (2, 4):  # alternating
        one.run(until=until)
        other.run(until=until)

    for n, p in parameters(one).items():
        assert torch.equal(p, alone.state.scene.params[n]), "another session's training has no effect"
    nets = [_psi(session) for session in (one, other)]
    for net in nets:
        frozen = {p.data_ptr() for p in net.parameters() if not p.requires_grad}
        learnt = {p.data_ptr() for p in net.parameters() if p.requires_grad}
        assert frozen == {p.data_ptr() for p in model.unet.parameters()}, "the frozen weights are the prior's own"
        assert not learnt & frozen
        assert any(p.abs().max() > 0 for n, p in net.named_parameters() if "lora_B" in n), "they were trained"
    assert not {p.data_ptr() for p in nets[0].parameters() if p.requires_grad} & {
        p.data_ptr() for p in nets[1].parameters() if p.requires_grad
    }
    assert model.unet.state_dict().keys() == held.keys(), "no adapters in the shared network"
    for n, p in model.unet.state_dict(keep_vars=True).items():
        assert p.data_ptr() == held[n][0]
        assert torch.equal(p, held[n][1])
    torch.set_num_threads(1)
    assert torch.equal(model.eps(z_t, t, cond), said)


def _psi(session: Session) -> torch.nn.Module:
    (aux,) = session.state.aux.values()
    assert isinstance(aux, Score)
    return aux.net


def test_a_lora_sits_on_the_same_layers_as_in_the_published_code(models):
    """ProlificDreamer and threestudio adapt q, k, v and out of both attentions of all 16 blocks."""
    net = Score(models["sd-1.5"], "lora", 4, 1e-4, StepRng(0, -1)).net
    adapted = {n.rsplit(".lora_A", 1)[0] for n, _ in net.named_parameters() if ".lora_A" in n}
    assert len(adapted) == ATTENTIONS
    assert all(".attn1." in n or ".attn2." in n for n in adapted)
