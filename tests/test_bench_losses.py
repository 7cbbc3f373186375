"""The benchmark of the losses: tests of what it runs and reports, not of speed."""

from __future__ import annotations

import importlib.util
import json

import pytest
from tiny_models import pixel_model

from sdlab.bench import lanes
from sdlab.bench import losses as bench
from sdlab.live import loop
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.settings import Settings, losses, preset


@pytest.fixture
def short(monkeypatch):
    for name, value in (("WARM_UP", 1), ("TURN", 1), ("UNCOUNTED", 1), ("SECONDS_QUICK", 0.0)):
        monkeypatch.setattr(bench, name, value)


def test_every_loss_is_found_with_every_network_sds_first():
    found = bench.entries(preset("mixture"))
    assert found[0].loss == "sds"
    assert {entry.loss for entry in found} == set(losses())
    assert len({entry.label for entry in found}) == len(found)
    for loss in ("vsd", "esd"):
        of = {entry.network: entry.settings for entry in found if entry.loss == loss}
        assert set(of) == {"lora", "copy"}
        assert all(s.active == loss and s.loss.network == network for network, s in of.items())
        assert of["copy"].loss.warm_up == bench.WARM_UP, "the warm-up is not measured"


@pytest.mark.slow
def test_the_report_has_every_loss_with_its_evaluations_and_stages(short, tmp_path, monkeypatch, capsys):
    base = preset("mixture").patch_all([("scene.n_init", 40), ("scene.densify_every", 1)])
    monkeypatch.setattr(bench, "preset", lambda name: base)
    result = bench.run(tmp_path / "b.json", quick=True, name="mixture")
    assert json.loads((tmp_path / "b.json").read_text()) == result
    assert list(result["engines"].values()) == ["exact"], "a mixture has no engines to compare"
    assert (result["rounds"], result["gaussians"]) == (bench.ROUNDS_MIN_QUICK, 40)
    assert result["machine"]
    assert {row["loss"] for row in result["rows"]} == set(losses())
    table = capsys.readouterr().out
    for row in result["rows"]:
        loss = losses()[row["loss"]]()
        # the prior's forward passes, plus those of an auxiliary network of the prior's size
        assert row["evaluations"] >= sum(loss.calls())
        assert row["fastest"]["ms"] > sum(row["fastest"]["stages_ms"].values()) / 2 > 0
        assert 0 < row["fastest"]["least_ms"] <= row["fastest"]["ms"]
        assert f"{row['label']} " in table
    sds = result["rows"][0]
    assert (sds["label"], sds["evaluations"], sds["fastest"]["x_sds"]) == ("sds", 2, 1.0)
    by_label = {row["label"]: row for row in result["rows"]}
    assert by_label["vsd (copy)"]["evaluations"] == by_label["vsd (lora)"]["evaluations"] == 4
    assert by_label["vsd (copy)"]["fastest"]["stages_ms"]["auxiliary"] > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_both_engines_run_and_each_prior_is_loaded_once(short, tmp_path, monkeypatch, capsys):
    base = Settings().patch_all(
        [("prior.path", str(pixel_model(tmp_path / "model"))), ("prior.threads", 1), ("scene.n_init", 20)]
    )
    loads = []
    load = DiffusersPrior.load
    monkeypatch.setattr(DiffusersPrior, "load", lambda self, *a: loads.append(self.engine) or load(self, *a))
    monkeypatch.setattr(bench, "preset", lambda name: base)
    entries = bench.entries
    monkeypatch.setattr(bench, "entries", lambda s, only: [e for e in entries(s, only) if e.loss in ("sds", "vsd")])
    result = bench.run(quick=True)
    assert loads == ["auto", "torch"]
    assert result["engines"]["fastest"].startswith("openvino")
    assert result["engines"]["torch"].startswith("torch")
    assert [row["label"] for row in result["rows"]] == ["sds", "vsd (lora)", "vsd (copy)"]
    assert all(row[key]["ms"] > 0 for row in result["rows"] for key in ("fastest", "torch"))
    assert result["engines"]["torch"] in capsys.readouterr().out


def test_a_loss_is_held_against_the_turn_of_sds_before_it():
    field = bench.Field.__new__(bench.Field)
    turns = []

    class Lane:
        def __init__(self, label, ms):
            self.label, self.ms = label, iter(ms)

        def steps(self, n, uncounted):
            turns.append(self.label)
            return next(self.ms)

        def stages_ms(self, average):
            return {}

    # the machine is ten times slower in the second round
    field.lanes = {"sds": Lane("sds", [1, 1, 10, 10]), "a": Lane("a", [2, 20]), "b": Lane("b", [3, 30])}
    field.rounds = []
    field.take_round()
    field.take_round()
    assert turns == ["sds", "a", "sds", "b"] * 2
    assert [field.stats(label)["x_sds"] for label in field.lanes] == [1, 2, 3]
    assert [field.stats(label)["ms"] for label in field.lanes] == [5.5, 11, 16.5]


def test_ratios_are_medians_of_the_rounds_own():
    rows = [{"a": 2.0, "b": 1.0}, {"a": 30.0, "b": 10.0}, {"a": 9.0, "b": 9.0}]
    assert lanes.ratio(rows, "a", "b") == 2
    assert lanes.median(rows, "a") == lanes.median(rows, "b") == 9


def test_uncounted_steps_are_taken_but_not_counted(quick):
    lane = lanes.Lane(quick, 2)
    assert (lane.session.state.step, lane.stages_ms(max)) == (2, {})
    assert lane.steps(3, uncounted=2) > 0
    assert lane.session.state.step == 7
    assert {len(values) for values in lane._stages.values()} == {3}


def test_a_step_that_fails_ends_the_bench_and_names_the_loss(quick, monkeypatch):
    real = loop.step

    def step(state, *rest):
        if state.step == 1:
            raise ArithmeticError("no such number")
        return real(state, *rest)

    monkeypatch.setattr(loop, "step", step)
    with pytest.raises(RuntimeError, match="step 1 of sds failed: ArithmeticError: no such number"):
        lanes.Lane(quick, 2)


def test_some_losses_can_be_measured_beside_sds():
    base = preset("gallery")
    assert {entry.loss for entry in bench.entries(base, ["vdm"])} == {"sds", "vdm"}
    with pytest.raises(ValueError, match="vdn"):
        bench.entries(base, ["vdn"])
