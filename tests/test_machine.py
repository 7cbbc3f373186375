"""What the process may use of the machine."""

import os
from pathlib import Path

import pytest

from sdlab.machine import n_cores, n_processors


def test_cores_are_limited_by_the_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= n_cores() <= n_processors() <= (os.cpu_count() or 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert n_cores() == 1


@pytest.mark.parametrize(("cpu_max", "most"), [("150000 100000", 2), ("50000 100000", 1)])
def test_processors_are_limited_by_a_containers_quota(cpu_max, most, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self, *_: cpu_max if self.name == "cpu.max" else "")
    n_processors.cache_clear()
    assert n_processors() <= most
    monkeypatch.undo()
    n_processors.cache_clear()
