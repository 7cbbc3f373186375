"""The Gaussian scene, its optimiser and its density control."""

import numpy as np
import pytest
import torch

from sdlab.cameras import CameraSettings, turntable
from sdlab.density import noise_gate, relocation, sample_by_opacity
from sdlab.optim import OptimSettings, SceneOptimiser
from sdlab.priors.mixture import MixturePrior
from sdlab.raster.torch_project import rotation_matrices
from sdlab.rng import StepRng
from sdlab.scenes.splats import Splats
from sdlab.types import ScreenInfo

CPU = torch.device("cpu")


def built(**knobs):
    config = Splats(**{"n_init": 50, **knobs})
    scene = config.build(StepRng(0, -1), CPU, MixturePrior().load(CPU), "")
    return scene, SceneOptimiser(scene.params, OptimSettings())


def take_step(scene, optim, seed=0):
    """Take one optimiser step towards black and collect the statistics."""
    cams = turntable(2, CameraSettings(), 16)
    render = scene.render(cams, torch.ones(2, 3))
    optim.zero_grad()
    render.rgb.square().sum().backward()
    optim.step()
    scene.constrain()
    scene.observe(render.info)


def pulled(scene, values):
    """Record statistics as if Gaussian i had a gradient of magnitude values[i]."""
    n = len(values)
    info = ScreenInfo(torch.ones(1, n, dtype=torch.int32), torch.zeros(1, n, 2))
    info.means2d_grad = torch.stack([torch.as_tensor(values), torch.zeros(n)], -1)[None].float()
    scene.observe(info)


def test_the_ball_is_where_it_should_be():
    scene, _ = built(n_init=500, radius=0.6)
    distance = scene.params["means"].detach().norm(dim=-1)
    assert distance.max() <= 0.6 + 1e-5
    assert distance.mean() == pytest.approx(0.45, abs=0.02)  # 3/4 of the radius for a solid ball
    assert scene.params["opacity_logits"].detach().sigmoid().allclose(torch.tensor(0.1))
    again, _ = built(n_init=500, radius=0.6)
    assert all(torch.equal(a, b) for a, b in zip(scene.params.values(), again.params.values(), strict=True))


def test_gradients_reach_every_parameter():
    scene, optim = built(scale_max=1.0)
    before = {k: v.detach().clone() for k, v in scene.params.items()}
    take_step(scene, optim)
    take_step(scene, optim)
    for name, p in scene.params.items():
        assert not torch.equal(p, before[name]), name


def test_parameters_stay_in_their_box():
    scene, _ = built(bound=0.5, scale_min=0.05, scale_max=0.1)
    with torch.no_grad():
        scene.params["means"].mul_(100)
        scene.params["log_scales"][:25] = 3.0
        scene.params["log_scales"][25:] = -9.0
    scene.constrain()
    assert scene.params["means"].abs().max() <= 0.5
    scales = scene.params["log_scales"].exp()
    assert scales.max() <= 0.1 + 1e-6
    assert scales.min() >= 0.05 - 1e-6


def densify(scene, optim, progress=0.5, step=50):
    return scene.densify(progress, step, optim, StepRng(0, step))


def test_the_most_pulled_are_cloned_when_small_and_split_when_large():
    scene, optim = built(densify_share=0.04, split_scale=0.08, scale_max=1.0)
    with torch.no_grad():
        scene.params["log_scales"].fill_(np.log(0.05))
        scene.params["log_scales"][7] = np.log(0.3)
    values = torch.arange(50) * 1e-9
    values[[3, 7]] = torch.tensor([1e-6, 2e-6])  # the scale of the gradients must not matter
    pulled(scene, values)
    old = {k: v.detach().clone() for k, v in scene.params.items()}
    assert densify(scene, optim) == {"cloned": 1, "split": 1, "pruned": 0}
    new = scene.params
    assert len(new["means"]) == 52
    assert torch.equal(new["means"][49], old["means"][3])  # 49 kept, then the clone, then two halves
    halves = new["log_scales"][50:]
    assert torch.allclose(halves.exp(), torch.tensor(0.3 / 1.6), rtol=1e-5)
    assert not torch.equal(new["means"][50], new["means"][51])
    assert set(optim._params) == set(new)
    take_step(scene, optim)  # the optimiser follows the new rows


def test_growth_is_the_same_for_any_scale_of_gradients():
    results = []
    for scale in (1e-8, 1.0, 1e4):
        scene, optim = built(densify_share=0.1)
        pulled(scene, torch.arange(50) * scale)
        results.append(densify(scene, optim))
    assert results[0] == results[1] == results[2]


def test_the_cap_holds():
    scene, optim = built(densify_share=0.5, max_gaussians=53)
    for step in (50, 100, 150):
        pulled(scene, torch.arange(len(scene.params["means"])) + 1.0)
        densify(scene, optim, step=step)
    assert len(scene.params["means"]) == 53


