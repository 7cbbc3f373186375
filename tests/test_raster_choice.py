"""The rasteriser for each device is determined once and reported; CUDA and gsplat are stand-ins here."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_raster import ball

import app
from sdlab import headless, raster
from sdlab.raster import gsplat as back_end
from sdlab.raster import reference, tiled
from sdlab.scenes.splats import Splats

CUDA = torch.device("cuda")
TILED = "Using the 'tiled' rasteriser instead: plain torch, and much slower"
BUILD_FAILS = """
from pathlib import Path
with Path(__file__).with_name("tries").open("a") as tries:
    tries.write("x")
raise RuntimeError("Error building extension 'gsplat_cuda': [1/27] nvcc -c a.cu\\nFAILED: a.o\\na.cu(3): error: no glm")
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch):
    """Simulate a machine with a GPU on which nothing has been determined yet; leave nothing behind for other tests."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    own = _taken_out()
    yield
    _taken_out()
    sys.modules.update(own)


def _taken_out() -> dict[str, ModuleType]:
    """Remove and return gsplat's modules, and clear the cached choices."""
    for known in (raster._backend_for, back_end._missing):
        known.cache_clear()
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "gsplat"}


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, back_end_code: str) -> Path:
    """Install a gsplat package with this `gsplat.cuda._backend`; return the folder of the latter."""
    cuda = folder / "gsplat" / "cuda"
    cuda.mkdir(parents=True)
    (cuda.parent / "__init__.py").touch()
    (cuda / "__init__.py").touch()
    (cuda / "_backend.py").write_text(back_end_code)
    monkeypatch.syspath_prepend(str(folder))
    return cuda


def test_gsplat_that_draws_is_taken_without_a_word(monkeypatch, tmp_path, capsys):
    install(monkeypatch, tmp_path, "_C = object()")
    drawn = []
    monkeypatch.setattr(back_end, "_draw_one", lambda: drawn.append(1))
    for _ in range(3):
        assert raster.backend_for(CUDA) == ("gsplat", "")
    assert raster.backend_for("cuda:1").name == "gsplat"
    assert raster.rasteriser_for(CUDA) is back_end.rasterize
    assert len(drawn) == 1, "determined once"
    app.say_rasteriser(CUDA)
    assert "gsplat on cuda" in capsys.readouterr().out


def test_without_nvcc_it_says_what_to_install(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "_C = None")
    name, note = raster.backend_for(CUDA)
    assert name == "tiled"
    for words in ("nvcc", "CUDA toolkit 13.0", "CUDA_HOME", "docs/deploy.md", TILED):
        assert words in note
    assert raster.rasteriser_for(CUDA) is tiled.rasterize


def test_a_compilation_that_fails_is_explained_and_tried_once(monkeypatch, tmp_path):
    folder = install(monkeypatch, tmp_path, BUILD_FAILS)
    case = ball()
    for _ in range(3):
        name, note = raster.backend_for(CUDA)
        assert name == "tiled"
        assert "a.cu(3): error: no glm" in note
        assert "CUDA toolkit 13.0" in note
        with pytest.raises(RuntimeError, match="no glm"):
            case.render(back_end.rasterize, case.inputs(torch.float32))
    assert (folder / "tries").read_text() == "x", "not for every render"


def test_threads_that_ask_at_once_compile_once(monkeypatch, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    folder = install(monkeypatch, tmp_path, "import time; time.sleep(0.2)" + BUILD_FAILS)
    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(raster.backend_for, [CUDA] * 4))
    assert len(answers) == 1
    assert (folder / "tries").read_text() == "x"


def test_gsplat_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", None)
    assert "`pip install gsplat`" in raster.backend_for(CUDA).note


def test_a_package_that_gsplat_needs_is_named(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "import a_package_that_nobody_has")
    assert "`pip install a_package_that_nobody_has`" in raster.backend_for(CUDA).note


def test_kernels_of_another_card_are_noticed_before_the_first_step(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "_C = object()")

    def no_kernel() -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    monkeypatch.setattr(back_end, "_draw_one", no_kernel)
    name, note = raster.backend_for(CUDA)
    assert name == "tiled"
    assert "no kernel image is available" in note
    assert "torch_extensions" in note


@pytest.mark.parametrize(("opacity", "works"), [(1.0, True), (0.0, False)])
def test_the_trial_looks_at_what_was_drawn(opacity, works, monkeypatch):
    """Another rasteriser stands in for gsplat; it draws what it is given, or nothing."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(
        back_end,
        "_render",
        lambda m, q, s, o, c, *view: reference.rasterize(m, q, s, opacity * o, c, *view),
    )
    if works:
        back_end._draw_one()
    else:
        with pytest.raises(RuntimeError, match="alpha of 0"):
            back_end._draw_one()


def test_the_environments_own_ninja_is_found_though_it_is_not_activated(monkeypatch, tmp_path):
    own = tmp_path / "scripts"
    own.mkdir()
    (own / "ninja").write_text("#!/bin/sh\n")
    (own / "ninja").chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(own))
    monkeypatch.setenv("PATH", str(tmp_path))
    install(monkeypatch, tmp_path, "import shutil; _C = shutil.which('ninja')")
    monkeypatch.setattr(back_end, "_draw_one", lambda: None)
    assert raster.backend_for(CUDA) == ("gsplat", "")
    assert Path(shutil.which("ninja") or "").parent == own


def test_a_card_of_another_maker_gets_plain_torch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert raster.backend_for(CUDA).name == "tiled"
    assert "NVIDIA" in raster.backend_for(CUDA).note


def test_a_processor_has_its_own_and_others_get_plain_torch(monkeypatch):
    assert raster.backend_for("cpu") == ("cpu", "")
    assert raster.backend_for("mps") == ("tiled", "")
    raster._backend_for.cache_clear()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find_spec(name))
    assert raster.backend_for("cpu").name == "tiled"
    assert "pip install numba" in raster.backend_for("cpu").note


def test_the_reason_is_told_at_the_start_and_kept_in_the_result(monkeypatch, tmp_path, capsys):
    install(monkeypatch, tmp_path, "_C = None")
    kept = headless.rasteriser_for(Splats(), CUDA)
    assert kept["rasteriser"] == "tiled"
    assert "nvcc" in kept["rasteriser_note"]
    assert kept["rasteriser_note"] in capsys.readouterr().err
    app.say_rasteriser(CUDA)
    assert kept["rasteriser_note"] in capsys.readouterr().err
    assert headless.rasteriser_for(SimpleNamespace(kind="image"), CUDA) == {}, "images are not rasterised"
    assert capsys.readouterr().err == ""


def test_a_processor_hears_nothing_of_it(capsys):
    assert headless.rasteriser_for(Splats(), torch.device("cpu")) == {"rasteriser": "cpu", "rasteriser_note": ""}
    app.say_rasteriser(torch.device("cpu"))
    told = capsys.readouterr()
    assert told.out == told.err == ""
