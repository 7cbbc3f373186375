"""What a lesson's predicates read of a live run, by name; see `READINGS`.

Statistics of steps are means over the last `SMOOTHED` steps since the settings changed, because single steps are noisy.
Everything else is read from what the session publishes, so any thread may read.
"""

from __future__ import annotations

import difflib
import itertools
import statistics
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from sdlab.knobs import shown
from sdlab.live import critic
from sdlab.live.messages import Applied, Branched, Stepped, Went
from sdlab.live.session import Session
from sdlab.live.watching import Around
from sdlab.plane import HELD, REACH, shares
from sdlab.settings import OWN, losses
from sdlab.types import Frame

SMOOTHED = 20  # steps
MOST_IMAGES = 16  # of a flat scene that are read

VIEWS = {  # of twelve views around the object, or of the images of a flat scene
    "saturation": "mean of max(R, G, B) - min(R, G, B), 0 to 1",
    "sharpness": "mean distance of a pixel from its surroundings, 0 to 1",
    "object": "share of views that the judge reads as the prompt's object",
    "colour": "share of views that the judge reads as the prompt's colour",
    "fronts": "views of the 12 that show a front; an object with one front has 3",
    "faces": "sides that show a front; 1 without a Janus problem",
    "iq": "mean entropy in nats of the objects that the judge reads in single views",
    "iv": "entropy in nats of the objects that it reads in all views together; of sides, for one object's own views",
    "iq_view": "as iq, of view words",
    "iv_view": "as iv, of view words",
}
PLANE = {  # of points in the plane
    "found": "share of the points within three standard deviations of a mode of the prompt",
    "modes": "modes of the prompt that hold at least 1 % of the points",
    "distance": "mean distance of a point from the nearest mode of the prompt",
    "spread": "root mean square distance of the points from their mean",
    "strayed": "share of the points that have left the picture",
}
OTHERS = {
    "judge": "probability that the images of a step show what the prompt asks for, by the judge",
    "variety": "root mean square difference between images of a flat scene, mean over pairs, 0 to 1",
}
STEPS = {  # of a step; more in `must_be_reading`
    "grad_rms": "root mean square of w(t) residual",
    "residual_rms": "root mean square of the residual",
    "control_correlation": "correlation of the prediction given the prompt with what the loss subtracts",
    "noise_correlation": "correlation of that prediction with the noise",
    "guidance_rms": "root mean square of eps_c - eps_u",
    "guidance_share": "cosine of eps_c - eps_u and the residual",
    "correlation": "JSD: correlation of the two predictions",
    "displacement": "SBP, PFD: root mean square distance to the target",
    "weight": "w(t)",
    "t": "timestep, mean over the views",
    "steps_per_s": "steps a second",
    "seconds": "time in steps since the start",
    "prior_share": "share of the time spent in the prior",
    "skipped": "steps without update because a gradient was not finite",
    "n_gaussians": "number of Gaussians",
    "mean_x": "mean of the fitted Gaussian, towards east",
    "mean_y": "towards north",
    "std_x": "standard deviation of the fitted Gaussian, towards east",
    "std_y": "towards north",
}
READINGS: Mapping[str, str] = MappingProxyType({**VIEWS, **PLANE, **OTHERS, **STEPS})
OF_FRAME = ("n_gaussians", "mean_x", "mean_y", "std_x", "std_y", "seconds")  # facts about the scene, never means
COMPARED = "compare."  # begins readings of the comparison of losses: compare.rms.LOSS, compare.cosine.LOSS.LOSS
KINDS = {"rms": 1, "nfe": 1, "cosine": 2}  # of these readings -> losses that follow


