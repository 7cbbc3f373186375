"""The toy experiment of the JSD paper (Do and Hua 2025, section 5.1 and supplement 4): SDS against JSD.

Eight Gaussians on the unit circle, three starts outside it, 1000 seeds from each, Adam with a learning rate of 0.03.
From each start, the prompt names the nearest Gaussian, as in figures 10 to 12, with two guidance scales, and once all
eight, which shows how many a loss finds. The paper takes 10 steps, in which Adam moves a point by at most 0.3; `long`
shows where the points end.

The control variate is what the gradient subtracts from the estimated noise: the drawn noise in SDS, the estimate at the
minority sample in JSD (figures 4 and 14). `correlation` is Pearson's, over all seeds, steps and both coordinates.
`found` is the share of seeds that end within three standard deviations of a Gaussian named by the prompt, and `modes`
the number of these Gaussians that hold at least 1 % of the seeds.

Everything is measured with exact scores and with the paper's small network, which is trained on the plane first.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdlab import machine
from sdlab.guidance import cfg
from sdlab.live.session import Session
from sdlab.plane import HELD, plot_on, shares
from sdlab.prompts import PromptBank
from sdlab.scenes.points import PointScene, panels
from sdlab.settings import Settings, preset
from sdlab.step import Report, step
from sdlab.types import Prior

STARTS = {"north west": (-1.0, 1.0), "south east": (1.0, -1.0), "south west": (-1.0, -1.0)}  # Figures 10, 11, 12
ALL = "all of them"
ASKED = (("", 1.0), ("", 7.5), (ALL, 1.0))  # prompt ("" for the nearest) and guidance scale; the paper gives no scale
SCORES = ("exact", "trained")
LOSSES = ("sds", "jsd")
LENGTHS = {"paper": 10, "long": 200}
SEEDS = 1000
SHOWN = 10  # seeds whose estimates are plotted


class Trajectories(NamedTuple):
    """The points of one loss from one start."""

    paths: np.ndarray  # [T + 1, B, 2]
    estimated: np.ndarray  # [T, B, 2], the noise as the loss estimates it
    control: np.ndarray  # [T, B, 2], the control variate that it subtracts

    def correlation(self, steps: int | None = None) -> float:
        """Return the correlation over the first `steps` steps."""
        pairs = np.stack([self.estimated[:steps].ravel(), self.control[:steps].ravel()])
        return float(np.corrcoef(pairs)[0, 1])


def run(out: Path, quick: bool = False, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Measure, print a table, write playground.json and plots to the folder `out`, and return the results. Once `stop`
    returns True, what is finished is written."""
    seeds = 100 if quick else SEEDS
    base = preset("playground").patch_all([("scene.n", seeds), ("steps", max(LENGTHS.values()))])
    priors: dict[str, Prior] = {}  # made when they are needed: the second one is trained first
    rows: list[dict[str, Any]] = []
    drawn: dict[tuple[str, str, str], Trajectories] = {}
    for scores, start, (named, scale), loss in itertools.product(SCORES, STARTS, ASKED, LOSSES):
        if stop():
            break
        if scores not in priors:
            priors[scores] = _prior(base, scores)
        prompt, (x, y) = named or start, STARTS[start]
        changes = [("scene.start_x", x), ("scene.start_y", y), ("prompt.text", prompt), (f"losses.{loss}.cfg", scale)]
        s = base.patch_all([("active", loss), *changes])
        points = run_points(s, priors[scores], s.steps)
        drawn[scores, f"{start}, {prompt}, {scale:g}", loss] = points
        where = {"scores": scores, "start": start, "asked": prompt, "cfg": scale, "loss": loss}
        rows += [
            {**where, "length": name, "steps": steps, **read(priors[scores], prompt, points, steps)}
            for name, steps in LENGTHS.items()
        ]
    result = {
        "seeds": seeds,
        "agreement": agreement(drawn),
        "rows": rows,
        "machine": machine.processor(),
    }
    _print(result)
    out.mkdir(parents=True, exist_ok=True)
    (out / "playground.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    start = next(iter(STARTS))
    for named, scale in ASKED:
        prompt = named or start
        keys = {loss: ("exact", f"{start}, {prompt}, {scale:g}", loss) for loss in LOSSES}
        if not set(keys.values()) <= drawn.keys():
            continue  # interrupted before
        pair = {loss: drawn[key] for loss, key in keys.items()}
        name = "all" if prompt == ALL else f"cfg-{scale:g}"
        plot_pair(priors["exact"], prompt, pair, out / f"trajectories-{name}.png")
        plot_control(pair, out / f"control-variate-{name}.png")
    print(f"plots and playground.json in {out}")
    return result


def compare_with_sds(s: Settings, prior: Prior, out: Path) -> None:
    """Compare the loss of a finished run of points with SDS: print the results and write two plots to `out`."""
    pair = {}
    for loss in dict.fromkeys(("sds", s.active)):
        pair[loss] = points = run_points(s.patch("active", loss), prior, s.steps)
        found = read(prior, s.prompt.text, points, s.steps)
        print(
            f"{loss}: correlation of estimated noise and control variate {found['correlation']:+.2f}, "
            f"{found['found']:.0%} of {s.scene.batch(s.camera)} seeds end at a Gaussian of the prompt, in "
            f"{found['modes']} of {found['of_modes']}"
        )
    plot_pair(prior, s.prompt.text, pair, out / "beside-sds.png")
    plot_control(pair, out / "control-variate.png")


def _prior(s: Settings, scores: str) -> Prior:
    config = s.patch("prior.scores", scores).prior
    return config.load(torch.device("cpu"), lambda text: print(text, file=sys.stderr))


def run_points(s: Settings, prior: Prior, steps: int) -> Trajectories:
    """Take `steps` steps as a session does, and keep the estimates that the loss compared."""
    session = Session(s, prior.device, lambda *_: prior)
    session.prepare()
    bank, scene = PromptBank(prior), session.state.scene
    assert isinstance(scene, PointScene)
    estimates = [_compared(s, step(session.state, s, prior, bank)) for _ in range(steps)]
    estimated, control = (np.stack([pair[k] for pair in estimates]) for k in (0, 1))
    return Trajectories(scene.way, estimated, control)


def _compared(s: Settings, report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Return the estimated noise (after guidance) and its control variate, [B, 2] each."""
    preds = report.guidance.preds
    scale: float = getattr(s.loss, "cfg", 1.0)
    guided = cfg(preds["uncond"], preds["pos"], scale) if "uncond" in preds else next(iter(preds.values()))
    subtracted = next((preds[name] for name in ("minority", "psi", "psi_null") if name in preds), report.x.noise)
    return _points(guided), _points(subtracted)


def _points(events: Tensor) -> np.ndarray:
    return events.flatten(1).float().cpu().numpy()


def read(prior: Any, prompt: str, points: Trajectories, steps: int) -> dict[str, Any]:
    """Return the results after the first `steps` steps."""
    wanted = prior.mixture(prompt)
    held = shares(wanted.means.flatten(1), wanted.stds, torch.from_numpy(points.paths[steps]))
    return {
        "correlation": round(points.correlation(steps), 3),
        "found": round(sum(held), 3),
        "modes": sum(share >= HELD for share in held),
        "of_modes": len(held),
        "moved": round(float(np.linalg.norm(points.paths[steps] - points.paths[0], axis=-1).mean()), 3),
    }


def agreement(drawn: dict[tuple[str, str, str], Trajectories]) -> dict[str, float]:
    """Return for each loss how far trained scores deviate from exact ones: the mean distance between the final points
    of equal seeds, relative to the distance that they moved."""
    found: dict[str, list[float]] = {}
    for (scores, case, loss), exact in drawn.items():
        other = drawn.get(("trained", case, loss))
        if scores == "exact" and other is not None:
            apart = np.linalg.norm(exact.paths[-1] - other.paths[-1], axis=-1).mean()
            moved = np.linalg.norm(exact.paths[-1] - exact.paths[0], axis=-1).mean()
            found.setdefault(loss, []).append(float(apart / moved))
    return {loss: round(float(np.mean(each)), 3) for loss, each in found.items()}


def _print(r: dict[str, Any]) -> None:
    print(f"{r['seeds']} seeds")
    print(f"  {'scores':8} {'start':11} {'prompt':12} CFG  steps  loss  correlation  found  modes   moved")
    for row in r["rows"]:
        where = f"{row['scores']:8} {row['start']:11} {row['asked']:12} {row['cfg']:3g}  {row['steps']:5}"
        ends = f"{row['found']:4.0%}   {row['modes']} of {row['of_modes']}  {row['moved']:.2f}"
        print(f"  {where}  {row['loss']}   {row['correlation']:+11.2f}  {ends}")
    print(
        "  distance between final points with exact and trained scores, relative to the distance moved: "
        + str(r["agreement"])
    )


# ---- plots -------------------------------------------------------------------------------------------------------


def plot_pair(prior: Prior, prompt: str, pair: dict[str, Trajectories], file: Path) -> None:
    """Plot figures 5 and 10 to 12: a row for each loss, the paths of 10, 100 and 1000 seeds."""
    from matplotlib.figure import Figure

    rows = {loss: panels(points.paths) for loss, points in pair.items()}
    columns = max(len(row) for row in rows.values())
    figure = Figure(figsize=(3.4 * columns, 3.6 * len(rows)), layout="constrained")
    grid = np.reshape(figure.subplots(len(rows), columns), (len(rows), columns))
    for axes_row, (loss, row) in zip(grid, rows.items(), strict=True):
        for axes, (title, paths) in zip(axes_row, row.items(), strict=True):
            plot_on(axes, prior, prior.embed(prompt), paths)
            axes.set_title(f"{loss.upper()}, {title}")
    figure.savefig(file, dpi=100)


def plot_control(pair: dict[str, Trajectories], file: Path) -> None:
    """Plot figures 4 and 14: estimated noise against its control variate, first ten seeds, every step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.8 * len(pair), 3.9), layout="constrained")
    for axes, (loss, points) in zip(np.atleast_1d(figure.subplots(1, len(pair))), pair.items(), strict=True):
        for axis, name in enumerate("xy"):
            shown = (each[:, :SHOWN, axis].ravel() for each in (points.control, points.estimated))
            axes.scatter(*shown, s=6, alpha=0.5, label=name)
        axes.set(title=f"{loss.upper()}: correlation {points.correlation():+.2f}", xlabel="control variate")
        axes.set_ylabel("estimated noise")
        axes.legend(loc="upper left")
    figure.savefig(file, dpi=100)
