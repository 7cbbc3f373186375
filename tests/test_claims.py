"""`python -m sdlab claims`: decisions by figures of both kinds, the registry, the runner on a stand-in, and one real
experiment."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
from PIL import Image

from sdlab import cli
from sdlab.claims import decisions, dreammapping, esd, experiments, jsd, page, run, sbp
from sdlab.claims.claim import Claim, Experiment, Paper, Plan, Unmeasured
from sdlab.claims.decisions import FAILS, HOLDS, OPEN, above, exactly, paired, positive, slopes, spread
from sdlab.claims.papers import PAPERS, papers
from sdlab.experiments.journal import Journal

# ---- statistics -------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_student():
    s = spread([1.0, 2.0, 3.0, 4.0])
    assert (s.mean, s.n) == (2.5, 4)
    assert s.error == pytest.approx(0.6455, abs=1e-4)
    assert s.half == pytest.approx(3.1824 * 0.6455, abs=1e-3), "t of 3 degrees of freedom"


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([1.0, 1.1, 0.9], HOLDS),
        ([-1.0, -1.1, -0.9], FAILS),
        ([1.0, -1.0, 0.2], OPEN),
        ([5.0], OPEN),
        ([], OPEN),
        ([0.0, 0.0], OPEN),
        ([2.0, 2.0], HOLDS),
    ],
)
def test_a_difference_decides_if_its_interval_leaves_zero(values, outcome):
    assert positive(values, "it").outcome == outcome
    assert above([value + 3 for value in values], 3.0, "it").outcome == outcome


def test_a_verdict_says_what_was_measured_and_why():
    verdict = above([3.4, 3.6, 3.5], 3.0, "ratio", "seeds")
    assert verdict.figure == "ratio: 3.5 ± 0.0577 (3 seeds)"
    assert verdict.why == "the 95 % interval [3.25, 3.75] lies above 3"
    assert exactly(False, "2, 3", "counted").outcome == FAILS


def test_pairs_agree_in_everything_else():
    rows = [
        {"loss": "a", "seed": 0, "x": 1.0},
        {"loss": "a", "seed": 1, "x": 2.0},
        {"loss": "b", "seed": 1, "x": 5.0},
        {"loss": "b", "seed": 0, "x": None},
        {"loss": "b", "seed": 2, "x": 9.0},
    ]
    assert paired(rows, "loss", "a", "b", "x", ["seed"]) == [3.0]


def test_slopes_are_those_of_each_run():
    rows = [{"seed": seed, "lam": lam, "x": (1 + seed) * lam} for seed in (0, 1) for lam in (0.0, 0.5, 1.0)]
    assert slopes(rows, "lam", "x", ["seed"]) == pytest.approx([1.0, 2.0])
    assert slopes([{"seed": 0, "lam": 1.0, "x": 1.0}], "lam", "x", ["seed"]) == []


def test_rank_correlation_sees_order_alone():
    assert decisions.rank_correlation([1, 2, 3], [1, 10, 11]) == pytest.approx(1)
    assert decisions.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert decisions.rank_correlation([1, 2, 3], [5, 5, 5]) == 0


# ---- every claim comes out either way ---------------------------------------------------------------------------


def esd_rows(up):
    """Made-up runs of `bench esd` in which lambda has the effect that is claimed, or with up = -1 the opposite."""
    rows = []
    for seed in range(4):
        for lam in (0.0, 0.5, 1.0):
            base = {"object": "bear", "seed": seed, "lambda": lam}
            rows.append(base | {"fronts": 6 - up * (4 + seed) * lam, "iv": 1 + up * lam, "sharpness": 1 - up * lam})
    return {"rows": rows}


def entropy_rows(up):
    return {
        "rows": [
            {"scores": scores, "lambda": lam, "iv_each": [1 + up * (lam + 0.1 * seed * lam) for seed in range(3)]}
            for scores in ("exact", "learnt")
            for lam in (0.0, 0.5, 1.0)
        ]
    }


def view_rows(better, worse, up):
    """Made-up runs over 120 views: `better` has lower FID, IQ, fronts and higher IV, sharpness than `worse`."""
    rows = []
    for seed in range(4):
        for names, sign in ((better, up), (worse, -up)):
            for name in names:
                low, high = 2 - sign + 0.01 * seed, 2 + sign + 0.01 * seed
                measures = {"fid": low, "iq": low, "fronts": low, "saturation": low, "iv": high, "object_share": high}
                rows.append({"variant": name, "object": "bear", "seed": seed, "sharpness": high, **measures})
    return rows


def table31_rows(up):
    order = [
        "ddim",
        "sbp@thesis:form=full",
        "vsd@thesis",
        "sbp@thesis",
        "sbp",
        "sds@thesis",
        "csd@thesis",
        "nfsd@thesis",
    ]
    order += ["sbp@no-words", "sbp@thesis:stage=bridge", "sds"]
    rows = []
    for place, method in enumerate(order):
        fid = 20 + up * place
        seconds = (4.0 if up > 0 else 1.5) if method == "vsd@thesis" else 1.0
        each = {"fid_true": [fid, fid + 0.1, fid - 0.1], "seconds": [seconds] * 3, "saturation": [fid, fid, fid]}
        rows.append({"method": method, **{name: {"each": values} for name, values in each.items()}})
    fid = 24 + (0.01 if up > 0 else 50)
    rows.append({"method": "sbp@other-words", "fid_true": {"each": [fid, fid + 0.1, fid - 0.1]}})
    return {"rows": rows}


def cost_rows(up):
    def row(label, evaluations, x):
        return {
            "label": label,
            "loss": label.split()[0],
            "evaluations": evaluations,
            "fastest": {"x_sds": x, "x_sds_each": [x, x + 0.01, x - 0.01]},
        }

    vdm, vsd = (1.2, 3.0) if up > 0 else (3.0, 1.2)
    more = 2 if up > 0 else 3
    return {"rows": [row("sds", 2, 1.0), row("sbp", more, 1.0), row("vdm", more, vdm), row("vsd (lora)", 5, vsd)]}


def playground_rows(up):
    rows = []
    for i, start in enumerate(("a", "b", "c")):
        for cfg in (1.0, 7.5):
            for asked in ("all of them", "north"):
                for loss, sign in (("sds", -up), ("jsd", up)):
                    each = {"correlation": 0.5 * sign, "found": 0.5 + 0.1 * sign + 0.01 * i, "modes": 4 + sign}
                    where = {"scores": "exact", "start": start, "asked": asked, "cfg": cfg, "loss": loss}
                    rows += [{**where, "length": length, **each} for length in ("paper", "long")]
    return {"rows": rows}


def divergence_rows(up):
    # a bounded approximation differs from KL; then nothing is above KL or ln 2
    jsd_at, kl, approximated = (0.2, 0.5, 0.6) if up > 0 else (0.9, 0.5, 3.0)
    return {
        "divergences": [{"a": 0.1, "jsd": jsd_at, "kl": kl, "discriminator": approximated}],
        "random": {"pairs": 10, "largest_jsd": jsd_at, "above_kl": 0 if up > 0 else 3},
        "gradients": [
            {
                "loss": loss,
                "cfg": 1.0,
                "seed": seed,
                "distance": distance,
                "rms": distance ** (1 - 0.5 * sign + 0.01 * seed),
                "noise": 1 - 0.5 * sign + 0.01 * seed * distance,
            }
            for seed in range(3)
            for distance in (1.0, 8.0)
            for loss, sign in (("sds", -up), ("jsd", up))
        ],
        "inversion": [
            {"steps": 10, "seed": seed, "error": 1 - 0.5 * up + 0.01 * seed, "noise": 1 + 0.5 * up} for seed in range(3)
        ],
    }


def figure10_rows(up):
    curve = {"t": [1, 2, 3], "puccetti": [0.1, 0.2, 0.3][::up], "variance": [0.1, 0.2, 0.3][::up]}
    return {"curves": dict.fromkeys(("a", "b", "c"), curve)}


def diversity_rows(up):
    def of(sign):
        each = {name: {"iv": 2 + sign + x, "likeness": 0.5 - 0.1 * sign + x} for name, x in (("a", 0.0), ("b", 0.01))}
        return {**each, "c": {"iv": 2 + sign, "likeness": 0.5 - 0.1 * sign - 0.01}}

    return {"diversity": {"sds": of(-up), "jsd": of(up)}, "rows": view_rows(["jsd"], ["sds"], up)}


def made_up(experiment: str, claim: Claim, up: int):
    """Return made-up results in which `claim` holds, or with up = -1 does not."""
    if experiment == "dreammapping-figure6":  # here the linear operator and learnt noise are worse, and noisier
        linear = [dreammapping.LINEAR, dreammapping.NOISY]
        rows = view_rows(["vdm"], linear, up)
        return {"rows": [row | {"sharpness": row["fid"]} for row in rows]}
    rows = {
        "entropy": lambda: entropy_rows(up),
        "esd": lambda: esd_rows(up),
        "esd-dreamtime": lambda: esd_rows(up),
        "esd-table1": lambda: {"rows": view_rows([esd.HALF], ["sds:cfg=1", "vsd"], up)},
        "figure10": lambda: figure10_rows(up),
        "dreammapping-figure5": lambda: {"rows": figure5_rows(up)},
        "dreammapping-figure7": lambda: {"rows": view_rows(["vdm"], [dreammapping.LOW, dreammapping.HIGH], up)},
        "losses": lambda: cost_rows(up),
        "table31": lambda: table31_rows(up),
        "sbp-figure5.3": lambda: {"rows": view_rows(["sbp"], ["sbp:stage=bridge"], up)},
        "playground": lambda: playground_rows(up),
        "divergences": lambda: divergence_rows(up),
        "jsd-table2": lambda: diversity_rows(up),
    }
    return rows[experiment]()


def figure5_rows(up):
    """VDM without DCA is sharper than SDS and saturated, with DCA it is not saturated and has the lower FID."""
    rows = view_rows([dreammapping.NO_DCA, "vdm"], ["sds:cfg=2"], up)
    return [row | {"saturation": (3 if row["variant"] == dreammapping.NO_DCA else 3 - up)} for row in rows]


ALL = [(paper, claim) for paper in PAPERS.values() for claim in paper.claims]


@pytest.mark.parametrize(("paper", "claim"), ALL, ids=[f"{p.key}-{i}" for i, (p, _) in enumerate(ALL)])
def test_every_claim_can_come_out_either_way(paper, claim):
    holds, fails = (run.verdict_of(claim, made_up(claim.experiment.name, claim, up)) for up in (1, -1))
    assert (holds.outcome, fails.outcome) == (HOLDS, FAILS), (claim.statement, holds, fails)
    assert holds.figure
    assert holds.why


def test_results_that_lack_a_row_decide_nothing():
    for _, claim in ALL:
        empty = {"rows": [], "curves": {}, "random": {}, "divergences": [], "gradients": [], "inversion": []}
        verdict = run.verdict_of(claim, empty)
        assert verdict.outcome == OPEN
        assert verdict.why


# ---- the registry -----------------------------------------------------------------------------------------------


def test_every_paper_is_registered_and_its_claims_are_sentences():
    from sdlab.claims.commands import PAPERS as NAMED

    assert tuple(PAPERS) == NAMED
    for paper, claim in ALL:
        assert claim.statement.endswith("."), claim
        assert claim.section, paper.key
    assert [paper.key for paper in papers("jsd")] == ["jsd"]
    assert (PAPERS["sbp"], PAPERS["jsd"]) == (sbp.PAPER, jsd.PAPER)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("prior", ["gallery", "toybox", "/models/mine"])
def test_every_experiment_is_a_command_of_this_program(prior, quick):
    """Arguments are parsed as the shell's are; variants and knobs are checked by the command itself."""
    for experiment in {claim.experiment for _, claim in ALL}:
        command = experiment.command(Plan(prior, quick))
        args = cli._parser().parse_args([*command, "--out", "x"])
        assert callable(args.call), experiment.name