def must_be_reading(name: str) -> None:
    """Raise ValueError unless something can be read under `name`: one of `READINGS`, rms_TERM for a term of a loss, the
    error of a loss's auxiliary, or a number of the comparison, such as compare.cosine.sds.ism."""
    terms = {f"rms_{term.name}" for loss in losses().values() for term in loss.terms} | {"rms_noise"}
    errors = {error for loss in losses().values() for error in loss.aux_errors}
    if name in READINGS or name in terms or name in errors:
        return
    kind, *given = name.removeprefix(COMPARED).split(".")
    if name.startswith(COMPARED) and KINDS.get(kind) == len(given) and set(given) <= {*losses(), OWN}:
        return
    near = difflib.get_close_matches(name[:100], [*READINGS, *sorted(terms | errors)], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"readings are {', '.join(READINGS)}"
    raise ValueError(f"reading = {shown(name)}: there is no such reading; {hint}")


def meaning_of(name: str) -> str:
    """Return what a reading means, in words; "" for one of a loss's own terms."""
    match name.split("."):
        case ["compare", "cosine", one, other]:
            return f"cosine of the gradients of {loss_called(one)} and {loss_called(other)} at the compared state"
        case ["compare", "rms", loss]:
            return f"root mean square of the gradient of {loss_called(loss)} at the compared state"
        case ["compare", "nfe", loss]:
            return f"network evaluations of {loss_called(loss)}, per view"
    return READINGS.get(name, "")


def loss_called(kind: str) -> str:
    """Return what a sentence calls a loss."""
    return "your own loss" if kind == OWN else losses()[kind].title


class Reading(NamedTuple):
    """A value, and the step after which it was read."""

    value: float
    step: int


class Reader:
    """Reads one session. Costs about 0.1 s for each new set of views around the object, and next to nothing else."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.RLock()
        self._next_event = 0
        self._steps: deque[Mapping[str, float]] = deque(maxlen=SMOOTHED)
        self._seen: tuple[Around | None, dict[str, float]] = (None, {})
        self._images: tuple[int, dict[str, float]] = (-1, {})  # version of the frame, what was read

    @property
    def step(self) -> int:
        """The step of the last frame."""
        frame = self._session.latest.get()
        return 0 if frame is None else frame.step

    def read(self, name: str) -> Reading | None:
        """Return a reading, None while there is nothing to read."""
        with self._lock:
            self._follow()
            frame, around = self._session.latest.get(), self._session.around.get()
            if frame is None:
                return None
            value = self._value(name, frame)
        of_views = name in VIEWS and frame.scene is not None
        step = around.step if of_views and around is not None else frame.step
        return None if value is None else Reading(value, step)

    def _value(self, name: str, frame: Frame) -> float | None:
        if name.startswith(COMPARED):
            return self._compared(name)
        if name in OF_FRAME:
            return frame.stats.get(name)
        if name in PLANE:
            return self._plane(frame).get(name)
        if name == "judge":
            return critic.chance(frame.preview, *self._session.settings.prompts) if self._is_judged else None
        if name in VIEWS or name in OTHERS:
            return (self._of_images(frame) if frame.scene is None else self.around()).get(name)
        values = [stats[name] for stats in self._steps if name in stats]
        return statistics.fmean(values) if values else None

    def around(self) -> dict[str, float]:
        """Return the metrics of the newest views around the object; empty while there are none."""
        with self._lock:
            around, (seen, found) = self._session.around.get(), self._seen
            if around is None or around is seen:
                return found if around is not None else {}
            found = critic.metrics(around.images, self._session.settings.prompt.text, self._is_judged)
            found |= critic.metrics_of_sides(around.images, self._session)
            self._seen = around, found
            return found

    @property
    def _is_judged(self) -> bool:
        return critic.knows(self._session.effective.prior)

    def _follow(self) -> None:
        """Read the steps since the last call; those before a change of settings or a jump are forgotten."""
        events, self._next_event = self._session.events.since(self._next_event)
        for event in events:
            if isinstance(event, (Applied, Went, Branched)):
                self._steps.clear()
            elif isinstance(event, Stepped):
                if event.step == 1:  # a reset
                    self._steps.clear()
                self._steps.append(event.stats)

    def _of_images(self, frame: Frame) -> dict[str, float]:
        """Return the metrics of the images of a flat scene, except those that need sides."""
        version = self._session.latest.version
        if self._images[0] == version:
            return self._images[1]
        if frame.flat is not None:
            return {}
        pictures = frame.preview[:MOST_IMAGES]
        found = critic.metrics(pictures, self._session.settings.prompt.text, self._is_judged, sides=False)
        pairs = list(itertools.combinations(pictures.astype(np.float64) / 255, 2))
        if pairs:
            found["variety"] = statistics.fmean(float(np.sqrt(np.square(a - b).mean())) for a, b in pairs)
        self._images = version, found
        return found

    def _plane(self, frame: Frame) -> dict[str, float]:
        prior: Any = self._session.prior
        if frame.flat is None or not hasattr(prior, "mixture"):
            return {}
        points = torch.from_numpy(frame.flat.way[-1]).double()
        wanted = prior.mixture(self._session.effective.prompt.text)
        means, stds = wanted.means.flatten(1).double().cpu(), wanted.stds.double().cpu()
        held = shares(means, stds, points)
        return {
            "found": sum(held),
            "modes": float(sum(share >= HELD for share in held)),
            "distance": float((points[:, None] - means[None]).norm(dim=-1).amin(1).mean()),
            "spread": float((points - points.mean(0)).square().sum(-1).mean().sqrt()),
            "strayed": float((points.abs() > REACH).any(-1).double().mean()),
        }

    def _compared(self, name: str) -> float | None:
        """Return a number of the last comparison of losses; None until it is whole."""
        seen = self._session.comparison.get()
        kind, *given = name.removeprefix(COMPARED).split(".")
        if seen is None or seen.done < len(seen.losses) or not set(given) <= set(seen.losses):
            return None
        at = [seen.losses.index(loss) for loss in given]
        numbers: dict[str, Callable[[], float]] = {
            "rms": lambda: float(seen.rms[at[0]]),
            "nfe": lambda: float(seen.nfe[at[0]]),
            "cosine": lambda: float(seen.cosines[at[0], at[1]]),
        }
        value = numbers[kind]()
        return value if np.isfinite(value) else None
