"""VSD and ESD: their identities under the mixture prior, and that the score of the renders is learnt."""

import dataclasses
import threading

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from tiny_models import pixel_model

from sdlab.auxiliary.score import Score, camera_vectors
from sdlab.cameras import CameraSettings, sample_cameras
from sdlab.losses.asd import ASD
from sdlab.losses.esd import ESD
from sdlab.losses.vsd import VSD
from sdlab.priors import attention, trainable
from sdlab.priors.choice import cpu_has_bf16
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.priors.mixture import Mixture, MixturePrior, MixtureScores
from sdlab.priors.trainable import Trainable
from sdlab.prompts import PromptBank, PromptSettings
from sdlab.rng import StepRng
from sdlab.types import CAMERA_WIDTH, BoundPrior, Guidance, Noised, cat_conds

ALIKE = PromptSettings(view_dependent=False)  # the prior and psi are told the same text


@pytest.fixture
def prior():
    return MixturePrior(height=8, width=8, precision="fp64").load(torch.device("cpu"))


def network(folder, **scheduler):
    return DiffusersPrior(path=str(pixel_model(folder, **scheduler)), engine="torch", precision="fp32").load(
        torch.device("cpu")
    )


def noised(prior, step=0, n=4):
    rng = StepRng(0, step)
    z0 = 0.5 * torch.randn(n, *prior.shape, generator=rng("z0"), dtype=prior.marginal(torch.tensor([1]))[0].dtype)
    t = torch.randint(20, 980, (n,), generator=rng("t"))
    noise = rng.randn("noise", z0)
    alpha, sigma = prior.marginal(t)
    return Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise)


def bound(prior, n=4, step=0, prompt=ALIKE):
    cams = sample_cameras(CameraSettings(views=n), StepRng(0, 0), 8)
    return BoundPrior(prior, PromptBank(prior).bind(prompt, VSD.roles, cams), cams, StepRng(0, step))


def taught(prior, lessons=5, lr=1e-2, how="copy"):
    """A psi that has learnt something, of the camera too."""
    score = Score(prior, how, 4, lr, StepRng(0, -1))
    for step in range(lessons):
        score.learn(noised(prior, step), bound(prior, step=step), lr, 0.5, 1)
    return score


def test_psi_may_learn_every_so_many_steps_from_as_many_noises(prior):
    psi = taught(prior, 0)
    for step in range(8):
        model = bound(prior, step=step)
        psi.learn(noised(prior, step), model, 1e-2, 0.5, lessons=1, every=4)
        assert model.nfe == (4 if step in (0, 4) else 0)
        assert psi.fitted == 1 + step // 4
    psi.learn(noised(prior, 3), bound(prior, step=-3), 1e-2, 0.5, lessons=2, every=4)
    assert psi.fitted == 4, "while it warms up it learns in every step"


def test_noises_of_one_lesson_are_those_of_as_many_lessons(prior, monkeypatch):
    """every = 3 descends along the mean of what three lessons in a row would, from the same weights."""
    shown = []
    monkeypatch.setattr(Score, "descend", lambda self, loss, lr: shown.append(loss.detach()))
    x = noised(prior)
    taught(prior, 0).learn(x, bound(prior), 1e-2, 0.5, lessons=3)
    taught(prior, 0).learn(x, bound(prior), 1e-2, 0.5, lessons=1, every=3)
    assert len(shown) == 4
    torch.testing.assert_close(shown[3], torch.stack(shown[:3]).mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("p_null", [0.0, 0.25, 1.0])
def test_a_share_of_the_pictures_hides_its_camera(prior, monkeypatch, p_null):
    psi, model, shown = taught(prior, 0), bound(prior), []
    lesson = psi._lesson
    monkeypatch.setattr(
        psi, "_lesson", lambda z0, draws, *how: shown.extend(d[0] for d in draws) or lesson(z0, draws, *how)
    )
    for step in range(100):
        psi.learn(noised(prior, step), bound(prior, step=step), 1e-3, p_null, 1)
    cameras = torch.stack([batch.camera for batch in shown])
    hidden = (cameras == 0).all(-1)
    own = camera_vectors(model.cams).to(cameras).expand_as(cameras)
    torch.testing.assert_close(cameras[~hidden], own[~hidden])
    assert hidden.double().mean() == pytest.approx(p_null, abs=0.08 if 0 < p_null < 1 else 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "n"), [("copy", 4), ("copy", 3), ("lora", 4), ("copy", 1)])
