"""The plane's losses in JavaScript against those in Python: gradients in float64, and the points after 100 steps."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from sdlab.live.session import Session
from sdlab.priors.mixture import PLACES
from sdlab.prompts import PromptBank, wording
from sdlab.rng import StepRng
from sdlab.schedule import weight
from sdlab.settings import Settings, preset
from sdlab.step import Reference, bind_prior
from sdlab.types import Noised

DISTILL = Path(__file__).parents[1] / "sdlab/site/static/distill.js"
ROLES = ("pos", "uncond", "neg", "target", "source")
N = 24  # points

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's JavaScript with Node.js")

CASES = {  # loss and what differs from the preset
    "sds": {"losses.sds.cfg": 7.5},
    "vsd": {"losses.vsd.cfg": 3.0},
    "esd": {"losses.esd.lam": 0.7},
    "sbp": {"losses.sbp.w": 3.0, "prompt.source": "south"},
    "sbp two-stage": {"losses.sbp.stage": "two-stage", "losses.sbp.switch": 0.9},
    "sbp restoring": {"losses.sbp.form": "restoring", "losses.sbp.w": 2.0, "prompt.source": "all of them"},
    "sbp full": {"losses.sbp.form": "full", "losses.sbp.target_cfg": 2.0, "prompt.source": "south"},
    "jsd": {"losses.jsd.cfg": 7.5},
    "jsd code": {"losses.jsd.form": "code", "losses.jsd.inversion_eta": 0.3, "losses.jsd.inversion_cfg": -2.0},
    "nfsd": {"prompt.negative": "south east"},
    "csd": {"prompt.negative": "west", "losses.csd.noise": -0.5},
    "dds": {"losses.dds.cfg": 2.0},
    "pds": {"losses.pds.stride": 5},
    "ism": {"losses.ism.interval": 75},
    "sdi": {"losses.sdi.inversion_cfg": -1.0},
    "pfd": {"losses.pfd.cfg": 2.0},
    "pfd ddim": {"losses.pfd.solver": "ddim", "losses.pfd.inversion_eta": 0.5},
    "reward": {"losses.reward.noises": 5},
    "reward best": {"losses.reward.weighting": "best", "losses.reward.noises": 3},
    "reward softmax": {"losses.reward.weighting": "softmax", "losses.reward.inner": "esd"},
    "four places": {"prior.layout": "four", "prior.schedule": "scaled_linear", "prompt.text": "anything"},
}


class Recorded(StepRng):
    """Random streams that remember what was drawn."""

    def __init__(self, seed: int, step: int, prefix: str = "", drawn: dict[str, Any] | None = None) -> None:
        super().__init__(seed, step, prefix)
        self.drawn: dict[str, Any] = {} if drawn is None else drawn
        self._before = prefix

    def branch(self, prefix: str) -> Recorded:
        return Recorded(self.seed, self.step, self._before + prefix, self.drawn)

    def randn(self, stream: str, like: torch.Tensor) -> torch.Tensor:
        found = super().randn(stream, like)
        self.drawn[self._before + stream] = found.flatten(1).tolist()
        return found


def settings_of(case: str) -> Settings:
    name = case.split()[0]
    settings = preset("playground").patch_all([("prior.precision", "fp64"), *CASES[case].items()])
    return settings if name == "four" else settings.patch("active", name)


def told(s: Settings) -> dict[str, Any]:
    """Return settings as the JavaScript takes them."""
    losses: dict[str, dict[str, Any]] = {}
    for path, one in s.knobs().items():
        group, *rest = path.split(".")
        if group == "losses":
            losses.setdefault(rest[0], {})[rest[1]] = one.value
    return {
        "active": s.active,
        "steps": s.steps,
        "texts": {role: wording(s.prompt, role, "") for role in ROLES},
        "losses": losses,
        "schedule": {"t_min": s.schedule.t_min, "t_max": s.schedule.t_max, "weight": s.schedule.weight},
        "optim": {
            "lr": s.optim.lr_points,
            **{name: getattr(s.optim, name) for name in ("beta1", "beta2", "decay", "ramp")},
        },
        "plane": [PLACES[s.prior.layout], s.prior.std, s.prior.schedule],
    }


def node(script: str, told: Any) -> Any:
    """Run a script that has `data` and returns its answer from `answer()`."""
    source = f"""
        import * as d from {json.dumps(DISTILL.as_uri())};
        import {{ readFileSync }} from "node:fs";
        const data = JSON.parse(readFileSync(0, "utf8"));
        {script}
        process.stdout.write(JSON.stringify(answer()));
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", source],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def gradient(case: str) -> tuple[dict[str, Any], torch.Tensor]:
    """Return what the JavaScript is told of one step, and Python's residual [N, 2]."""
    s = settings_of(case)
    prior = s.prior.load(torch.device("cpu"))
    bank, rng = PromptBank(prior), Recorded(1, 3)
    generator = torch.Generator().manual_seed(7)
    z0, moved = (torch.randn(N, 2, 1, 1, generator=generator, dtype=torch.float64) * 0.8 for _ in range(2))
    t = torch.randint(0, 1000, (N,), generator=generator)
    alpha, sigma = prior.marginal(t)
    noise = rng.randn("noise", z0)
    x = Noised(z0=z0, z_t=alpha * z0 + sigma * noise, noise=noise, t=t, alpha=alpha, sigma=sigma)
    s = s.patch("scene.n", N)
    scene = s.scene.build(StepRng(0, -1), torch.device("cpu"), prior, "")
    reference = None
    if s.loss.needs_reference:
        x, reference = x._replace(ref=moved), Reference(scene, s.patch("prompt.text", "south").prompt, ())
    model = bind_prior(prior, s, bank, scene.cams, rng, 0.3, reference)
    aux = s.loss.init_aux(prior, StepRng(0, -1))
    residual = s.loss.gradient(x, model, aux).residual.flatten(1)
    data = told(s) | {
        "x": {
            "z0": z0.flatten(1).tolist(),
            "zt": x.z_t.flatten(1).tolist(),
            "noise": noise.flatten(1).tolist(),
            "t": t.tolist(),
            "alpha": alpha.flatten().tolist(),
            "sigma": sigma.flatten().tolist(),
            "ref": moved.flatten(1).tolist(),
        },
        "progress": 0.3,
        "drawn": rng.drawn,
        "nfe": model.nfe,
    }
    data["texts"]["ref"] = "south"
    return data, residual


