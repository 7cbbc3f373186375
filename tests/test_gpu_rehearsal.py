"""The GPU path, rehearsed on a pretended device with emulated kernels: no mismatch of devices, no wait in a step."""

from __future__ import annotations

import gc
import json
import sys
import warnings
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import emulated_gsplat
import pretended
import pytest
import test_raster
import test_raster_gpu
import tiny_models as tiny
import torch
from test_harmonics import of_each_view
from torch import Tensor
from waiting import until

from sdlab import cli, headless, raster
from sdlab import step as one_step
from sdlab.bench import gpu as bench
from sdlab.bench import sessions
from sdlab.bench.losses import entries
from sdlab.live.building import read_under
from sdlab.live.diary import changes_in
from sdlab.live.manager import Manager, PriorPool
from sdlab.live.messages import Compare, Failed, Goto, Patch, Rejected, Resume, Skipped, Stepped, Stop
from sdlab.live.session import Session
from sdlab.losses.sds import SDS
from sdlab.priors import spaces
from sdlab.priors.diffusers import DiffusersModel
from sdlab.raster import tiled
from sdlab.rng import StepRng
from sdlab.scenes import splats
from sdlab.settings import Settings, preset
from sdlab.step import needs_warm_up, step
from sdlab.transfer import download, upload
from sdlab.volume import marching

pytestmark = pytest.mark.slow
ENTRIES = {entry.label: entry for entry in entries(preset("dreamfusion"))}
RARE = ("esd (copy)", "asd (copy)")  # vsd's copy is the same network
SHORT = [(f"losses.{name}.warm_up", 1) for name in ("vsd", "esd", "asd", "vdm")]
SHORT += [("losses.sdi.inversion_steps", 3), ("losses.jsd.inversion_steps", 2), ("losses.ism.inversion_steps", 2)]


