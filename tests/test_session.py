"""The live session: commands, patches at the next step, transactions, bit-exact resume."""

import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from waiting import until

from sdlab.live import checkpoint, loop, watching
from sdlab.live.messages import (
    Advance,
    Applied,
    Compare,
    Ended,
    Failed,
    Goto,
    Hold,
    Noted,
    Patch,
    Pause,
    Rejected,
    Reset,
    Resume,
    Skipped,
    Status,
    Stepped,
    Stop,
)
from sdlab.live.session import Session
from sdlab.live.state import with_begun
from sdlab.priors.mixture import MixtureScores
from sdlab.raster import Choice
from sdlab.scenes import splats
from sdlab.scenes.splats import SplatScene
from sdlab.settings import to_toml


def finished(settings, until, before=None):
    session = Session(settings)
    session.prepare()
    if before:
        before(session)
    session.run(until=until)
    return session


def tensors(session):
    state = session.state
    flat = {f"scene/{k}": v for k, v in state.scene.state_dict().items()}
    for name, moments in state.optim.state_dict().items():
        flat |= {f"optim/{name}/{k}": v for k, v in moments.items()}
    return flat


def same(a, b):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


def events(session, kind):
    return [e for e in session.events.since()[0] if isinstance(e, kind)]


def fail(message):
    """Return a function that raises RuntimeError whatever its arguments."""

    def raises(*arguments):
        raise RuntimeError(message)

    return raises


class Live:
    """A session in its own thread."""

    def __init__(self, settings):
        self.session = Session(settings)
        self.thread = threading.Thread(target=self.session.run, kwargs={"start": False}, daemon=True)
        self.thread.start()

    def send(self, *commands):
        for c in commands:
            self.session.send(c)

    def wait(self, condition, seconds=20):
        until(lambda: condition(self.session), seconds, say=lambda: self.session.status)

    def advance(self, n):
        """Take `n` steps and wait for them."""
        goal = self.session.state.step + n
        self.send(Advance(n))
        self.wait(lambda s: s.state.step == goal and s.status.phase == "paused")

    def phase(self, phase):
        self.wait(lambda s: s.status.phase == phase)


@pytest.fixture
def live(quick):
    x = Live(quick.patch("steps", 100_000))
    x.phase("ready")
    yield x
    x.send(Stop())
    x.thread.join(10)
    assert not x.thread.is_alive()


def test_a_paused_run_shows_its_last_step_in_the_lens_however_long_a_look_took(live, monkeypatch):
    monkeypatch.setattr(watching, "LENS_EVERY", 1e6)  # seconds from one look to the next while the run goes on
    live.session.watch_lens(True)
    live.wait(lambda s: s.watched[0] is not None)
    for _ in range(2):
        live.advance(1)
        drawn = int(live.session.report.x.t[0])
        live.wait(lambda s, drawn=drawn: s.lens.get() is not None and s.lens.get().t == drawn, 5)


def test_views_around_the_object_are_rendered_for_charts_and_change_nothing(quick, monkeypatch):
    monkeypatch.setattr(watching, "AROUND_EVERY", 0.0)
    monkeypatch.setattr(watching, "AROUND_SHARE", 0.0)
    monkeypatch.setattr(loop, "PUBLISH_EVERY", 0.0)
    seen = []

    def shown(session):
        session.in_detail = True
        session.listen_to_steps(lambda step: seen.append(session.around.get()))

    watched, alone = finished(quick, 12, before=shown), finished(quick, 12)
    assert [around.step for around in seen] == list(range(1, 13))
    assert seen[-1].images.shape == (12, 16, 16, 3)
    assert len({image.tobytes() for image in seen[-1].images}) > 6, "from all sides"
    assert alone.around.get() is None, "nobody looks"
    assert same(watched, alone)


def test_two_equal_runs_are_equal_and_another_seed_is_not(quick):
    a, b, c = (finished(quick.patch("seed", seed), 25) for seed in (1, 1, 2))
    assert same(a, b)
    assert not same(a, c)


def test_resume_equals_the_uninterrupted_run_bit_for_bit(quick, tmp_path):
    s = quick.patch_all([("scene.densify_every", 10), ("schedule.kind", "two-stage"), ("optim.decay", 0.1)])
    whole = finished(s, 40)
    half = finished(s, 17)
    half.save(tmp_path)
    back = Session(s.patch("seed", 99))
    back.prepare()
    back.restore(tmp_path)
    assert back.state.step == 17
    back.run(until=40)
    assert same(whole, back)
    assert back.state.seconds > half.state.seconds


