"""What every member of the loss family must keep; new members are found by themselves."""

import copy
import dataclasses
import pickle

import pytest
import torch
from tiny_models import pixel_model

from sdlab import settings
from sdlab.cameras import CameraSettings, sample_cameras
from sdlab.knobs import knobs_of
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.priors.gallery import GalleryPrior
from sdlab.priors.mixture import MixturePrior
from sdlab.prompts import ROLES, PromptBank, PromptSettings
from sdlab.rng import StepRng
from sdlab.settings import Settings
from sdlab.step import add_noise
from sdlab.types import BoundPrior, Cond

LOSSES = settings.losses()


PRIORS = {
    "mixture": MixturePrior(height=8, width=8),
    "gallery": GalleryPrior(size=16, images=32, null_images=32, candidates=16, spread=0.1),
}


@pytest.fixture(scope="module")
def priors():
    return {name: config.load(torch.device("cpu")) for name, config in PRIORS.items()}


@pytest.fixture(params=PRIORS)
def setting(request, priors):
    prior = priors[request.param]
    rng = StepRng(0, 0)
    cams = sample_cameras(CameraSettings(views=3), rng, prior.image_size)
    z0 = torch.randn(3, *prior.shape, generator=rng("z0"))
    ref = torch.randn(z0.shape, generator=rng("reference"))
    return prior, cams, add_noise(z0, Settings(), rng, prior, 0.5)._replace(ref=ref)


def test_there_are_losses():
    assert "sds" in LOSSES


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_keeps_the_contract(name, setting):
    prior, cams, x = setting
    loss = LOSSES[name]()
    asked, batches, calls = [], [], []

    class Watched(BoundPrior):
        def eps(self, z_t, t, *roles):
            asked.extend(roles)
            batches.append(len(roles))
            answers = super().eps(z_t, t, *roles)
            calls.append((z_t, t, answers))
            return answers

    assert set(loss.roles) <= set(ROLES)
    model = Watched(prior, PromptBank(prior).bind(PromptSettings(), loss.roles, cams), cams, StepRng(0, 0))
    aux = loss.init_aux(prior, StepRng(0, -1))
    g = loss.gradient(x, model, aux)
    assert g.residual.shape == x.z0.shape
    assert torch.isfinite(g.residual).all()
    assert not g.residual.requires_grad
    assert g.residual.abs().max() > 0
    assert set(asked) <= set(loss.roles), "a loss may use only the roles it declares"
    of_gradient, of_fit = loss.evaluations()
    assert model.nfe == of_gradient, "a loss says how many network evaluations its gradient takes"
    assert g.preds
    assert all(p.shape == x.z0.shape for p in g.preds.values())
    described = {term.name for term in loss.terms}
    assert set(g.preds) <= described, "a loss describes every prediction that it answers"
    assert set(g.asked) <= set(g.preds)
    for role, eps in g.preds.items():
        for z_t, t, answers in calls:
            if any(eps is answer for answer in answers):
                assert torch.equal(z_t, g.asked.get(role, (x.z_t, x.t))[0]), "a loss says where it asked"
                assert torch.equal(t, g.asked.get(role, (x.z_t, x.t))[1])
    assert all(s.dim() == 0 for s in g.stats.values())
    if aux is not None:
        loss.fit(x, model, aux, g)
        assert aux.fitted == 1
        assert set(asked) <= set(loss.roles)
    assert tuple(batches) == loss.calls(), "a loss says which forwards of the prior it needs"
    assert model.nfe == of_gradient + of_fit


@pytest.mark.parametrize("name", LOSSES)
def test_terms_are_described(name):
    loss = LOSSES[name]
    terms = {term.name: term for term in loss.terms}
    assert len(terms) == len(loss.terms)
    for term in loss.terms:
        assert loss.term(term.name) == term
        assert all((term.symbol, term.title, term.caption, term.pull))
    named = {*loss.conditional, *loss.unconditional, *loss.control}
    assert named <= set(terms), "the parts of the residual are terms"
    assert not loss.guidance_knob or hasattr(loss, loss.guidance_knob) or loss.guidance_knob == "cfg"


