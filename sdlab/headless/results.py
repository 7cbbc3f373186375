"""The results of a run: what is written into its folder at the end, and the figures in result.json."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from sdlab import machine
from sdlab.files import remove, scratch_for, why
from sdlab.headless.folder import RESULT

if TYPE_CHECKING:
    from sdlab.headless.job import Job
    from sdlab.live.session import Session
    from sdlab.scenes import AnyScene
    from sdlab.settings import Settings
    from sdlab.types import Prior

LIKENESS_VIEWS, PSNR = 12, "psnr_to_truth"


def likeness(scene: AnyScene, s: Settings, prior: Prior) -> float | None:
    """Return the mean PSNR in dB of the scene's views to the prior's own, on white; None if its source has none."""
    if s.prior.kind != "gallery":
        return None
    import torch

    from sdlab.cameras import turntable
    from sdlab.pictures import psnr
    from sdlab.priors.gallery import GalleryScores
    from sdlab.scenes import FlatScene

    if isinstance(scene, FlatScene):
        return None
    cams = turntable(LIKENESS_VIEWS, s.camera, prior.image_size)
    truth = prior.source.truth(cams) if isinstance(prior, GalleryScores) else None
    if truth is None:
        return None
    with torch.no_grad():
        seen = scene.render(cams, torch.ones(len(cams), 3)).rgb.cpu()
    return round(float(psnr(seen.clamp(0, 1), truth).mean()), 2)


def write_results(session: Session, job: Job, result: dict[str, Any], unsaved: str) -> None:
    """Write the results, and `result` with their names. Earlier ones are replaced when all are complete. Raises OSError
    that says how to get them."""
    new = scratch_for(job.out / "results")
    try:
        new.mkdir()
        names = [file.name for file in session.export(new, job.size)]
        (new / RESULT).write_text(json.dumps({**result, "files": names}, indent=2) + "\n", encoding="utf-8")
        for name in (*names, RESULT):
            os.replace(new / name, job.out / name)
    except OSError as e:
        rest = unsaved or f"the run is kept, and `resume {job.out}` writes them"
        what = why(e).replace(str(new), str(job.out))
        raise OSError(f"the results could not be written to {job.out} ({what}); {rest}") from e
    finally:
        remove(new)


def size_of(scene: AnyScene) -> str:
    """Return how large a scene is, such as "500 Gaussians"."""
    name, tensor = next(iter(scene.params.items()))
    return f"{len(tensor)} {'Gaussians' if 'means' in scene.params else name}"


def result_of(session: Session, preset: str, wall: float) -> dict[str, Any]:
    """Return the figures of a run that took `wall` seconds with everything around it."""
    state, s = session.state, session.effective
    return {
        "preset": preset,
        "prompt": " / ".join(s.prompts),
        "prior": session.prior.name,
        "prior_commit": session.prior.commit,
        "engine": session.prior.engine_name,
        "engine_note": session.prior.engine_note,
        "loss": s.active,
        "seed": s.seed,
        "steps": state.step,
        "seconds": round(state.seconds, 2),
        "wall_seconds": round(wall, 2),
        "steps_per_s": round(state.step / state.seconds, 2) if state.seconds else 0.0,
        "prior_share": round(state.prior_seconds / state.seconds, 3) if state.seconds else 0.0,
        "start_note": getattr(state.scene, "note", ""),
        "n_gaussians": int(state.scene.params["means"].shape[0]) if "means" in state.scene.params else 0,
        "skipped_nonfinite": state.skipped,
        "peak_rss_mb": machine.peak_rss_mb(),
        "device": str(session.device),
        "machine": machine.processor(),
        "versions": machine.versions(),
    }
