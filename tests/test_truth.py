"""The exact prediction beside the network's: what it is made of, when it exists, and the benchmark built on it."""

import json
import math

import numpy as np
import pytest
import torch

from sdlab.experiments import truth as bench
from sdlab.lens.numbers import relative_error
from sdlab.priors.closed_form import Gallery, posterior_mean
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.priors.gallery import GalleryPrior
from sdlab.priors.mixture import MixturePrior
from sdlab.priors.sources.toybox import ToyboxSource
from sdlab.priors.sources.training import TrainingImages
from sdlab.priors.truth import BACKGROUNDS, Truth, truth_of
from sdlab.toybox import judge, pictures

CPU = torch.device("cpu")
BEAR = "a red bear, front view"


def fresh(text: str, count: int, size: int = 16) -> torch.Tensor:
    """Images of a text with their own backgrounds that no gallery of these tests has, in -1 .. 1."""
    source = TrainingImages()
    rgb = pictures.render_shots([source.shot(source.key(text), 5, i) for i in range(count)], size)
    return 2 * torch.from_numpy(rgb).float().permute(0, 3, 1, 2) - 1


def noised(z0: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z_t, alpha and sigma."""
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
    alpha = torch.full((len(z0), 1, 1, 1), math.sqrt(1 - sigma**2))
    return alpha * z0 + sigma * noise, alpha, torch.full_like(alpha, sigma)


# ---- images --------------------------------------------------------------------------------------------------------


def test_the_empty_text_stands_for_the_training_images_with_their_flaws():
    source = TrainingImages()
    shots = [source.shot("", 0, i) for i in range(60)]
    assert any(s.facts.style for s in shots)
    assert any(s.facts.corruptions for s in shots)
    assert not any(s.facts.view and pictures.held_out(s.facts.object, s.facts.colour, s.facts.view) for s in shots)
    drawn = source.draw("", 60, 16, seed=0)
    covered = (drawn[:, 3] == 255).flatten(1).all(1)
    assert all(covered[i] for i, s in enumerate(shots) if s.facts.style), "paintings have no background"
    assert not covered.all()


def test_other_texts_stand_for_what_the_gallery_prior_shows():
    key = TrainingImages().key(BEAR)
    ours, theirs = (source.draw(key, 5, 16, seed=1) for source in (TrainingImages(), ToyboxSource()))
    assert torch.equal(ours, theirs)


def test_backgrounds_are_as_in_the_data():
    """Mean and variance of the background colour, over both kinds."""
    rng = np.random.default_rng(0)
    colours = np.stack([pictures.draw_ground(rng, "")[0].mean(0) for _ in range(8000)])
    shares, means, stds = (np.array(x) for x in zip(*((w, b.mean, b.std) for w, b in BACKGROUNDS), strict=True))
    assert shares.sum() == pytest.approx(1)
    assert shares @ means == pytest.approx(colours.mean(), abs=0.02)
    assert shares @ (means**2 + stds**2) == pytest.approx((colours**2).mean(), abs=0.03)


# ---- predictions ---------------------------------------------------------------------------------------------------


def test_a_prediction_is_the_posterior_mean_over_images_and_both_backgrounds():
    truth = Truth(16, CPU, images=24)
    z_t, alpha, sigma = noised(fresh(BEAR, 2), 0.8)
    source = TrainingImages()
    for sample in (0, 1):
        rgba = source.draw(source.key(BEAR), 24, 16, sample)
        both = [Gallery.of(rgba, ground, 1) for _, ground in BACKGROUNDS]
        shares = torch.tensor([[share for share, _ in BACKGROUNDS]] * 2)
        expected = posterior_mean(both, shares, z_t, alpha, sigma)  # in float64
        torch.testing.assert_close(truth.x0(BEAR, z_t, alpha, sigma, sample), expected, rtol=0, atol=1e-4)


def test_a_gallery_knows_its_own_images_and_another_sample_does_not():
    truth = Truth(16, CPU, images=24)
    source = TrainingImages()
    rgba = source.draw(source.key(BEAR), 1, 16, 0).float() / 255
    white = 2 * (rgba[:, :3] + 0.97 * (1 - rgba[:, 3:])) - 1
    z_t, alpha, sigma = noised(white, 0.2)
    own, other = (float((truth.x0(BEAR, z_t, alpha, sigma, i) - white).square().mean().sqrt()) for i in (0, 1))
    assert own < 0.01
    assert other > 0.05


def test_the_right_text_makes_the_better_guess_at_much_noise():
    truth = Truth(16, CPU, images=128)
    z0 = fresh(BEAR, 8)
    z_t, alpha, sigma = noised(z0, 0.97)
    right, wrong = (
        float((truth.x0(text, z_t, alpha, sigma) - z0).square().mean()) for text in (BEAR, "a green car, side view")
    )
    assert right < wrong


def test_images_are_drawn_once_for_both_backgrounds():
    truth = Truth(16, CPU, images=7)
    text = "a pink owl, back view"
    assert not truth.has(text)
    truth.prepare(text)
    assert truth.has(text)
    assert truth.has("pink owl from behind"), "the same images"
    assert not Truth(16, CPU, images=8).has(text)
    white, other = truth._galleries(text, 0)
    assert white.rgba is other.rgba
    assert white.background != other.background


# ---- which priors have one -----------------------------------------------------------------------------------------


def test_networks_of_the_toybox_have_a_truth_and_others_say_why_not(tmp_path):
    pixels = GalleryPrior(size=32).load(CPU)
    assert isinstance(truth_of(DiffusersPrior(), pixels), Truth)
    (tmp_path / "words.json").write_bytes((judge.SHIPPED.parent / "words.json").read_bytes())
    own = DiffusersPrior(path=str(tmp_path))
    assert isinstance(truth_of(own, pixels), Truth), "a network trained on the same images"
    blocks = MixturePrior(channels=12, height=16, width=16)
    with pytest.raises(ValueError, match="blocks of pixels"):
        truth_of(own, blocks.load(CPU))
    (tmp_path / "words.json").write_text('{"groups": {}, "names": []}')
    for config in (own, DiffusersPrior(path="owner/name"), blocks):
        with pytest.raises(ValueError, match="only networks of the toybox's images"):
            truth_of(config, pixels)
    with pytest.raises(ValueError, match="exact ones already"):
        truth_of(GalleryPrior(), pixels)


# ---- the benchmark -------------------------------------------------------------------------------------------------


def test_relative_error_and_psnr():
    exact = torch.ones(2, 3, 4, 4)
    guess = exact * torch.tensor([1.1, 0.5]).view(2, 1, 1, 1)
    torch.testing.assert_close(relative_error(guess, exact), torch.tensor([0.1, 0.5]))
    assert bench.psnr(0.01) == pytest.approx(20.0)


def test_every_case_is_one_that_training_images_show():
    cases = bench.cases_of(("bear", "owl"))
    assert len(cases) == 10
    assert [c.view for c in cases[:5]] == [bench.NO_VIEW, *judge.VIEW_WORDS]
    source = TrainingImages()
    for case in cases:
        shot = source.shot(source.key(case.text), 0, 0)
        assert shot.facts.object == case.object
        assert not pictures.held_out(case.object, shot.facts.colour, shot.facts.view)


def test_the_summary_averages_images_and_trusts_the_better_guess(monkeypatch):
    monkeypatch.setattr(bench, "TIMESTEPS", (100, 900))

    def values(error: float, count: int) -> np.ndarray:
        found = np.full((len(bench.MEASURES), 2, count), error)
        found[bench.MEASURES.index("network_mse")] = 0.1
        found[bench.MEASURES.index("exact_mse")] = [[0.2], [0.05]]
        return found

    of = bench.Case
    rows = [
        (of("a", "bear", "v"), values(0.2, 2)),
        (of("b", "car", "v"), values(0.5, 1)),
        (of("", "", ""), values(9, 4)),
    ]
    found = bench.summary(rows)
    assert found["trusted"] == [900]
    assert found["all"]["error"] == pytest.approx([0.3, 0.3])
    assert found["by_view"]["v"]["error"] == found["all"]["error"]
    assert found["by_object"]["car"]["error"] == [0.5, 0.5]
    assert found["by_object"][""]["error"] == [9, 9]
    assert bench.over_trusted({"t": [100, 900], **found}, {"error": [1.0, 2.0]}, "error") == 2.0
    assert math.isnan(bench.over_trusted({"t": [100], "trusted": []}, {"error": [1.0]}, "error"))


@pytest.mark.slow
def test_table_json_and_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "TIMESTEPS", (100, 900))
    monkeypatch.setattr(bench, "QUICK", bench.Size(("bear",), 2, 2, 64, 64))
    result = bench.run(tmp_path / "truth.json", quick=True)
    assert json.loads((tmp_path / "truth.json").read_text()) == result
    assert (tmp_path / "truth.png").stat().st_size > 5000
    assert set(result["by_object"]) == {"bear", bench.NO_TEXT}
    assert 0 < result["all"]["error"][1] < 0.3, "at t = 900 a trained network is close"
    assert result["all"]["floor"][0] > result["all"]["floor"][1], "between its images a gallery knows nothing"
    table = capsys.readouterr().out
    assert "galleries of 64 images" in table
    assert "by view word: " in table


def test_a_network_of_other_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"prior\.path"):
        bench.run(weights=str(tmp_path / "none"))
