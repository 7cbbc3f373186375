"""Tables and figures over 120 views: what is measured, one tiny table end to end, starts with a seed of their own, and
experiments that keep what is finished when they are ended."""

from __future__ import annotations

import json
import math
import os
import signal

import numpy as np
import pytest
import torch

from sdlab import cli
from sdlab.experiments import divergences, entropy, eps_statistics, playground, reader, stopping, views
from sdlab.experiments.tables import AS_VDM, TABLES
from sdlab.live.session import Session
from sdlab.settings import preset

TINY = ["--set", "scene.n_init=40", "--set", "scene.max_gaussians=60", "--set", "prior.images=20", "--steps", "3"]


def test_variety_counts_answers_and_quality_their_certainty():
    sure = {"object": torch.tensor([[1.0, 0.0]] * 4), "view": torch.eye(4)}
    assert reader.entropies(sure) == pytest.approx((0.0, math.log(4)))
    unsure = {"view": torch.full((3, 4), 0.25)}
    assert reader.entropies(unsure) == pytest.approx((math.log(4), math.log(4)))


def test_likeness_is_the_cosine_of_equal_views():
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert reader.likeness([a, 3 * a]) == pytest.approx(1)
    assert reader.likeness([a, a.flip(0)]) == pytest.approx(0)
    assert reader.likeness([a, a, a.flip(0)]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="1 result"):
        reader.likeness([a])


def test_equal_runs_have_no_diversity_of_their_own():
    def row(seed, colour):
        return {"object": "bear", "answers": {"colour": colour}, "features": [[1.0 + seed, 0.0]]}

    same = views.diversity([row(0, [1.0, 0.0]), row(1, [1.0, 0.0])])["bear"]
    assert (same["iv"], same["likeness"], same["runs"]) == (0, 1, 2)
    other = views.diversity([row(0, [1.0, 0.0]), row(1, [0.0, 1.0])])["bear"]
    assert other["iv"] == pytest.approx(math.log(2), abs=1e-4)
    assert views.diversity([row(0, [1.0, 0.0])]) == {}


@pytest.mark.slow
def test_a_table_measures_every_run_and_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(views, "REFERENCES", {"gallery": 8})
    monkeypatch.setattr(views, "VIEWS", 24)
    label = "esd:lam=1"
    command = ["bench", "esd-table1", "--preset", "gallery-esd-views", *TINY, "--objects", "frog", "--seeds", "2"]
    command += ["--variants", label, "--set", "start_seed=5", "--out", str(tmp_path)]
    assert cli.main(command) == 0
    found = json.loads((tmp_path / "esd-table1.json").read_text())
    assert (found["views"], found["finished"]) == (24, 2)
    for row in found["rows"]:
        assert row["steps"] == 3
        assert 0 <= row["iq"] <= row["iv"]
        assert 0 <= row["fronts"] <= 12
        assert all(math.isfinite(row[name]) for name in views.MEASURES)
        assert not set(views.HIDDEN) & set(row)
    assert {row["seed"] for row in found["rows"]} == {0, 1}
    assert list(found["means"]) == list(found["diversity"]) == [label]
    assert found["means"][label]["fid"]["runs"] == 2
    assert -1 <= found["diversity"][label]["frog"]["likeness"] <= 1
    assert (tmp_path / "esd-table1.png").exists()
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "2 of 2 runs are in" in capsys.readouterr().out


def test_tables_name_losses_that_exist():
    from sdlab.experiments.variants import parse_variant

    for name, table in TABLES.items():
        assert len(table.variants) > 1, name
        for label in table.variants:
            if label != AS_VDM:
                parse_variant(label, "--variants")


def test_runs_may_share_a_start_and_differ_in_the_noise():
    s = preset("gallery-esd-views").patch_all([("scene.n_init", 30), ("prior.images", 12), ("start_seed", 4)])

    def start(seed, own):
        session = Session(s.patch_all([("seed", seed), ("start_seed", own)]))
        session.prepare()
        return session.state.scene.params["means"].detach()

    assert torch.equal(start(1, 4), start(2, 4))
    assert torch.equal(start(4, -1), start(2, 4)), "the same numbers as those of a run with that seed"
    assert not torch.equal(start(1, -1), start(2, -1))


# ---- divergences ------------------------------------------------------------------------------------------------


def test_divergences_of_distributions_that_are_known():
    half, point = np.array([0.5, 0.5]), np.array([1 - 1e-12, 1e-12])
    apart = divergences.between(point, point[::-1])
    assert apart["jsd"] == pytest.approx(math.log(2), abs=1e-9)
    assert apart["kl"] == apart["jeffreys"] == pytest.approx(math.log(1e12), rel=1e-9)
    assert divergences.between(half, half) == pytest.approx(dict.fromkeys(apart, 0.0), abs=1e-12)
    some = divergences.between(np.array([0.3, 0.7]), np.array([0.6, 0.4]))
    assert some["discriminator"] == pytest.approx(some["kl"])
    assert some["jsd"] < some["jeffreys"]


# ---- ended early ------------------------------------------------------------------------------------------------


def test_sigterm_stops_an_experiment_and_is_told():
    def measure(stop):
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()

    assert stopping.stoppable(measure) == 130
    assert stopping.stoppable(lambda stop: None) == 0


def after(count):
    """A `stop` that is False `count` times."""
    left = iter([False] * count)
    return lambda: next(left, True)


def test_the_plane_keeps_what_is_finished(tmp_path, monkeypatch):
    load = playground._prior
    monkeypatch.setattr(playground, "_prior", lambda s, scores: load(s, "exact"))
    monkeypatch.setattr(playground, "LENGTHS", {"paper": 2, "long": 3})
    result = playground.run(tmp_path, quick=True, stop=after(3))
    assert [(row["loss"], row["length"]) for row in result["rows"]] == [
        *(("sds", "paper"), ("sds", "long"), ("jsd", "paper"), ("jsd", "long"), ("sds", "paper"), ("sds", "long"))
    ]
    assert json.loads((tmp_path / "playground.json").read_text())["rows"] == result["rows"]
    assert [file.name for file in tmp_path.glob("trajectories-*.png")] == ["trajectories-cfg-1.png"]


def test_entropies_and_statistics_keep_what_is_finished(tmp_path, monkeypatch):
    outcome = entropy.Outcome(torch.zeros(2, 2), 1.0, 0.0, 1.0)
    monkeypatch.setattr(entropy, "spread", lambda *given: outcome)
    result = entropy.run(tmp_path / "entropy.json", quick=True, stop=after(2))
    assert [row["lambda"] for row in result["rows"]] == [0.0, 0.25]
    assert result["rows"][0]["iv_each"] == [1.0, 1.0, 1.0]

    monkeypatch.setattr(eps_statistics, "PRIORS", {"plane": eps_statistics.plane})
    result = eps_statistics.run(tmp_path / "figure10.json", quick=True, stop=after(3))
    assert result["curves"]["plane"]["t"] == [20, 100, 300]
    nothing = eps_statistics.run(tmp_path / "nothing.json", quick=True, stop=after(0))
    assert nothing["curves"] == {}
    assert not (tmp_path / "nothing.json").exists()
