"""Claims of "Text-to-3D Generation using Jensen-Shannon Score Distillation" (Do and Hua 2025)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sdlab.claims.claim import Claim, Paper, Unmeasured
from sdlab.claims.decisions import Verdict, exactly, number, paired, positive
from sdlab.claims.experiments import DIVERGENCES, PLAYGROUND, TABLE_2

Results = Mapping[str, Any]
TEN = 10  # steps of the inversion in the paper
SAME = ("scores", "start", "asked")
ALL = "all of them"


def bounded(r: Results) -> Verdict:
    largest = max(r["random"]["largest_jsd"], *(row["jsd"] for row in r["divergences"]))
    over = f"over {len(r['divergences'])} values of a and {r['random']['pairs']} random pairs"
    return exactly(largest <= math.log(2), f"largest JSD {largest:.4f}, ln 2 {math.log(2):.4f}", over)


def below_kl(r: Results) -> Verdict:
    above = r["random"]["above_kl"] + sum(row["jsd"] > row["kl"] for row in r["divergences"])
    pairs = r["random"]["pairs"] + len(r["divergences"])
    return exactly(above == 0, f"JSD above KL in {above} of {pairs} pairs", "(a, 1 - a) of figure 8, and random pairs")


def approximation_bounded(r: Results) -> Verdict:
    largest = max(row["discriminator"] for row in r["divergences"])
    apart = max(abs(row["discriminator"] - row["kl"]) for row in r["divergences"])
    return exactly(
        largest <= math.log(2),
        f"largest value {number(largest)}, ln 2 {math.log(2):.3f}",
        "eq. 8 with the discriminator (9) of an optimal classifier, p(y|x) = p / (p + q), is KL(q || p) itself: they "
        f"differ by at most {number(apart)}",
    )


def growth(r: Results) -> Verdict:
    """How much more SDS's gradient grows from the nearest to the farthest point than JSD's, as a logarithm."""
    size = {(row["loss"], row["cfg"], row["seed"], row["distance"]): row["rms"] for row in r["gradients"]}
    near, far = (f(row["distance"] for row in r["gradients"]) for f in (min, max))
    runs = {(cfg, seed) for _, cfg, seed, _ in size}

    def grows(loss: str, cfg: float, seed: int) -> float:
        return math.log(size[loss, cfg, seed, far] / size[loss, cfg, seed, near])

    found = [grows("sds", *run) - grows("jsd", *run) for run in sorted(runs)]
    return positive(found, f"log growth of the gradient from distance {near:g} to {far:g}, SDS less JSD", "starts")


def steadier(r: Results) -> Verdict:
    """Standard deviation over the mean of the gradient, SDS less JSD, at each point."""
    found = paired(r["gradients"], "loss", "jsd", "sds", "noise", ("cfg", "seed", "distance"))
    return positive(found, "noise of the gradient relative to its mean, SDS less JSD", "points")


def inversion(r: Results) -> Verdict:
    """Change of the residual by fresh noise less the error of ten steps, for each seed."""
    found = [row["noise"] - row["error"] for row in r["inversion"] if row["steps"] == TEN]
    return positive(found, "change of the residual by fresh noise less its error with 10 steps", "seeds")


def correlated(r: Results) -> Verdict:
    found = [row["correlation"] for row in r["rows"] if row["loss"] == "jsd" and row["length"] == "paper"]
    return positive(found, "correlation of JSD's control variate with the estimated noise", "experiments")


def plane(
    measure: str, what: str, cfg: float, asked: bool, length: str, low: str, high: str
) -> Callable[[Results], Verdict]:
    """`measure` of the loss `high` less that of `low` in the plane; `asked`: the prompt names all Gaussians."""

    def decide(r: Results) -> Verdict:
        rows = [
            row for row in r["rows"] if row["cfg"] == cfg and row["length"] == length and (row["asked"] == ALL) == asked
        ]
        return positive(paired(rows, "loss", low, high, measure, SAME), what, "starts, exact and trained scores")

    return decide


def diverse(measure: str, low: str, high: str, what: str) -> Callable[[Results], Verdict]:
    """`measure` over the runs of an object, of the loss `high` less that of `low`, for each object."""

    def decide(r: Results) -> Verdict:
        a, b = r["diversity"][low], r["diversity"][high]
        return positive([b[name][measure] - a[name][measure] for name in a if name in b], what, "objects")

    return decide


PAPER = Paper(
    "jsd",
    "JSD: Text-to-3D Generation using Jensen-Shannon Score Distillation (Do and Hua 2025)",
    (
        Claim("4.1", "JSD is bounded by ln 2.", DIVERGENCES, bounded),
        Claim("4.1", "JSD is a lower bound of KL.", DIVERGENCES, below_kl),
        Claim(
            "4.2, supplement 1, figure 8",
            "The objective that approximates JSD is bounded as well.",
            DIVERGENCES,
            approximation_bounded,
        ),
        Claim(
            "4.1",
            "Boundedness keeps the gradient from extreme values: far away it grows less than that of SDS.",
            DIVERGENCES,
            growth,
        ),
        Claim("5.1, figure 4", "The control variate correlates with the estimated noise.", PLAYGROUND, correlated),
        Claim(
            "5.1, supplement 4, figure 14",
            "It correlates more than that of SDS, the drawn noise.",
            PLAYGROUND,
            plane("correlation", "correlation of JSD less that of SDS", 1.0, False, "paper", "sds", "jsd"),
        ),
        Claim("5.1", "This reduces the variance of the gradient, compared with SDS.", DIVERGENCES, steadier),
        Claim(
            "4.1, 5.1, figure 5",
            "JSD covers more modes than SDS from the same start.",
            PLAYGROUND,
            plane("modes", "Gaussians found by JSD less those found by SDS", 1.0, True, "long", "sds", "jsd"),
        ),
        Claim(
            "5.1",
            "JSD stays stable under guidance: with CFG 7.5 more seeds end at the prompt's Gaussian than with SDS.",
            PLAYGROUND,
            plane("found", "share of JSD less that of SDS", 7.5, False, "long", "sds", "jsd"),
        ),
        Claim(
            "5.2",
            "Ten steps of inversion are enough: their error is below the change by fresh noise.",
            DIVERGENCES,
            inversion,
        ),
        Claim(
            "5.2, table 2",
            "Different seeds give different objects from one start: more variety than SDS.",
            TABLE_2,
            diverse("iv", "sds", "jsd", "IV of JSD over all seeds less that of SDS"),
        ),
        Claim(
            "5.2, table 2",
            "The same by the cosine of features, lower than with SDS.",
            TABLE_2,
            diverse("likeness", "jsd", "sds", "cosine of SDS less that of JSD"),
        ),
        Claim(
            "5.2",
            "Fewer Janus problems than SDS, without view words.",
            TABLE_2,
            lambda r: positive(
                paired(r["rows"], "variant", "jsd", "sds", "fronts", ("object", "seed")),
                "fronts of SDS less fronts of JSD",
            ),
        ),
    ),
    (
        Unmeasured("5.2, table 1", "Best quality on T3Bench.", "needs ImageReward, a captioner and GPT-4"),
        Unmeasured(
            "5.2, table 2",
            "More variety than DiverseDream.",
            "DiverseDream needs reference images and textual inversion",
        ),
    ),
)
