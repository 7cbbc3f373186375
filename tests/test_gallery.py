"""The gallery prior: exact scores of the images that a text stands for, shared, bounded, and the same every time."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sdlab.cameras import CameraSettings, turntable
from sdlab.live.session import Session
from sdlab.priors import galleries, gallery, silent
from sdlab.priors.closed_form import Background, unpacked
from sdlab.priors.galleries import Galleries
from sdlab.priors.gallery import GalleryPrior, GalleryScores, alphas_cumprod
from sdlab.priors.sources import Source, unheard
from sdlab.priors.sources.toybox import ToyboxSource
from sdlab.prompts import PromptBank, PromptSettings
from sdlab.settings import preset
from sdlab.toybox import judge, words
from sdlab.types import Cond, Prior, cat_conds

CPU = torch.device("cpu")
SIZE = 16
TEXTS = ("", "a red bear", "a red bear, front view", "a red bear, blurry, noisy", "a blue car on a green box")


class Squares(Source):
    """One random image set per text, which counts how often each is drawn."""

    name = "squares"

    def __init__(self, identity: str = "squares", known: int | None = None) -> None:
        self.identity = identity
        self.known = known
        self.draws: Counter[str] = Counter()

    def key(self, text):
        return text.strip()

    def remark(self, text):
        return ""

    def available(self, key):
        return self.known

    def draw(self, key, count, size, seed, progress=unheard):
        self.draws[key] += 1
        g = torch.Generator().manual_seed(seed + 1000 * sum(key.encode()))
        cells = torch.rand(count, 4, 4, 4, generator=g)
        images = torch.nn.functional.interpolate(cells, (size, size))
        progress(count, count)
        return (torch.cat([images[:, :3] * images[:, 3:], images[:, 3:]], 1) * 255).to(torch.uint8)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Each test has a cache of its own."""
    monkeypatch.setattr(gallery, "SHARED", Galleries(10**9))


def squares(source: Source | None = None, **knobs) -> GalleryScores:
    config = GalleryPrior(**{"size": SIZE, "images": 6, "null_images": 9, "candidates": 0, **knobs})
    return GalleryScores(config, source or Squares(), CPU)


def toybox(**knobs) -> GalleryScores:
    return GalleryPrior(**{"size": SIZE, "images": 24, "null_images": 32, **knobs}).load(CPU)


def noisy(prior: Prior, n: int, seed: int = 0, t: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *prior.shape, generator=g, dtype=torch.float64), torch.full((n,), t)


def brute_force(prior: GalleryScores, shares: dict[str, float], z: torch.Tensor, t: int) -> torch.Tensor:
    """eps of one z [3, S, S] from dense covariances and autograd, float64; `shares` by text."""
    alpha, sigma = (float(x) for x in prior.marginal(torch.tensor([t])))
    c = prior.config
    z = z.clone().requires_grad_()
    logs = []
    for text, share in shares.items():
        key = prior.source.key(text)
        rgba = prior.source.draw(key, c.null_images if key == "" else c.images, c.size, c.seed)
        x, holes = unpacked(rgba, Background(c.background, c.background_std), torch.float64)
        for xi, hole in zip(x, holes, strict=True):
            cov = (sigma**2 + (alpha * c.spread) ** 2) * torch.eye(len(hole), dtype=torch.float64)
            cov = cov + 4 * alpha**2 * c.background_std**2 * torch.outer(hole, hole)
            normal = torch.distributions.MultivariateNormal(torch.zeros(len(hole), dtype=torch.float64), cov)
            logs.append(normal.log_prob(z.flatten(1) - alpha * xi).sum() + torch.tensor(share / len(x)).log())
    (score,) = torch.autograd.grad(torch.logsumexp(torch.stack(logs), 0), z)
    return -sigma * score


# ---- scores ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 0.2])
@pytest.mark.parametrize("t", [100, 500, 950])
@pytest.mark.parametrize("text", ["", "one", "two, blurry"])
def test_eps_is_the_score_of_the_images(text, t, spread):
    prior = squares(spread=spread)
    z, ts = noisy(prior, 1, t=t)
    eps = prior.eps(z, ts, prior.embed(text))
    true = brute_force(prior, {text: 1.0}, z[0], t)
    assert torch.linalg.norm(eps[0] - true) <= 1e-5 * torch.linalg.norm(true)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_mixture_of_texts_is_a_mixture_of_galleries(share):
    prior = squares()
    one, two = prior.embed("one"), prior.embed("two")
    z, ts = noisy(prior, 1, t=700)
    eps = prior.eps(z, ts, Cond(share * one.hidden + (1 - share) * two.hidden))
    true = brute_force(prior, {"one": share, "two": 1 - share}, z[0], 700)
    assert torch.linalg.norm(eps[0] - true) <= 1e-5 * torch.linalg.norm(true)


