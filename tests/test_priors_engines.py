"""Engines: OpenVINO against torch, a damaged cache, and the fallback when an engine cannot run."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
import torch

from sdlab.auxiliary.score import Score
from sdlab.priors import cache as networks
from sdlab.priors import choice, openvino
from sdlab.priors.cache import SealedFolder
from sdlab.priors.choice import choose_engine
from sdlab.priors.diffusers import DiffusersModel, DiffusersPrior
from sdlab.priors.engines import EngineFailure, Shapes, TorchEngine
from sdlab.rng import StepRng
from sdlab.types import cat_conds

CPU = torch.device("cpu")

try:
    openvino.library()
    missing = ""
except EngineFailure as e:
    missing = str(e)

needs_openvino = pytest.mark.skipif(bool(missing), reason=missing)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.pixel_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def filled_cache(tmp_path_factory, folder) -> Path:
    """A cache with the converted model; made once, because the conversion takes seconds."""
    place = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDLAB_CACHE", str(place))
        for precision in ("fp32", "bf16"):
            load(folder, precision=precision).prepare([2, 4])
    return place


@pytest.fixture
def cache(filled_cache, tmp_path, monkeypatch) -> Path:
    """A copy of the filled cache, set as the current one."""
    monkeypatch.setenv("SDLAB_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(filled_cache, tmp_path / "cache"))


@pytest.fixture
def quick_convert(filled_cache, monkeypatch) -> list[Shapes]:
    """Replace the conversion by a copy of an earlier result; returns the list of calls."""
    network = next(filled_cache.rglob("network"))
    packed = SealedFolder(network.parent).read("network")
    assert packed is not None
    n = int.from_bytes(packed[:8], "big")
    core, converted = openvino.library().Core(), []

    def convert(unet, shapes):
        converted.append(shapes)
        return core.read_model(packed[8 : 8 + n], packed[8 + n :])

    monkeypatch.setattr(openvino, "convert", convert)
    return converted


@pytest.fixture
def never_convert(monkeypatch):
    def convert(unet, shapes):
        raise AssertionError("converted again")

    monkeypatch.setattr(openvino, "convert", convert)


def load(folder: Path, **knobs) -> DiffusersModel:
    return DiffusersPrior(path=str(folder), **({"engine": "openvino", "precision": "fp32"} | knobs)).load(CPU)


def question(model: DiffusersModel, n: int):
    z_t = torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(n))
    texts = ["a red bear", "", "a blue cat, side view", "a car"]
    return z_t, torch.linspace(0, 999, n).long(), cat_conds([model.embed(texts[i % 4]) for i in range(n)])


def relative_error(model: DiffusersModel, reference: DiffusersModel, batch: int) -> float:
    """Compare eps with that of `reference`, making sure that the model did not fall back to another engine."""
    asked, engine = question(reference, batch), model.engine_name
    a, b = model.eps(*asked), reference.eps(*asked)
    assert (model.engine_name, model.engine_note) == (engine, "")
    return ((a - b).norm() / b.norm()).item()


def files(cache: Path) -> list[Path]:
    return sorted(f for f in cache.rglob("*") if f.is_file())


# ---- the same answers -------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("batch", [2, 4])
def test_openvino_in_float32_agrees_with_torch(folder, cache, batch):
    reference, model = load(folder, engine="torch"), load(folder)
    assert model.engine_name == "openvino fp32"
    assert relative_error(model, reference, batch) < 1e-4


@needs_openvino
@pytest.mark.skipif(not choice.cpu_has_bf16(), reason="this processor does not compute in bf16")
@pytest.mark.parametrize("batch", [2, 4])
def test_openvino_in_bf16_is_close_to_torch(folder, cache, batch):
    reference, model = load(folder, engine="torch"), load(folder, precision="auto")
    assert model.engine_name == "openvino bf16"
    assert 1e-5 < relative_error(model, reference, batch) < 2e-2


@needs_openvino
def test_late_timesteps_differ_in_bf16(folder, cache):
    reference, model = load(folder, engine="torch"), load(folder, precision="bf16")
    z_t, _, cond = question(model, 2)
    for late in (257, 513, 998):  # integers that bf16 cannot represent
        late_t = torch.tensor([late, late])
        asked, next_asked = (z_t, late_t, cond), (z_t, late_t + 1, cond)
        assert not torch.equal(model.eps(*asked), model.eps(*next_asked))
        expected = reference.eps(*asked)
        assert ((model.eps(*asked) - expected).norm() / expected.norm()).item() < 2e-2


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("modulated", [False, True])
def test_a_network_on_blocks_of_pixels_that_predicts_v_agrees_with_torch(modulated, tmp_path, monkeypatch):
    """With the cosine schedule, where alpha is nearly 0 at the end, so v is compared image by image.

    OpenVINO 2026.4 crashes on modulated norms in float32 unless its subgraph compiler is off.
    """
    monkeypatch.setenv("SDLAB_CACHE", str(tmp_path / "cache"))
    knobs = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
    folder = tiny.pixel_model(tmp_path / "tiny", patch=2, modulated=modulated, **knobs)
    reference = load(folder, engine="torch")
    z_t, t, cond = question(reference, 4)
    alpha, sigma = reference.marginal(t)
    with torch.no_grad():
        v = reference.unet(z_t, t, encoder_hidden_states=cond.hidden).sample
    allowed = {"fp32": 1e-4, "bf16": 2e-2} if choice.cpu_has_bf16() else {"fp32": 1e-4}
    for precision in (*allowed, *allowed):  # compiled first, then read from the cache
        model = load(folder, precision=precision)
        off = (model.eps(z_t, t, cond) - (alpha * v + sigma * z_t)).flatten(1).norm(dim=1)
        assert (model.shape, model.engine_name, model.engine_note) == ((12, 4, 4), f"openvino {precision}", "")
        assert (off < allowed[precision] * alpha.flatten() * v.flatten(1).norm(dim=1) + 1e-5).all()


def test_torch_in_bf16_is_close_to_float32_and_keeps_the_weights(folder):
    reference, model = load(folder, engine="torch"), load(folder, engine="torch", precision="bf16")
    assert model.unet.conv_in.weight.dtype == torch.float32
    if choice.cpu_has_bf16():
        assert 1e-5 < relative_error(model, reference, 4) < 2e-2
    else:
        assert "does not compute in bf16, using fp32 instead" in model.engine_note


@needs_openvino
def test_answers_do_not_share_memory(folder, cache):
    model = load(folder)
    z_t, t, cond = question(model, 2)
    first = model.eps(z_t, t, cond)
    kept = first.clone()
    model.eps(-z_t, t, cond)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


@needs_openvino
def test_strided_inputs_are_understood(folder, cache):
    model = load(folder)
    z_t, t, cond = question(model, 2)
    turned = z_t.transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(model.eps(turned, t, cond), model.eps(z_t, t, cond), rtol=0, atol=0)


@needs_openvino
def test_threads_share_one_engine(folder, cache):
    model = load(folder)
    asked = [question(model, n) for n in (2, 4, 3)] * 4
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda q: model.eps(*q), asked))
    for q, answer in zip(asked, answers, strict=True):
        torch.testing.assert_close(answer, model.eps(*q), rtol=0, atol=0)


# ---- trainable networks -----------------------------------------------------------------------------------------


def learner(model: DiffusersModel, how: str) -> Score:
    """A psi whose weights differ from the model's."""
    psi = Score(model, how, 4, 1e-2, StepRng(0, -1))
    move(psi, 1)
    return psi


