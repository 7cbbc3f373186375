"""What `app.py` decides before there is a page."""

from __future__ import annotations

from sdlab.priors.diffusers import DiffusersPrior
from sdlab.settings import preset
from sdlab.ui.visitors import public


def test_visitors_cannot_change_what_is_loaded_from_where():
    settings, locked = public(preset("toybox"))
    knobs = settings.knobs()
    assert {path for path in knobs if path.startswith("prior.")} <= set(locked), "each set of them is another prior"
    assert {"scene.file", "scene.shap_e"} <= set(locked)
    assert set(locked) - {"scene.picture"} <= set(knobs), "none is misspelt"
    assert "scene.picture" in preset("toybox-2d").knobs()
    assert DiffusersPrior().path == knobs["prior.path"].value


def test_visitors_have_no_shap_e_downloaded_unless_the_server_starts_with_it():
    settings, _ = public(preset("toybox"))
    assert settings.scene.shap_e == ""
    wanted, _ = public(preset("dreammapping"))
    assert wanted == preset("dreammapping")
    flat, _ = public(preset("toybox-2d"))
    assert flat == preset("toybox-2d")