def test_perp_neg_interpolates_between_galleries():
    prior = squares()
    cams = turntable(8, CameraSettings(), SIZE)
    bank = PromptBank(prior)
    conds, _ = bank.perp_neg(PromptSettings("one"), cams)
    z, ts = noisy(prior, 1, t=600)
    for row in range(8):
        hidden = conds["perp pos"].hidden[row : row + 1]
        shares = {
            text: float(hidden[prior.embed(f"one, {text}").hidden > 0][0])
            for text in words.VIEW_WORDS
            if (hidden * prior.embed(f"one, {text}").hidden).sum() > 0
        }
        assert sum(shares.values()) == pytest.approx(1)
        eps = prior.eps(z, ts, Cond(hidden))
        true = brute_force(prior, {f"one, {k}": v for k, v in shares.items()}, z[0], 600)
        assert torch.linalg.norm(eps[0] - true) <= 1e-5 * torch.linalg.norm(true)


def test_roles_are_one_batch_and_each_row_has_its_own_text():
    prior = toybox(candidates=0)
    z, ts = noisy(prior, len(TEXTS))
    together = prior.eps(z, ts, cat_conds([prior.embed(text) for text in TEXTS]))
    for i, text in enumerate(TEXTS):
        alone = prior.eps(z[i : i + 1], ts[:1], prior.embed(text))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_the_order_in_which_texts_are_first_used_changes_no_bit():
    ways = [[*TEXTS], [*reversed(TEXTS)]]
    found = []
    for way in ways:
        prior = toybox()
        for text in way:
            prior.embed(text)
        mixed = Cond(sum(prior.embed(text).hidden for text in TEXTS) / len(TEXTS))
        z, ts = noisy(prior, 1, t=800)
        found.append(prior.eps(z.float(), ts, mixed))
    assert torch.equal(*found)


@pytest.mark.parametrize("size", [16, 32, 64, 96])
def test_more_pixels_get_more_noise(size):
    """The ratio of signal to noise of a block's mean is the same at all resolutions."""
    plain, shifted = alphas_cumprod(), alphas_cumprod((32 / size) ** 2)
    ratio = (shifted / (1 - shifted)) / (plain / (1 - plain))
    torch.testing.assert_close(ratio, torch.full_like(ratio, (32 / size) ** 2))
    prior = toybox(size=size, images=1, null_images=1)
    alpha, sigma = prior.marginal(torch.arange(1000))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert (alpha.diff(dim=0) < 0).all()
    assert toybox(size=size, images=1, null_images=1, shift=False).marginal(torch.tensor([500]))[0] == pytest.approx(
        float(plain[500] ** 0.5)
    )


def test_decoding_inverts_encoding():
    prior = toybox()
    rgb = torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(prior.decode(prior.encode(rgb)), rgb)
    assert prior.encode(torch.rand(1, 3, 40, 40)).shape == (1, 3, SIZE, SIZE)


# ---- sharing and memory ----------------------------------------------------------------------------------


def test_a_gallery_is_drawn_once_for_all_threads_and_sessions():
    source = Squares()
    priors = [squares(source) for _ in range(3)]
    barrier = threading.Barrier(6)

    def use(i: int) -> None:
        barrier.wait()
        priors[i % 3].embed("one")

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(use, range(6)))
    assert source.draws == {"one": 1}


def test_a_dropped_gallery_is_drawn_again_and_gives_the_same_bits(monkeypatch):
    source = Squares()
    prior = squares(source)
    z, ts = noisy(prior, 1)
    one = prior.embed("one")
    before = prior.eps(z, ts, one)
    size = gallery.SHARED.nbytes
    monkeypatch.setattr(gallery, "SHARED", Galleries(2 * size))
    for text in ("two", "three", "four", "five"):
        prior.embed(text)
        assert gallery.SHARED.nbytes <= 2 * size
    assert torch.equal(prior.eps(z, ts, one), before)
    assert source.draws["one"] == 2


