"""Visitors who turn every knob to the end of their range, beside an ordinary one, on a server with little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HOGS = {  # at the ends of what visitors may choose, one kind of load each
    "Gaussians": {"scene.max_gaussians": 20_000, "scene.n_init": 20_000},
    "pixels": {"camera.views": 8, "camera.resolution": 512, "scene.max_gaussians": 4000},
    "inversion": {"active": "sdi", "losses.sdi.inversion_steps": 20, "camera.views": 8},
    "bridge": {"active": "sbp", "losses.sbp.form": "full", "losses.sbp.leg_steps": 20, "camera.views": 8},
    "two ways": {"active": "pfd", "losses.pfd.reverse_steps": 20, "losses.pfd.inversion_steps": 20, "camera.views": 8},
    "noises": {"active": "reward", "losses.reward.inner": "sdi", "losses.reward.noises": 8, "camera.views": 8},
    "psi": {
        **{"active": "vsd", "losses.vsd.rank": 32, "losses.vsd.lessons": 3, "losses.vsd.every": 4},
        **{"losses.vsd.network": "copy", "losses.vsd.warm_up": 500, "camera.views": 8},
    },
    "all losses": {"active": "jsd", "losses.jsd.inversion_steps": 20, "camera.views": 8},
    "too much": {"camera.views": 16, "camera.resolution": 1024, "scene.n_init": 200_000, "scene.scale_max": 5.0},
}
CODE = """
import json, os, resource, sys, time
from sdlab.live.manager import Manager
from sdlab.live.memory import Memory, bound, resident_bytes
from sdlab.live.messages import Compare, Patch, Rejected, Resume
from sdlab.settings import preset
from sdlab.ui.visitors import Visitors, public

name, hogs, seconds = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])
visitors = Visitors(*public(preset(name).patch("steps", 1_000_000)))
memory = Memory(4_000_000_000)
manager = Manager(max_sessions=20, memory=memory)
largest = 0

def opened():
    seat = manager.open(visitors.settings, visitors.client("", 20))
    while seat.session.status.phase != "ready":
        time.sleep(0.05)
    return seat.session

def watched(session, seconds):
    global largest
    first = last = session.state.step
    began = moved = time.monotonic()
    gap = 0.0
    while (now := time.monotonic()) < began + seconds:
        step = session.state.step
        if step != last:
            gap, moved, last = max(gap, now - moved), now, step
        largest = max(largest, resident_bytes())
        time.sleep(0.01)
    return (last - first) / seconds, max(gap, now - moved)

one = opened()
bound(memory.limit)
one.send(Resume())
while one.state.step < 10:
    time.sleep(0.05)
alone, _ = watched(one, seconds / 2)
others, refused = [], []
for knobs in hogs.values():
    other = opened()
    for knob in knobs.items():
        other.send(Patch((knob,)))
    other.send(Resume())
    other.send(Compare())
    others.append(other)
rate, gap = watched(one, seconds)
for other in others:
    refused.append([e.reason for e in other.events.since()[0] if isinstance(e, Rejected)])
phases = [other.status.phase for other in others]
told = {"alone": alone, "rate": rate, "gap": gap, "largest": largest, "refused": refused, "phases": phases}
print(json.dumps(told), flush=True)
os._exit(0)
"""


def beside(name: str, hogs: dict[str, dict[str, object]], seconds: float) -> dict:
    """Return what becomes of one visitor of a server with the preset `name`, beside these others."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, name, json.dumps(hogs), str(seconds)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def must_be_safe(told: dict) -> None:
    assert told["gap"] < 2.0, told
    assert told["largest"] < 4.5e9, told
    assert set(told["phases"]) <= {"running", "loading"}, told


@pytest.mark.slow
def test_all_maxima_at_once_let_an_ordinary_visitor_go_on():
    told = beside("mixture", HOGS, 5.0)
    must_be_safe(told)
    by_name = dict(zip(HOGS, told["refused"], strict=True))
    assert any("camera.views = 16" in why for why in by_name["too much"])
    assert all("on your own computer there is no such limit" in why for some in told["refused"] for why in some)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["gallery", "toybox"])
@pytest.mark.parametrize("hog", HOGS)
def test_each_maximum_leaves_an_ordinary_visitor_its_share(name: str, hog: str):
    told = beside(name, {hog: HOGS[hog]}, 15.0)
    must_be_safe(told)
    assert told["rate"] > 0.6 * told["alone"] / 2, told
