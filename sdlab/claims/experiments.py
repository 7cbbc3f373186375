"""The experiments whose results decide claims. Each is a command that can be run on its own."""

from __future__ import annotations

from sdlab.claims.claim import GALLERY, TOYBOX, Experiment, Plan

OBJECTS, OBJECTS_QUICK = "bear,cat,robot", "bear,robot"


def _objects(plan: Plan) -> list[str]:
    """Return the options of the runs in 3D: what is made, how long, on which prior."""
    if plan.quick:
        size = ["--objects", OBJECTS_QUICK, "--seeds", "1", "--steps", "60"]
    else:
        size = ["--objects", OBJECTS, "--seeds", "2", "--steps", "250"]
    if plan.prior == GALLERY:
        return [*size, "--family", GALLERY, "--set", "prior.size=32"]
    return [*size, "--family", TOYBOX, *_network(plan)]


def _network(plan: Plan) -> list[str]:
    """Return the option that selects a network of one's own; the toybox's otherwise, with exact scores too."""
    return [] if plan.prior in (GALLERY, TOYBOX) else ["--set", f"prior.path={plan.prior}"]


def _views(name: str, folder: str, seconds: tuple[float, float], *more: str) -> Experiment:
    def command(plan: Plan) -> list[str]:
        return ["bench", name, *_objects(plan), *more]

    return Experiment(name, folder, f"{name}.json", command, seconds, (f"{name}.png",))


def _plotted(name: str, seconds: tuple[float, float]) -> Experiment:
    def command(plan: Plan) -> list[str]:
        return ["bench", name, *(["--quick"] if plan.quick else [])]

    return Experiment(name, name, f"{name}.json", command, seconds, (f"{name}.png",), to_file=True)


# ---- ESD ---------------------------------------------------------------------------------------------------------

ENTROPY = _plotted("entropy", (15, 80))


def _esd(plan: Plan) -> list[str]:
    if plan.quick:
        return ["--objects", "frog,bear", "--seeds", "2", "--steps", "120"]
    return ["--objects", "bear,cat,rabbit,robot,frog,owl", "--seeds", "2", "--steps", "300"]


ESD = Experiment(
    "esd",
    "esd",
    "esd.json",
    lambda plan: [
        *["bench", "esd", *_esd(plan), "--set", "schedule.t_min=0.02"],
        *(["--lambdas", "0,0.5,1"] if plan.quick else []),
    ],
    (60, 490),
    ("esd.png", "esd-views.png"),
)
DREAMTIME = Experiment(
    "esd-dreamtime",
    "esd-dreamtime",
    "esd.json",
    lambda plan: ["bench", "esd", "--preset", "gallery-esd-dreamtime", *_esd(plan), "--lambdas", "0,1"],
    (45, 190),
    ("esd-views.png",),
)


def _table1(plan: Plan) -> list[str]:
    """With exact scores where lambda has an effect, else with the network."""
    if plan.prior != GALLERY:
        return ["bench", "esd-table1", *_objects(plan)]
    size = ["--objects", "frog,bear", "--seeds", "1", "--steps", "100"]
    whole = ["--objects", "bear,frog,rabbit,robot", "--seeds", "2", "--steps", "300"]
    variants = "sds:cfg=1,vsd,esd:lam=0.5,esd:lam=1"
    preset = ["--preset", "gallery-esd-views", "--set", "schedule.t_min=0.02", "--variants", variants]
    return ["bench", "esd-table1", *preset, *(size if plan.quick else whole)]


TABLE_1 = Experiment("esd-table1", "esd-table1", "esd-table1.json", _table1, (45, 290), ("esd-table1.png",))

# ---- DreamMapping ------------------------------------------------------------------------------------------------

FIGURE_10 = _plotted("figure10", (15, 90))
# One folder, so that the runs which the figures share are made once. The presets' smallest t, 100, leaves a cut-off at
# 100 without effect; the paper's is 20.
SMALL_T = ("--set", "schedule.t_min=0.02")
FIGURE_5 = _views("dreammapping-figure5", "dreammapping", (30, 120), *SMALL_T)
FIGURE_6 = _views("dreammapping-figure6", "dreammapping", (25, 90), *SMALL_T)
FIGURE_7 = _views("dreammapping-figure7", "dreammapping", (25, 90), *SMALL_T)
COSTS = Experiment(
    "losses",
    "losses",
    "losses.json",
    lambda plan: [
        *["bench", "losses", "--preset", "toybox", "--losses", "sbp,vdm,vsd"],
        *(["--quick"] if plan.quick else []),
    ],
    (50, 140),
    to_file=True,
)

# ---- SBP ---------------------------------------------------------------------------------------------------------

TABLE_31_ROWS = (
    "ddim",
    *("sds@thesis", "nfsd@thesis", "csd@thesis", "vsd@thesis", "sbp@thesis", "sbp@thesis:form=full"),
    *("sbp@thesis:stage=bridge", "sbp@other-words", "sbp@no-words", "sds", "sbp"),
)


def _table31(plan: Plan) -> list[str]:
    size = (4, 2, 15) if plan.quick else (16, 3, 60)
    options = zip(("--captions", "--seeds", "--steps"), map(str, size), strict=True)
    flat = [word for pair in options for word in pair]
    quick = ["--quick"] if plan.quick else []
    return ["bench", "table31", *quick, *flat, "--losses", ",".join(TABLE_31_ROWS), *_network(plan)]


TABLE_31 = Experiment("table31", "table31", "table31.json", _table31, (100, 1160), ("table31.png",))
FIGURE_53 = _views("sbp-figure5.3", "sbp", (20, 50))

# ---- JSD ---------------------------------------------------------------------------------------------------------

PLAYGROUND = Experiment(
    "playground",
    "playground",
    "playground.json",
    lambda plan: ["bench", "playground", *(["--quick"] if plan.quick else [])],
    (60, 110),
    ("control-variate-cfg-1.png", "trajectories-all.png"),
)
DIVERGENCES = Experiment(
    "divergences",
    "divergences",
    "divergences.json",
    lambda plan: ["bench", "divergences"],
    (5, 5),
    ("divergences.png",),
)


def _table2(plan: Plan) -> list[str]:
    options = _objects(plan)
    seeds = options.index("--seeds") + 1
    sized = [*options[:seeds], "2" if plan.quick else "4", *options[seeds + 1 :]]
    return ["bench", "jsd-table2", *sized, "--set", "prompt.view_dependent=false"]


TABLE_2 = Experiment("jsd-table2", "jsd-table2", "jsd-table2.json", _table2, (60, 175), ("jsd-table2.png",))
