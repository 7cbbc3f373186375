"""Runs before any test module: shapes and types of sdlab are checked at run time under pytest only."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from jaxtyping import install_import_hook

install_import_hook("sdlab", "typecheck.check")
