"""Building a run: the prior, what is compiled for it, the scene, the auxiliaries.

Each method of `Builder` returns a new `Run` and leaves the given one usable, even if it raises; `put_back` is the
exception.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch

from sdlab.live.messages import Phase
from sdlab.live.moments import Moment
from sdlab.live.state import Run, Trace, moment_of, restore_counts
from sdlab.live.tape import Stretch
from sdlab.live.timeline import MOMENT_BYTES, Timeline
from sdlab.losses import Distillation
from sdlab.optim import SceneOptimiser
from sdlab.priors import PriorConfig, Progress, silent
from sdlab.prompts import PromptBank, PromptSettings, texts_of
from sdlab.rng import StepRng
from sdlab.scenes import AnyScene, SceneConfig
from sdlab.settings import Settings
from sdlab.step import BUILD_STEP, Reference, State
from sdlab.types import PERP_ROLES, Prior

LoadPrior = Callable[[PriorConfig, torch.device, Callable[[str], None]], Prior]


def load_prior(config: PriorConfig, device: torch.device, progress: Callable[[str], None]) -> Prior:
    """Load a prior without sharing it; a manager passes a pool instead."""
    return config.load(device, progress)


def prepare_for(s: Settings, prior: Prior, device: torch.device, progress: Progress = silent) -> None:
    """Do the slow work before the first step under `s`: compile the rasteriser, and the network at its batch sizes;
    read the texts."""
    s.scene.prepare(device)
    prior.prepare(batches_of(s))
    prior.prepare_texts(read_under(s), progress)


def read_under(s: Settings, losses: Iterable[Distillation] | None = None) -> list[str]:
    """Return the texts that steps under `s` can request, of the active loss or of `losses`."""
    roles = dict.fromkeys(role for loss in losses or (s.loss,) for role in loss.roles)
    return texts_of(s.prompt, roles, s.perp_neg, s.scene.prompts)


def batches_of(s: Settings) -> set[int]:
    """Return the batch sizes of the prior's network under `s`; it is compiled for each."""
    perp = {1 + len(PERP_ROLES)} if s.perp_neg else set()
    return {s.scene.batch(s.camera) * roles for roles in perp.union(s.loss.calls())}


