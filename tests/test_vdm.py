"""VDM, DCA and U-Lite: their identities under the mixture prior, and that the operator learns."""

import copy

import pytest
import torch

from sdlab.auxiliary.ulite import Axial, ULite, levels_for
from sdlab.cameras import CameraSettings, sample_cameras
from sdlab.losses.sds import SDS
from sdlab.losses.vdm import OPERATORS, VDM, Operator, dca
from sdlab.priors.mixture import MixturePrior, alphas_cumprod
from sdlab.prompts import PromptBank, PromptSettings
from sdlab.rng import StepRng
from sdlab.schedule import ScheduleSettings, sample_t
from sdlab.types import BoundPrior, Noised


@pytest.fixture
def prior():
    return MixturePrior(height=8, width=8, precision="fp64").load(torch.device("cpu"))


def noised(prior, step=0, n=4, t=None):
    rng = StepRng(0, step)
    z0 = 0.5 * torch.randn(n, *prior.shape, generator=rng("z0"), dtype=torch.float64)
    noise = torch.randn(z0.shape, generator=rng("noise"), dtype=torch.float64)
    t = torch.full((n,), t) if t is not None else torch.randint(20, 980, (n,), generator=rng("t"))
    alpha, sigma = prior.marginal(t)
    return Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)


def bound(prior, n=4):
    cams = sample_cameras(CameraSettings(views=n), StepRng(0, 0), 8)
    return BoundPrior(prior, PromptBank(prior).bind(PromptSettings(), VDM.roles, cams), cams)


def test_u_lite_is_as_large_as_published_and_fits_smaller_spaces():
    assert sum(p.numel() for p in ULite(4, 64, 64).parameters()) == 879_252
    assert sum(p.numel() for p in ULite(3, 64, 64).parameters()) - 879_252 == -16 * 49 - 16 - 1  # one channel less
    for shape, levels in (((12, 32, 32), 4), ((3, 32, 32), 4), ((4, 96, 64), 5), ((3, 6, 4), 1), ((3, 128, 256), 5)):
        assert levels_for(*shape[1:]) == levels
        x = torch.randn(2, *shape)
        assert ULite(*shape)(x).shape == x.shape
    assert [look._dilation for look in ULite(4, 64, 64).bottleneck.looks] == [1, 2, 3]
    with pytest.raises(ValueError, match="even sides of at least 4, this prior's is 7 x 8"):
        ULite(3, 7, 8)


@pytest.mark.parametrize(
    ("width", "height", "across", "kernel", "dilation"),
    [(16, 32, 32, 7, 1), (3, 5, 9, 7, 1), (8, 2, 2, 3, 3), (4, 4, 4, 7, 1), (5, 6, 3, 3, 2), (1, 1, 1, 3, 1)],
)
def test_the_compiled_axial_convolution_is_torchs(width, height, across, kernel, dilation):
    """Both ways; also where the taps reach beyond the picture, and whatever the layout in memory."""
    torch.manual_seed(0)
    layer = Axial(width, kernel, dilation)
    exact = copy.deepcopy(layer).double()  # which takes torch's own convolutions
    x = torch.randn(2, width, height, across)
    for memory in (torch.contiguous_format, torch.channels_last):
        ours = x.clone(memory_format=memory).requires_grad_()
        theirs = x.double().clone().requires_grad_()
        pull = torch.randn(x.shape)
        layer.zero_grad()
        exact.zero_grad()
        y = layer(ours)
        assert y.grad_fn.name() == "_AxialBackward"
        (y * pull).sum().backward()
        (exact(theirs) * pull.double()).sum().backward()
        torch.testing.assert_close(y.double(), exact(theirs), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)
        for a, b in zip(layer.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-4)


def test_dca_is_its_table():
    """Eq. 18 on Stable Diffusion's schedule, whose alphabar at 300 is 0.590."""
    t = torch.tensor([0, 300, 301, 999])
    squared = alphas_cumprod("scaled_linear")[t].view(-1, 1, 1, 1)
    lam = dca(t, squared.sqrt(), 300).flatten()
    expected = torch.tensor([1 - float(squared[0]), 0.410, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(lam, expected, rtol=0, atol=6e-4)
    assert dca(t, squared.sqrt(), 0).flatten().tolist()[1:] == [1, 1, 1]
    torch.testing.assert_close(dca(t, squared.sqrt(), 999), 1 - squared)
    torch.testing.assert_close(dca(t, squared.sqrt(), 500).flatten()[2], 1 - squared.flatten()[2])


class Known(Operator):
    """An operator whose answer is a given function of e."""

    def __init__(self, answer):
        self._function = answer

    def __call__(self, e):
        return self._function(e)


def test_with_a_perfect_operator_it_is_sds(prior):
    x = noised(prior, t=700)
    ours = VDM(cfg=8.5).gradient(x, bound(prior), Known(lambda e: x.noise)).residual
    theirs = SDS(cfg=8.5).gradient(x, bound(prior), None).residual
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradient_is_equation_19_in_form_b(prior):
    x, factor = noised(prior, t=200), 0.7
    eps_c, eps_u = bound(prior).eps(x.z_t, x.t, "pos", "uncond")
    expected = eps_c - x.sigma**2 * factor * eps_c + 7.5 * (eps_c - eps_u)
    residual = VDM().gradient(x, bound(prior), Known(lambda e: factor * e)).residual
    torch.testing.assert_close(residual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPERATORS)
def test_operator_learns_and_resumes_bit_for_bit(prior, kind):
    loss = VDM(operator=kind)

    def lessons(aux, steps):
        errors = []
        for step in steps:
            x, model = noised(prior, step), bound(prior)
            g = loss.gradient(x, model, aux)
            errors.append(float(g.stats["operator_error"]))
            loss.fit(x, model, aux, g)
        return errors

    whole = loss.init_aux(prior, StepRng(0, -1))
    errors = lessons(whole, range(60))
    assert whole.fitted == 60
    if kind != "linear":  # that one starts from the prediction itself, which is hard to beat
        assert sum(errors[-10:]) < 0.6 * sum(errors[:10])
    part = loss.init_aux(prior, StepRng(0, -1))
    lessons(part, range(25))
    rest = loss.init_aux(prior, StepRng(5, -1))
    rest.load_state_dict(part.state_dict())
    assert lessons(rest, range(25, 60)) == errors[25:]
    for a, b in zip(whole.net.parameters(), rest.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_operator_is_refused(prior):
    one, other = (VDM(operator=o).init_aux(prior, StepRng(0, -1)) for o in ("linear", "u-lite"))
    with pytest.raises(ValueError, match="other knobs"):
        one.load_state_dict(other.state_dict())


def test_one_t_for_all_views():
    s = ScheduleSettings(per_view=False)
    seen = {tuple(sample_t(s, StepRng(0, i), 4, 0.5).tolist()) for i in range(20)}
    assert all(len(set(row)) == 1 for row in seen)
    assert len(seen) > 10
    first = [int(sample_t(ScheduleSettings(), StepRng(0, i), 4, 0.5)[0]) for i in range(5)]
    assert first == [int(sample_t(s, StepRng(0, i), 4, 0.5)[0]) for i in range(5)]
