"""The lens: what a loss saw in a step, what it would see at another t, and what the other losses would return.

    view      one view of a step, or of the scene at a chosen timestep, as images: `views_of_step`, `probe`
    compare   the gradients of all losses at one state, camera, t and noise: `comparison_steps`
    numbers   statistics of a step's predictions, for charts: `stats_of`, `sizes_of`
    truth     exact predictions beside the network's: `texts_with_truth`
    ask       evaluates a loss without touching the run
    colours   tensors to images

Looking changes nothing: a run continues bit for bit as it would have otherwise. Call these functions between two
steps, on the thread that owns the state.
"""

from sdlab.lens.compare import Comparison, comparison_steps
from sdlab.lens.numbers import sizes_of, stats_of
from sdlab.lens.truth import texts_with_truth
from sdlab.lens.view import LensPictures, probe, views_of_step

__all__ = [
    "Comparison",
    "LensPictures",
    "comparison_steps",
    "probe",
    "sizes_of",
    "stats_of",
    "texts_with_truth",
    "views_of_step",
]
