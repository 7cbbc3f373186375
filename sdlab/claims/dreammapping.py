"""Claims of "DreamMapping: High-Fidelity Text-to-3D Generation via Variational Distribution Mapping" (Cai et al.
2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sdlab.claims.claim import Claim, Paper, Unmeasured
from sdlab.claims.decisions import Verdict, above, any_scale, exactly, one, paired, positive, rank_correlation
from sdlab.claims.experiments import COSTS, FIGURE_5, FIGURE_6, FIGURE_7, FIGURE_10

Results = Mapping[str, Any]
RUN = ("object", "seed")
NO_DCA, LOW, HIGH = ("vdm:dca_cutoff=0", "vdm:dca_cutoff=100", "vdm:dca_cutoff=500")
LINEAR, NOISY = "vdm:operator=linear", "vdm:operator=u-lite with noise"


def grows_with_t(what: str, title: str) -> Callable[[Results], Verdict]:
    """Rank correlation of a curve of figure 10 with t, for each prior."""

    def decide(r: Results) -> Verdict:
        found = [rank_correlation(curve["t"], curve[what]) for curve in r["curves"].values()]
        return positive(found, f"rank correlation of {title} with t", "priors")

    return decide


def table(measure: str, low: str, high: str, what: str) -> Callable[[Results], Verdict]:
    """`measure` of the variant `high` less that of `low`, for each object and seed."""
    return lambda r: positive(paired(any_scale(r["rows"]), "variant", low, high, measure, RUN), what)


def cheaper_than_vsd(r: Results) -> Verdict:
    """Time of a VSD step with LoRA over that of a VDM step, for each round."""
    vsd, vdm = (one(r["rows"], "label", label)["fastest"]["x_sds_each"] for label in ("vsd (lora)", "vdm"))
    return above([a / b for a, b in zip(vsd, vdm, strict=True)], 1.0, "time of VSD's step over VDM's", "rounds")


def no_more_evaluations(r: Results) -> Verdict:
    """Evaluations of the prior's network in a step of VDM and of SDS."""
    vdm, sds = (one(r["rows"], "label", label)["evaluations"] for label in ("vdm", "sds"))
    return exactly(vdm <= sds, f"VDM {vdm}, SDS {sds}", "network evaluations of a step, counted")


PAPER = Paper(
    "dreammapping",
    "DreamMapping: High-Fidelity Text-to-3D Generation via Variational Distribution Mapping (Cai et al. 2024)",
    (
        Claim(
            "4.3, figure 10",
            "The correlation of eps with the noise falls as t decreases.",
            FIGURE_10,
            grows_with_t("puccetti", "the correlation"),
        ),
        Claim(
            "4.3, figure 10",
            "The variance of eps is high at large t.",
            FIGURE_10,
            grows_with_t("variance", "the variance"),
        ),
        Claim(
            "5.6, figure 5",
            "VDM adds detail to SDS at the same guidance scale.",
            FIGURE_5,
            table("sharpness", "sds", NO_DCA, "sharpness of VDM less that of SDS"),
        ),
        Claim(
            "5.6, figure 5",
            "Without DCA, colours saturate; DCA controls this.",
            FIGURE_5,
            table("saturation", "vdm", NO_DCA, "saturation without DCA less that with it"),
        ),
        Claim(
            "5.3, table 3",
            "Lower FID to images of the prior than SDS.",
            FIGURE_5,
            table("fid", "vdm", "sds", "FID of SDS less FID of VDM + DCA"),
        ),
        Claim(
            "5.6, figure 6",
            "U-Lite outperforms a linear operator.",
            FIGURE_6,
            table("fid", "vdm", LINEAR, "FID with the linear operator less FID with U-Lite"),
        ),
        Claim(
            "5.6, figure 6",
            "A linear operator leaves more noise.",
            FIGURE_6,
            table("sharpness", "vdm", LINEAR, "fine detail with the linear operator less that with U-Lite"),
        ),
        Claim(
            "5.6, figure 6",
            "Learnt observation noise does not improve the result.",
            FIGURE_6,
            table("fid", "vdm", NOISY, "FID with learnt noise less FID without"),
        ),
        Claim(
            "5.6, figure 7",
            "A cut-off of 100 saturates colours more than 300.",
            FIGURE_7,
            table("saturation", "vdm", LOW, "saturation with 100 less that with 300"),
        ),
        Claim(
            "5.6, figure 7",
            "A cut-off of 500 smooths more than 300.",
            FIGURE_7,
            table("sharpness", HIGH, "vdm", "sharpness with 300 less that with 500"),
        ),
        Claim("4.2, 5.6", "A step costs less than one of VSD.", COSTS, cheaper_than_vsd),
        Claim("4.2", "No more evaluations of the prior's network than SDS.", COSTS, no_more_evaluations),
    ),
    (
        Unmeasured("5.3, table 2", "Highest CLIP scores.", "CLIP's weights are not included"),
        Unmeasured("5.5, table 4", "Preferred by users.", "a user study"),
        Unmeasured(
            "5.3, tables 2 and 3",
            "Better and faster than DreamGaussian, GaussianDreamer, LucidDreamer and ProlificDreamer as a whole.",
            "their pipelines need a GPU and Stable Diffusion",
        ),
    ),
)