class Builder:
    """Builds runs on `device`. `load` loads priors; `say` is called with phase and text before slow work. The moments
    of a timeline take at most `history` bytes."""

    def __init__(
        self, device: torch.device, load: LoadPrior, say: Callable[[Phase, str], None], history: int = MOMENT_BYTES
    ) -> None:
        self.device = device
        self.history = history
        self._load = load
        self._say = say

    def _loading(self, text: str) -> None:
        self._say("loading", text)

    # ---- runs --------------------------------------------------------------------------------------------

    def with_prior(self, run: Run, s: Settings) -> Run:
        """Return `run` with the prior of `s`, compiled for the batches of `s`. ValueError if its scene does not fit."""
        self._loading("loading the prior")
        prior = self._load(s.prior, self.device, self._loading)
        if run.state is not None:
            run.state.scene.must_fit(prior)
        self._prepare(s, prior)
        return dataclasses.replace(run, prior=prior, bank=PromptBank(prior))

    def started(self, run: Run, text: str) -> Run:
        """Return `run` with a fresh scene and a new timeline, whose first entry is `text`."""
        run = self._with_scene(run, run.begun.scene)
        run = dataclasses.replace(run, timeline=Timeline(self.history), stretch=Stretch(run.begun))
        run.timeline.note(0, "start", text)
        run.timeline.keep(moment_of(run))
        return run

    def adopted(self, run: Run, new: Settings) -> tuple[Run, frozenset[str]]:
        """Return `run` with the settings `new`, and the paths of the changed knobs that wait for a reset.

        A knob that is not handled here is read at the next step.
        """
        changed = dict(run.settings.differences(new))
        knobs = new.knobs()
        restart = frozenset(path for path in changed if knobs[path].apply == "restart")
        other_prior = new.prior != run.settings.prior
        adopted = run.following(new)
        if other_prior:
            adopted = self.with_prior(adopted, new)
        elif adopted.prior is not None and batches_of(run.settings) != batches_of(new):
            self._prepare(new, adopted.prior)
        elif adopted.prior is not None and read_under(run.settings) != read_under(new):
            adopted.prior.prepare_texts(read_under(new), self._loading)
        if run.state is None:
            adopted = adopted.following(new, new)
            return (self.started(adopted, "started") if other_prior else adopted), frozenset()
        if restart and run.state.step == 0:  # nothing would be lost
            return self.started(adopted.following(new, new), "started"), frozenset()
        kept = run.state.aux if not other_prior else {}  # auxiliaries belong to their prior
        keys = run.state.aux_keys if not other_prior else {}
        state = dataclasses.replace(run.state, aux=dict(kept), aux_keys=dict(keys))
        adopted = dataclasses.replace(adopted, state=state)
        try:
            self._adopt_aux(adopted)
            self._adopt_reference(state, adopted.effective.loss, run.settings.prompt)
            state.scene.adopt(new.scene)
        except Exception:
            self._park(run)
            raise
        return adopted, restart

    def resumed(self, run: Run, moment: Moment) -> Run:
        """Return a run that continues from `moment`, of `run` or of another run, with the timeline of `run`."""
        resumed = run.following(moment.settings, moment.begun)
        resumed = dataclasses.replace(resumed, state=None, stretch=Stretch(moment.place))
        if resumed.prior is None or moment.settings.prior != run.settings.prior:
            resumed = self.with_prior(resumed, moment.settings)
        else:
            resumed.prior.prepare_texts(read_under(moment.settings), self._loading)
        return self.put_back(self._with_scene(resumed, moment.begun.scene.bare()), moment)

    def went(self, run: Run, moment: Moment) -> Run:
        """Return `run` as at `moment` of its own timeline, with the code that its losses have now."""
        self._loading(f"going to step {moment.step}")
        now = run.settings  # the code of a loss is no part of the history
        settings, begun = moment.settings.with_losses_of(now), moment.begun.with_losses_of(now)
        there = self.resumed(run, dataclasses.replace(moment, settings=settings, begun=begun))
        there.built.scene.note = run.built.scene.note  # about the same start
        return there

    def put_back(self, run: Run, moment: Moment) -> Run:
        """Return `run` with settings and state as in `moment`. Its state is changed in place, since a copy might not
        fit into memory; its scene must be of the same kind."""
        run = run.following(moment.settings, moment.begun)
        state, s, prior, _ = run.inputs()
        parts = moment.parts
        state.scene.adopt(moment.settings.scene)
        state.scene.load_state_dict(parts["scene"])
        state.optim.load_state_dict(parts["optim"])
        saved = parts.get("aux", {})
        for name in state.aux.keys() - saved.keys():
            if name != s.loss.aux_name():
                del state.aux[name], state.aux_keys[name]
        for name, aux in saved.items():
            key = tuple(aux["key"])
            for loss in s.losses.values():
                if (loss.aux_name(), loss.aux_key()) == (name, key):
                    self._need_aux(state, loss, s, prior)
                    state.aux[name].load_state_dict(aux["model"])
                    break
        self._adopt_aux(run)
        state.reference = _reference_of(parts.get("reference", {}), state.scene)
        state.step = moment.step
        restore_counts(state, parts["session"])
        return run

    def read_for_losses(self, run: Run, names: Collection[str] | None = None) -> None:
        """Prepare the texts that steps of the losses `names`, or of any, can request."""
        _, s, prior, _ = run.inputs()
        asked = [loss for name, loss in s.losses.items() if names is None or name in names]
        prior.prepare_texts(read_under(s, asked), self._loading)

    # ---- parts -------------------------------------------------------------------------------------------

    def _prepare(self, s: Settings, prior: Prior) -> None:
        slow = s.scene.announcement(self.device)
        usual = "compiling the prior and the rasteriser for this machine"
        self._say("compiling", slow or usual)
        prepare_for(s, prior, self.device, self._loading)

    def _with_scene(self, run: Run, config: SceneConfig) -> Run:
        """Return `run` with a fresh scene of `config`, and an optimiser, under the settings as of the last reset."""
        assert run.prior is not None
        s = run.begun
        self._loading("building the scene")
        rng = StepRng(s.seed_of_start, BUILD_STEP)
        scene = config.build(rng, self.device, run.prior, s.prompt.text, self._loading)
        state = State(scene, SceneOptimiser(scene.params, s.optim))
        run = dataclasses.replace(run, state=state, trace=Trace(), undo=None)
        self._adopt_aux(run)
        self._adopt_reference(state, run.effective.loss, run.effective.prompt)
        return run

    def _adopt_aux(self, run: Run) -> None:
        """Give the active loss its auxiliary model, rebuilt if it was made with other knobs, and park the others."""
        state, s, prior, _ = run.inputs()
        self._need_aux(state, s.loss, s, prior)
        self._park(run)

    def _park(self, run: Run) -> None:
        """Move the active loss's auxiliary to the device, and the others into the computer's memory."""
        state, s, _, _ = run.inputs()
        for name, aux in state.aux.items():
            aux.to(self.device if name == s.loss.aux_name() else torch.device("cpu"))

    def _need_aux(self, state: State, loss: Distillation, s: Settings, prior: Prior) -> None:
        """Build the auxiliary of `loss`, unless one made with the same knobs exists."""
        name, key = loss.aux_name(), loss.aux_key()
        if state.aux_keys.get(name) == key:
            return
        if loss.warm_up_steps():  # then building it may take seconds
            self._loading(f"{loss.title}: building its own network")
        aux = loss.init_aux(prior, StepRng(s.seed, BUILD_STEP))
        state.aux.pop(name, None)
        state.aux_keys[name] = key
        if aux is not None:
            state.aux[name] = aux

    def _adopt_reference(self, state: State, loss: Distillation, prompt: PromptSettings) -> None:
        """Freeze scene and prompt for a loss that compares with them, unless that was done with the same knobs."""
        if loss.needs_reference and (state.reference is None or state.reference.key != loss.aux_key()):
            state.reference = Reference(copy.deepcopy(state.scene), prompt, loss.aux_key())


def _reference_of(parts: Mapping[str, Any], like: AnyScene) -> Reference | None:
    """Return the reference that a moment holds, with a scene of the kind of `like`."""
    if not parts:
        return None
    scene = copy.deepcopy(like)
    scene.load_state_dict(parts["scene"])
    return Reference(scene, PromptSettings(**parts["prompt"]), tuple(parts["key"]))