def test_the_transparent_are_removed_but_never_all():
    scene, optim = built(prune_opacity=0.05, densify_share=0.0)
    with torch.no_grad():
        scene.params["opacity_logits"][:20] = -8.0
    assert densify(scene, optim)["pruned"] == 20
    with torch.no_grad():
        scene.params["opacity_logits"].fill_(-8.0)
        scene.params["opacity_logits"][4] = -7.9
    assert densify(scene, optim)["pruned"] == 29
    assert len(scene.params["means"]) == 1


def test_density_control_keeps_its_hours():
    scene, optim = built(densify_from=0.2, densify_until=0.5, densify_every=50)
    pulled(scene, torch.ones(50))
    assert densify(scene, optim, progress=0.1) == {}
    assert densify(scene, optim, progress=0.6) == {}
    assert densify(scene, optim, progress=0.3, step=51) == {}
    assert densify(scene, optim, progress=0.3, step=100) != {}
    off, optim = built(densify_every=0)
    assert densify(off, optim, progress=0.3, step=100) == {}


def test_opacity_reset():
    scene, optim = built(opacity_reset_every=30, opacity_init=0.9)
    take_step(scene, optim)
    assert densify(scene, optim, step=30) == {"opacity_reset": 1}
    assert scene.params["opacity_logits"].sigmoid().max() <= 0.05 + 1e-6
    assert optim.state_dict()["opacity_logits"]["exp_avg"].abs().max() == 0
    late, optim = built(opacity_reset_every=30, opacity_init=0.9, densify_until=0.6)
    assert densify(late, optim, progress=0.7, step=30) == {}, "the final result must not be transparent"
    assert float(late.params["opacity_logits"].detach().sigmoid().min()) == pytest.approx(0.9)


def test_rows_that_stay_keep_their_moments():
    scene, optim = built(prune_opacity=0.05, densify_share=0.02)
    take_step(scene, optim)
    with torch.no_grad():
        scene.params["opacity_logits"][:10] = -8.0
    before = optim.state_dict()["means"]["exp_avg"]
    pulled(scene, torch.arange(50) + 1.0)
    densify(scene, optim)
    after = optim.state_dict()["means"]["exp_avg"]
    n = len(scene.params["means"])
    assert n == 40  # 50 - 10 pruned + 0 (2 % of 40 is less than one)
    assert torch.equal(after, before[10:])


def test_snapshot_has_true_covariances_and_is_a_copy():
    scene, _ = built()
    snap = scene.snapshot()
    R = rotation_matrices(scene.params["quats"].detach())
    S = torch.diag_embed(scene.params["log_scales"].detach().exp())
    np.testing.assert_allclose(snap.covariances, (R @ S @ S @ R.transpose(1, 2)).numpy(), rtol=1e-4, atol=1e-8)
    held = snap.means.copy()
    with torch.no_grad():
        scene.params["means"].add_(1.0)
    np.testing.assert_array_equal(snap.means, held)


def test_state_comes_back_and_wrong_states_are_refused():
    scene, optim = built()
    take_step(scene, optim)
    state, moments = scene.state_dict(), optim.state_dict()
    other, other_optim = built()
    other.load_state_dict(state)
    other_optim.load_state_dict(moments)
    for s, o in ((scene, optim), (other, other_optim)):
        take_step(s, o)
    for name, p in scene.params.items():
        assert torch.equal(p, other.params[name]), name
    with pytest.raises(ValueError, match="seen"):
        other.load_state_dict({k: v for k, v in state.items() if k != "seen"})
    with pytest.raises(ValueError, match="different numbers"):
        other.load_state_dict({**state, "means": state["means"][:3]})
    with pytest.raises(ValueError, match="quats"):
        other.load_state_dict({**state, "quats": state["quats"][:, :3]})
    with pytest.raises(ValueError, match="means has shape"):
        other_optim.load_state_dict({"means": {**moments["means"], "exp_avg": torch.zeros(3, 3)}})


def test_a_parameter_without_a_rate_is_named():
    with pytest.raises(ValueError, match="lr_hue"):
        SceneOptimiser({"hue": torch.nn.Parameter(torch.zeros(1))}, OptimSettings())


def test_rates_fade_over_the_run():
    _, optim = built()
    s = OptimSettings(decay=0.01, lr_means=0.1)
    for progress, rate in ((0.0, 0.1), (0.5, 0.01), (1.0, 0.001), (3.0, 0.001)):
        optim.adopt(s, progress)
        assert optim._adam.param_groups[0]["lr"] == pytest.approx(rate)


# ---- density = threshold, as published --------------------------------------------------------------------------


def test_a_threshold_takes_all_above_it_in_3dgs_units():
    """Two views, each half of the loss, of 16 pixels: 1e-5 per pixel is 1e-5 * 8 * 2 in 3DGS's units."""
    scene, optim = built(density="threshold", densify_threshold=2e-4, split_scale=1.0, densify_share=0.0)
    scene.render(turntable(2, CameraSettings(), 16), torch.ones(2, 3))
    values = torch.zeros(50)
    values[:7], values[7:20] = 1.3e-5, 1.2e-5
    n = len(values)
    info = ScreenInfo(torch.ones(2, n, dtype=torch.int32), torch.zeros(2, n, 2))
    info.means2d_grad = torch.stack([values, torch.zeros(n)], -1)[None].expand(2, n, 2)
    scene.observe(info)
    assert densify(scene, optim)["cloned"] == 7