def test_start_pause_step_reset(live):
    assert live.session.state.step == 0
    live.send(Resume())
    live.wait(lambda s: s.state.step > 5)
    live.send(Pause())
    live.phase("paused")
    n = live.session.state.step
    time.sleep(0.1)
    assert live.session.state.step == n
    live.advance(1)
    live.advance(3)
    assert live.session.latest.get().step == n + 4
    live.send(Reset())
    live.wait(lambda s: s.state.step == 0)
    live.phase("ready")


def test_patches_act_at_the_next_step(live, monkeypatch):
    live.advance(2)
    read, embed = [], live.session.prior.embed
    monkeypatch.setattr(live.session.prior, "embed", lambda text: read.append(text) or embed(text))
    live.send(Patch((("losses.sds.cfg", 0.0), ("optim.lr_means", 0.0), ("prompt.text", "a blue car"))))
    live.advance(1)
    session = live.session
    assert session.effective.losses["sds"].cfg == 0.0
    assert session.state.optim._adam.param_groups[0]["lr"] == 0.0
    assert "a blue car, front view" in read or "a blue car, side view" in read
    assert [e.path for e in events(session, Applied)] == ["losses.sds.cfg", "optim.lr_means", "prompt.text"]
    assert all(e.step == 2 for e in events(session, Applied))


def test_a_refused_patch_changes_nothing_and_says_why(live):
    live.send(Patch((("losses.sds.cfg", 3.0), ("camera.views", 99))))
    live.advance(1)
    assert live.session.settings.losses["sds"].cfg == 7.5
    refused = events(live.session, Rejected)
    assert {e.path for e in refused} == {"losses.sds.cfg", "camera.views"}
    assert "1 to 16" in refused[0].reason


def test_knobs_that_describe_a_beginning_wait_for_the_reset(live):
    live.advance(2)
    live.send(Patch.one("scene.n_init", 33), Patch.one("seed", 5))
    live.advance(1)
    session = live.session
    assert [e.note for e in events(session, Applied)] == ["from the next reset on"] * 2
    assert session.settings.seed == 5
    assert session.effective.seed == 0
    assert len(session.state.scene.params["means"]) == 60
    live.send(Reset())
    live.wait(lambda s: s.state.step == 0 and len(s.state.scene.params["means"]) == 33)
    assert session.effective.seed == 5


def test_before_the_first_step_such_knobs_act_at_once(live):
    live.send(Patch.one("scene.n_init", 44))
    live.wait(lambda s: len(s.state.scene.params["means"]) == 44 and events(s, Applied))
    assert events(live.session, Applied)[0].note == ""


def test_a_patch_whose_first_step_fails_is_rolled_back(quick, no_room_for_four_views):
    clean = finished(quick, 20)
    no_room_for_four_views()
    session = Session(quick)
    session.run(until=10)
    session.send(Patch((("camera.views", 4), ("losses.sds.cfg", 50.0))))
    session.run(until=20)
    assert session.settings == quick
    refused = events(session, Rejected)
    assert [e.path for e in refused] == ["camera.views", "losses.sds.cfg"]
    assert "rolled back" in refused[0].reason
    assert "8 pictures do not fit" in refused[0].reason
    assert same(session, clean), "nothing may be lost and nothing may remain of the patch"


def test_an_error_out_of_the_blue_pauses_and_keeps_the_state(quick, monkeypatch):
    live = Live(quick.patch("steps", 1000))
    live.phase("ready")
    live.advance(3)
    original = MixtureScores.eps
    monkeypatch.setattr(MixtureScores, "eps", fail("device lost"))
    live.send(Resume())
    live.phase("failed")
    assert "device lost" in events(live.session, Failed)[0].reason
    assert live.session.state.step == 3
    monkeypatch.setattr(MixtureScores, "eps", original)
    live.send(Resume())
    live.wait(lambda s: s.state.step > 5)
    live.send(Stop())
    live.thread.join(10)
    assert events(live.session, Ended)