def test_the_whole_takes_less_than_ninety_minutes_and_quick_less_than_ten():
    needed = {claim.experiment.name: claim.experiment for _, claim in ALL}.values()
    assert sum(e.seconds[0] for e in needed) < 600
    assert sum(e.seconds[1] for e in needed) < 5400


# ---- the runner -------------------------------------------------------------------------------------------------

EXPERIMENT = Experiment("two", "two", "two.json", lambda plan: ["bench", "two"], (1, 2), ("two.png", "none.png"))


def decide(r):
    return positive(r["values"], "two")


PAPER = Paper(
    "two",
    "A paper about two",
    (Claim("1", "Two is | positive.", EXPERIMENT, decide),),
    (Unmeasured("2", "No.", "why"),),
)


class Started:
    """Stands in for the processes of experiments: writes results, and counts."""

    def __init__(self, values=(1.0, 1.1, 1.2), code=0):
        self.values, self.code, self.commands = values, code, []

    def __call__(self, arguments, log):
        self.commands.append(list(arguments))
        out = log.parent
        log.write_text("loading\nsomething broke\n")
        if self.code == 0:
            (out / "two.json").write_text(json.dumps({"values": self.values}))
            Image.new("RGB", (2000, 100), "red").save(out / "two.png")
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({self.code})"])