def move(psi: Score, seed: int) -> None:
    """Change the weights in place, as a training step does."""
    state = psi.state_dict()
    generator = torch.Generator().manual_seed(seed)
    for p in state["net"].values():
        p.add_(0.05 * torch.randn(p.shape, generator=generator))
    psi.load_state_dict(state)


def training_step(psi: Score, model: DiffusersModel) -> None:
    net: Any = psi.net
    z_t, t, cond = question(model, 2)
    psi.descend(net.predict(z_t, t, cond, torch.ones(2, 16)).square().sum(), 1e-2)


def answers(psi: Score, model: DiffusersModel, n: int, by_openvino: bool = True) -> torch.Tensor:
    """Return native predictions, by OpenVINO (which must not fail) or by torch in float32."""
    z_t, t, cond = question(model, n)
    camera = torch.randn(n, 16, generator=torch.Generator().manual_seed(n))
    net: Any = psi.net
    network = net.network
    inference, autocast = network.inference, network.autocast
    if not by_openvino:
        network.inference = network.autocast = None
    with torch.no_grad():
        answer = net.predict(z_t, t, cond, camera)
    assert not by_openvino or network.inference is not None
    network.inference, network.autocast = inference, autocast
    return answer


def off(psi: Score, model: DiffusersModel, n: int) -> float:
    expected = answers(psi, model, n, by_openvino=False)
    return ((answers(psi, model, n) - expected).norm() / expected.norm()).item()


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize(
    ("how", "precision", "modulated"), [("copy", "fp32", False), ("copy", "auto", True), ("lora", "fp32", True)]
)
def test_openvino_evaluates_a_network_in_training(how, precision, modulated, tmp_path, monkeypatch):
    """Also after a training step, after loading a state, and when the weights have moved in memory."""
    monkeypatch.setenv("SDLAB_CACHE", str(tmp_path / "cache"))
    model = load(tiny.pixel_model(tmp_path / "tiny", modulated=modulated), precision=precision)
    allowed = {"openvino fp32": 1e-4, "openvino bf16": 2e-2}[model.engine_name]
    psi = learner(model, how)
    before = answers(psi, model, 2)
    assert off(psi, model, 2) < allowed
    training_step(psi, model)
    after = answers(psi, model, 2)
    assert (after - before).norm() > 2 * allowed * before.norm()
    assert off(psi, model, 2) < allowed
    move(psi, 2)
    assert off(psi, model, 4) < allowed
    for p in psi.net.parameters():
        p.data = p.data.clone()
    psi.to(CPU)
    move(psi, 3)
    assert off(psi, model, 2) < allowed
    assert off(psi, model, 4) < allowed


