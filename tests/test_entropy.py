"""The experiment on the entropy of views: its exact scores are correct, and lambda acts as Theorem 1 states."""

import json
import math

import pytest
import torch

from sdlab.auxiliary.score import ExactScores
from sdlab.experiments import entropy
from sdlab.experiments.entropy import four_gaussians, spread
from sdlab.priors.mixture import Mixture, MixturePrior, MixtureScores
from sdlab.rng import StepRng
from sdlab.types import BoundPrior, Noised


def test_exact_scores_are_those_of_the_views():
    prior = four_gaussians()
    views = torch.randn(5, 2, 1, 1, generator=StepRng(0, 0)("views"))
    one = torch.ones(5, dtype=torch.float64)
    together = MixtureScores(
        MixturePrior(channels=2, height=1, width=1, schedule="linear"),
        torch.device("cpu"),
        {"views": Mixture(one, views.double(), 0 * one)},
    )
    t = torch.tensor([100, 300, 500, 700, 900])
    alpha, sigma = prior.marginal(t)
    noise = StepRng(0, 1).randn("noise", views)
    z_t = alpha * views + sigma * noise
    x = Noised(views, noise, t, alpha, sigma, z_t)
    own, all_of_them = ExactScores().ask(x, BoundPrior(prior, {}), (True, False))
    torch.testing.assert_close(own, noise, rtol=1e-4, atol=1e-5)
    cond = together.embed("views")
    truth = together.eps(z_t, t, cond._replace(hidden=cond.hidden.expand(5, -1, -1)))
    torch.testing.assert_close(all_of_them, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_lambda_raises_the_entropy_of_the_views():
    outcomes = [spread(four_gaussians(), lam, True, 300, seed=0) for lam in (0.0, 0.5, 1.0)]
    assert [o.apart for o in outcomes] == [1.0] * 3, "exact scores are the reference"
    none, half, all_of_it = (o.iv for o in outcomes)
    assert none + 0.05 < half
    assert half + 0.2 < all_of_it <= math.log(4)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_with_a_learnt_psi_views_move_too(lam):
    outcome = spread(four_gaussians(), lam, False, 30, seed=0)
    assert torch.isfinite(outcome.views).all()
    assert 0 <= outcome.iq <= outcome.iv <= math.log(4), "entropy is concave"
    assert -0.2 < outcome.apart < 0.5, "after 30 training passes psi hardly knows its cameras"


@pytest.mark.slow
def test_table_json_and_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(entropy, "LAMBDAS", (0.0, 0.5, 1.0))
    monkeypatch.setattr(entropy, "spread", lambda *a: spread(a[0], a[1], a[2], 5, a[4]))
    result = entropy.run(tmp_path / "entropy.json", quick=True)
    assert json.loads((tmp_path / "entropy.json").read_text())["rows"] == result["rows"]
    assert len(result["rows"]) == 6
    assert result["of_the_prior"] == pytest.approx(1.280, abs=1e-3)
    assert (tmp_path / "entropy.png").stat().st_size > 10_000
    assert "IV of all views" in capsys.readouterr().out
