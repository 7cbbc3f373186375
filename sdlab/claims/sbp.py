"""Claims of "Extending Data Priors Across Domains with Diffusion Distillation" (McAllister 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sdlab.claims.claim import Claim, Paper, Unmeasured
from sdlab.claims.decisions import Verdict, above, exactly, one, paired, positive
from sdlab.claims.experiments import COSTS, FIGURE_53, TABLE_31

Results = Mapping[str, Any]
SBP, SDS, FULL = "sbp@thesis", "sds@thesis", "sbp@thesis:form=full"


def scores(r: Results, method: str, score: str) -> list[float]:
    """Return `score` of one row of table 3.1, by seed."""
    return one(r["rows"], "method", method)[score]["each"]


def table(low: str, high: str, what: str, score: str = "fid_true") -> Callable[[Results], Verdict]:
    """`score` of the method `high` less that of `low`, for each seed."""

    def decide(r: Results) -> Verdict:
        pairs = zip(scores(r, low, score), scores(r, high, score), strict=True)
        return positive([b - a for a, b in pairs], what, "seeds")

    return decide


def vary_words(r: Results) -> Verdict:
    """Gain of the bridge over SDS less the change by other descriptors, for each seed."""
    sds, own, other = (scores(r, method, "fid_true") for method in ("sds", "sbp", "sbp@other-words"))
    gains = [abs(a - b) - abs(b - c) for a, b, c in zip(sds, own, other, strict=True)]
    return positive(gains, "FID between SDS and SBP less FID between two choices of descriptors", "seeds")


def slower_than(low: str, high: str, bound: float, what: str) -> Callable[[Results], Verdict]:
    """Seconds an image of the method `high` over those of `low`, for each seed, against the thesis' number."""

    def decide(r: Results) -> Verdict:
        pairs = zip(scores(r, low, "seconds"), scores(r, high, "seconds"), strict=True)
        return above([b / a for a, b in pairs], bound, what, "seeds")

    return decide


def costs_as_sds(r: Results) -> Verdict:
    """Evaluations of the prior's network in a step of SBP and of SDS."""
    sbp, sds = (one(r["rows"], "loss", loss) for loss in ("sbp", "sds"))
    return exactly(
        sbp["evaluations"] == sds["evaluations"],
        f"SBP {sbp['evaluations']}, SDS {sds['evaluations']}",
        f"network evaluations of a step, counted; its time is {sbp['fastest']['x_sds']:g} times that of SDS",
    )


def geometry(r: Results) -> Verdict:
    found = paired(r["rows"], "variant", "sbp:stage=bridge", "sbp", "object_share", ("object", "seed"))
    return positive(found, "share of views read as the object, with SDS first less without")


PAPER = Paper(
    "sbp",
    "SBP: Extending Data Priors Across Domains with Diffusion Distillation (McAllister 2024)",
    (
        Claim(
            "3.1, table 3.1",
            "Sampling by DDIM is the lower bound: VSD, the best loss, has a higher FID.",
            TABLE_31,
            table("ddim", "vsd@thesis", "FID of VSD less FID of DDIM"),
        ),
        Claim(
            "3.1, table 3.1",
            "VSD has a lower FID than SBP.",
            TABLE_31,
            table("vsd@thesis", SBP, "FID of SBP less FID of VSD"),
        ),
        Claim(
            "3.1, table 3.1", "SBP has a lower FID than SDS.", TABLE_31, table(SBP, SDS, "FID of SDS less FID of SBP")
        ),
        Claim(
            "3.1, table 3.1",
            "SBP has a lower FID than CSD.",
            TABLE_31,
            table(SBP, "csd@thesis", "FID of CSD less FID of SBP"),
        ),
        Claim(
            "3.1, table 3.1",
            "SBP has a lower FID than NFSD.",
            TABLE_31,
            table(SBP, "nfsd@thesis", "FID of NFSD less FID of SBP"),
        ),
        Claim(
            "3.1, table 3.1",
            "The same against SDS where both have the scale that suits this prior, 7.5 in place of 100 and 40.",
            TABLE_31,
            table("sbp", "sds", "FID of SDS less FID of SBP"),
        ),
        Claim(
            "3.1, figure 3.3",
            "SDS over-saturates; SBP does less.",
            TABLE_31,
            table(SBP, SDS, "saturation of SDS less that of SBP", "saturation"),
        ),
        Claim(
            "4.1",
            "The full bridge has a lower FID than VSD.",
            TABLE_31,
            table(FULL, "vsd@thesis", "FID of VSD less FID of the full bridge"),
        ),
        Claim(
            "3",
            "Describing the flaws of the image helps: a source prompt without descriptors is worse.",
            TABLE_31,
            table("sbp", "sbp@no-words", "FID without descriptors less FID with them"),
        ),
        Claim(
            "3",
            "Other descriptors make no big difference, compared with that between SDS and SBP.",
            TABLE_31,
            vary_words,
        ),
        Claim(
            "5.2, ablation of stage 2",
            "Two stages are better than the bridge from the start, in 2D.",
            TABLE_31,
            table(SBP, "sbp@thesis:stage=bridge", "FID of the bridge alone less FID of SDS and bridge"),
        ),
        Claim("5.2, figure 5.3", "Without the first stage, geometry suffers, in 3D.", FIGURE_53, geometry),
        Claim("1, 3", "No more computation than SDS.", COSTS, costs_as_sds),
        Claim(
            "3.1",
            "SBP is over 3 times as fast as VSD.",
            TABLE_31,
            slower_than(SBP, "vsd@thesis", 3.0, "seconds of VSD over seconds of SBP"),
        ),
        Claim(
            "3",
            "VSD takes at least 3 times as long as SDS (an overhead of 200 to 300 %).",
            TABLE_31,
            slower_than(SDS, "vsd@thesis", 3.0, "seconds of VSD over seconds of SDS"),
        ),
    ),
    (
        Unmeasured("3.1, table 3.1", "The same order by CLIP FID.", "CLIP's weights are not included"),
        Unmeasured("3.1, table 3.2", "Higher CLIP similarity than SDS in 3D.", "CLIP's weights are not included"),
        Unmeasured("3.1", "Preferred by 75.7 % of users.", "a user study"),
    ),
)