ONE = """
    const answer = () => data.map((one) => {
        const model = new d.Bound(new d.Plane(...one.plane), one.texts, one.progress, (name) => one.drawn[name]);
        const residual = d.LOSSES[one.active](one.x, model, one.losses[one.active], one.losses);
        return { residual, evaluations: model.evaluations };
    });
"""


def test_every_loss_has_the_gradient_of_python() -> None:
    asked = {case: gradient(case) for case in CASES}
    answers = node(ONE, [data for data, _ in asked.values()])
    errors = {}
    for (case, (data, wanted)), answer in zip(asked.items(), answers, strict=True):
        found = torch.tensor(answer["residual"], dtype=torch.float64)
        errors[case] = float(((found - wanted).norm(dim=1) / (1 + wanted.norm(dim=1))).max())
        assert answer["evaluations"] == data["nfe"], case
    print("\n".join(f"{case}: {error:.1e}" for case, error in errors.items()))
    assert max(errors.values()) < 1e-6, errors


def test_all_losses_that_train_nothing_are_there() -> None:
    asked = set(node("const answer = () => Object.keys(d.LOSSES);", None))
    trains = {"asd", "vdm"}  # and psi of VSD and ESD has a closed form here
    assert asked == set(preset("playground").losses) - trains


@pytest.mark.parametrize("case", ["sds", "jsd", "esd"])
def test_points_after_a_hundred_steps(case: str) -> None:
    mild = [("prior.precision", "fp32"), ("losses.sds.cfg", 1.0), ("losses.jsd.cfg", 1.0), ("scene.n", N)]
    s = settings_of(case).patch_all([*mild, ("scene.spread", 0.1)])
    session = Session(s)
    session.run(until=100)
    way = session.state.scene.way  # pyright: ignore[reportAttributeAccessIssue]
    steps = []
    for number in range(100):
        rng = Recorded(s.seed, number)
        like = torch.zeros(N, 2, 1, 1)
        rng.randn("noise", like)
        for k in range(1, 12):
            rng.randn(f"inversion {k}", like)
        steps.append({"u": torch.rand(N, generator=rng("t")).tolist(), "drawn": rng.drawn})
    script = """
        const drawn = data.steps_drawn;
        const rng = { uniform: (n, step) => drawn[step].u, randn: (name, n, step) => drawn[step].drawn[name] };
        const answer = () => {
            const run = new d.Run(new d.Plane(...data.plane), data.start, rng);
            for (let n = 0; n < 100; n++) run.advance(data);
            return run.points;
        };
    """
    found = torch.tensor(node(script, told(s) | {"start": way[0].tolist(), "steps_drawn": steps}))
    wanted = torch.from_numpy(way[100])
    print(f"{case}: {float((found - wanted).abs().max()):.1e}")
    assert float((found - wanted).abs().max()) < 1e-3


def test_weights_and_timesteps() -> None:
    alpha = torch.tensor([0.9, 0.5])
    sigma = (1 - alpha**2).sqrt()
    s = preset("playground").schedule
    assert torch.allclose(weight(s, alpha, sigma), sigma**2)
    u = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    wanted = ((s.t_min + u * (s.t_max - s.t_min)) * 1000).long().tolist()
    script = "const answer = () => d.timesteps(data.u, data.low, data.high);"
    assert node(script, {"u": u.tolist(), "low": s.t_min, "high": s.t_max}) == wanted


def test_random_numbers_of_the_page_are_normal() -> None:
    script = "const answer = () => d.streams(3).randn('noise', 20000, 5);"
    found = torch.tensor(node(script, None))
    assert float(found.mean().abs()) < 3 / math.sqrt(40000)
    assert abs(float(found.std()) - 1) < 0.02
    for other in (found[:-1] * found[1:], found[:, 0] * found[:, 1]):  # uncorrelated
        assert abs(float(other.mean())) < 0.02