@pytest.mark.slow
@needs_openvino
def test_two_networks_in_training_do_not_share_weights(folder, cache):
    model = load(folder)
    one, other = learner(model, "copy"), learner(model, "copy")
    move(other, 5)
    for psi in (one, other, one):
        assert off(psi, model, 2) < 1e-4


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("how", ["copy", "lora"])
def test_a_network_in_training_is_converted_once(how, folder, cache, monkeypatch):
    model = load(folder)
    answers(learner(model, how), model, 2)

    def convert(network, example):
        raise AssertionError("converted again")

    monkeypatch.setattr(openvino, "convert", convert)
    psi = learner(load(folder), how)
    move(psi, 7)
    assert off(psi, model, 2) < 1e-4


@needs_openvino
def test_torch_is_the_fallback_for_a_network_in_training_that_cannot_be_converted(folder, cache, monkeypatch, caplog):
    def convert(network, example):
        raise RuntimeError("no such operation\nand a long trace")

    monkeypatch.setattr(openvino, "convert", convert)
    model = load(folder)
    net: Any = learner(model, "copy").net
    z_t, t, cond = question(model, 2)
    with torch.no_grad():
        answer = net.predict(z_t, t, cond, torch.ones(2, 16))
    assert "could not convert the network in training (no such operation), using torch instead" in caplog.text
    assert torch.equal(answer, net.predict(z_t, t, cond, torch.ones(2, 16)))
    assert model.engine_name == "openvino fp32", "the prior itself still runs in OpenVINO"


def test_without_openvino_torch_evaluates_a_network_in_training(folder):
    net: Any = learner(load(folder, engine="torch"), "copy").net
    assert net.network.inference is None


# ---- the cache --------------------------------------------------------------------------------------------------


@needs_openvino
def test_the_second_start_converts_and_compiles_nothing(folder, cache, never_convert, monkeypatch):
    before = {f: f.stat().st_mtime_ns for f in files(cache)}
    assert len(before) == 1 + 2 * 2  # the network; two precisions of two batch sizes
    said: list[str] = []
    model = DiffusersPrior(path=str(folder), engine="openvino", precision="fp32").load(CPU, said.append)
    model.prepare([4, 2])
    assert (model.engine_name, model.engine_note) == ("openvino fp32", "")
    assert not any("converting" in text for text in said)
    assert {f: f.stat().st_mtime_ns for f in files(cache)} == before
    model.prepare([3])
    assert len(files(cache)) == len(before) + 1


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"", lambda b: b[:500] + b"?" + b[501:]])
def test_damaged_files_are_rewritten(folder, cache, quick_convert, damage):
    reference = load(folder, engine="torch")
    whole = {f: f.read_bytes() for f in files(cache)}
    for file, contents in whole.items():
        file.write_bytes(damage(contents))
    model = load(folder)
    assert model.engine_name == "openvino fp32"
    assert relative_error(model, reference, 2) < 1e-4
    assert len(quick_convert) == 1
    mended = [f for f in whole if f.read_bytes() != damage(whole[f])]
    assert len(mended) == 2  # the network and the one compiled model that was needed
    assert not list(cache.rglob("*.part"))


@needs_openvino
def test_complete_files_of_something_else_are_rewritten(folder, cache, quick_convert):
    for file in files(cache):
        SealedFolder(file.parent).write(file.name, b"\0\0\0\0\0\0\0\4 not a network")
    reference = load(folder, engine="torch")
    model = load(folder)
    assert model.engine_name == "openvino fp32"
    assert relative_error(model, reference, 2) < 1e-4