def test_an_error_while_drawing_reaches_the_caller_and_is_not_cached():
    class Broken(Squares):
        def draw(self, key, count, size, seed, progress=unheard):
            self.draws[key] += 1
            if self.draws[key] == 1:
                raise ValueError("prior.path: the file is gone")
            return super().draw(key, count, size, seed, progress)

    prior = squares(Broken())
    with pytest.raises(ValueError, match="the file is gone"):
        prior.embed("one")
    assert prior.embed("one").hidden.sum() == 1


def test_a_source_without_images_is_refused():
    with pytest.raises(ValueError, match="squares has no image"):
        squares(Squares(known=0)).embed("one")


def test_slots_of_unused_texts_are_taken_and_used_ones_are_not(monkeypatch):
    monkeypatch.setattr(gallery, "SLOTS", 3)
    prior = squares()
    kept = prior.embed("kept")
    z, ts = noisy(prior, 1)
    before = prior.eps(z, ts, kept)
    for i in range(20):
        prior.embed(f"passing {i}")
    assert torch.equal(prior.eps(z, ts, kept), before)
    held = [prior.embed("a"), prior.embed("b")]
    with pytest.raises(RuntimeError, match="serves 3 texts at once"):
        prior.embed("c")
    del held
    assert prior.embed("c").hidden.sum() == 1


def test_preparing_texts_draws_what_is_missing_and_tells_the_time_left():
    source, said = Squares(), []
    prior = squares(source)
    prior.prepare_texts(["one", "two", "one"], said.append)
    assert source.draws == {"one": 1, "two": 1}
    assert said[-1] == "drawing 6 images of 'two': 100 %"
    prior.prepare_texts(["one", "two"], said.append)
    assert source.draws == {"one": 1, "two": 1}
    assert len(said) == 2

    lines = []
    toybox(images=600, null_images=600).prepare_texts(["", "a red bear"], lines.append)
    assert any("everything" in line and "s left" in line for line in lines)
    assert lines[-1].endswith("100 %")


def test_a_session_draws_before_its_first_step_and_says_so(quick):
    s = preset("gallery").patch_all([("prior.size", 16), ("prior.images", 300), ("prior.null_images", 300)])
    session = Session(s)
    session.run(until=2)
    said = [e.text for e in session.events.since()[0] if hasattr(e, "text")]
    assert any(text.startswith("drawing 300 images") for text in said)


def test_galleries_are_bounded_by_the_machine():
    import psutil

    assert 0 < galleries.SHARED.max_bytes <= psutil.virtual_memory().total / 2


# ---- a run -----------------------------------------------------------------------------------------------


@pytest.fixture
def quick():
    """Settings of a small run."""
    return preset("gallery").patch_all(
        [("prior.size", 16), ("prior.images", 40), ("prior.null_images", 80), ("scene.n_init", 60)]
    )


def test_a_resumed_run_continues_bit_for_bit(quick, tmp_path, monkeypatch):
    whole = Session(quick)
    whole.run(until=8)
    first = Session(quick)
    first.run(until=4)
    first.save(tmp_path)
    monkeypatch.setattr(gallery, "SHARED", Galleries(1))  # as in another process, and short of memory
    second = Session(quick)
    second.restore(tmp_path)
    second.run(until=8)
    for name, p in whole.state.scene.params.items():
        assert torch.equal(p, second.state.scene.params[name]), name


def test_a_prompt_without_a_known_word_runs_on_and_is_remarked_upon(quick):
    from sdlab.live.messages import Applied, Patch

    session = Session(quick)
    session.plan(2, Patch((("prompt.text", "a flying drgon"),)))
    session.run(until=4)
    notes = [e.note for e in session.events.since()[0] if isinstance(e, Applied)]
    assert session.state.step == 4
    assert len(notes) == 1
    assert "'flying', 'drgon'" in notes[0]
    assert "stands for all of them" in notes[0]
    assert "the toybox has bear, cat" in notes[0]


def test_a_comparison_draws_the_texts_of_all_losses_outside_its_turn(quick):
    from sdlab.live.messages import Compare

    session = Session(quick)
    session.run(until=2)
    drawn = []
    session.listen(lambda e: drawn.append(e.text) if getattr(e, "text", "").startswith("drawing") else None)
    session.do(Compare())
    assert any("blurry" in text for text in drawn)  # of SBP's source prompt or NFSD's negative prompt
    drawn.clear()
    while session._watching.comparing:
        session._watching.compare_on()
    assert session.comparison.get() is not None
    assert not drawn