@pytest.mark.parametrize("error", [SystemExit(3), SystemExit("bye"), RecursionError("deep"), MemoryError()])
def test_whatever_a_step_raises_the_thread_lives_and_says_so(error, quick, monkeypatch):
    live = Live(quick.patch("steps", 1000))
    live.phase("ready")
    with monkeypatch.context() as patch:
        patch.setattr(MixtureScores, "eps", lambda *arguments: (_ for _ in ()).throw(error))
        live.send(Resume())
        live.phase("failed")
    assert type(error).__name__ in live.session.status.text
    assert live.thread.is_alive()
    live.send(Resume())
    live.wait(lambda s: s.state.step > 2)
    live.send(Stop())
    live.thread.join(10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_all_the_same_says_so(quick):
    class Fatal(BaseException):
        pass

    live = Live(quick)
    live.phase("ready")
    answer = live.session.material()
    live.session._inbox.put(lambda: (_ for _ in ()).throw(Fatal("stack smashed")))
    live.thread.join(10)
    assert not live.thread.is_alive()
    assert live.session.status.phase == "failed"
    assert "Fatal: stack smashed" in live.session.status.text
    assert answer.result(5)
    assert live.session.material().result(5), "what it has made can still be saved"


def test_a_headless_run_whose_step_fails_raises_and_keeps_its_state(quick, monkeypatch):
    session, clean = finished(quick, 7), finished(quick, 7)
    with monkeypatch.context() as patch:
        patch.setattr(MixtureScores, "eps", fail("device lost"))
        with pytest.raises(RuntimeError, match="stopped at step 7: RuntimeError: device lost"):
            session.run(until=20)
    assert [e.reason for e in events(session, Failed)] == ["RuntimeError: device lost"]
    assert session.state.step == 7
    assert same(session, clean)
    for run in (session, clean):
        run.run(until=20)
    assert same(session, clean), "the run can go on"


def test_a_headless_run_whose_prompt_cannot_be_read_raises_and_keeps_its_state(quick, monkeypatch):
    """The first view from behind is drawn after a few steps."""
    original = MixtureScores.embed

    def embed(self, text):
        return fail("no such word")() if "back view" in text else original(self, text)

    monkeypatch.setattr(MixtureScores, "embed", embed)
    session = Session(quick)
    with pytest.raises(RuntimeError, match=r"stopped at step [1-9]\d*: RuntimeError: no such word"):
        session.run(until=100)
    assert same(session, finished(quick, session.state.step))


def test_a_listener_that_stops_a_failed_headless_run_ends_it_without_an_error(quick, monkeypatch):
    session = finished(quick, 3)
    session.listen(lambda event: session.send(Stop()) if isinstance(event, Failed) else None)
    monkeypatch.setattr(MixtureScores, "eps", fail("device lost"))
    session.run(until=20)
    assert len(events(session, Failed)) == len(events(session, Ended)[1:]) == 1
    assert session.state.step == 3


def test_a_listener_that_mends_a_failed_headless_run_lets_it_go_on(quick, monkeypatch):
    session = finished(quick, 3)
    original = MixtureScores.eps

    def mend(event):
        if isinstance(event, Failed):
            monkeypatch.setattr(MixtureScores, "eps", original)
            session.send(Resume())

    session.listen(mend)
    monkeypatch.setattr(MixtureScores, "eps", fail("device lost"))
    session.run(until=8)
    assert session.state.step == 8


def test_a_planned_patch_whose_first_step_fails_is_rolled_back(quick, no_room_for_four_views):
    clean = finished(quick, 20)
    no_room_for_four_views()
    session = Session(quick)
    session.plan(10, Patch.one("camera.views", 4))
    session.run(until=20)
    (refused,) = events(session, Rejected)
    assert (refused.step, refused.path) == (10, "camera.views")
    assert same(session, clean)


def test_a_frame_that_cannot_be_made_is_said_and_the_run_can_go_on(live, monkeypatch):
    original = SplatScene.snapshot
    monkeypatch.setattr(SplatScene, "snapshot", fail("no memory for a picture"))
    live.send(Resume())
    live.phase("failed")
    assert "no memory for a picture" in events(live.session, Failed)[0].reason
    monkeypatch.setattr(SplatScene, "snapshot", original)
    step = live.session.state.step
    live.send(Resume())
    live.wait(lambda s: s.state.step > step + 2)


@pytest.mark.parametrize("where", ["residual", "gradient"])
def test_what_is_not_finite_is_skipped_and_named(quick, monkeypatch, where):
    def poison(session):
        if where == "residual":
            original = MixtureScores.eps

            def eps(self, z_t, t, cond):
                out = original(self, z_t, t, cond)
                return out * float("nan") if session.state.step == 7 else out

            monkeypatch.setattr(MixtureScores, "eps", eps)
        else:
            session.state.scene.params["quats"].register_hook(
                lambda g: g * float("inf") if session.state.step == 7 else g
            )

    session = finished(quick.patch("scene.densify_every", 0), 12, poison)
    assert session.state.step == 12
    assert session.state.skipped == 1
    (skipped,) = events(session, Skipped)
    assert skipped.step == 7
    assert where in skipped.what
    assert all(torch.isfinite(v).all() for v in tensors(session).values())


def test_a_skipped_step_changes_no_parameter(quick, monkeypatch):
    session = finished(quick, 5)
    before = tensors(session)
    monkeypatch.setattr(MixtureScores, "eps", lambda self, z, t, c: torch.full_like(z, float("nan")))
    session.run(until=6)
    after = tensors(session)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_run_is_saved_restored_and_exported(quick, tmp_path):
    session = finished(quick, 4)
    session.save(tmp_path / "c")
    session.run(until=6)
    session.restore(tmp_path / "c")
    assert session.state.step == session.latest.get().step == 4
    files = session.export(tmp_path / "e", size=32)
    assert tmp_path / "e" / "turntable.mp4" in files
    assert all(file.exists() for file in files)
    with pytest.raises(ValueError, match="nowhere"):
        session.restore(tmp_path / "nowhere")
    for write in (session.save, session.export):
        with pytest.raises(OSError, match="nowhere"):
            write(Path("/proc/nowhere"))
    session.run(until=7)
    assert same(session, finished(quick, 7))


@pytest.mark.slow
@pytest.mark.parametrize("flaw", ["settings", "scene"])
def test_a_checkpoint_that_does_not_fit_leaves_the_run_alone(quick, tmp_path, flaw):
    texts = {"settings.toml": to_toml(quick)}
    if flaw == "settings":
        texts["settings.toml"] = texts["settings.toml"].replace("n_init = 60", "n_init = -4")
    checkpoint.save(tmp_path, 4, {"scene": {"means": torch.zeros(1, 3)}}, texts)
    session = finished(quick, 2)
    with pytest.raises(ValueError, match="n_init" if flaw == "settings" else "cannot be restored"):
        session.restore(tmp_path)
    assert session.settings == session.effective == quick
    assert session.timeline.steps() == (0,)
    session.run(until=5)
    assert same(session, finished(quick, 5))


def test_a_prior_that_cannot_be_loaded_is_reported_and_can_be_mended(tmp_path):
    from sdlab.settings import preset

    live = Live(preset("toybox").patch("prior.path", str(tmp_path / "nothing")))
    live.phase("failed")
    assert "nothing" in live.session.status.text
    assert "prior.path" in live.session.status.text
    live.send(Patch.one("prior.path", str(tmp_path / "still nothing")))
    live.wait(lambda s: bool(events(s, Rejected)))
    for number, command in enumerate((Compare(), Goto(3)), len(events(live.session, Rejected)) + 1):
        live.send(command)
        live.wait(lambda s, number=number: len(events(s, Rejected)) == number)
        assert live.session.status.phase == "failed"
        assert "prior.path" in live.session.status.text, "why there is nothing is still said"
    live.send(Stop())
    live.thread.join(10)


def test_frames_show_the_step_and_are_copies(quick):
    session = finished(quick, 5)
    frame = session.latest.get()
    assert frame.step == 5
    assert frame.preview.shape == (2, 16, 16, 3)
    assert len(frame.views) == 2
    assert frame.scene.means.shape == (60, 3)
    assert not any(frame.scene.means.base is p for p in session.state.scene.params.values()), (
        "a viewer must never hold live parameters"
    )


def test_figures_of_every_step(quick):
    session = finished(quick, 6)
    steps = events(session, Stepped)
    assert [e.step for e in steps] == [1, 2, 3, 4, 5, 6]
    for name in ("grad_rms", "steps_per_s", "n_gaussians", "prior_share", "ms_prior", "ms_publish"):
        assert name in steps[-1].stats
    assert 0 < steps[-1].stats["prior_share"] < 1
    taken = 6 / steps[-1].stats["steps_per_s"]
    assert taken == pytest.approx(steps[-1].stats["seconds"], rel=0.2), "the first, slow step counts as one of six"


def test_a_planned_run_pauses_at_its_end_and_goes_on_when_asked(quick):
    live = Live(quick.patch("steps", 5))
    live.phase("ready")
    live.send(Resume())
    live.wait(lambda s: s.state.step == 5 and s.status.phase == "paused")
    assert "finished" in live.session.status.text
    live.send(Resume())
    live.wait(lambda s: s.state.step > 8)
    live.send(Stop())
    live.thread.join(10)


def test_a_plan_shortened_below_the_present_step_ends_the_run(live):
    live.send(Resume())
    live.wait(lambda s: s.state.step > 5)
    live.send(Patch.one("steps", 3))
    live.phase("paused")
    n = live.session.state.step
    assert live.session.latest.get().step == n
    live.send(Resume())
    live.wait(lambda s: s.state.step > n + 3)


def test_with_begun_holds_back_only_what_waits(quick):
    wanted = quick.patch_all([("seed", 9), ("scene.n_init", 5), ("losses.sds.cfg", 1.0)])
    held = with_begun(wanted, quick)
    assert (held.seed, held.scene.n_init, held.losses["sds"].cfg) == (0, 60, 1.0)


@pytest.mark.filterwarnings("ignore:starting from a ball")
def test_a_start_that_is_not_the_one_asked_for_is_noted_each_time(quick):
    session = Session(quick.patch_all([("scene.start", "shap-e or ball"), ("scene.shap_e", "")]))
    session.prepare()
    session.do(Reset())
    texts = [e.text for e in events(session, Noted)]
    assert texts == [session.state.scene.note] * 2
    assert "scene.shap_e is empty" in texts[0]
    session.do(Patch.one("scene.start", "ball"))
    assert len(events(session, Noted)) == 2


def test_a_slow_rasteriser_is_noted_once_in_each_session(quick, monkeypatch):
    monkeypatch.setattr(splats, "backend_for", lambda device: Choice("tiled", "numba is not installed"))
    session = finished(quick, 1)
    session.do(Reset())
    session.run(until=2)
    assert events(session, Noted) == [Noted(0, "numba is not installed")]
    origin = Future()
    origin.set_result(session.fork())
    branch = Session(quick, origin=origin)
    branch.run(until=3)
    assert events(branch, Noted) == [Noted(2, "numba is not installed")]


def test_a_run_without_surprises_is_not_noted(quick):
    session = finished(quick, 1)
    assert events(session, Noted) == []
    assert session.notes == ()


@pytest.mark.filterwarnings("ignore:starting from a ball")
def test_notes_are_those_of_the_present_start_prior_and_rasteriser(quick, monkeypatch):
    monkeypatch.setattr(splats, "backend_for", lambda device: Choice("tiled", "numba is not installed"))
    session = Session(quick.patch_all([("scene.start", "shap-e or ball"), ("scene.shap_e", "")]))
    assert session.notes == ()
    session.prepare()
    start = session.state.scene.note
    assert session.notes == (start, "numba is not installed")
    session.run(until=3)
    session.do(Goto(0))
    assert session.notes == (start, "numba is not installed"), "it is the same run"
    session.do(Reset())
    assert session.notes == (start, "numba is not installed")
    session.do(Patch.one("scene.start", "ball"))
    assert session.notes == ("numba is not installed",)
    monkeypatch.setattr(type(session.prior), "engine_note", property(lambda _: "3 files were skipped"), raising=False)
    assert session.notes == ("3 files were skipped", "numba is not installed")


def test_another_prior_mid_run_says_what_it_does_without(quick, monkeypatch):
    session = finished(quick, 2)
    note = property(lambda _: "3 files were skipped", lambda self, value: None)
    monkeypatch.setattr(MixtureScores, "engine_note", note, raising=False)
    session.do(Patch.one("losses.sds.cfg", 3.0))
    assert events(session, Noted) == []
    session.do(Patch.one("prior.seed", 5))
    assert events(session, Noted) == [Noted(2, "3 files were skipped")]


# ---- losses that train a network of their own


@pytest.mark.slow
def test_an_auxiliary_warms_up_first_and_is_in_the_checkpoint(quick, tmp_path):
    settings = quick.patch_all([("active", "vdm"), ("losses.vdm.warm_up", 7)])
    whole = finished(settings, 12)
    aux = whole.state.aux["vdm"]
    assert aux.fitted == 7 + 12
    assert whole.state.step == 12
    part = finished(settings, 5)
    part.save(tmp_path)
    rest = Session(quick)
    rest.prepare()
    rest.restore(tmp_path)
    rest.run(until=12)
    assert same(whole, rest)
    assert rest.state.aux["vdm"].fitted == 19
    for a, b in zip(aux.net.parameters(), rest.state.aux["vdm"].net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_scene_waits_for_the_warm_up(quick):
    settings = quick.patch_all([("active", "vdm"), ("losses.vdm.warm_up", 30)])
    session = Session(settings)
    session.prepare()
    before = {k: v.clone() for k, v in session.state.scene.params.items()}
    for _ in range(30):
        session.advance()
    assert session.state.step == 0
    assert all(torch.equal(before[k], v) for k, v in session.state.scene.params.items())
    assert not any(k in before for k in session.state.optim.state_dict())
    session.advance()
    assert session.state.step == 1


def test_toggle_starts_gently_and_remembers_the_auxiliary(live):
    live.advance(3)
    live.send(Patch((("losses.vdm.warm_up", 4), ("active", "vdm"))))
    live.advance(2)
    state = live.session.state
    assert state.toggled == 3
    first = state.aux["vdm"]
    assert first.fitted == 4 + 2
    live.send(Patch((("active", "sds"),)))
    live.advance(2)
    live.send(Patch((("active", "vdm"),)))
    live.advance(2)
    assert live.session.state.aux["vdm"] is first
    assert first.fitted == 4 + 4  # no second warm-up
    live.send(Patch((("losses.vdm.operator", "linear"),)))
    live.advance(1)
    assert live.session.state.aux["vdm"] is not first


def test_rates_ramp_up_after_a_toggle(quick):
    def moves(ramp):
        session = Session(quick.patch("optim.ramp", ramp))
        session.prepare()
        session.advance()
        session.do(Patch.one("active", "sbp"))
        seen = []
        for _ in range(6):
            before = session.state.scene.params["means"].detach().clone()
            session.advance()
            seen.append(float((session.state.scene.params["means"].detach() - before).abs().mean()))
        return seen

    sudden, gentle = moves(0), moves(5)
    assert gentle[0] == pytest.approx(sudden[0] / 5, rel=0.01)  # the scene is still the same one
    assert gentle[5] > 0.6 * sudden[5]


def test_schedules_can_be_restarted(quick):
    """From the given step, the run behaves as if it started there, for the planned number of steps."""
    s = quick.patch_all([("steps", 20), ("schedule.kind", "linear"), ("scene.densify_every", 0)])
    session = Session(s)
    session.prepare()

    def t_and_rate(number):
        session.run(until=number)
        group = session.state.optim._adam.param_groups[0]
        return int(session.report.x.t[0]), group["lr"]

    early, late = t_and_rate(6), t_and_rate(20)
    assert late[0] < early[0]
    assert late[1] < early[1]
    session.do(Patch.one("schedule.start", 20))
    assert session.settings.planned_end == 40
    assert t_and_rate(26) == early
    session.listen(lambda event: session.send(Stop()) if getattr(event, "phase", "") == "paused" else None)
    session.run()
    assert session.state.step == 40
    texts = [e.text for e in events(session, Status)]
    finished = "finished the planned 20 steps; press Start to continue"
    assert texts[-2:] == [finished, "ended"]
    session.do(Hold(True))
    assert session.status.text == finished


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        ("prompt.text", "a blue dragon", "a blue dragon"),
        ("prompt.source", "{prompt}, foggish", "a red bear, foggish"),
        ("prompt.target", "sharp {prompt}", "sharp a red bear"),
        ("prompt.negative", "uglyish", "a red bear, uglyish"),  # it need not name an object
        ("prompt.negative", "", ""),
    ],
)
def test_words_are_remarked_on_as_the_prior_reads_them(live, monkeypatch, path, value, read):
    monkeypatch.setattr(type(live.session.prior), "remark", lambda self, text: f"read: {text}")
    live.send(Patch(((path, value),)))
    live.wait(lambda s: any(isinstance(e, Applied) for e in s.events.since(0)[0]))
    notes = [e.note for e in live.session.events.since(0)[0] if isinstance(e, Applied)]
    assert notes == [f"read: {read}"]


def test_an_auxiliary_that_cannot_be_built_is_refused_and_the_run_goes_on(quick):
    session = Session(quick.patch_all([("prior.height", 7), ("prior.width", 7)]))
    session.prepare()
    session.advance()
    session.do(Patch.one("active", "vdm"))
    (refused,) = events(session, Rejected)
    assert "even sides" in refused.reason
    session.advance()
    assert session.state.step == 2
    assert session.settings.active == "sds"
