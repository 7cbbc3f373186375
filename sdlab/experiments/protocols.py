"""The rows of table 3.1 (`sdlab.experiments.text_to_2d`): losses with the settings that suit this prior, and with those
of the SBP thesis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sdlab.experiments.variants import parse_variant
from sdlab.settings import Settings

DDIM = "ddim"
LOSSES = ("sds", "nfsd", "csd", "vsd", "sbp")  # of the thesis' table
TUNED = (DDIM, *LOSSES, "jsd", "esd", "vdm", "ism")
METHODS = (*TUNED, *(f"{loss}@thesis" for loss in LOSSES), "sbp@thesis:form=full")
# Largest distance that Adam can move a value: the sum of its learning rates. From noise to an image it is about 2, but
# steps do not all point the same way. With 3, NFSD and VSD are still half noise; with 6, few steps at a high rate match
# many steps at a low one. Preset: 10, thesis: 25.
TRAVEL = 6.0
FADE = 0.1  # final share of the learning rate, close to the preset's rate; a high final rate leaves speckle
# the thesis' protocol is 500 steps of SDS, then 2000 of the bridge; the 50 steps of ramp between the two are left out,
# since they would take up most of a short run
SBP = ("losses.sbp.stage=two-stage", "losses.sbp.switch=0.2", "optim.ramp=0")
WORDS = "blurry, noisy, malformed, foggy"
# protocol -> loss -> knobs that a method sets on top of the preset; "" is that of a row without one
PROTOCOLS: dict[str, dict[str, tuple[str, ...]]] = {
    "": {"sbp": SBP},
    "thesis": {  # section 5.1: scales, and w1 = w2 = 40 of CSD, of which w2 falls to 0 in 500 of 2500 steps
        "sds": ("losses.sds.cfg=100",),
        "nfsd": ("losses.nfsd.cfg=7.5",),
        "csd": (
            *("losses.csd.pos=40", "losses.csd.neg=-40", "losses.csd.null=0"),
            *("losses.csd.pos_end=40", "losses.csd.neg_end=0", "losses.csd.null_end=-40", "losses.csd.ramp=0.2"),
        ),
        "vsd": ("losses.vsd.cfg=7.5",),
        "sbp": (*SBP, "losses.sbp.sds_cfg=40", "losses.sbp.w=25"),
    },
    "other-words": {"sbp": (*SBP, f"prompt.source={{prompt}}, {WORDS}")},
    "no-words": {"sbp": (*SBP, "prompt.source={prompt}")},
}


def common(steps: int) -> tuple[str, ...]:
    """Return the assignments that all methods share in a run of `steps` steps."""
    rate = TRAVEL / steps * math.log(1 / FADE) / (1 - FADE)
    return (
        "prompt.view_dependent=false",
        f"optim.lr_latents={min(rate, 1.0):.4g}",
        f"optim.decay={FADE}",
        # the preset's share of the run; VDM keeps its 50 warm-up steps, since its small network is cheap and needs them
        *(f"losses.{name}.warm_up={steps // 5}" for name in ("vsd", "esd", "asd")),
    )


class Method(NamedTuple):
    """A row of the table to fill; `label` is its spelling on the command line."""

    label: str
    settings: Settings


def methods(labels: Sequence[str], settings_of: Callable[[Sequence[str], Sequence[str]], Settings]) -> list[Method]:
    """Return the methods of `labels`: "ddim", or a loss, its protocol and some of its knobs, such as
    "sbp@thesis:form=full".

    `settings_of` turns assignments such as "active=sbp" into settings. It takes two lists: the method's defaults, which
    the user may override, and the rest. Raises ValueError for an unknown method and for a preset without an image
    scene.
    """
    found = []
    for label in dict.fromkeys(labels):
        plain, protocol = without_protocol(label)
        loss, assignments = ("sds", []) if label == DDIM else parse_variant(plain, "--losses")
        s = settings_of(_own(loss, protocol, label), [f"active={loss}", *assignments])
        if s.scene.kind != "image":
            raise ValueError(f"--preset: its scene.kind is {s.scene.kind!r}; choose a preset with an image scene")
        if s.loss.needs_reference:
            raise ValueError(f"--losses {label}: it edits an existing image, but here every image starts from noise")
        found.append(Method(label, s))
    return found


def without_protocol(label: str) -> tuple[str, str]:
    """Split "sbp@thesis:form=full" into "sbp:form=full" and "thesis"."""
    loss, colon, knobs = label.partition(":")
    name, _, protocol = loss.partition("@")
    return name + colon + knobs, protocol


def _own(loss: str, protocol: str, label: str) -> tuple[str, ...]:
    """Return the knobs of a loss in a protocol. Raises ValueError that names `label` if it has none there."""
    if protocol and loss not in PROTOCOLS.get(protocol, {}):
        known = ", ".join(f"{name}@{each}" for each, own in PROTOCOLS.items() if each for name in own)
        raise ValueError(f"--losses {label}: no such protocol; there are {known}")
    return PROTOCOLS[protocol].get(loss, ())