def test_a_run_says_which_files_were_skipped(tmp_path):
    from PIL import Image

    from sdlab.live.messages import Noted

    for i in range(4):
        Image.new("RGB", (20, 20), (200, 10 * i, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    s = preset("gallery").patch_all(
        [("prior.source", "folder"), ("prior.path", str(tmp_path)), ("prior.size", 16), ("scene.n_init", 40)]
    )
    session = Session(s)
    session.run(until=2)
    notes = [e.text for e in session.events.since()[0] if isinstance(e, Noted)]
    assert any("broken.png" in note and "skipped 1 of 5" in note for note in notes)


# ---- the toybox as a source ------------------------------------------------------------------------------


def test_texts_that_say_the_same_share_a_gallery():
    source = ToyboxSource()
    same = ["a red bear, front view", "front view of a crimson teddy bear", "a red bear from the front, high quality"]
    assert len({source.key(text) for text in same}) == 1
    assert source.key("a red bear, noisy, blurry") == source.key("a red bear, blurry, noisy")
    assert source.key("nothing known") == source.key("") == ""
    assert len({source.key(text) for text in TEXTS}) == len(TEXTS)


@pytest.mark.parametrize("text", TEXTS)
def test_images_are_premultiplied_and_repeat_by_seed(text):
    source = ToyboxSource()
    key = source.key(text)
    rgba = source.draw(key, 12, 32, 0)
    assert rgba.shape == (12, 4, 32, 32)
    assert (rgba[:, :3] <= rgba[:, 3:]).all()
    assert torch.equal(rgba, source.draw(key, 12, 32, 0))
    assert torch.equal(rgba[:5], source.draw(key, 5, 32, 0))
    assert not torch.equal(rgba, source.draw(key, 12, 32, 1))
    filled = (rgba[:, 3] == 255).all((1, 2))
    assert filled.all() == ("blurry" in text)


@pytest.mark.parametrize("view", words.VIEW_WORDS)
def test_the_judge_reads_in_them_what_the_text_says(view):
    source = ToyboxSource()
    for name, colour in (("bear", "red"), ("car", "blue"), ("robot", "green")):
        rgba = source.draw(source.key(f"a {colour} {name}, {view}"), 16, 64, 3).float() / 255
        seen = judge.read(judge.load(), rgba[:, :3] + 1 - rgba[:, 3:])
        assert sum(s.object == name for s in seen) >= 15
        assert sum(s.colour == colour for s in seen) >= 15
        assert sum(s.view == view for s in seen) >= 12  # at the edge of a band the word is a convention


def test_what_a_prompt_leaves_open_is_drawn_as_in_the_data():
    from sdlab.priors.sources.toybox import read_key, shot_of

    source = ToyboxSource()

    def facts(text: str, n: int = 120):
        return [shot_of(read_key(source.key(text)), i).facts for i in range(n)]

    assert {f.colour for f in facts("a tree")} == {"green"}
    assert {f.colour for f in facts("a bear")} == {"brown", "black"}
    assert len({f.colour for f in facts("a car")}) == 12
    assert len({f.second_colour for f in facts("a red bear wearing a hat")}) == 11
    assert {f.second for f in facts("a red bear")} == {""}
    everything = facts("", 400)
    assert len({f.object for f in everything}) == 32
    assert {f.corruptions for f in everything} == {()}
    flawed = facts("a red bear, blurry, noisy, foggy, hazy")
    assert {len(f.corruptions) for f in flawed} == {1, 2, 3}
    assert {w for f in flawed for w in f.corruptions} == {"blurry", "noisy", "foggy", "hazy"}
    assert all(f.corruptions for f in facts("low quality"))


# ---- the configuration -----------------------------------------------------------------------------------


def test_it_is_a_prior_and_its_configuration_a_value():
    assert isinstance(toybox(), Prior)
    assert GalleryPrior() == GalleryPrior()
    assert hash(GalleryPrior()) == hash(GalleryPrior())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"size": 40}, "prior.size = 40: must be a multiple of 16"),
        ({"source": "folder"}, "prior.path is empty: prior.source = folder needs"),
        ({"source": "mesh", "path": " "}, "prior.path is empty: prior.source = mesh needs"),
    ],
)
def test_bad_values_name_knob_and_remedy(knobs, message):
    with pytest.raises(ValueError, match=message):
        GalleryPrior(**knobs).load(CPU, silent)


def test_batches_of_unequal_length_are_refused():
    prior = toybox()
    z, ts = noisy(prior, 2)
    with pytest.raises(ValueError, match="2 images, 2 timesteps and conditioning for 1"):
        prior.eps(z, ts, prior.embed("a red bear"))
