"""The example loss of CONTRIBUTING.md, as one new file: every contract, the lens, the page and the command line."""

import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import test_lens
import test_losses
from test_lens import begun, compared, parts, small  # noqa: F401  (fixtures)
from test_losses import eps_model, priors, setting  # noqa: F401

import sdlab.losses
from sdlab import cli, settings
from sdlab.live.manager import Manager
from sdlab.settings import Settings, preset
from sdlab.ui.flat_view import FlatViews
from sdlab.ui.form import form_html

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILE, SOURCE = re.search(r"## Add a loss\n.*?`sdlab/losses/(\w+\.py)`.*?```python\n(.*?)```", TEXT, re.S).groups()
NAME = FILE.removesuffix(".py")


@pytest.fixture
def new_loss(tmp_path, monkeypatch) -> Iterator[type[sdlab.losses.Distillation]]:
    """The registry with one more file, in a folder of its own so that no other process sees it."""
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / FILE).write_text(SOURCE)
    monkeypatch.setattr(sdlab.losses, "__path__", [*sdlab.losses.__path__, str(tmp_path / "losses")])
    settings.losses.cache_clear()
    yield settings.losses()[NAME]
    settings.losses.cache_clear()
    monkeypatch.delattr(sdlab.losses, NAME)
    monkeypatch.delitem(__import__("sys").modules, f"sdlab.losses.{NAME}")


def contracts(module, argument: str, members) -> Iterator:
    """Every test of a module that is made for each of `members`, with its other parameters."""
    for test in vars(module).values():
        marks = [m.args for m in getattr(test, "pytestmark", ()) if m.name == "parametrize"]
        if not any(names == argument and values is members for names, values in marks):
            continue
        others = {names: values for names, values in marks if names != argument}
        for chosen in itertools.product(*others.values()):
            given = dict(zip(others, chosen, strict=True))
            yield pytest.param(test, argument, given, id="-".join((test.__name__, *chosen)))


@pytest.fixture
def keep(request, new_loss, monkeypatch):
    """Calls a contract of all losses with the new one."""

    def call(test, given, **more):
        monkeypatch.setitem(test_losses.LOSSES, NAME, new_loss)
        given = {**given, **more}
        others = [name for name in inspect.signature(test).parameters if name not in given]
        test(**given, **{name: request.getfixturevalue(name) for name in others})

    return call


OF_LOSSES = list(contracts(test_losses, "name", test_losses.LOSSES))
ON_PRIORS = [p for p in OF_LOSSES if "setting" in inspect.signature(p.values[0]).parameters]


@pytest.mark.parametrize(("test", "argument", "given"), ON_PRIORS)
def test_it_keeps_every_contract_on_every_prior(test, argument, given, keep, setting):  # noqa: F811
    keep(test, given, setting=setting, **{argument: NAME})


@pytest.mark.parametrize(
    ("test", "argument", "given"),
    [*(p for p in OF_LOSSES if p not in ON_PRIORS), *contracts(test_lens, "loss", test_lens.ALL)],
)
def test_it_keeps_every_contract(test, argument, given, keep):
    keep(test, given, **{argument: NAME})


def test_it_is_compared_with_all_losses(new_loss, small):  # noqa: F811
    found = compared(*parts(begun(small)))
    at = found.losses.index(NAME)
    assert len(found.losses) == len(test_losses.LOSSES) + 1
    assert found.notes[at] == ""
    assert found.nfe[at] == 4
    assert np.isfinite(found.rms[at])
    assert 0.1 < found.cosines[at, found.losses.index("sds")] < 1


def test_the_page_has_its_button_knobs_and_formula(new_loss):
    form = form_html(Settings(), ["mixture"])
    assert f'data-value="{NAME}"' in form
    card = re.search(rf'<section data-owner="losses.{NAME}">.*?</section>', form, re.S)[0]
    assert f'data-path="losses.{NAME}.cfg"' in card
    assert 'data-of="s"' in card
    assert 'data-symbol="eps(mirrored)"' in card


def test_the_plane_draws_its_terms(new_loss):
    session = begun(preset("playground").patch_all([("active", NAME), ("scene.n", 10)]))
    flat = session.latest.get().flat
    assert [term.name for term in flat.legend] == ["pos", "uncond", "mirrored", "guided", "residual"]
    assert flat.terms.keys() == {term.name for term in flat.legend}
    t = flat.terms
    np.testing.assert_allclose(t["residual"], (t["guided"] + t["mirrored"]) / 2, atol=1e-4)
    message = FlatViews(Manager()).now(session)
    assert b'"text":"towards the prompt, seen under the mirrored noise"' in message
    assert b'"eps(mirrored)":"cyan"' in message


def test_the_command_line_lists_and_runs_it(new_loss, tmp_path, capsys):
    assert cli.main(["list", "losses"]) == 0
    assert new_loss.formula in capsys.readouterr().out
    out = tmp_path / "run"
    short = ["--set", "scene.n_init=60", "--steps", "3", "--size", "32"]
    assert cli.main(["run", "mixture", "--set", f"active={NAME}", *short, "--out", str(out)]) == 0
    assert (out / "result.json").exists()
