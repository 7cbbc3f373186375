"""What a page waits for, as a sentence: the reading in words, the comparison, the number."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from sdlab.lessons.readings import loss_called

if TYPE_CHECKING:
    from sdlab.lessons.lesson import Wait

OTHER = "other"  # in the place of a mark: the same reading of the other lane

SUBJECTS: Mapping[str, str] = MappingProxyType(
    {
        "saturation": "the saturation",
        "sharpness": "the sharpness",
        "object": "the share of views in which the judge sees the object",
        "colour": "the share of views in which the judge sees the colour",
        "fronts": "the number of views that show a front",
        "faces": "the number of sides that show a front",
        "iq": "the mean entropy of single views",
        "iv": "the entropy of all views together",
        "iq_view": "the mean entropy of view words in single views",
        "iv_view": "the entropy of view words in all views together",
        "found": "the share of points on a hill of the prompt",
        "modes": "the number of hills that hold points",
        "distance": "the mean distance from a point to the nearest hill of the prompt",
        "spread": "the spread of the points",
        "strayed": "the share of points that have left the picture",
        "judge": "the probability that the judge gives the prompt",
        "variety": "the difference between the images",
        "grad_rms": "the root mean square of the gradient",
        "residual_rms": "the root mean square of the residual",
        "control_correlation": "the correlation between the prediction and what the loss subtracts",
        "noise_correlation": "the correlation between the prediction and the noise",
        "guidance_rms": "the root mean square of the guidance",
        "guidance_share": "the cosine between the guidance and the whole residual",
        "correlation": "the correlation between the two predictions of JSD",
        "displacement": "the root mean square distance to the target",
        "weight": "the weight w(t)",
        "t": "the mean timestep",
        "steps_per_s": "the number of steps per second",
        "seconds": "the time spent on steps, in seconds,",
        "prior_share": "the share of time spent in the prior",
        "skipped": "the number of skipped steps",
        "n_gaussians": "the number of Gaussians",
        "mean_x": "the position of the fitted Gaussian from west to east",
        "mean_y": "the position of the fitted Gaussian from south to north",
        "std_x": "the width of the fitted Gaussian from west to east",
        "std_y": "the width of the fitted Gaussian from south to north",
        "psi_error": "the mean square error of psi",
        "psi_null_error": "the mean square error of psi without a camera",
        "operator_error": "the mean square error of M",
    }
)


def promise(wait: Wait) -> str:
    """Return what a page waits for as a clause, such as "the saturation is at most 0.2, after at least 150 steps"."""
    if not wait.reading:
        parts = [f"reached step {wait.step}"] if wait.step else []
        parts += [f"taken {_steps(wait.steps)} on this page"] if wait.steps else []
        return f"the run has {' and '.join(parts)}"
    late = [f"at step {wait.step} or later"] if wait.step else []
    late += [f"after at least {_steps(wait.steps)}"] if wait.steps else []
    return ", ".join([f"{subject_of(wait.reading)} is {_compared(wait)}", *late])


def subject_of(reading: str) -> str:
    """Return a reading's name in words, as the subject of a sentence."""
    match reading.split("."):
        case ["compare", "cosine", one, other]:
            return f"the cosine between the gradients of {loss_called(one)} and {loss_called(other)}"
        case ["compare", "rms", loss]:
            return f"the root mean square of the gradient of {loss_called(loss)}"
        case ["compare", "nfe", loss]:
            return f"the number of network evaluations of {loss_called(loss)} per view"
    if reading in SUBJECTS:
        return SUBJECTS[reading]
    if reading.startswith("rms_"):
        return f"the root mean square of {reading.removeprefix('rms_')}"
    return reading.replace("_", " ")


def _steps(n: int) -> str:
    return f"{n} step{'s' if n != 1 else ''}"


def _compared(wait: Wait) -> str:
    if wait.mark:
        return _beside_the_mark(wait)
    if wait.at_least is not None and wait.at_most is not None:
        return f"between {wait.at_least:g} and {wait.at_most:g}"
    return f"at least {wait.at_least:g}" if wait.at_least is not None else f"at most {wait.at_most:g}"


def _beside_the_mark(wait: Wait) -> str:
    """Return a comparison with the value of a mark, or with the other lane's."""
    value = "that of the other lane" if wait.mark == OTHER else f"the value marked “{wait.mark}”"
    if wait.by and wait.times == 1:
        return f"at least {wait.by:g} {'above' if wait.above else 'below'} {value}"
    value = f"{wait.times:g} times {value}" if wait.times != 1 else value
    shift = f" {'plus' if wait.above else 'minus'} {wait.by:g}" if wait.by else ""
    return f"at {'least' if wait.above else 'most'} {value}{shift}"
