"""Runs before any test module: shapes and types of sdlab are checked at run time under pytest only."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from jaxtyping import install_import_hook

install_import_hook("sdlab", "typecheck.check")

import pytest


@pytest.fixture
def quick():
    """Settings of a run that takes a few milliseconds a step: exact scores, 16 pixels, 60 Gaussians."""
    from sdlab.settings import preset

    return preset("mixture").patch_all([("scene.n_init", 60), ("scene.max_gaussians", 90), ("steps", 40)])
