"""Compiles gsplat's kernels, once for each set of versions and by one process at a time.

gsplat 1.5 compiles itself when it is first imported, for 19 numbers of channels; the renderer needs one: red, green,
blue and depth. Here its sources are compiled for that number alone, which takes far less time, and handed to gsplat as
the module `gsplat.csrc`, for which it looks first. Nothing that is installed is changed: the seven files that list
numbers of channels are copied, and the rest is compiled where it is. gsplat with other sources compiles itself.

The compiler is nvcc: of $CUDA_HOME, of NVIDIA's packages on PyPI (`PIP_PACKAGES`), or of an installed CUDA toolkit.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import torch
from filelock import FileLock

from sdlab.machine import cache_folder, n_processors

CHANNELS = 4
NAME = "sdlab_gsplat"
LISTED = re.compile(r"^[ \t]*(?:__INS__|__LAUNCH_KERNEL__)\((\d+)\)[ \t]*\n", re.MULTILINE)
FLAGS = ("-O3", "-Wno-attributes")
NVCC_FLAGS = ("-O3", "-use_fast_math")
# by CUDA version of torch: torch's own packages do not contain the compiler
PIP_PACKAGES = {"13.0": "nvidia-cuda-nvcc~=13.0.0 nvidia-cuda-crt~=13.0.0 nvidia-nvvm~=13.0.0 nvidia-cuda-cccl~=13.0.0"}
CPU_MINUTES = 8.0  # for one kind of GPU, on one core (CUDA 13.0, g++ 12)
LONGEST_MINUTES = 0.6  # the slowest file, and linking
USUAL = Path("/usr/local/cuda")  # where installers put the toolkit
JOB_BYTES = 2.5e9  # that one compiler needs at most


def load() -> None:
    """Make gsplat's kernels importable; compile them unless that was done. The caller keeps others out
    (`one_at_a_time`).

    Raises an exception of the compiler or the file system. Without a compiler, or for sources that are not known,
    nothing is done, and gsplat looks after itself.
    """
    source = _source()
    if source is None or "gsplat.csrc" in sys.modules:
        return
    kernels = folder() / f"{NAME}{_suffix()}"
    home = toolkit()
    if not kernels.is_file() and home is not None:
        _compile(source, kernels, home)
    if kernels.is_file():
        sys.modules["gsplat.csrc"] = _imported(kernels)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait for other processes that compile gsplat, and keep them out during this block; the system frees the lock of
    a process that dies. Where nothing can be written, nobody is kept out."""
    lock = FileLock(cache_folder() / "gsplat" / "compiling.lock")
    with contextlib.suppress(OSError, NotImplementedError):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def announcement() -> str:
    """Return one line on what the first use of gsplat is about to compile and how long that takes, "" if nothing."""
    known = "gsplat.csrc" in sys.modules or _source() is None
    if known or (folder() / f"{NAME}{_suffix()}").is_file() or toolkit() is None:
        return ""
    jobs = n_jobs()
    with_jobs = f"with {jobs} compilers" if jobs > 1 else "with one compiler"
    return f"compiling gsplat's kernels for this GPU {with_jobs}: about {minutes()} min, once"


def minutes() -> int:
    """Return about how many minutes compiling takes on this machine, at least 1."""
    return max(1, round(CPU_MINUTES / n_jobs() + LONGEST_MINUTES))


