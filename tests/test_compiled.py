"""Compiled kernels: a process that compiles them computes the same bits as those that load them."""

import importlib
import subprocess
import sys
from pathlib import Path

import numba.core.dispatcher
import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "sdlab").rglob("*.py")
    if "from sdlab.compiled import" in path.read_text(encoding="utf-8")
)
RUN = """
import hashlib
from sdlab.live.session import Session
from sdlab.settings import preset

session = Session(preset("gallery").patch_all([("prior.size", 64), ("scene.n_init", 500)]))
session.run(until=5)
parts = session.moment().parts["scene"]
print(hashlib.sha256(b"".join(parts[name].numpy().tobytes() for name in sorted(parts))).hexdigest())
"""


def kernels(module: object) -> dict[str, numba.core.dispatcher.Dispatcher]:
    return {name: k for name, k in vars(module).items() if isinstance(k, numba.core.dispatcher.Dispatcher)}


@pytest.mark.parametrize("name", MODULES)
def test_kernels_call_only_what_is_inlined(name: str):
    found = kernels(importlib.import_module(name))
    assert found
    for kernel in found.values():
        called = [kernel.py_func.__globals__.get(other) for other in kernel.py_func.__code__.co_names]
        for other in called:
            if isinstance(other, numba.core.dispatcher.Dispatcher):
                assert other.targetoptions["inline"] == "always", f"{kernel.py_func.__name__} calls {other}"


@pytest.mark.nightly
def test_the_first_process_computes_what_later_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    command = [sys.executable, "-c", RUN]
    first, second = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2))
    assert first.stdout == second.stdout
    assert len(first.stdout.strip()) == 64