def run_two(out, start, stop=None):
    return run.run_claims([PAPER], Plan(quick=True), out, out / "claims.md", stop or threading.Event(), start)


def test_a_claim_is_run_decided_and_written_once(tmp_path, capsys):
    start = Started()
    (row,) = run_two(tmp_path, start)
    assert row.outcome == HOLDS
    assert row.command == "python -m sdlab bench two"
    assert start.commands == [["bench", "two", "--out", str(tmp_path / "two")]]
    text = (tmp_path / "claims.md").read_text()
    assert "| 1 | Two is \\| positive. | two: 1.1 ± 0.0577 (3 pairs) | **holds** | the 95 % interval" in text
    assert "`python -m sdlab claims --paper two --quick` made this page" in text
    assert "- 2: No. (why)" in text
    with Image.open(tmp_path / "claims" / "two.png") as picture:
        assert picture.width == page.WIDTH
    assert "none.png" not in text
    found = json.loads((tmp_path / "claims.json").read_text())
    assert found["counts"] == {HOLDS: 1, FAILS: 0, OPEN: 0}

    run_two(tmp_path, start)
    assert len(start.commands) == 1, "what has finished is not repeated"
    assert "1 of 1 experiments are in" in capsys.readouterr().out


def test_an_experiment_that_fails_decides_nothing_and_runs_again(tmp_path, capsys):
    assert run_two(tmp_path, Started(code=3)) == []
    assert "two: failed with exit code 3" in (out := capsys.readouterr().out)
    assert "something broke" in out
    assert "Not run yet:\n\n- 1: Two is | positive." in (tmp_path / "claims.md").read_text()
    assert len(run_two(tmp_path, Started())) == 1


