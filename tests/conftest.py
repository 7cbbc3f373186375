"""Runs before any test module: shapes and types of sdlab are checked at run time under pytest only."""

import contextlib
import hashlib
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import platformdirs
import typecheck

KEPT_DAYS = 7


def keep_what_is_compiled() -> None:
    """Keep compiled networks and kernels between runs, for all workers, in the user's folder for caches.

    Networks are converted again once the code that converts them has changed, kernels once their own has.
    """
    folder = platformdirs.user_cache_path("sdlab-tests", appauthor=False)
    sources = sorted((Path(__file__).parents[1] / "sdlab" / "priors").glob("*.py"))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]
    networks, kernels = folder / code, folder / "numba"
    for used in (networks, kernels):
        used.mkdir(parents=True, exist_ok=True)
        os.utime(used)
    for old in (*folder.iterdir(), *kernels.rglob("*.nbc")):
        with contextlib.suppress(FileNotFoundError):  # another worker has removed it
            if time.time() - old.stat().st_mtime > KEPT_DAYS * 24 * 3600:
                shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink()
    os.environ["SDLAB_CACHE"], os.environ["NUMBA_CACHE_DIR"] = str(networks), str(kernels)


def share_kernels() -> None:
    """Let a worker wait for a kernel that the other compiles, and load it.

    Without a lock, both would compile it, and give the files of two signatures one number. A kernel inside another one
    needs none: it is compiled with the outer one, whose thread holds numba's own lock by then.
    """
    from filelock import FileLock
    from numba.core.caching import FunctionCache
    from numba.core.dispatcher import Dispatcher

    compiled, within = Dispatcher.compile, threading.local()

    def one_at_a_time(self: Dispatcher, signature: object) -> object:
        if getattr(within, "kernel", False):
            return compiled(self, signature)
        lock = contextlib.nullcontext()
        if isinstance(self._cache, FunctionCache):
            self._cache._impl.locator.ensure_cache_path()
            lock = FileLock(f"{self._cache._cache_file._index_path}.lock")
        within.kernel = True
        try:
            with lock:
                return compiled(self, signature)
        finally:
            within.kernel = False

    Dispatcher.compile = one_at_a_time


keep_what_is_compiled()
# Most tests are small and need one core each; threads that wait for each other cost more than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Compiling torch, diffusers, transformers and gradio from source takes 15 s in every process.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
typecheck.install()
if "PYTEST_XDIST_WORKER" in os.environ:
    share_kernels()

import pytest  # noqa: E402  (the hook must be in place before anything imports sdlab)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a browser or a night is slow. A browser's test has a second try, which the summary counts as rerun:
    it waits for processes that a busy machine may hold up for seconds."""
    for item in items:
        if item.get_closest_marker("browser") and not item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.flaky(reruns=1))
        if item.get_closest_marker("browser") or item.get_closest_marker("nightly"):
            item.add_marker("slow")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny tensors gain nothing from threads, which wait long for each other on a busy machine."""
    import torch  # not above: the process that hands out the tests does not need it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick():
    """Settings of a run that takes a few milliseconds a step: exact scores, 16 pixels, 60 Gaussians."""
    from sdlab.settings import preset

    return preset("mixture").patch_all([("scene.n_init", 60), ("scene.max_gaussians", 90), ("steps", 40)])


@pytest.fixture(scope="module")
def with_browser():
    """Skips where no browser can be driven."""
    from sdlab.bench import visitor

    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    try:
        visitor.require_browser()
    except RuntimeError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def browser(with_browser):
    """A headless Chromium with software WebGL."""
    from sdlab.bench import visitor

    with visitor.chromium() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def unhurried():
    """Lets every step of a session take 10 ms at least, so that runs leave the processor to the browser."""
    from sdlab.live import loop

    step = loop.step

    def slowly(*given):
        time.sleep(0.01)
        return step(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step", slowly)
        yield


@pytest.fixture
def no_room_for_four_views(monkeypatch: pytest.MonkeyPatch):
    """Called, it lets every step of SDS with four views fail from then on."""
    from sdlab.priors.mixture import MixtureScores

    original = MixtureScores.eps

    def fails_for_four_views(self, z_t, t, cond):
        if len(z_t) == 8:
            raise RuntimeError("out of memory: 8 pictures do not fit")
        return original(self, z_t, t, cond)

    return lambda: monkeypatch.setattr(MixtureScores, "eps", fails_for_four_views)
