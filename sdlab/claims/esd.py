"""Claims of "Taming Mode Collapse in Score Distillation for Text-to-3D Generation" (Wang et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sdlab.claims.claim import Claim, Paper, Unmeasured
from sdlab.claims.decisions import Verdict, any_scale, paired, positive, slopes
from sdlab.claims.experiments import DREAMTIME, ENTROPY, ESD, TABLE_1

Results = Mapping[str, Any]
RUN = ("object", "seed")
HALF = "esd:lam=0.5"


def entropy_gain(scores: str) -> Callable[[Results], Verdict]:
    """IV at lambda 1 less IV at lambda 0, for each seed of the particles."""

    def decide(r: Results) -> Verdict:
        at = {row["lambda"]: row["iv_each"] for row in r["rows"] if row["scores"] == scores}
        return positive(
            [b - a for a, b in zip(at[0.0], at[1.0], strict=True)], "IV at lambda 1 less IV at lambda 0", "seeds"
        )

    return decide


def entropy_slope(r: Results) -> Verdict:
    points = [
        {"lambda": row["lambda"], "seed": seed, "iv": iv}
        for row in r["rows"]
        if row["scores"] == "exact"
        for seed, iv in enumerate(row["iv_each"])
    ]
    return positive(slopes(points, "lambda", "iv", ["seed"]), "slope of IV over lambda", "seeds")


def more(measure: str, first: float, other: float, what: str) -> Callable[[Results], Verdict]:
    """`measure` at lambda `other` less that at `first`, for each object and seed of `bench esd`."""
    return lambda r: positive(paired(r["rows"], "lambda", first, other, measure, RUN), what)


def fall_of_fronts(r: Results) -> Verdict:
    """The slope of the fronts over lambda, with the opposite sign, for each object and seed of `bench esd`."""
    found = [-slope for slope in slopes(r["rows"], "lambda", "fronts", RUN)]
    return positive(found, "fall of the fronts from lambda 0 to 1", "runs over lambda")


def table(measure: str, low: str, high: str, what: str) -> Callable[[Results], Verdict]:
    """`measure` of the variant `high` less that of `low`, for each object and seed."""
    return lambda r: positive(paired(any_scale(r["rows"]), "variant", low, high, measure, RUN), what)


PAPER = Paper(
    "esd",
    "ESD: Taming Mode Collapse in Score Distillation for Text-to-3D Generation (Wang et al. 2024)",
    (
        Claim(
            "4.1, theorem 1",
            "The entropy term spreads the views over the modes of the prior; likelihood alone collapses them.",
            ENTROPY,
            entropy_gain("exact"),
        ),
        Claim(
            "4.2, algorithm 1",
            "The same with scores that a second network learns with and without the camera.",
            ENTROPY,
            entropy_gain("learnt"),
        ),
        Claim("4.1", "The larger lambda, the more diverse the views.", ENTROPY, entropy_slope),
        Claim(
            "7, figure 2",
            "ESD shows less of the Janus problem than VSD.",
            ESD,
            more("fronts", 1.0, 0.0, "fronts of VSD less fronts at lambda 1"),
        ),
        Claim(
            "7, figure 4",
            "Lambda in the middle, 0.5, already shows less of it.",
            ESD,
            more("fronts", 0.5, 0.0, "fronts of VSD less fronts at lambda 0.5"),
        ),
        Claim(
            "7, figure 4",
            "Fewer fronts with every increase of lambda.",
            ESD,
            fall_of_fronts,
        ),
        Claim(
            "7, figure 4",
            "Lambda 1 blurs: the middle has more detail.",
            ESD,
            more("sharpness", 1.0, 0.5, "sharpness at lambda 0.5 less sharpness at 1"),
        ),
        Claim(
            "7",
            "More variety of the views than VSD, in 3D.",
            ESD,
            more("iv", 0.0, 1.0, "IV at lambda 1 less IV of VSD"),
        ),
        Claim(
            "7, figure 3",
            "ESD helps DreamTime, too: fewer fronts than VSD under the same schedule.",
            DREAMTIME,
            more("fronts", 1.0, 0.0, "fronts of VSD less fronts at lambda 1"),
        ),
        Claim(
            "7, table 1", "ESD has a higher IV than VSD.", TABLE_1, table("iv", "vsd", HALF, "IV of ESD less IV of VSD")
        ),
        Claim(
            "7, table 1",
            "ESD has a lower FID than VSD.",
            TABLE_1,
            table("fid", HALF, "vsd", "FID of VSD less FID of ESD"),
        ),
        Claim(
            "7, table 1",
            "ESD has a lower FID than SDS.",
            TABLE_1,
            table("fid", HALF, "sds", "FID of SDS less FID of ESD"),
        ),
        Claim(
            "7, table 1",
            "ESD's views are of better quality than those of SDS (IQ, lower is better).",
            TABLE_1,
            table("iq", HALF, "sds", "IQ of SDS less IQ of ESD"),
        ),
    ),
    (Unmeasured("7, table 1", "ESD has the lowest CLIP distance.", "CLIP's weights are not included"),),
)
