"""What surrounds the GPU path and needs no pretended device: compiling gsplat, choosing a device, skipping steps."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch
from filelock import Timeout
from torch import nn
from torch.utils import cpp_extension

from sdlab import machine, options
from sdlab.auxiliary.fitted import FittedNet
from sdlab.priors.engines import CompiledEngine
from sdlab.raster import gsplat as back_end
from sdlab.raster import gsplat_kernels as kernels

NOTHING = object()


@pytest.fixture(autouse=True)
def no_toolkit(monkeypatch, tmp_path):
    """A machine without a CUDA toolkit, with torch for CUDA 13.0 and an empty cache."""
    monkeypatch.setenv("SDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.9")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(kernels, "USUAL", tmp_path / "none")
    monkeypatch.setattr(kernels, "_of_packages", lambda: None)
    monkeypatch.delitem(sys.modules, "gsplat.csrc", raising=False)


def toolkit_at(place: Path) -> Path:
    """Make what looks like a CUDA toolkit."""
    for file in ("bin/nvcc", "include/cuda_runtime.h", "lib/libcudart.so.13", "nvvm/bin/cicc"):
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).touch(mode=0o755)
    return place


# ---- compiling gsplat --------------------------------------------------------------------------------------------


def test_the_installed_sources_are_cut_to_four_channels(tmp_path):
    source = kernels._source()
    assert source is not None, "gsplat has other sources than those that are known"
    files = {file: kernels._cut(file, tmp_path) for file in kernels._files(source)}
    copies = [copy for file, copy in files.items() if copy != file]
    assert len(copies) == 7
    for copy in copies:
        listed = [found[1] for found in kernels.LISTED.finditer(copy.read_text())]
        assert listed
        assert set(listed) == {"4"}
    assert all(kernels.LISTED.search(file.read_text()) is None for file, copy in files.items() if copy == file)


@pytest.mark.parametrize("version", ["1.4.0", "1.6.0"])
def test_other_sources_compile_themselves(version, monkeypatch):
    monkeypatch.setattr(kernels.metadata, "version", lambda name: version)
    assert kernels._source() is None
    kernels.load()
    assert kernels.announcement() == ""
    assert "gsplat.csrc" not in sys.modules


def test_the_compiler_is_found_where_it_may_be(monkeypatch, tmp_path):
    assert kernels.toolkit() is None
    usual = toolkit_at(tmp_path / "usual")
    monkeypatch.setattr(kernels, "USUAL", usual)
    assert kernels.toolkit() == usual
    on_path = toolkit_at(tmp_path / "on path")
    monkeypatch.setenv("PATH", str(on_path / "bin"))
    assert kernels.toolkit() == on_path
    packages = toolkit_at(tmp_path / "packages")
    monkeypatch.setattr(kernels, "_of_packages", lambda: packages)
    assert kernels.toolkit() == packages, "it has the version of torch"
    given = toolkit_at(tmp_path / "given")
    monkeypatch.setenv("CUDA_HOME", str(given))
    assert kernels.toolkit() == given
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nothing"))
    assert kernels.toolkit() is None


def test_a_script_named_nvcc_is_no_toolkit(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert kernels.toolkit() is None


def test_the_packages_of_this_cuda_version_are_meant(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    own = toolkit_at(tmp_path / "nvidia" / "cu13")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert kernels._of_packages() == own
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    assert kernels._of_packages() is None


def test_a_toolkit_of_packages_gets_the_name_that_linkers_look_for(tmp_path):
    own, work = toolkit_at(tmp_path / "cu13"), tmp_path / "work"
    linked = kernels._with_runtime(own, work)
    assert (linked / "bin" / "nvcc").is_file()
    assert (linked / "nvvm" / "bin" / "cicc").is_file()
    assert (linked / "lib64" / "libcudart.so").resolve() == own / "lib" / "libcudart.so.13"
    assert sorted(p.name for p in (own / "lib").iterdir()) == ["libcudart.so.13"], "an installed package stays as it is"
    (own / "lib" / "libcudart.so").touch()
    assert kernels._with_runtime(own, work) == own


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Called, it installs a toolkit, and a compiler that keeps what it was told and writes a file."""
    calls: list[SimpleNamespace] = []

    def load(name, sources, build_directory, **how):
        environment = {"jobs": os.environ["MAX_JOBS"], "home": cpp_extension.CUDA_HOME}
        calls.append(SimpleNamespace(sources=sources, **environment, **how))
        (Path(build_directory) / f"{name}.so").write_text("kernels")

    monkeypatch.setattr(cpp_extension, "load", load)
    monkeypatch.setattr(kernels, "_imported", lambda file: ModuleType(file.read_text()))
    monkeypatch.setattr(kernels, "USUAL", toolkit_at(tmp_path / "usual"))
    yield calls
    sys.modules.pop("gsplat.csrc", None)