def test_two_halves_of_a_lesson_learnt_beside_each_other_are_the_lesson(how, n, tmp_path, monkeypatch):
    prior, threads = network(tmp_path), set()
    predict = Trainable.predict

    def spied(self, *asked):
        threads.add((threading.get_ident(), len(asked[0])))
        return predict(self, *asked)

    monkeypatch.setattr(Trainable, "predict", spied)

    def gradient(in_two: bool) -> torch.Tensor:
        monkeypatch.setattr(Trainable, "learns_in_two", lambda self: in_two)
        score = Score(prior, how, 4, 1e-2, StepRng(0, -1))
        for step in range(2):  # of a LoRA only one factor has a gradient at first
            score.learn(noised(prior, step, n), bound(prior, n, step), 1e-7, 0.5, 1, gamma=-0.5)
        assert score.fitted == 2
        return torch.cat([w.grad.flatten() for w in score._named.values() if w.grad is not None])

    whole = gradient(False)
    assert {size for _, size in threads} == {n}
    threads.clear()
    halves = gradient(True)
    assert (halves - whole).norm() < 1e-5 * whole.norm()
    assert len({thread for thread, _ in threads}) == (1 if n == 1 else 2)
    assert {size for _, size in threads} == ({1} if n == 1 else {n // 2, n - n // 2})
    assert torch.equal(gradient(True), halves), "bit for bit the same, whichever is done first"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["copy", "lora"])
def test_halves_move_each_weight_as_the_whole_does(how, tmp_path, monkeypatch):
    """The fused optimiser goes through weight and gradient by address: a gradient with the channels last, as
    convolutions give it, would move other entries of the weight."""
    prior = network(tmp_path)

    def moved(in_two: bool) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(Trainable, "learns_in_two", lambda self: in_two)
        score = Score(prior, how, 4, 1e-2, StepRng(0, -1))
        before = score.state_dict()["net"]
        for step in range(2):
            score.learn(noised(prior, step), bound(prior, step=step), 1e-2, 0.5, 1)
        assert all(p.grad is None or p.grad.stride() == p.stride() for p in score._named.values())
        return {name: w - before[name] for name, w in score.state_dict()["net"].items()}

    halves = moved(True)
    for name, whole in moved(False).items():
        if whole.norm() > 0:
            assert torch.cosine_similarity(halves[name].flatten(), whole.flatten(), 0) > 0.95, name


def test_a_half_that_fails_is_told_and_one_that_is_not_finite_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainable, "learns_in_two", lambda self: True)
    prior = network(tmp_path)
    score = Score(prior, "copy", 4, 1e-2, StepRng(0, -1))
    before = score.state_dict()["net"]
    predict, answer = Trainable.predict, torch.tensor(torch.inf)

    def odd(self, *asked):
        if threading.current_thread() is threading.main_thread():
            return predict(self, *asked)
        return predict(self, *asked) * answer if answer is not None else torch.empty(10**15)

    monkeypatch.setattr(Trainable, "predict", odd)
    score.learn(noised(prior), bound(prior), 1e-2, 0.5, 1)
    assert all(torch.equal(w, before[name]) for name, w in score.state_dict()["net"].items())
    answer = None
    with pytest.raises(RuntimeError, match="allocate"):
        score.learn(noised(prior), bound(prior), 1e-2, 0.5, 1)
    monkeypatch.setattr(Trainable, "predict", predict)
    score.learn(noised(prior), bound(prior), 1e-2, 0.5, 1)
    assert not all(torch.equal(w, before[name]) for name, w in score.state_dict()["net"].items())