def test_a_threshold_keeps_to_the_cap_by_the_hardest_pulled():
    scene, optim = built(density="threshold", densify_threshold=1e-9, split_scale=1.0, max_gaussians=52)
    old = scene.params["means"].detach().clone()
    pulled(scene, torch.arange(50) + 1.0)
    assert densify(scene, optim)["cloned"] == 2
    assert torch.equal(scene.params["means"][50:], old[48:])


# ---- density = mcmc ---------------------------------------------------------------------------------------------


def covered(opacity, scale, copies):
    """Return the integral along a line of the opacity of `copies` equal Gaussians at one position."""
    x = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    alpha = opacity * torch.exp(-0.5 * (x / scale) ** 2)
    return torch.trapezoid(1 - (1 - alpha) ** copies, x)


@pytest.mark.parametrize("copies", [1, 2, 3, 10, 51])
@pytest.mark.parametrize("opacity", [0.05, 0.5, 0.9, 0.99])
def test_copies_hide_together_what_the_one_did(opacity, copies):
    o, s = torch.tensor([opacity], dtype=torch.float64), torch.full((1, 3), 0.05, dtype=torch.float64)
    o_new, s_new = relocation(o, s, torch.tensor([copies]), 1e-6)
    before, after = covered(o[0], s[0, 0], 1), covered(o_new[0], s_new[0, 0], copies)
    assert after == pytest.approx(float(before), rel=1e-6)
    assert 1 - (1 - o_new[0]) ** copies == pytest.approx(opacity), "at the centre, too"


def test_only_the_transparent_feel_the_noise():
    strength = noise_gate(torch.tensor([1e-4, 0.005, 0.05, 0.5]))
    assert strength[0] > 0.6
    assert strength[1] == pytest.approx(0.5)
    assert strength[2] < 0.02
    assert strength[3] < 1e-20


def test_places_are_drawn_by_opacity():
    counts = torch.bincount(
        sample_by_opacity(torch.tensor([0.0, 0.2, 0.6]), 4000, torch.Generator().manual_seed(0)), minlength=3
    )
    assert counts[0] == 0
    assert counts[2] / counts[1] == pytest.approx(3.0, rel=0.15)


def test_the_transparent_move_onto_the_opaque_and_the_picture_stays():
    scene, optim = built(density="mcmc", densify_share=0.1, stir=0.0, prune_opacity=0.01, scale_min=1e-3, n_init=40)
    with torch.no_grad():
        scene.params["opacity_logits"].fill_(0.5)
        scene.params["opacity_logits"][:15] = -9.0
    cams, black = turntable(2, CameraSettings(), 32), torch.zeros(2, 3)
    take_step(scene, optim)
    with torch.no_grad():
        scene.params["opacity_logits"][:15] = -9.0
        before = scene.render(cams, black).rgb
    assert densify(scene, optim) == {"moved": 15, "added": 4}
    assert len(scene.params["means"]) == 44
    assert (scene.params["opacity_logits"].sigmoid() > 0.01).all()
    with torch.no_grad():
        after = scene.render(cams, black).rgb
    assert (after - before).abs().mean() < 0.03 * before.mean()
    moments = optim._adam.state[scene.params["means"]]["exp_avg"]
    assert (moments[:15] == 0).all(), "moved rows restart"
    assert (moments[40:] == 0).all()
    assert (moments[15:40] != 0).any(), "unchanged rows keep their moments"
    take_step(scene, optim)


def test_noise_stirs_the_transparent_along_their_axes():
    scene, optim = built(density="mcmc", stir=1e3, densify_every=0)
    with torch.no_grad():
        scene.params["opacity_logits"][:25] = -12.0
        scene.params["opacity_logits"][25:] = 2.0
        scene.params["log_scales"][:, 0] = np.log(0.1)
        scene.params["log_scales"][:, 1:] = np.log(0.02)
    before = scene.params["means"].detach().clone()
    assert densify(scene, optim, step=7) == {}
    moved = (scene.params["means"].detach() - before).abs().mean(0)
    still = (scene.params["means"].detach() - before)[25:].abs().max()
    assert still < 1e-6
    assert moved[0] > 10 * moved[1:].max(), "variances are 25 to 1, and the ball's quaternions are the identity"
    again, optim = built(density="mcmc", stir=1e3, densify_every=0)
    again.load_state_dict({**scene.state_dict(), "means": before})
    densify(again, optim, step=7)
    assert torch.equal(again.params["means"], scene.params["means"]), "the same noise at the same step"


def test_mcmc_keeps_to_the_cap_and_does_nothing_with_a_cloud_that_is_all_transparent():
    scene, optim = built(density="mcmc", densify_share=0.5, max_gaussians=53)
    for step in (50, 100):
        densify(scene, optim, step=step)
    assert len(scene.params["means"]) == 53
    with torch.no_grad():
        scene.params["opacity_logits"].fill_(-12.0)
    assert densify(scene, optim, step=150) == {}
