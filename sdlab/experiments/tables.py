"""Tables and figures of the papers that `sdlab.experiments.views` reproduces, by the name of their command.

Free of torch: the command line reads it before any command runs.
"""

from __future__ import annotations

from typing import NamedTuple

AS_VDM = "sds:cfg=vdm"  # SDS with the guidance scale of VDM's preset


class Table(NamedTuple):
    """A table or figure of a paper: its title, variants of losses, and knobs that all of them set."""

    title: str
    variants: tuple[str, ...]
    knobs: tuple[str, ...] = ()


TABLES = {
    "esd-table1": Table(
        "table 1 of ESD: quality, variety and FID of SDS, VSD and ESD without view words",
        ("sds", "vsd", "esd:lam=0.5", "esd:lam=1"),
        ("prompt.view_dependent=false",),
    ),
    "dreammapping-figure5": Table(
        "figure 5 of DreamMapping: SDS, VDM, and VDM with DCA, at VDM's guidance scale",
        (AS_VDM, "vdm:dca_cutoff=0", "vdm"),
    ),
    "dreammapping-figure6": Table(
        "figure 6 of DreamMapping: U-Lite, linear operator, U-Lite with learnt noise",
        ("vdm", "vdm:operator=linear", "vdm:operator=u-lite with noise"),
    ),
    "dreammapping-figure7": Table(
        "figure 7 of DreamMapping: cut-offs of DCA",
        ("vdm:dca_cutoff=0", "vdm:dca_cutoff=100", "vdm", "vdm:dca_cutoff=500"),
    ),
    "sbp-figure5.3": Table(
        "figure 5.3 of the SBP thesis: the bridge after SDS, and from the start", ("sbp", "sbp:stage=bridge")
    ),
    "jsd-table2": Table(
        "table 2 of JSD: diversity over seeds from one start", ("sds", "vsd", "jsd"), ("start_seed=0",)
    ),
}