def n_jobs() -> int:
    """Return how many compilers run at a time: $MAX_JOBS, or as many as the processors and the free memory allow."""
    given = os.environ.get("MAX_JOBS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return max(1, min(n_processors(), int(psutil.virtual_memory().available / JOB_BYTES)))


def advice() -> str:
    """Return what to install where there is no compiler."""
    packages = PIP_PACKAGES.get(torch.version.cuda or "")
    if packages is None or platform.system() != "Linux":
        return ""
    return f"`pip install {packages}` and restart; gsplat then compiles in about {minutes()} min, once. Or "


# ---- what there is ----------------------------------------------------------------------------------------------


def folder() -> Path:
    """Return the folder of the kernels for these versions and these GPUs."""
    python = f"python-{sysconfig.get_python_version()}"
    parts = [_version("gsplat"), f"torch-{torch.__version__}", f"cuda-{torch.version.cuda}", python, *_gpus()]
    return cache_folder() / "gsplat" / re.sub(r"[^\w.+-]", "-", "-".join(parts))


def _gpus() -> list[str]:
    """Return the compute capabilities that are compiled for: those of $TORCH_CUDA_ARCH_LIST, or of the GPUs present."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if given:
        return ["sm", *given.replace(";", " ").split()]
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return ["sm", *(f"{major}.{minor}" for major, minor in sorted(found))]


def _source() -> Path | None:
    """Return gsplat's folder `cuda` if it has the sources that are known here, and comes without kernels."""
    spec = importlib.util.find_spec("gsplat")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(next(iter(spec.submodule_search_locations)))
    if not _version("gsplat").startswith("1.5.") or list(package.glob("csrc.*")):
        return None
    source = package / "cuda"
    listing = [file for file in _files(source) if LISTED.search(file.read_text(encoding="utf-8"))]
    return source if len(listing) == 7 else None


def _files(source: Path) -> list[Path]:
    return [*sorted((source / "csrc").glob("*.cu")), *sorted((source / "csrc").glob("*.cpp")), *source.glob("ext.cpp")]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _suffix() -> str:
    return ".pyd" if os.name == "nt" else ".so"


def toolkit() -> Path | None:
    """Return the folder of the CUDA toolkit to compile with, None if there is none."""
    explicit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if explicit:
        return Path(explicit) if _is_toolkit(Path(explicit)) else None
    nvcc = shutil.which("nvcc")
    places = [_of_packages(), nvcc and Path(nvcc).resolve().parents[1], USUAL]
    return next((place for place in places if place and _is_toolkit(place)), None)


def _is_toolkit(place: Path) -> bool:
    has_nvcc = any((place / "bin" / name).is_file() for name in ("nvcc", "nvcc.exe"))
    return has_nvcc and (place / "include" / "cuda_runtime.h").is_file()


def _of_packages() -> Path | None:
    """Return the folder of NVIDIA's packages for the CUDA version of torch."""
    spec = importlib.util.find_spec("nvidia")
    major = (torch.version.cuda or "").partition(".")[0]
    places = [Path(place) / f"cu{major}" for place in (spec and spec.submodule_search_locations) or ()]
    return next((place for place in places if place.is_dir()), None)


# ---- compiling --------------------------------------------------------------------------------------------------


def _compile(source: Path, kernels: Path, home: Path) -> None:
    """Compile gsplat's sources with the toolkit `home` into the file `kernels`, which appears when it is complete."""
    from torch.utils import cpp_extension

    work = kernels.with_name(f"build-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        with compiling_with(home, work):
            cpp_extension.load(
                name=NAME,
                sources=[str(_cut(file, work)) for file in _files(source)],
                extra_cflags=list(FLAGS),
                extra_cuda_cflags=list(NVCC_FLAGS),
                extra_include_paths=[str(source / p) for p in ("include", "csrc", "csrc/third_party/glm")],
                build_directory=str(work),
                is_python_module=False,  # its types can be registered once per process, which `_imported` does
            )
        os.replace(work / f"{NAME}{_suffix()}", kernels)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def compiling_with(home: Path, work: Path) -> Iterator[None]:
    """Let torch compile with the toolkit `home`, by as many compilers as fit, during this block; `work` is a folder
    that lasts as long."""
    from torch.utils import cpp_extension

    extension: Any = cpp_extension
    before, extension.CUDA_HOME = extension.CUDA_HOME, str(_with_runtime(home, work))
    jobs = os.environ.get("MAX_JOBS")
    os.environ["MAX_JOBS"] = str(n_jobs())
    try:
        yield
    finally:
        extension.CUDA_HOME = before
        if jobs is None:
            del os.environ["MAX_JOBS"]
        else:
            os.environ["MAX_JOBS"] = jobs


def _with_runtime(home: Path, work: Path) -> Path:
    """Return `home`, or a folder of links to it that also has the name under which linkers look for CUDA's runtime:
    NVIDIA's packages leave it out."""
    found = sorted((home / "lib").glob("libcudart.so.*"))
    if not found or (home / "lib" / "libcudart.so").exists():
        return home
    linked = work / "toolkit"
    (linked / "lib64").mkdir(parents=True)
    for name in ("bin", "include", "nvvm"):
        (linked / name).symlink_to(home / name)
    (linked / "lib64" / "libcudart.so").symlink_to(found[0])
    return linked


def _cut(file: Path, work: Path) -> Path:
    """Return `file`, or a copy of it in `work` that lists one number of channels if it lists several."""
    text = file.read_text(encoding="utf-8")
    cut = LISTED.sub(lambda found: found[0] if int(found[1]) == CHANNELS else "", text)
    if cut == text:
        return file
    copy = work / file.name
    copy.write_text(cut, encoding="utf-8")
    return copy


def _imported(kernels: Path) -> ModuleType:
    """Import the compiled module."""
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(kernels))
    spec = importlib.util.spec_from_file_location(NAME, kernels, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
