"""Runs in bursts on a shared GPU, with stand-ins for ZeroGPU's package `spaces` and for its platform."""

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from spaces_stand_in import Platform, Spaces
from test_handlers import Browser, Views, presets_are_read_once, ready  # noqa: F401
from tiny_models import latent_model, pixel_model
from waiting import until

import app as program
from sdlab.live import bursts, checkpoint, copies
from sdlab.live.bursts import Bursts, BurstSession, burst, must_suit, needs_gpu
from sdlab.live.manager import Manager
from sdlab.live.messages import Advance, Burst, Noted, Patch, Pause, Rejected, Resume, Stepped
from sdlab.live.session import Session
from sdlab.live.state import Run
from sdlab.priors.away import AWAY, AwayPrior, find_away
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.rng import StepRng
from sdlab.settings import Settings, default_settings, preset
from sdlab.ui import zerogpu
from sdlab.ui.desk import pressable
from sdlab.ui.page import Page
from sdlab.ui.visitors import Visitors, public
from sdlab.ui.zerogpu import ZeroGpu

ROOT = Path(__file__).parents[1]
STEPS = 10


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(zerogpu.DEVICE, "cpu")


@pytest.fixture(scope="module")
def settings() -> Settings:
    changes = [("scene.n_init", 40), ("scene.max_gaussians", 60), ("camera.resolution", 32), ("steps", STEPS)]
    return preset("mixture").patch_all(changes)


def session_of(settings: Settings, spaces: Spaces) -> BurstSession:
    made = BurstSession(settings, Bursts(ZeroGpu(spaces).call, lambda _: True))
    made.prepare()
    return made


def advanced(session: Session, steps: int) -> Session:
    """Take steps as the owner's thread does."""
    wanted = session.state.step + steps
    session.do(Burst(steps) if isinstance(session, BurstSession) else Advance(steps))
    while session.stepping:
        session.advance()
    assert session.state.step == wanted, session.events.since(0)[0][-3:]
    return session


def state_of(session: Session) -> dict[str, Any]:
    state = session.state
    found: dict[str, Any] = {f"scene {name}": x for name, x in state.scene.state_dict().items()}
    return found | {f"{k} {n}": x for k, v in state.optim.state_dict().items() for n, x in v.items()}


def same(a: Session, b: Session) -> bool:
    ours, theirs = state_of(a), state_of(b)
    return ours.keys() == theirs.keys() and all(
        torch.equal(torch.as_tensor(x), torch.as_tensor(theirs[n])) for n, x in ours.items()
    )


@pytest.fixture(scope="module")
def live(settings: Settings) -> Session:
    """The run as every other session takes it."""
    session = Session(settings)
    session.prepare()
    return advanced(session, 6)


# ---- the same run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["inside", "fork", pytest.param("spawn", marks=pytest.mark.nightly)])
def test_bursts_take_the_steps_of_a_live_run_bit_for_bit(settings: Settings, live: Session, how: str):
    spaces = Spaces(how)
    session = session_of(settings, spaces)
    for steps in (4, 2):
        advanced(session, steps)
    assert session.state.step == live.state.step == 6
    assert same(session, live)
    assert spaces.asked == [60, 60]


def test_states_come_back_during_a_burst_and_all_steps_are_told(
    settings: Settings, live: Session, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bursts, "TELL_EVERY", 0.0)
    session = session_of(settings, Spaces())
    phases: list[str] = []
    session.listen_to_steps(lambda step: phases.append(f"{step} {session.status.phase}"))
    advanced(session, 6)
    assert same(session, live)
    assert phases == ["1 loading", *(f"{step} running" for step in range(2, 7))]
    told = [event.step for event in session.events.since(0)[0] if isinstance(event, Stepped)]
    assert told == list(range(1, 7))
    frame = session.latest.get()
    assert frame is not None
    assert (frame.step, session.status.phase) == (6, "paused")


def test_a_command_ends_a_burst_and_the_run_goes_on_with_it(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bursts, "TELL_EVERY", 0.0)
    spaces = Spaces()
    session, changed = session_of(settings, spaces), Patch((("losses.sds.cfg", 3.0), ("active", "sds")))
    session.listen_to_steps(lambda step: session.send(changed if step == 2 else Pause()) if step in (2, 5) else None)
    session.do(Burst())
    session.advance()
    assert session.state.step == 2
    session._serve()
    assert session.settings.losses["sds"].cfg == 3.0  # type: ignore[attr-defined]
    session.advance()
    session._next, command = None, session._next
    session.do(command)  # type: ignore[arg-type]
    assert (session.state.step, session.running, len(spaces.asked)) == (5, False, 2)
    assert spaces.asked[1] <= spaces.asked[0]