@pytest.mark.parametrize(
    ("name", "knobs", "expected"),
    [
        ("esd", {"lam": 0.0}, (3, 1)),
        ("esd", {"lam": 1.0, "lessons": 3}, (3, 3)),
        ("esd", {"network": "exact"}, (2, 0)),
        ("asd", {"lessons": 2}, (3, 4)),
        ("asd", {"network": "exact"}, (2, 0)),
        ("sdi", {"inversion_steps": 2, "inversion_cfg": 1.0}, (4, 0)),
        ("sdi", {"inversion_steps": 2, "inversion_cfg": 0.0}, (4, 0)),
        ("sbp", {"form": "full", "leg_steps": 2}, (4, 0)),
        ("pfd", {"inversion_steps": 2, "reverse_steps": 3}, (10, 0)),
        ("pfd", {"inversion_steps": 2, "inversion_cfg": 1.0, "reverse_steps": 1}, (4, 0)),
        ("reward", {"noises": 1}, (2, 0)),
        ("reward", {"noises": 3}, (6, 0)),
        ("reward", {"noises": 3, "inner": "pfd"}, (120, 0)),
        ("reward", {"noises": 3, "inner": "vsd"}, (9, 1)),
    ],
)
def test_evaluations_follow_the_knobs(name, knobs, expected, setting):
    prior, cams, x = setting
    loss = LOSSES[name](**knobs)
    model = BoundPrior(prior, PromptBank(prior).bind(PromptSettings(), loss.roles, cams), cams, StepRng(0, 0))
    aux = loss.init_aux(prior, StepRng(0, -1))
    g = loss.gradient(x, model, aux)
    assert model.nfe == expected[0]
    loss.fit(x, model, aux, g)
    assert model.nfe == sum(expected)
    assert loss.evaluations() == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_an_auxiliary_resumes_bit_for_bit(name, setting):
    prior, cams, x = setting
    loss = LOSSES[name]()

    def steps(aux, numbers):
        residuals = []
        for number in numbers:
            conds = PromptBank(prior).bind(PromptSettings(), loss.roles, cams)
            model = BoundPrior(prior, conds, cams, StepRng(0, number))
            g = loss.gradient(x, model, aux)
            residuals.append(g.residual)
            loss.fit(x, model, aux, g)
        return residuals

    whole, part, rest = (loss.init_aux(prior, StepRng(seed, -1)) for seed in (0, 0, 1))
    expected = steps(whole, range(6))
    steps(part, range(3))
    if part is not None:
        rest.load_state_dict(pickle.loads(pickle.dumps(part.state_dict())))
    for a, b in zip(steps(rest, range(3, 6)), expected[3:], strict=True):
        assert torch.equal(a, b)
    if whole is not None:
        assert not torch.equal(expected[0], expected[5]), "the auxiliary changes what the loss says"
        a, b = whole.state_dict(), rest.state_dict()
        assert a["fitted"] == b["fitted"]
        assert all(torch.equal(a["net"][k], b["net"][k]) for k in a["net"])
        assert all(torch.equal(v, b["adam"][k][m]) for k, moments in a["adam"].items() for m, v in moments.items())


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_value_with_described_knobs(name):
    loss = LOSSES[name]()
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert hash(pickle.loads(pickle.dumps(loss))) == hash(loss)
    assert len(knobs_of(loss, name)) == len(dataclasses.fields(loss)), "every field must be a knob"
    for k in knobs_of(loss, name):
        assert k.help, k.path
        assert k.type in (bool, str) or (k.lo is not None and k.hi is not None), k.path
        assert k.type is not str or k.choices, k.path


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_has_a_description_for_people(name):
    loss = LOSSES[name]
    assert loss.__doc__
    for text in (loss.title, loss.paper, loss.formula, loss.look_for):
        assert text.strip()
        assert "\n" not in text


@pytest.fixture(scope="module")
def eps_model(tmp_path_factory):
    folder = pixel_model(tmp_path_factory.mktemp("model"))
    return DiffusersPrior(path=str(folder), engine="torch", precision="fp32").load(torch.device("cpu"))


class Native:
    """The engine of a twin: what `prior` answers as eps, said as v or as x0."""

    name, torch_threads = "twin", 1

    def __init__(self, prior, kind):
        self._prior, self._kind = prior, kind

    def forward(self, z_t, t, hidden):
        eps = self._prior.eps(z_t, t, Cond(hidden))
        alpha, sigma = self._prior.marginal(t)
        return (eps - sigma * z_t) / alpha if self._kind == "v_prediction" else (z_t - sigma * eps) / alpha


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_the_network_predicts_natively_does_not_matter(name, kind, eps_model):
    loss, rng = LOSSES[name](), StepRng(0, 0)
    twin = copy.copy(eps_model)
    twin.prediction_type, twin.engine = kind, Native(eps_model, kind)
    twin.trainable = eps_model.trainable  # an auxiliary of the one network
    cams = sample_cameras(CameraSettings(views=3), rng, 8)
    z0, ref = torch.randn(2, 3, *eps_model.shape, generator=rng("z0"))
    x = add_noise(z0, Settings(), rng, eps_model, 0.5)._replace(ref=ref)
    residuals = []
    for prior in (eps_model, twin):
        conds = PromptBank(prior).bind(PromptSettings(source="a blue {prompt}"), loss.roles, cams)
        aux = loss.init_aux(prior, StepRng(0, -1))
        residuals.append(loss.gradient(x, BoundPrior(prior, conds, cams, StepRng(0, 0)), aux).residual)
    torch.testing.assert_close(*residuals, rtol=1e-3, atol=1e-3 * float(residuals[0].abs().max()))
