"""Figure 10 of DreamMapping: statistics against closed forms, curves under exact scores."""

import itertools
import json

import pytest
import torch

from sdlab.experiments import eps_statistics as figure10
from sdlab.experiments.eps_statistics import Known, centred, draws, pearson, puccetti, readable, stats_at, vectors
from sdlab.priors.mixture import Mixture, MixturePrior, MixtureScores
from sdlab.rng import StepRng
from sdlab.toybox.figures import caption_of
from sdlab.types import cat_conds

CPU = torch.device("cpu")


def gaussian(std, shape=(3, 8, 8), n=4096):
    """Return a prior of one Gaussian and samples of it."""
    one = torch.ones(1, dtype=torch.float64)
    mixture = Mixture(one, torch.full((1, *shape), 0.4, dtype=torch.float64), std * one)
    channels, height, width = shape
    config = MixturePrior(channels=channels, height=height, width=width, components=1)
    prior = MixtureScores(config, CPU, {"it": mixture})
    return Known(prior, draws(mixture, n).float(), cat_conds([prior.embed("it")] * n))


@pytest.mark.slow
@pytest.mark.parametrize("std", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 1)])
def test_of_a_gaussian_all_figures_have_closed_forms(std, shape):
    known = gaussian(std, shape)
    for t in (20, 300, 700, 999):
        alpha, sigma = (float(x) for x in known.prior.marginal(torch.tensor([t])))
        share = sigma**2 / ((alpha * std) ** 2 + sigma**2)
        found = stats_at(known, t)
        assert found["variance"] == pytest.approx(share, rel=0.08)
        assert found["pearson"] == pytest.approx(share**0.5, abs=0.03)
        assert found["puccetti"] == pytest.approx(share**0.5, abs=0.03)


@pytest.mark.parametrize("name", ["mixture, pictures", "mixture, plane"])
def test_correlation_and_variance_are_near_1_at_the_end_and_fall_with_t(name):
    known = figure10.PRIORS[name](True)
    rows = [stats_at(known, t) for t in (999, 500, 300, 10)]
    assert all(rows[0][key] > 0.97 for key in ("puccetti", "pearson"))
    assert rows[0]["variance"] == pytest.approx(1.0, abs=0.06)
    for key in rows[0]:
        assert all(a[key] > b[key] - 0.01 for a, b in itertools.pairwise(rows))
        assert rows[-1][key] < 0.8 * rows[0][key]


def test_puccetti_is_pearson_for_numbers_and_does_not_care_for_a_common_turn_or_scale():
    draw = StepRng(0, 0)
    x, noise = (torch.randn(5000, 3, generator=draw(name), dtype=torch.float64) for name in ("x", "noise"))
    y = centred(0.6 * x + 0.8 * noise)
    x = centred(x)
    assert puccetti(x[:, :1], y[:, :1]) == pytest.approx(float(pearson(x, y)[0]))
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=draw("turn"), dtype=torch.float64))
    assert puccetti(x @ turn, 7 * y @ turn) == pytest.approx(puccetti(x, y))
    # 1 if one is a positive definite matrix times the other, where the mean of Pearson's r is less
    stretch = turn @ torch.diag(torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)) @ turn.T
    assert puccetti(x, x @ stretch) == pytest.approx(1.0)
    assert pearson(x, x @ stretch).mean() < 0.95
    assert puccetti(x, -x) == pytest.approx(-1.0)
    assert puccetti(x, 0 * y) == 0


def test_pictures_are_cut_into_patches_and_each_place_is_centred():
    events = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12).float()
    found = vectors(events)
    assert found.shape == (2 * 2 * 3, 3 * 4 * 4)
    expected = centred(events)[1, :, 4:8, 8:12].flatten()
    assert torch.equal(found[-1], expected)
    assert vectors(torch.randn(5, 2, 1, 1)).shape == (5, 2)


def test_only_pictures_whose_captions_can_be_read_are_taken():
    shots = readable(lambda text: "" if "bear" in text else "what is that?", 3)
    assert [s.facts.object for s in shots] == ["bear"] * 3
    assert all("bear" in caption_of(s.facts) and not (s.facts.second or s.facts.corruptions) for s in shots)


def test_table_json_and_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figure10, "PRIORS", {"plane": figure10.plane})
    result = figure10.run(tmp_path / "figure10.json", quick=True)
    assert json.loads((tmp_path / "figure10.json").read_text()) == result
    curve = result["curves"]["plane"]
    assert curve["t"] == list(figure10.QUICK_TIMESTEPS)
    assert len(curve["puccetti"]) == len(curve["pearson"]) == len(curve["variance"]) == len(curve["t"])
    assert result["cutoff"] == 300
    assert (tmp_path / "figure10.png").stat().st_size > 5000
    assert "plane, 512 samples, exact" in capsys.readouterr().out