def test_a_command_after_the_last_step_asks_for_no_further_burst(settings: Settings):
    spaces = Spaces()
    session = session_of(settings, spaces)
    session.do(Burst(2))
    session.send(Patch((("losses.sds.cfg", 3.0),)))
    session.advance()
    assert (session.state.step, session.running, len(spaces.asked)) == (2, False, 1)
    assert isinstance(session._next, Patch)


def test_another_run_takes_the_place_of_one_that_is_away(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """A checkpoint that was dropped onto the page; what still comes back of the burst is not adopted."""
    monkeypatch.setattr(bursts, "TELL_EVERY", 0.0)
    session = advanced(session_of(settings, Spaces()), 1)
    saved = copies.saved_of(session._run, session.effective, {})
    session.listen_to_steps(lambda step: session.continue_from(saved) if step == 4 else None)
    session.do(Burst())
    session.advance()
    assert (session.state.step, session.running, session.status.text) == (1, False, "paused at step 1")


def test_a_burst_under_way_is_neither_ended_nor_extended_by_presses_of_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bursts, "TELL_EVERY", 0.0)
    spaces = Spaces()
    session = session_of(settings, spaces)

    def press(step: int) -> None:
        for command in (Resume(), Advance(1), Burst()):
            session.send(command)

    session.listen_to_steps(press)
    for command in (Resume(), Advance(3)):
        session.do(command)
    assert (session.running, spaces.asked) == (False, [])
    session.do(Burst(4))
    session.advance()
    assert (session.state.step, session.running, spaces.asked) == (4, False, [60])