def test_kernels_are_compiled_once_and_given_to_gsplat(compiler, monkeypatch):
    home = cpp_extension.CUDA_HOME
    said = kernels.announcement()
    assert f"about {kernels.minutes()} min, once" in said
    kernels.load()
    assert sys.modules["gsplat.csrc"].__name__ == "kernels"
    assert [call.jobs for call in compiler] == [str(kernels.n_jobs())]
    assert compiler[0].home.endswith("toolkit")
    assert home == cpp_extension.CUDA_HOME
    assert "MAX_JOBS" not in os.environ
    assert [file.name for file in kernels.folder().iterdir()] == ["sdlab_gsplat.so"], "no rest of the build"
    assert kernels.announcement() == ""
    del sys.modules["gsplat.csrc"]
    monkeypatch.setattr(kernels, "USUAL", Path("none"))
    kernels.load()
    assert sys.modules["gsplat.csrc"].__name__ == "kernels", "what is compiled needs no toolkit"
    assert len(compiler) == 1
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert list(kernels.folder().parent.glob("*9.0*")) == [], "other GPUs need other kernels"


def test_a_build_that_fails_leaves_nothing(compiler, monkeypatch):
    def fails(**how):
        raise RuntimeError("Error building extension: error: no glm")

    monkeypatch.setattr(cpp_extension, "load", fails)
    with pytest.raises(RuntimeError, match="no glm"):
        kernels.load()
    assert list(kernels.folder().iterdir()) == []
    assert "gsplat.csrc" not in sys.modules
    assert "MAX_JOBS" not in os.environ


def test_compilers_are_as_many_as_memory_allows(monkeypatch):
    monkeypatch.setattr(kernels, "n_processors", lambda: 16)
    for gigabytes, jobs in ((64, 16), (16, 6), (1, 1)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda n=gigabytes: SimpleNamespace(available=n * 1e9))
        assert kernels.n_jobs() == jobs
    assert kernels.minutes() > 5
    monkeypatch.setenv("MAX_JOBS", "8")
    assert kernels.n_jobs() == 8
    assert kernels.minutes() <= 2


def test_what_is_missing_is_offered_in_one_line(monkeypatch):
    monkeypatch.setattr(kernels.platform, "system", lambda: "Linux")
    advice = back_end._toolkit()
    assert advice.startswith("`pip install nvidia-cuda-nvcc~=13.0.0 ")
    assert f"about {kernels.minutes()} min, once" in advice
    assert "CUDA toolkit 13.0" in advice
    assert "\n" not in advice
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert back_end._toolkit().startswith("install the CUDA toolkit 12.8"), "those packages lack the compiler"


def test_one_process_compiles_at_a_time(monkeypatch):
    """Locks of files keep threads out as they do processes."""
    inside, most = [], []

    def work() -> None:
        with kernels.one_at_a_time():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_gsplat_is_imported_under_the_lock(monkeypatch):
    """gsplat removes a build that another process has begun."""
    held = []

    def imported(name):
        lock = kernels.FileLock(machine.cache_folder() / "gsplat" / "compiling.lock")
        try:
            lock.acquire(timeout=0)
            held.append(False)
        except Timeout:
            held.append(True)
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(back_end.importlib, "import_module", imported)
    back_end._missing.cache_clear()
    try:
        assert "gsplat is not installed" in str(back_end._missing())
    finally:
        back_end._missing.cache_clear()
    assert held == [True]


def test_without_a_place_for_the_lock_nobody_is_kept_out(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    with kernels.one_at_a_time():
        pass


# ---- the device --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "cuda", "words"),
    [
        (True, None, "was installed without CUDA; install it as docs/deploy.md says"),
        (True, "13.0", "needs a driver for CUDA 13.0; update NVIDIA's driver"),
        (False, None, ""),
        (False, "13.0", ""),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_not_passed_over_in_silence(present, cuda, words, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(options, "has_nvidia_gpu", lambda: present)
    assert options.choose_device("auto").type == "cpu"
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == present
    assert options.choose_device("cpu").type == "cpu"
    assert capsys.readouterr().err == "", "it was asked for"


# ---- psi ---------------------------------------------------------------------------------------------------------


def test_a_gradient_that_overflows_with_a_finite_loss_is_skipped():
    """As half precision can overflow in the backward pass alone."""
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.zero_()
    fitted = FittedNet(net, 0.1)
    loss = net(torch.ones(1, 1)).sqrt().sum()
    fitted.descend(loss, 0.1)
    assert loss.isfinite()
    assert float(net.weight) == 0.0
    fitted.descend(net(torch.ones(1, 1)).sum(), 0.1)
    assert net.weight.isfinite().all()
    assert float(net.weight.abs()) > 0, "the next step counts"


# ---- torch.compile -----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A stand-in for a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, z_t, t, encoder_hidden_states, return_dict):
        return (self.layer(z_t),)


@pytest.mark.slow
def test_many_batch_sizes_are_compiled(monkeypatch):
    """torch gives up after eight, and computes without compiling from then on."""
    compiled: list[int] = []

    def backend(graph, inputs):
        compiled.append(1)
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, **how: original(net, backend=backend, **how))
    engine = CompiledEngine(Net(), "fp32")
    for batch in range(1, 13):
        engine.forward(torch.zeros(batch, 1, 1, 2), torch.zeros(batch, dtype=torch.int64), torch.zeros(batch, 1, 1))
    assert len(compiled) == 12
