"""The network that learns the renders' score where the prior has none: psi on the gallery prior."""

import pytest
import torch

from sdlab.auxiliary.score import Score
from sdlab.cameras import CameraSettings, sample_cameras
from sdlab.losses.vsd import VSD
from sdlab.priors.gallery import GalleryPrior
from sdlab.priors.trainable import RenderNet, Trainable
from sdlab.prompts import PromptBank, PromptSettings
from sdlab.rng import StepRng
from sdlab.types import BoundPrior, Noised


@pytest.fixture(scope="module")
def prior():
    return GalleryPrior(size=16, images=32, null_images=32).load(torch.device("cpu"))


def bound(prior, step=0):
    cams = sample_cameras(CameraSettings(views=4), StepRng(0, 0), 16)
    return BoundPrior(prior, PromptBank(prior).bind(PromptSettings(), VSD.roles, cams), cams, StepRng(0, step))


def renders(prior, step=0, t=500):
    """Four renders that differ by camera, one brightness each, noised to `t`."""
    z0 = torch.linspace(-0.6, 0.6, 4).view(4, 1, 1, 1).expand(4, *prior.shape).contiguous()
    t = torch.full((4,), t)
    noise = StepRng(1, step).randn("noise", z0)
    alpha, sigma = prior.marginal(t)
    return Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)


def test_a_new_one_predicts_v_of_zero_and_so_does_one_for_a_look(prior):
    x = renders(prior)
    for aux in (VSD().init_aux(prior, StepRng(0, -1)), VSD().untrained_aux(prior, StepRng(0, -1))):
        for psi in aux.ask(x, bound(prior), (True, False)):
            torch.testing.assert_close(psi, x.sigma * x.z_t)


def test_it_learns_the_renders_and_their_cameras(prior):
    """At high noise, where a prediction depends on what the renders are and not on fine differences of z_t."""
    psi = Score(prior, "lora", 4, 1e-3, StepRng(0, -1))
    for step in range(150):
        psi.learn(renders(prior, step), bound(prior, step), 1e-3, 0.25, lessons=1)
    x = renders(prior, 1000, t=900)
    told, untold = ((eps - x.noise).square().mean() for eps in psi.ask(x, bound(prior), (True, False)))
    assert told < 0.5 * (x.sigma * x.z_t - x.noise).square().mean(), "an untrained one predicts sigma z_t"
    assert told < untold, "the camera says which render it is"


def test_two_halves_of_a_lesson_are_the_lesson(prior, monkeypatch):
    def weights(in_two: bool) -> torch.Tensor:
        monkeypatch.setattr(Trainable, "learns_in_two", lambda self: in_two)
        psi = Score(prior, "lora", 4, 1e-2, StepRng(0, -1))
        for step in range(3):
            psi.learn(renders(prior, step), bound(prior, step), 1e-7, 0.5, 1)
        return torch.cat([w.grad.flatten() for w in psi._named.values() if w.grad is not None])

    whole, halves = weights(False), weights(True)
    assert (halves - whole).norm() < 1e-4 * whole.norm()


def test_sides_must_be_whole_patches():
    with pytest.raises(ValueError, match="18 x 16: the sides must be multiples of 4"):
        RenderNet((3, 18, 16))
