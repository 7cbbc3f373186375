"""Which settings of a hand-in may run: those that a public server lets its visitors have."""

from __future__ import annotations

from sdlab import links
from sdlab import settings as catalogue
from sdlab.live.state import Admit, Run, anything
from sdlab.options import DEFAULT_PRESET
from sdlab.settings import Settings
from sdlab.ui.uploads import UPLOADS
from sdlab.ui.visitors import LOCKED, Visitors

TRUST = "--trust lets it run"


def policy(trust: bool) -> Admit:
    """Return what decides whether settings may run; with `trust` all may, including those that read files or load
    models from elsewhere."""
    if trust:
        return anything
    own = catalogue.preset(DEFAULT_PRESET)
    visitors, started = Visitors(own, LOCKED), Run.of(own)

    def admit(settings: Settings, run: Run) -> None:
        knobs = settings.knobs()
        reads = [upload.switch for path, upload in UPLOADS.items() if path in knobs and upload.fits(settings)]
        path = next((p for p in reads if knobs[p].value in _uses(p)), "") or links.loads(settings, own)
        if path:
            raise ValueError(f"{path} = {knobs[path].value!r}: it reads a file or loads a model; {TRUST}")
        if not visitors.allows(settings):
            raise ValueError(f"its prior is none of the presets'; {TRUST}")
        assert visitors.budgets is not None
        try:
            visitors.budgets(settings, started)  # not what differs from the run: a hand-in may begin with anything
        except ValueError as e:
            raise ValueError(f"{e}; {TRUST}") from e

    return admit


def _uses(switch: str) -> tuple[str, ...]:
    return next(upload.uses for upload in UPLOADS.values() if upload.switch == switch)
