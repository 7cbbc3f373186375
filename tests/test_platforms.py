"""The table of platforms: what it says of a combination, with a stand-in for uv."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "extras" / "platforms.py"
NO_WHEEL = """error: No solution found when resolving dependencies
  cause: Because torch>=2.8.0,<=2.13.0 has no wheels with a matching platform tag (e.g., `win_arm64`) and only
         the following versions of torch are available:
             torch<=2.13.0
"""
WITH_MARKER = "Because openvino{platform_machine == 'arm64' or platform_machine == 'x86_64'}>=2025.2 has no wheels"


@pytest.fixture
def platforms(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("platforms", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    uv = tmp_path / "uv"
    uv.write_text(
        "#!/bin/sh\n"
        'case "$*" in *win*) echo "error: no wheel" >&2; exit 1; esac\n'
        "sed -n 's/^\\([a-z]*\\)>=[0-9.]*,<.*$/\\1==1.0/p; s/^\\([a-z]*\\)>=[0-9.]*\\( .*\\)*$/\\1==2.0/p'\n"
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return module


def test_a_cell_names_the_versions_or_what_is_missing(platforms):
    given = "torch>=2,<3\nnumpy>=2\n"
    assert platforms.cell(given, "3.12", "linux") == "torch 1.0, numpy 2.0"
    assert platforms.cell(given, "3.12", "win") == "error: no wheel"
    assert platforms.why(NO_WHEEL) == "no wheel of torch"
    assert platforms.why(WITH_MARKER) == "no wheel of openvino"


def test_the_table_has_a_row_for_each_platform(platforms):
    lines = platforms.table("torch>=2,<3\nnumpy>=2\n").splitlines()
    assert lines[0] == "|  | 3.11 | 3.12 | 3.13 | 3.14 |"
    assert len(lines) == 2 + len(platforms.PLATFORMS)


def test_what_caps_hold_back_is_listed(platforms):
    assert platforms.held_back("torch>=2,<3  # why\nnumpy>=2\n", "3.12") == ["torch: 1.0, 2.0"]