@pytest.fixture(scope="module")
def gpu():
    """The pretended device, seen by this thread, with gsplat's own Python over emulated kernels."""
    with pytest.MonkeyPatch.context() as patch:
        rehearsal = pretended.install(patch)
        own = emulated_gsplat.without_gsplat()
        emulated_gsplat.install()
        patch.setattr(one_step, "DENSIFY_PAUSE", 1)
        patch.setattr(marching, "_on_cuda", lambda: marching.TORCH)  # nerfacc, if installed, would compile itself
        try:
            with rehearsal.on():
                yield rehearsal
        finally:
            emulated_gsplat.without_gsplat()
            sys.modules.update(own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.latent_model(tmp_path_factory.mktemp("prior") / "m")


@pytest.fixture(scope="module")
def base(folder) -> Settings:
    small = [
        ("prior.path", str(folder)),
        ("prior.precision", "fp32"),  # the network computes in float32, its VAE in half precision as on a GPU
        ("prior.vae_precision", "fp16"),
        ("scene.n_init", 20),
        ("scene.max_gaussians", 40),
        ("scene.densify_every", 0),
        ("camera.views", 2),
        ("steps", 1000),
        ("optim.ramp", 0),
    ]
    return preset("dreamfusion").patch_all([*small, *SHORT])


@pytest.fixture(scope="module")
def simple() -> Settings:
    """Settings with an exact prior of pixels, whose steps take less time."""
    return preset("mixture").patch_all([("scene.n_init", 20), ("scene.max_gaussians", 40), ("scene.densify_every", 0)])


@pytest.fixture(scope="module")
def load():
    pool = PriorPool()
    kept = []  # a pool for a GPU keeps only the last

    def get(config, device, progress):
        kept.append(pool.get(config, device, progress))
        return kept[-1]

    return get


@pytest.fixture
def new(gpu, base, load):
    """Called with changes of settings, returns a session on the pretended device."""
    made: list[tuple[Session, list]] = []

    def make(*changes, settings=None, **more) -> Session:
        session = Session((settings or base).patch_all(list(changes)), "cuda", load, **more)
        bad: list = []
        session.listen(lambda e: bad.append(e) if isinstance(e, (Failed, Rejected, Skipped)) else None)
        made.append((session, bad))
        return session

    make.forgive = lambda: made.clear()
    yield make
    assert [e for _, bad in made for e in bad] == []


def ready(session: Session) -> Session:
    """Take three steps, with which everything is built and warm, and embed all texts that steps can request."""
    session.run(until=session.state.step + 3 if session._run.state is not None else 3)
    assert not needs_warm_up(session.state, session.effective)
    for text in read_under(session.effective):
        session.bank._embed(text)
    return session


def one_more(session: Session) -> None:
    step(session.state, session.effective, session.prior, session.bank)


def tensors_of(node: object) -> list[Tensor]:
    if isinstance(node, Tensor):
        return [node]
    values = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    return [t for value in values for t in tensors_of(value)]


def all_on_cuda(session: Session) -> bool:
    state = session.state
    held = [*state.scene.params.values(), *(t for m in state.optim._adam.state.values() for t in tensors_of(m))]
    active = state.aux.get(session.effective.loss.aux_name())
    if active is not None:
        held += [*active._named.values(), *(t for m in active._adam.state.values() for t in tensors_of(m))]
    return all(pretended.is_cuda(t) for t in held)


# ---- a step of every loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [pytest.param(x, marks=[pytest.mark.nightly] if x in RARE else []) for x in ENTRIES])
def test_a_step_of_every_loss_waits_for_gsplat_only(label, gpu, new, monkeypatch):
    monkeypatch.setattr(spaces, "CHECKED_AT_ONCE", 0)
    entry = ENTRIES[label]
    network = [(f"losses.{entry.loss}.network", entry.network)] if entry.network else []
    session = ready(new(("active", entry.loss), *network))
    waits = gpu.waits(lambda: one_more(session))
    renders = 2 if session.effective.loss.needs_reference else 1
    assert pretended.counted(waits) == {"gsplat read": renders}
    assert all_on_cuda(session)


@pytest.mark.parametrize(
    "changes",
    [
        [("guidance.perp_neg", True), ("guidance.rescale", 0.5), ("optim.grad_rms", 1.0), ("optim.grad_clip", 1.0)],
        [("prior.low_memory", True)],
        [("scene.density", "mcmc"), ("scene.densify_every", 500)],
    ],
)
def test_options_of_a_step_wait_no_more(changes, gpu, new, monkeypatch):
    monkeypatch.setattr(spaces, "CHECKED_AT_ONCE", 0)
    session = ready(new(*changes))
    assert pretended.counted(gpu.waits(lambda: one_more(session))) == {"gsplat read": 1}


@pytest.fixture(scope="module")
def volume(base) -> Settings:
    """Settings with a volume that has all penalties."""
    same = [(path, getattr(base.prior, path.partition(".")[2])) for path in base.knobs() if path.startswith("prior.")]
    small = [("scene.resolution", 16), ("scene.channels", 4), ("scene.hidden", 8), ("scene.samples", 24)]
    small += [("scene.empty_every", 1), ("camera.views", 2), ("camera.resolution", 16)]
    penalties = [(f"scene.{name}", 0.1) for name in ("sparsity", "opaqueness", "orientation")]
    return preset("prolificdreamer-nerf").patch_all([*same, *small, *penalties, *SHORT])


@pytest.mark.parametrize("loss", ["sds", "vsd"])
def test_a_step_of_a_volume_waits_for_its_lists_of_samples_only(loss, gpu, new, volume, monkeypatch):
    monkeypatch.setattr(spaces, "CHECKED_AT_ONCE", 0)
    session = ready(new(("active", loss), settings=volume))
    waits = pretended.counted(gpu.waits(lambda: one_more(session)))
    assert sorted(where.split(":")[0] for where in waits) == ["scenes/field.py", "volume/rays.py"]
    assert set(waits.values()) == {1}
    assert all_on_cuda(session)


def test_a_step_computes_what_it_does_on_a_cpu(gpu, folder):
    """Images need no rasteriser; what is left is how convolutions round in another memory format."""
    s = preset("prolificdreamer-2d").patch_all(
        [("prior.path", str(folder)), ("prior.precision", "fp32"), ("prior.engine", "torch"), ("scene.n", 2), *SHORT]
    )
    for loss in ("sds", "vsd"):
        found = []
        for device in ("cpu", "cuda"):
            session = Session(s.patch("active", loss), device)
            session.run(until=3)
            latents = session.state.scene.params["latents"].detach()
            assert pretended.is_cuda(latents) == (device == "cuda")
            found.append(latents.cpu())
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("module", [splats, one_step], ids=["cameras and background", "timesteps"])
def test_a_planted_mismatch_is_found(module, new, monkeypatch):
    """Tensors that stay on the CPU."""
    monkeypatch.setattr(module, "upload", lambda x, device: x)
    with pytest.raises(RuntimeError, match="CPU"):
        new().run(until=1)
    new.forgive()


def _in_pageable_memory(patch):
    patch.setattr(splats, "upload", lambda x, device: x.to(device))


def _a_number_read_in_a_loss(patch):
    original = SDS.gradient

    def gradient(self, x, model, aux):
        found = original(self, x, model, aux)
        assert float(found.residual.abs().amax()) >= 0
        return found

    patch.setattr(SDS, "gradient", gradient)


@pytest.mark.parametrize("plant", [_in_pageable_memory, _a_number_read_in_a_loss])
def test_a_planted_wait_is_found(plant, gpu, new, monkeypatch):
    monkeypatch.setattr(spaces, "CHECKED_AT_ONCE", 0)
    session = ready(new())
    plant(monkeypatch)
    waits = pretended.counted(gpu.waits(lambda: one_more(session)))
    waits.pop("gsplat read")
    assert sum(waits.values()) in (1, 3)
    assert all("upload" in where or "read" in where for where in waits)


# ---- gsplat ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [*test_raster.CASES, of_each_view])
def test_gsplats_own_python_agrees_with_the_oracle(build, gpu):
    """The contract with gsplat: layouts, conventions, gradients. Its CUDA kernels are emulated."""
    test_raster_gpu.assert_agreement("reference", build)


def test_the_pretended_gpu_draws_with_gsplat(gpu):
    assert raster.backend_for("cuda") == ("gsplat", "")
    assert raster.announcement_for("cuda") == ""


def test_plain_torch_draws_on_a_gpu_in_few_batches(gpu, monkeypatch):
    case, batches = test_raster.shell(), []
    original = tiled._batches
    monkeypatch.setattr(tiled, "_batches", lambda *how: batches.append(original(*how)) or batches[-1])
    monkeypatch.setattr(tiled, "BATCH_ELEMENTS", 1 << 12)
    here = case.render(tiled.rasterize, case.inputs(torch.float32))
    _, there = test_raster_gpu.on_cuda(case, case.inputs(torch.float32), "tiled")
    assert pretended.is_cuda(there.rgb)
    torch.testing.assert_close(there.rgb.cpu(), here.rgb)
    many, few = (len(b) for b in batches)
    assert 4 * few < many


# ---- a run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["share", "threshold", "mcmc"])
def test_density_control_runs_on_the_gpu(rule, gpu, new, simple):
    often = [("scene.densify_every", 2), ("scene.densify_from", 0.0), ("scene.densify_until", 1.0)]
    kind = [("scene.density", rule), ("scene.opacity_reset_every", 3), ("scene.densify_threshold", 0.0)]
    session = new(*kind, *often, settings=simple)
    session.run(until=6)
    scene = session.state.scene
    assert len(scene.params["means"]) > 20
    assert all_on_cuda(session)
    assert pretended.is_cuda(scene._density.pull)
    waits = gpu.waits(lambda: scene.densify(0.5, 8, session.state.optim, StepRng(0, 8)))
    assert 0 < len(waits) <= 10, "however many copies a Gaussian gets"
    assert "upload" not in {wait.kind for wait in waits}


def test_losses_toggle_and_what_is_parked_leaves_the_gpu(new):
    session = new()
    order = ("vsd", "vdm", "dds", "vsd", "sds")
    for i, loss in enumerate(order):
        session.plan(1 + 2 * i, Patch.one("active", loss))
    session.run(until=2 + 2 * len(order))
    assert {"score", "vdm"} <= session.state.aux.keys()
    for name, aux in session.state.aux.items():
        held = [*aux._named.values(), *(t for m in aux._adam.state.values() for t in tensors_of(m))]
        assert not any(pretended.is_cuda(t) for t in held), name
        assert all(p.grad is None for p in aux._named.values()), "a gradient is as large as its parameter"
    assert session.state.aux["vdm"]._answer is None, "its graph would keep activations on the GPU"
    assert all_on_cuda(session)


def test_a_checkpoint_resumes_on_the_gpu_and_goes_on_with_other_losses(new, tmp_path):
    session = new(("active", "vsd"))
    session.run(until=2)
    session.save(tmp_path)
    resumed = new()
    resumed.prepare()
    resumed.restore(tmp_path)
    assert resumed.state.step == 2
    resumed.run(until=4)
    assert all_on_cuda(resumed)
    resumed.do(Patch.one("active", "vdm"))
    resumed.run(until=6)
    assert all_on_cuda(resumed)


def test_the_timeline_and_a_branch_go_on_from_the_gpu(new):
    session = new(("active", "vsd"))
    session.run(until=3)
    session.do(Goto(0))
    assert session.state.step == 0
    session.do(Resume())
    session.run(until=2)
    assert all_on_cuda(session)
    origin: Future = Future()
    origin.set_result(session.fork())
    child = new(origin=origin)
    child.run(until=3)
    assert all_on_cuda(child)


def test_a_moment_is_copied_in_a_few_pieces(gpu, new):
    session = new(("active", "vsd"))
    session.run(until=2)
    tensors = tensors_of({"aux": session.state.aux["score"].state_dict(), "scene": session.state.scene.state_dict()})
    assert len(tensors) > 100
    waits = gpu.waits(lambda: session.moment())
    assert len(waits) < 10
    for here, there in zip(download(tensors), tensors, strict=True):
        assert not pretended.is_cuda(here)
        assert torch.equal(here, there.cpu())
        assert here.untyped_storage().nbytes() == here.nbytes, "a view of a joint copy would keep it alive"


def test_the_lens_and_the_comparison_look_at_a_run_on_the_gpu(new, monkeypatch):
    decoded = []
    original = spaces._image
    monkeypatch.setattr(spaces, "_image", lambda vae, z: decoded.append(len(z)) or original(vae, z))
    session = new()
    session._watching.watch(session._run, 0, None)
    for loss in ("sds", "vsd"):
        session.do(Patch.one("active", loss))
        session.run(until=session._run.step + 2)
        for t in (None, 500):
            session._watching.watch(session._run, 0, t)
            seen = session.lens.get()
            assert seen is not None
            assert seen.reason == ""
            assert len(seen.labels) >= 6
    assert decoded
    assert max(decoded) <= spaces.DECODED_AT_ONCE
    session._watching.watch(session._run, None, None)
    session.do(Compare())
    while session._watching.comparing:
        session._watching.compare_on()
    compared = session.comparison.get()
    assert compared is not None
    assert len(compared.losses) == len(session.settings.losses)


@pytest.mark.parametrize("kind", ["simple", "volume"])
def test_results_are_exported_from_the_gpu(kind, new, request, tmp_path):
    session = new(settings=request.getfixturevalue(kind))
    session.run(until=1)
    names = {file.name for file in session.export(tmp_path, 16)}
    assert {"scene.ply", "turntable.mp4"} <= names
    assert session.material().result(60).splats is not None


@pytest.mark.parametrize("name", ["prolificdreamer-2d", "playground-esd", "playground-gaussian", "mixture"])
def test_other_scenes_and_priors_run_on_the_gpu(name, folder, new):
    s = preset(name)
    more = [("prior.path", str(folder)), ("scene.n", 2)] if name == "prolificdreamer-2d" else []
    more += [("scene.n_init", 20)] if name == "mixture" else []
    short = [c for c in SHORT if c[0].split(".")[1] == s.active]
    session = new(*more, *short, settings=s)
    session.run(until=2)
    session._watching.watch(session._run, 0, None)
    assert session.lens.get().reason == ""


# ---- what a GPU decides by itself --------------------------------------------------------------------------------


def _spoilt(monkeypatch, number: int, session: Session) -> None:
    """Let the network's answer in step `number` be infinite."""
    original = DiffusersModel.eps

    def eps(self, z_t, t, cond):
        out = original(self, z_t, t, cond)
        return out * float("inf") if session._run.step == number else out

    monkeypatch.setattr(DiffusersModel, "eps", eps)


def test_a_gpu_skips_an_update_by_itself_and_tells_later(gpu, new, monkeypatch):
    monkeypatch.setattr(spaces, "CHECKED_AT_ONCE", 0)
    session = new(("scene.densify_every", 500))
    ready(session)
    state, number = session.state, session.state.step

    def everything() -> list[Tensor]:
        moments = [t for m in state.optim._adam.state.values() for t in tensors_of(m)]
        return [t.detach().cpu() for t in (*state.scene.params.values(), *moments, state.scene._density.pull)]

    before = everything()
    _spoilt(monkeypatch, number, session)
    assert pretended.counted(gpu.waits(lambda: one_more(session))) == {"gsplat read": 1}
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    assert (state.step, state.skipped, len(state.unread)) == (number + 1, 0, 1), "nobody has asked yet"
    one_more(session)
    assert not all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    state.read_verdicts()
    assert state.skipped == 1
    assert state.skips[0][0] == number
    assert state.skips[0][1].startswith("residual of sds at t = [")


def test_a_skipped_update_is_reported_with_the_next_statistics(new, monkeypatch):
    session, heard = new(), []
    session.listen(heard.append)
    _spoilt(monkeypatch, 1, session)
    session.run(until=4)
    skipped = [e for e in heard if isinstance(e, Skipped)]
    assert [e.step for e in skipped] == [1]
    assert heard.index(skipped[0]) < max(i for i, e in enumerate(heard) if isinstance(e, Stepped))
    assert session.state.skipped == 1
    assert session.moment().parts["session"]["skipped"] == 1
    new.forgive()


def test_a_gradient_that_is_not_finite_is_named(new, monkeypatch):
    session = ready(new())
    original = splats.SplatScene.regulariser
    monkeypatch.setattr(splats.SplatScene, "regulariser", lambda self, render: original(self, render) * float("inf"))
    one_more(session)
    session.state.read_verdicts()
    assert session.state.skips[0][1] == "gradient of opacity_logits"


def test_a_vae_that_overflows_on_a_gpu_costs_one_step(new, folder, monkeypatch):
    monkeypatch.setattr(spaces, "CHECKED_AT_ONCE", 0)
    alone = PriorPool()
    session = Session(new().settings, "cuda", alone.get)
    session.run(until=2)
    space = session.prior.space
    assert next(space.model.parameters()).dtype == torch.float16
    original = spaces._mean
    monkeypatch.setattr(
        spaces, "_mean", lambda vae, x: original(vae, x) * (1.0 if x.dtype == torch.float32 else float("inf"))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session.run(until=6)
    assert session.state.skipped <= 1
    assert "overflows in float16" in space.note
    assert next(space.model.parameters()).dtype == torch.float32
    assert pretended.is_cuda(next(space.model.parameters()))


# ---- memory ------------------------------------------------------------------------------------------------------


def test_a_switch_to_low_memory_keeps_one_network_on_the_gpu(gpu, base):
    """As the advice for a full GPU says."""
    pool = PriorPool()
    session = Session(base, "cuda", pool.get)
    session.run(until=1)
    before = session.prior
    session.do(Patch.one("prior.low_memory", True))
    assert session.prior is not before
    assert session.prior.unet is before.unet, "a second one might not fit, not even for a moment"
    session.run(until=2)
    del before
    gc.collect()
    assert list(pool._loaded.values()) == [session.prior]
    assert len([p for p in gc.get_objects() if isinstance(p, DiffusersModel) and p.name == session.prior.name]) >= 1
    assert len(list(pool._alive.values())) == 1


# ---- counting steps ----------------------------------------------------------------------------------------------


def test_every_step_is_told_to_those_who_count(new, simple):
    session, counted, heard = new(settings=simple), [], []
    session.listen_to_steps(counted.append)
    session.listen(lambda e: heard.append(e.step) if isinstance(e, Stepped) else None)
    session.run(until=13)
    assert counted == list(range(1, 14))
    assert heard == [10, 13], "statistics cost a wait"


def test_a_run_on_the_gpu_is_kept_and_replayed_to_its_last_step(gpu, simple, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(headless, "CHECKPOINT_EVERY", 0.0)
    saved = []
    original = Session.save
    monkeypatch.setattr(Session, "save", lambda self, *how: saved.append(self.state.step) or original(self, *how))
    headless.run(simple.patch("steps", 3), torch.device("cuda"), tmp_path / "run", "dreamfusion", 16, [])
    assert saved == [1, 2, 3, 3]
    assert changes_in(tmp_path / "run" / "metrics.jsonl") == ([], 3)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], result["rasteriser"], result["device"]) == (3, "gsplat", "cuda")


def test_the_benchmark_of_sessions_counts_every_step(gpu, simple):
    with pytest.MonkeyPatch.context() as patch:
        pretended.in_every_session(patch, gpu)
        manager = Manager("cuda", 1)
        try:
            seat = manager.open(simple)
            counter = sessions._Counter(seat)
            seat.session.send(Resume())
            until(lambda: counter.steps >= 4)
            seat.session.send(Stop())
            seat.thread.join(60)
            assert counter.steps == seat.session.state.step
        finally:
            manager.shutdown()


def test_the_benchmark_for_gpus_counts_steps(gpu, tmp_path, monkeypatch):
    for name, value in (("VIEWS", (1,)), ("GAUSSIANS", (20,)), ("WARM_UP", 1)):
        monkeypatch.setattr(bench, name, value)
    small = [("scene.n_init", 20), ("scene.max_gaussians", 40)]
    monkeypatch.setattr(bench, "preset", lambda name: preset(name).patch_all(small))
    monkeypatch.setattr(bench, "entries", lambda s: [e for e in entries(s) if e.loss == "sds"])
    monkeypatch.setattr(bench, "_rasterisers", lambda *_: [])  # 512 x 512 pixels are too many for the emulation
    monkeypatch.setattr(sessions, "WARM_UP", 1)
    monkeypatch.setattr(sessions, "SECONDS_QUICK", 0.1)
    seats, count = [], sessions._Counter
    monkeypatch.setattr(sessions, "_Counter", lambda seat: seats.append((seat, count(seat))) or seats[-1][1])
    pretended.in_every_session(monkeypatch, gpu)
    out = tmp_path / "gpu.json"
    assert cli.main(["bench", "gpu", "--size", "tiny", "--device", "cuda", "--quick", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["device"] == "a pretended GPU"
    assert [row["evaluations"] for row in result["losses"]] == [2]
    assert [seat["sessions"] for seat in result["sessions"]["rows"]] == [1, 2]
    assert len(seats) == 6
    assert all(counter.steps == seat.session.state.step >= 1 for seat, counter in seats)


def test_times_of_launches_are_called_so_on_the_page(new, simple):
    from sdlab.ui.charts import charts

    session, heard = new(settings=simple), []
    session.listen(lambda e: heard.append(e.stats) if isinstance(e, Stepped) else None)
    session.run(until=1)
    assert heard[-1]["launch_times"] == 1
    assert "which it does later" in charts([], [], {}, heard[-1])
    assert "which it does later" not in charts([], [], {}, {k: v for k, v in heard[-1].items() if k != "launch_times"})


def test_what_is_uploaded_arrives(gpu):
    x = torch.arange(6.0)
    assert not gpu.waits(lambda: upload(x, torch.device("cuda")))
    there = upload(x, torch.device("cuda"))
    assert pretended.is_cuda(there)
    assert torch.equal(there.cpu(), x)
    assert upload(x, torch.device("cpu")) is x
    assert Counter(w.kind for w in gpu.waits(lambda: x.to("cuda"))) == {"upload": 1}