def test_a_burst_ends_before_its_time_and_another_is_asked_for(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    spaces = Spaces()
    session = session_of(settings, spaces)
    monkeypatch.setattr(bursts, "MARGIN", bursts.SECONDS)
    session.do(Burst())
    session.advance()
    assert "press Start burst for more" in session.status.text
    assert session.state.step == 0
    monkeypatch.undo()
    monkeypatch.setenv(zerogpu.DEVICE, "cpu")
    session.do(Burst())
    session.advance()
    assert session.state.step == STEPS
    assert "finished the planned" in session.status.text


# ---- what can go wrong -----------------------------------------------------------------------------------


def gradio_error(title: str, message: str) -> Exception:
    """An error as the real package raises it."""
    error = RuntimeError(message)
    error.title, error.message = title, message  # type: ignore[attr-defined]
    return error


QUOTA = "You have exceeded your free ZeroGPU quota (60s requested vs. 12s left). Try again in 2:00:00. "


@pytest.mark.parametrize(
    ("title", "message", "said"),
    [
        ("ZeroGPU quota exceeded", QUOTA, "this visitor or Space is used up. The Hub says: You have exceeded"),
        ("ZeroGPU quota exceeded", "Space app has reached its GPU limit. Try re-running outside of examples if it "
         "happened after clicking one", "is used up. The Hub says: Space app has reached its GPU limit"),
        ("ZeroGPU quota exceeded", "No GPU was available after 60s. Try re-running outside of examples if it", "no GPU "
         "is free now. The Hub says: No GPU was available after 60s"),
        ("ZeroGPU queue timeout", 'No GPU was available after 60s. <a href="x">Subscribe</a>', "no GPU is free now"),
        ("ZeroGPU illegal duration", "The requested GPU duration (60s) is larger than the maximum", "for longer than"),
        ("ZeroGPU worker error", "GPU task aborted", "took longer than was asked for, or ran out of memory"),
        ("ZeroGPU client error", "Expired ZeroGPU proxy token", "permission to use your quota has expired"),
        ("ZeroGPU worker error", "OutOfMemoryError", "the burst failed. The Hub says: OutOfMemoryError"),
        ("", "", "the burst failed. The Hub says: RuntimeError"),
    ],
)  # fmt: skip
def test_refusals_of_the_platform_are_told_in_plain_words(title: str, message: str, said: str):
    told = zerogpu.explained(gradio_error(title, message))
    assert said in told
    assert "<" not in told
    assert "examples" not in told


@pytest.mark.parametrize(("states", "kept"), [(0, 2), (3, 5)])
def test_a_run_goes_on_from_the_last_state_that_came_back(
    settings: Settings, live: Session, monkeypatch: pytest.MonkeyPatch, states: int, kept: int
):
    """A quota that is used up, and a burst that the platform ends."""
    monkeypatch.setattr(bursts, "TELL_EVERY", 0.0)
    spaces = Spaces()
    session = advanced(session_of(settings, spaces), 2)
    spaces.error, spaces.states = gradio_error("ZeroGPU quota exceeded", QUOTA), states
    session.do(Burst())
    session.advance()
    assert (session.state.step, session.running, session.status.phase) == (kept, False, "paused")
    note = next(event for event in reversed(session.events.since(0)[0]) if isinstance(event, Noted))
    assert "quota of this visitor or Space is used up" in note.text
    assert note.text.endswith("The run is kept; Start burst continues it")
    assert same(advanced(session, 6 - kept), live)


def test_a_step_that_fails_rolls_the_change_back(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    session = advanced(session_of(settings, Spaces()), 2)
    session.do(Patch((("losses.sds.cfg", 5.0),)))
    before = state_of(session)

    def fails(*_: Any) -> None:
        raise ValueError("no such luck")

    monkeypatch.setattr(bursts, "step", fails)
    session.do(Burst())
    session.advance()
    refused = [event for event in session.events.since(0)[0] if isinstance(event, Rejected)]
    assert "no such luck" in refused[-1].reason
    assert session.settings.losses["sds"].cfg == settings.losses["sds"].cfg  # type: ignore[attr-defined]
    after = state_of(session)
    assert all(torch.equal(torch.as_tensor(before[name]), torch.as_tensor(after[name])) for name in before)


def test_a_network_that_cannot_be_loaded_there_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    session = session_of(settings, Spaces())

    def fails(*_: Any) -> None:
        raise RuntimeError("out of memory: the network")

    monkeypatch.setattr(bursts, "resumed", fails)
    session.do(Burst())
    session.advance()
    assert (session.status.phase, session.state.step) == ("failed", 0)
    assert "out of memory: the network" in session.status.text


def test_losses_that_train_a_network_and_flat_scenes_are_refused(settings: Settings):
    session = session_of(settings, Spaces())
    for name, loss in settings.losses.items():
        assert loss.trains() == (loss.init_aux(session.prior, StepRng(0, 0)) is not None), name
    session.do(Patch((("active", "vsd"),)))
    refused = session.events.since(0)[0][-1]
    assert isinstance(refused, Rejected)
    assert "trains a network of its own" in refused.reason
    with pytest.raises(ValueError, match="shows Gaussians"):
        must_suit(preset("playground"))


def test_a_packed_run_that_is_damaged_is_refused(settings: Settings, live: Session):
    packed = checkpoint.packed(
        live.saved_now() if hasattr(live, "saved_now") else bursts.saved_of(live._run, {"a": "b"})
    )
    back = checkpoint.unpacked(packed)
    assert (back.step, back.texts["a"]) == (6, "b")
    for damaged in (b"", packed[:200], packed[:-4], packed.replace(b'"format', b'"forman')):
        with pytest.raises(ValueError, match="packed checkpoint cannot be read"):
            checkpoint.unpacked(damaged)
    with pytest.raises(ValueError, match="packed checkpoint"):
        next(burst(b"nothing", 1, 60.0, "cpu"))


# ---- models whose networks are elsewhere -----------------------------------------------------------------


@pytest.mark.parametrize("make", [latent_model, pixel_model])
def test_a_model_that_is_away_has_the_shape_of_the_loaded_one(tmp_path: Path, make: Callable[[Path], Path]):
    config = DiffusersPrior(path=str(make(tmp_path / "model")))
    away, loaded = find_away(config, lambda _: None), config.load(torch.device("cpu"))
    assert (away.shape, away.image_size, away.name) == (loaded.shape, loaded.image_size, config.path)
    with pytest.raises(ValueError, match="during its bursts only"):
        away.eps(torch.zeros(1), torch.zeros(1), away.embed("x"))


def test_a_run_of_such_a_model_is_here_in_all_but_its_network(tmp_path: Path):
    """Stable Diffusion's layout in small: the page's process loads no weights, and the lens says why it is empty."""
    wanted = default_settings("diffusers", "splats").patch_all(
        [("prior.path", str(latent_model(tmp_path / "model"))), ("scene.n_init", 20), ("scene.max_gaussians", 20)]
    )
    assert needs_gpu(wanted)
    assert not needs_gpu(preset("toybox"))
    session = session_of(wanted, Spaces())
    session.watch_lens(True)
    advanced(session, 2)
    session._interrupted()
    session._publish()
    assert session.state.step == 2
    seen = session.lens.get()
    assert seen is not None
    assert AWAY in seen.reason
    live = Session(wanted)
    live.prepare()
    assert same(session, advanced(live, 2))


# ---- the page --------------------------------------------------------------------------------------------


def test_visitors_may_have_the_gpus_run_and_no_more():
    own, locked = public(preset("gallery"))
    visitors, without = Visitors(own, locked, in_bursts=True), Visitors(own, locked)
    assert without.gpu is None
    assert visitors.gpu is not None
    assert needs_gpu(visitors.gpu)
    must_suit(visitors.gpu)
    assert visitors.presets == without.presets
    assert visitors.budgets is not None
    assert without.budgets is not None
    small = AwayPrior(Path(), "model", "", (4, 8, 8), 64)
    assert visitors.budgets._limits(small) == without.budgets._limits(small), "of the runs on the CPU"
    now = dataclasses.replace(Run.of(visitors.gpu), prior=AwayPrior(Path(), "model", "", (4, 64, 64), 512))
    visitors.budgets(visitors.gpu.patch("losses.sds.cfg", 30.0), now)
    with pytest.raises(ValueError, match=r"scene\.max_gaussians = 50,000: visitors"):
        visitors.budgets(visitors.gpu.patch("scene.max_gaussians", 50_000), now)


@pytest.fixture
def browser(settings: Settings) -> Iterator[Browser]:
    """A page of a server with bursts; the run that comes in bursts is small, and told by its steps."""
    gpu = settings.patch("steps", STEPS + 1)
    manager = Manager(max_sessions=4, bursts=Bursts(ZeroGpu(Spaces()).call, lambda wanted: wanted.steps == STEPS + 1))
    visitors = Visitors(settings, in_bursts=True)
    visitors.gpu = gpu
    yield Browser(Page(manager, Views(), visitors, "mixture"), "page")
    manager.shutdown()


def test_the_page_adds_one_lane_in_bursts_which_can_be_branched(browser: Browser):
    ready(browser)
    live = browser.desk.focus
    live.send(prompt="a blue bear")
    until(lambda: live.settings.prompt.text == "a blue bear")
    browser.act(do="gpu")
    ready(browser)
    _, lane = browser.desk.lanes
    assert browser.desk.focus is lane
    assert lane.settings.prompt.text == "a blue bear"
    panels = browser.panels()
    told = {one["token"]: one["burst"] for one in panels["stage"]}
    assert told.pop(live.seat.id) is None
    [button] = told.values()
    assert "each takes up to 60 s of your daily GPU quota" in panels["status"]
    assert (button["do"], button["label"], button["can"]) == ("burst", "Start burst: 60 s of GPU", True)
    browser.act(do="focus", lane=live.seat.id)
    browser.act(do="gpu")
    assert (browser.desk.focus, len(browser.desk.lanes)) == (lane, 2)
    browser.page.act(browser.token, {"do": "burst", "lane": lane.seat.id}, "a.b.c")
    assert browser.desk.client.quota == "a.b.c"
    until(lambda: lane.step == STEPS + 1 and lane.seat.session.status.phase == "paused")
    browser.act(do="branch", lane=lane.seat.id)
    ready(browser)
    assert isinstance(browser.desk.lanes[2].seat.session, BurstSession)
    assert not isinstance(live.seat.session, BurstSession)


def can(browser: Browser) -> dict[str, bool]:
    """Return which run buttons can be pressed."""
    return pressable([(lane.seat.session.status.phase, lane.in_bursts) for lane in browser.desk.lanes])


def test_only_its_own_button_starts_a_burst(browser: Browser):
    """Start, Step, examples and lessons act on all lanes, and would spend a visitor's quota unasked."""
    ready(browser)
    live = browser.desk.focus
    browser.act(do="gpu")
    ready(browser)
    lane = browser.desk.focus
    browser.act(do="step")
    browser.act(do="start")
    lane.begin()
    until(lambda: live.step > 1)
    browser.act(do="pause")
    lane.seat.session.caught_up().result()
    assert (lane.step, lane.seat.session.status.phase) == (0, "ready")
    until(lambda: can(browser) == {"start": True, "pause": False, "step": True, "reset": True})
    browser.act(do="close", lane=live.seat.id)
    until(lambda: len(browser.desk.lanes) == 1)
    assert can(browser) == {"start": False, "pause": False, "step": False, "reset": True}
    browser.act(do="preset", preset="mixture")
    ready(browser)
    assert not browser.desk.focus.in_bursts, "its steps need no GPU"


def test_a_branch_of_a_run_in_a_burst_waits_for_its_own(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bursts, "TELL_EVERY", 0.0)
    session, asked = session_of(settings, Spaces()), []
    session.listen_to_steps(lambda step: asked.append(session.branch()) if step == 2 else None)
    session.do(Burst(4))
    session.advance()
    [fork] = (answer.result(0) for answer in asked)
    assert (fork.moment.step, fork.running, fork.steps_left) == (2, False, None)


def test_elsewhere_the_page_has_no_such_lane(settings: Settings):
    manager = Manager(max_sessions=3)
    browser = Browser(Page(manager, Views(), Visitors(settings), "mixture"), "page")
    browser.act(do="gpu")
    assert len(browser.desk.lanes) == 1
    manager.shutdown()


def test_the_quota_of_a_request_reaches_the_package():
    from gradio.context import LocalContext

    zerogpu.charge("a.b.c")
    request: Any = LocalContext.request.get(None)
    assert request.headers.get("x-ip-token") == "a.b.c"
    zerogpu.charge("")
    assert LocalContext.request.get(None) is None


# ---- start-up --------------------------------------------------------------------------------------------


def test_the_way_to_start_is_chosen_by_what_the_package_offers(monkeypatch: pytest.MonkeyPatch):
    assert ZeroGpu(Spaces()).way == "server"
    assert ZeroGpu(Spaces(with_startup=False)).way == "launch"
    monkeypatch.setenv(zerogpu.WAY, "launch")
    assert ZeroGpu(Spaces()).way == "launch"
    monkeypatch.setenv(zerogpu.WAY, "both")
    with pytest.raises(ValueError, match=r"SDLAB_ZEROGPU_START=both: must be server or launch"):
        ZeroGpu(Spaces())


def test_elsewhere_nothing_of_it_is_imported(monkeypatch: pytest.MonkeyPatch):
    args = argparse.Namespace(device="auto")
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert program.zero_gpu(args) is None
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", None)
    with pytest.raises(ValueError, match="package spaces cannot be imported"):
        program.zero_gpu(args)
    with pytest.raises(ValueError, match="--device cuda: on ZeroGPU"):
        program.zero_gpu(argparse.Namespace(device="cuda"))


def test_gradios_launch_serves_our_application():
    """With its life cycle and its own routes; Gradio's are not reached."""
    lived: list[str] = []

    async def lifespan(app: FastAPI) -> Any:
        lived.append("begun")
        yield
        lived.append("ended")

    made = FastAPI(lifespan=contextlib.asynccontextmanager(lifespan))
    made.api_route("/", methods=["GET", "HEAD"])(lambda: PlainTextResponse("the page"))
    listener = program.bind("127.0.0.1", "0")
    at = f"http://127.0.0.1:{listener.getsockname()[1]}"
    close = zerogpu.launch(made, "127.0.0.1", listener)
    try:
        assert httpx.get(f"{at}/").text == "the page"
        assert httpx.get(f"{at}/config").status_code == 404
        assert lived == ["begun"]
    finally:
        close()
    until(lambda: lived == ["begun", "ended"])


def test_a_forked_process_lets_go_of_the_servers_connections():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ours = socket.create_connection(("127.0.0.1", port))
        theirs, _ = server.accept()
        child = os.fork()
        if not child:
            zerogpu.let_go(port)
            os._exit(any(_is_open(s) for s in (server, theirs)) * 2 + (not _is_open(ours)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert _is_open(theirs)
        ours.close()
        theirs.close()


def _is_open(connection: socket.socket) -> bool:
    try:
        os.fstat(connection.fileno())
    except OSError:
        return False
    return True


# ---- the whole program -----------------------------------------------------------------------------------


class Visitor:
    """A browser at a Space, as far as its requests go."""

    def __init__(self, at: str) -> None:
        self._client = httpx.Client(base_url=at, timeout=30, headers={"Origin": at})
        given = self._client.post("/desk", json={"dark": False}).json()
        self._desk, self._page = given["token"], given["page"]
        self.panels: dict[str, Any] = {}

    def act(self, act: dict[str, Any], **headers: str) -> None:
        assert self._client.post(f"/do/{self._desk}", json=act, headers=headers).status_code == 204

    def lane(self, number: int) -> dict[str, Any]:
        time.sleep(0.2)
        answer = self._client.get(f"/news/{self._desk}?page={self._page}").json()
        self.panels.update(answer.get("panels", {}))
        stage = self.panels.get("stage", [])
        return stage[number] if number < len(stage) else {"phase": "", "step": -1}


@pytest.fixture
def package(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The folder in which Python finds the package `spaces`."""
    if request.param == "stand-in":
        here = Path(__file__).parent
        text = f"import sys\nsys.path.append({str(here)!r})\nfrom spaces_stand_in import *\nown = Spaces('fork')\n"
        (tmp_path / "spaces.py").write_text(f"{text}GPU, zero = own.GPU, own.zero\n", encoding="utf-8")
        return str(tmp_path)
    found = importlib.util.find_spec("spaces")
    if found is None or found.origin is None:
        pytest.skip("the package of ZeroGPU is not installed: pip install --no-deps spaces")
    return str(Path(found.origin).parents[1])


@pytest.mark.nightly
@pytest.mark.parametrize("way", ["server", "launch"])
@pytest.mark.parametrize("package", ["stand-in", "real"], indirect=True)
def test_a_space_on_zerogpu(package: str, way: str):
    """Start, report, live lane, lane in bursts; with the real package also a quota that is used up."""
    platform = Platform()
    listener = program.bind("127.0.0.1", "0")
    port = listener.getsockname()[1]
    listener.close()
    more = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": platform.address, "SDLAB_ZEROGPU_START": way}
    environment = {**os.environ, **more, "PYTHONPATH": package}
    space = subprocess.Popen([sys.executable, "tests/zerogpu_space.py", str(port)], cwd=ROOT, env=environment)
    real = (Path(package) / "spaces" / "__init__.py").is_file()
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/"), seconds=300)
        assert [path for path, _ in platform.heard] == ["/startup-report"] * real
        visitor = Visitor(f"http://127.0.0.1:{port}")
        until(lambda: visitor.lane(0)["phase"] == "ready", seconds=60)
        visitor.act({"do": "start"})
        until(lambda: visitor.lane(0)["step"] > 3, seconds=60)
        assert [path for path, _ in platform.heard] == ["/startup-report"] * real, "a live run takes no quota"
        visitor.act({"do": "pause"})
        visitor.act({"do": "gpu"})
        until(lambda: visitor.lane(1)["phase"] == "ready", seconds=60)
        assert "bursts on a shared GPU" in visitor.panels["status"]
        burst = {"do": "burst", "lane": visitor.lane(1)["token"]}
        if real:
            platform.quota_left = 3
            visitor.act(burst, **{"x-ip-token": "a.b.c"})
            until(lambda: visitor.lane(1) and "quota of this visitor" in visitor.panels["status"], seconds=60)
            assert platform.heard[-1][1]["token"] == "a.b.c"
            platform.quota_left = None
        visitor.act(burst, **{"x-ip-token": "a.b.c"})
        until(lambda: visitor.lane(1)["step"] == 12, seconds=120)
        until(lambda: visitor.lane(1)["phase"] == "paused", seconds=60)
        if real:
            assert [path for path, _ in platform.heard[-3:]] == ["/schedule", "/allow", "/release"]
            assert platform.heard[-3][1]["durationSeconds"] == "60"
    finally:
        space.terminate()
        space.wait(30)
        platform.close()


def _answers(at: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(at, timeout=10).status_code == 200
    return False