@pytest.mark.slow
@needs_openvino
def test_a_read_only_cache_only_costs_time(folder, quick_convert, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SDLAB_CACHE", str(tmp_path / "file"))
    reference, model = load(folder, engine="torch"), load(folder)
    assert model.engine_name == "openvino fp32"
    assert relative_error(model, reference, 2) < 1e-4
    assert "set SDLAB_CACHE" in caplog.text


def test_a_sealed_file_is_complete_or_absent(tmp_path):
    folder = SealedFolder(tmp_path / "deep" / "folder")
    assert folder.read("x") is None
    folder.write("x", b"contents")
    assert folder.read("x") == b"contents"
    folder.write("x", b"")
    assert folder.read("x") == b""
    assert [f.name for f in folder.folder.iterdir()] == ["x"]


def test_the_key_follows_weights_and_configuration_not_place(tmp_path):
    config = {"width": 8, "_name_or_path": "here"}
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").write_bytes(b"weights")
    (tmp_path / "c").write_bytes(b"Weights")
    key = networks.network_key(config, [tmp_path / "a"])
    assert key == networks.network_key(config | {"_name_or_path": "there"}, [tmp_path / "b"])
    assert key != networks.network_key(config, [tmp_path / "c"])
    assert key != networks.network_key(config | {"width": 9}, [tmp_path / "a"])


def test_only_the_most_recently_used_networks_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SDLAB_CACHE", str(tmp_path))
    for age, name in enumerate(["now", "recent", "old"]):
        folder = SealedFolder(tmp_path / "openvino" / name)
        folder.write("network", b"")
        os.utime(folder.folder, (1e9 - age, 1e9 - age))
    SealedFolder(tmp_path / "openvino" / "old").read("network")
    networks.remove_old_networks(keep=2)
    assert {f.name for f in (tmp_path / "openvino").iterdir()} == {"now", "old"}


# ---- choosing and falling back ----------------------------------------------------------------------------------


def test_auto_is_openvino_on_a_cpu(folder, cache):
    assert load(folder, engine="auto").engine_name == ("torch fp32" if missing else "openvino fp32")
    assert (load(folder, engine="torch").engine_name, load(folder, engine="torch").engine_note) == ("torch fp32", "")


def test_without_openvino_torch_runs_and_says_why(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    openvino.library.cache_clear()
    choice.cpu_has_bf16.cache_clear()
    try:
        model = load(folder)
        assert isinstance(choice.cpu_has_bf16(), bool)
    finally:
        openvino.library.cache_clear()
        choice.cpu_has_bf16.cache_clear()
    assert model.engine_name == "torch fp32"
    assert model.engine_note.startswith("OpenVINO is not available (")
    assert model.engine_note.endswith(", using torch instead")


@needs_openvino
def test_a_network_that_cannot_be_converted_runs_in_torch(folder, tmp_path, monkeypatch):
    def convert(unet, shapes):
        raise RuntimeError("no such operation\nand a long trace")

    monkeypatch.setenv("SDLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(openvino, "convert", convert)
    model = load(folder)
    assert model.engine_name == "torch fp32"
    assert model.engine_note == "OpenVINO could not convert the network (no such operation), using torch instead"


@needs_openvino
@pytest.mark.parametrize("early", [True, False])
def test_a_network_that_cannot_be_compiled_continues_in_torch(folder, cache, early, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    reference, model = load(folder, engine="torch"), load(folder)
    asked = question(model, 2)
    monkeypatch.setattr(openvino.Compiler, "load", fail)
    if early:
        model.prepare([2, 4])
        assert model.engine_name == "torch fp32"
    torch.testing.assert_close(model.eps(*asked), reference.eps(*asked))
    assert model.engine_name == "torch fp32"
    assert model.engine_note == "OpenVINO could not compile the network (out of memory), using torch instead"


def test_openvino_runs_only_on_cpus(folder):
    unet = load(folder, engine="torch").unet
    shapes = Shapes((2, 3, 8, 8), (2, tiny.TOKENS, tiny.WIDTH))
    engine, note = choose_engine("openvino", unet, [], shapes, "fp16", torch.device("cuda"))
    assert isinstance(engine, TorchEngine)
    assert note == "OpenVINO runs only on a CPU, not on cuda, using torch instead"
    assert choose_engine("auto", unet, [], shapes, "fp16", torch.device("cuda"))[1] == ""


@pytest.mark.parametrize(("knob", "given"), [("engine", "onnx"), ("precision", "int8")])
def test_an_unknown_choice_is_named(knob, given, folder):
    with pytest.raises(ValueError, match=rf"prior\.{knob} = '{given}': must be one of auto, "):
        load(folder, **{knob: given})


def test_gpus_run_in_half_precision_by_default():
    assert choice.resolve_precision("auto", torch.device("cuda")) == ("fp16", "")
    assert choice.weights_dtype("fp16", torch.device("cuda")) == torch.float16
    assert choice.weights_dtype("bf16", CPU) == torch.float32


@needs_openvino
def test_openvino_reports_nothing_to_its_makers():
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__.endswith("telemetry_stub")
