"""What `app.py` decides before there is a page."""

from __future__ import annotations

import pytest

from app import main, parser, start_preset
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.settings import preset
from sdlab.ui.visitors import public


def test_visitors_cannot_change_what_is_loaded_from_where():
    known = set()
    for name in ("gallery", "toybox", "toybox-2d"):
        settings, locked = public(preset(name))
        knobs = settings.knobs()
        priors = {path for path in knobs if path.startswith("prior.")}
        assert priors - set(locked) <= {"prior.source"}, "each set of them is another prior; uploads set the source"
        known |= set(knobs)
    assert {"scene.file", "scene.shap_e"} <= set(locked)
    assert set(locked) <= known, "none is misspelt"
    assert DiffusersPrior().path == preset("toybox").knob("prior.path").value


def test_the_page_opens_on_exact_scores_and_on_the_network_when_given_one():
    def opened(*arguments):
        return start_preset(parser().parse_args(arguments))

    assert opened() == "gallery"
    assert opened("--prior", "/models/sd") == "toybox"
    assert opened("--prior", "/models/sd", "--preset", "sdi") == "sdi"
    assert (preset("gallery").prior.kind, preset("toybox").prior.kind) == ("gallery", "diffusers")


def test_visitors_have_no_shap_e_downloaded_unless_the_server_starts_with_it():
    settings, _ = public(preset("toybox"))
    assert settings.scene.shap_e == ""
    wanted, _ = public(preset("dreammapping"))
    assert wanted == preset("dreammapping")
    flat, _ = public(preset("toybox-2d"))
    assert flat == preset("toybox-2d")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--preset", "toybx"), "did you mean toybox"),
        (("--device", "mars"), "--device mars: expected auto, cpu, cuda, or cuda:N such as cuda:1"),
        (("--port", "ninety"), "--port ninety: a number from 0 to 65535 is needed"),
        (("--max-sessions", "0"), "--max-sessions 0: at least 1 is needed"),
    ],
)
def test_bad_arguments_end_with_one_line_and_code_2(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["--no-browser", "--port", "0", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