def test_an_interrupted_experiment_is_told_to_end_and_is_not_in_the_journal(tmp_path, capsys):
    stop = threading.Event()

    def start(arguments, log):
        stop.set()
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    assert run_two(tmp_path, start, stop) == []
    assert "interrupted" in capsys.readouterr().out
    assert len(Journal(tmp_path)) == 0


def test_other_commands_have_other_keys():
    quick, whole = (run.key_of(experiments.PLAYGROUND, Plan(quick=quick)) for quick in (True, False))
    assert quick != whole


@pytest.mark.slow
def test_a_real_experiment_end_to_end(tmp_path, monkeypatch, capsys):
    """The divergences of JSD, with few draws, through the command line; its numbers are exact."""
    from sdlab.experiments import divergences

    monkeypatch.setattr(divergences, "DRAWS", 64)
    monkeypatch.setattr(divergences, "SEEDS_QUICK", 2)

    def start(arguments, log):
        assert cli.main(list(arguments)) == 0
        return subprocess.Popen([sys.executable, "-c", ""])

    only = [claim for claim in jsd.PAPER.claims if claim.experiment.name == "divergences"]
    monkeypatch.setitem(PAPERS, "jsd", Paper("jsd", "JSD", tuple(only)))
    monkeypatch.setattr(run, "_start", start)
    assert cli.main(["claims", "--paper", "jsd", "--quick", "--out", str(tmp_path)]) == 0
    rows = {row["statement"]: row for row in json.loads((tmp_path / "claims.json").read_text())["rows"]}
    assert rows["JSD is bounded by ln 2."]["outcome"] == HOLDS
    assert rows["JSD is a lower bound of KL."]["outcome"] == HOLDS
    assert rows["The objective that approximates JSD is bounded as well."]["outcome"] == FAILS
    assert (tmp_path / "claims" / "divergences.png").exists()
    assert "page: " in capsys.readouterr().out