def test_halves_are_for_large_networks_on_processors_with_a_core_to_spare(prior, tmp_path, monkeypatch):
    large, small = network(tmp_path).trainable("copy", 4), prior.trainable("copy", 4)
    monkeypatch.setattr(trainable, "CPUS", 2)
    assert torch.get_num_threads() == 1
    assert large.learns_in_two()
    assert not small.learns_in_two()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not large.learns_in_two(), "torch shares the work itself"
    monkeypatch.undo()
    monkeypatch.setattr(trainable, "CPUS", 1)
    assert not large.learns_in_two()


@pytest.mark.parametrize("gamma", [-0.75, 0.5])
def test_asds_lesson_is_the_noise_plus_gamma_of_the_priors_own_answer(prior, monkeypatch, gamma):
    """A new psi answers as the prior does without a view word; its rival is the prior with one."""
    views = PromptSettings(text="a red bear")
    x, model, shown = noised(prior), bound(prior, prompt=views), []
    loss = ASD(network="copy", gamma=gamma)
    psi = loss.init_aux(prior, StepRng(0, -1))
    monkeypatch.setattr(Score, "descend", lambda self, value, lr: shown.append(value.detach()))
    loss.fit(x, model, psi, Guidance(torch.zeros_like(x.z0)))
    t = torch.randint(1000, (4,), generator=model.rng("score t 0"))
    noise = model.rng.randn("score noise 0", x.z0)
    alpha, sigma = prior.marginal(t)
    z_t = alpha * x.z0 + sigma * noise
    plain, with_view = (prior.eps(z_t, t, model.conds[role]) for role in ("plain", "pos"))
    assert not torch.allclose(plain, with_view)
    errors = (plain - noise).square().mean() + gamma * (plain - with_view).square().mean()
    torch.testing.assert_close(shown[0], errors * x.z0[0].numel(), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lora", "copy"])
@pytest.mark.parametrize("kind", ["mixture", "epsilon", "v_prediction"])
def test_with_a_new_psi_vsd_is_guidance_alone(kind, how, prior, tmp_path):
    """losses.md: psi of the same network and text is eps_c at first, so the residual is (s - 1) (eps_c - eps_u)."""
    prior = prior if kind == "mixture" else network(tmp_path, prediction_type=kind)
    x, model = noised(prior), bound(prior)
    for loss in (VSD(network=how), ESD(network=how, lam=0.3)):
        g = loss.gradient(x, model, loss.init_aux(prior, StepRng(0, -1)))
        expected = 6.5 * (g.preds["pos"] - g.preds["uncond"])
        tolerance = 1e-12 if kind == "mixture" else 2e-5
        torch.testing.assert_close(g.residual, expected, rtol=tolerance, atol=tolerance)


def test_esd_with_lambda_0_is_vsd_and_with_1_knows_no_camera(prior):
    x, model, psi = noised(prior), bound(prior), taught(prior)
    vsd = VSD().gradient(x, model, psi).residual
    torch.testing.assert_close(ESD(lam=0.0).gradient(x, model, psi).residual, vsd, rtol=0, atol=0)
    one = ESD(lam=1.0).gradient(x, model, psi)
    assert "psi" not in one.preds
    other = dataclasses.replace(model.cams, viewmats=model.cams.viewmats.roll(1, 0))
    elsewhere = BoundPrior(prior, model.conds, other, model.rng)
    assert torch.equal(ESD(lam=1.0).gradient(x, elsewhere, psi).residual, one.residual)
    assert not torch.equal(VSD().gradient(x, elsewhere, psi).residual, vsd), "VSD knows the camera"
    half = ESD(lam=0.25).gradient(x, model, psi).residual
    torch.testing.assert_close(half, 0.75 * vsd + 0.25 * one.residual, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("loss", "evaluations"), [(ESD(lam=0.0), 3), (ESD(lam=1.0), 3), (ESD(lam=0.5), 4)])
def test_esd_asks_no_more_of_psi_than_it_needs(prior, loss, evaluations):
    model = bound(prior)
    loss.gradient(noised(prior), model, taught(prior, 0))
    assert model.nfe == evaluations


def test_camera_is_a_matrix_to_the_world(prior):
    cams = sample_cameras(CameraSettings(views=3), StepRng(0, 0), 8)
    m = camera_vectors(cams)
    assert m.shape == (3, CAMERA_WIDTH)
    torch.testing.assert_close(m.view(3, 4, 4)[:, :3, 3].norm(dim=-1), cams.distance, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(m.view(3, 4, 4) @ cams.viewmats, torch.eye(4).expand(3, 4, 4), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(m[:, 12:], torch.tensor([[0.0, 0.0, 0.0, 1.0]]).expand(3, 4))


def test_v_and_eps_twins_agree(tmp_path):
    """One network read as eps, and as a v-network that answers the same eps: the same residual and the same loss
    of psi but for v's own weight 1 / alpha^2."""
    eps = network(tmp_path)
    x, model = noised(eps), bound(eps)
    psi = taught(eps, 3, lr=1e-3)

    class Twin(torch.nn.Module):
        """v = (eps - sigma z_t) / alpha"""

        def forward(self, z_t, t, cond, camera):
            alpha, sigma = eps.marginal(t)
            return (psi.net.network(z_t, t, cond, camera) - sigma * z_t) / alpha

    twin = Trainable(Twin(), "v_prediction", eps.marginal)
    cond, camera = model.conds["plain"], camera_vectors(model.cams)
    with torch.no_grad():
        mine, theirs = psi.net(x.z_t, x.t, cond, camera), twin(x.z_t, x.t, cond, camera)
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-4)
        ours = psi.net.errors(psi.net.predict(x.z_t, x.t, cond, camera), x.z0, x.noise, x.t)
        in_v = twin.errors(twin.predict(x.z_t, x.t, cond, camera), x.z0, x.noise, x.t)
        torch.testing.assert_close(in_v * x.alpha.flatten() ** 2, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lora", "copy"])
def test_the_prior_stays_as_it_was(how, tmp_path):
    prior = network(tmp_path)
    before = {name: p.clone() for name, p in prior.unet.named_parameters()}
    x, model = noised(prior), bound(prior)
    asked = prior.eps(x.z_t, x.t, model.conds["pos"])
    psi = taught(prior, 3, how=how)
    psi.to(torch.device("cpu"))
    assert psi.fitted == 3
    assert {name for name, _ in prior.unet.named_parameters()} == set(before), "no adapters in the shared network"
    assert all(torch.equal(p, before[name]) for name, p in prior.unet.named_parameters())
    assert not any(p.requires_grad for p in prior.unet.parameters())
    assert torch.equal(prior.eps(x.z_t, x.t, model.conds["pos"]), asked)
    shared = {p.data_ptr() for p in prior.unet.parameters()} & {p.data_ptr() for p in psi.net.parameters()}
    assert len(shared) == (len(before) if how == "lora" else 0), "LoRA aliases the frozen weights, a copy has its own"
    trained = sum(p.numel() for p in psi.net.parameters() if p.requires_grad)
    held = sum(t.numel() for t in psi.state_dict()["net"].values())
    assert held == trained, "a checkpoint holds what is trained, and no more"


def test_lora_is_on_every_attention(tmp_path):
    prior = network(tmp_path)
    net = Score(prior, "lora", 4, 1e-4, StepRng(0, -1)).net.network.unet
    adapted = {name.rsplit(".lora_A", 1)[0] for name, p in net.named_parameters() if ".lora_A" in name}
    layers = {n for n, _ in prior.unet.named_modules() if n.endswith(("to_q", "to_k", "to_v", "to_out.0"))}
    assert layers
    assert adapted == layers


@pytest.mark.slow
@pytest.mark.skipif(not cpu_has_bf16(), reason="this processor does not compute in bf16")
@pytest.mark.parametrize("how", ["lora", "copy"])
@pytest.mark.parametrize("few", [0, attention.FEW_TOKENS])
def test_gradients_in_bf16_are_those_of_float32_but_for_rounding(few, how, tmp_path, monkeypatch):
    """By either way through attention: 0 takes the fused one. Measured are 0.5 to 2.3 percent."""
    monkeypatch.setattr(attention, "FEW_TOKENS", few)
    folder = str(pixel_model(tmp_path))
    gradients = []
    for precision in ("fp32", "bf16"):
        prior = DiffusersPrior(path=folder, engine="torch", precision=precision).load(torch.device("cpu"))
        psi = Score(prior, how, 4, 1e-2, StepRng(0, -1))
        state = psi.state_dict()
        generator = StepRng(0, 1)("moved")
        for p in state["net"].values():  # where a LoRA begins half of its gradients are 0
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
        psi.load_state_dict(state)
        psi.learn(noised(prior), bound(prior), 0.0, 0.5, 1)
        trained = [p for p in psi.net.parameters() if p.requires_grad]
        gradients.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
    exact, rounded = gradients
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 5e-2


@pytest.mark.slow
@pytest.mark.skipif(not cpu_has_bf16(), reason="this processor does not compute in bf16")
def test_only_few_tokens_learn_by_the_plain_formula(tmp_path, monkeypatch):
    """Of many the matrix of scores would fill the memory."""
    taken = []
    plain = AttnProcessor.__call__
    monkeypatch.setattr(AttnProcessor, "__call__", lambda self, *a, **k: taken.append(1) or plain(self, *a, **k))
    for size, tokens in ((8, 16), (64, 1024)):
        folder = str(pixel_model(tmp_path / str(size), size=size))
        prior = DiffusersPrior(path=folder, engine="torch", precision="bf16").load(torch.device("cpu"))
        psi, x, model = Score(prior, "copy", 4, 1e-2, StepRng(0, -1)), noised(prior), bound(prior)
        psi.ask(x, model, (True,))
        assert not taken, "no way back is needed"
        psi.learn(x, model, 1e-2, 0.5, 1)
        assert bool(taken) == (tokens <= attention.FEW_TOKENS)
        taken.clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_parking_a_lora_leaves_the_shared_weights_where_they_are(tmp_path):
    prior = network(tmp_path)
    psi = taught(prior, 1, how="lora")
    for device in ("cuda", "cpu"):
        psi.to(torch.device(device))
        assert {p.device.type for p in prior.unet.parameters()} == {"cpu"}
        assert {p.device.type for p in psi.net.parameters() if p.requires_grad} == {device}


@pytest.mark.slow
def test_psi_learns_the_score_of_the_views():
    """Four views as particles. With the camera the truth is the noise itself; without it, the diffused mixture of the
    four. 1200 lessons must halve both errors at timesteps from 200 on; measured are factors of 3.7 and 2.5
    (4.9 and 4.3 after 2400)."""
    one = torch.ones(1, dtype=torch.float64)
    start = Mixture(one, torch.zeros(1, 3, 2, 2, dtype=torch.float64), one)
    config = MixturePrior(height=2, width=2, precision="fp64", schedule="linear")
    prior = MixtureScores(config, torch.device("cpu"), {"a red bear": start})
    model, n = bound(prior), 4
    views = torch.randn(n, 3, 2, 2, generator=StepRng(3, 0)("views"), dtype=torch.float64)
    together = MixtureScores(
        config, torch.device("cpu"), {"a red bear": Mixture(one.expand(n), views, 0.0 * one.expand(n))}
    )
    cond = cat_conds([together.embed("a red bear")] * n)
    psi = Score(prior, "copy", 4, 2e-3, StepRng(0, -1))

    def errors():
        sums = torch.zeros(2, dtype=torch.float64)
        for i in range(40):
            rng = StepRng(7, i)
            t = torch.randint(200, 980, (n,), generator=rng("t"))
            noise, (alpha, sigma) = rng.randn("noise", views), prior.marginal(t)
            z_t = alpha * views + sigma * noise
            truth = together.eps(z_t, t, cond)
            own, all_of_them = psi.ask(Noised(views, noise, t, alpha, sigma, z_t), model, (True, False))
            sums[0] += (own - noise).square().mean()
            sums[1] += (all_of_them - truth).square().mean()
        return sums / 40

    zero = torch.zeros(n, dtype=torch.long)
    rendered = Noised(views, views, zero, *prior.marginal(zero), views)  # of it only z0 is looked at
    before = errors()
    for step in range(1200):
        model.rng = StepRng(0, step)
        psi.learn(rendered, model, 2e-3, 0.5, 1)
    after = errors()
    assert (after < before / 2).all()
