"""Renders in place of the browser's drawing: modes, the session's answers, and the view that shows them."""

import math
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_field import constant
from test_viewport import frame
from viser.transforms import SO3
from waiting import until

from sdlab import modes
from sdlab.cameras import CameraSettings, look_at, turntable
from sdlab.channel import Latest
from sdlab.live.messages import Patch, Pause, Resume, Stop
from sdlab.live.rendering import FINE, LARGEST, QUICK, SMALLEST, Rendered, Shot, camera_of
from sdlab.live.session import Session
from sdlab.raster import rasteriser_for
from sdlab.settings import default_settings, preset
from sdlab.types import Cameras, Render, ScreenInfo
from sdlab.ui.lane import view_modes
from sdlab.viewport.rendered import RenderedView, cameras_of, shot_of
from sdlab.viewport.splat_view import SPLATS, SplatView

WHITE = torch.ones(3)


def ball(size: int = 65) -> tuple[Render, Cameras]:
    """A dense ball of radius 1 from the front, at a distance of 3."""
    cams = turntable(1, CameraSettings(distance_min=3.0, distance_max=3.0), size, elevation=0.0)
    with torch.no_grad():
        return constant(400.0, (0.9, 0.5, 0.1), samples=800).render(cams, WHITE[None]), cams


def shot(mode: str = "color", seconds: float = QUICK, aspect: float = 1.0, distance: float = 3.0) -> Shot:
    cams = look_at(torch.tensor([20.0]), torch.tensor([10.0]), torch.tensor([distance]), 40.0, 8, 8)
    return Shot(tuple(map(tuple, cams.viewmats[0].tolist())), math.radians(40), aspect, mode, (1.0, 1.0, 1.0), seconds)


def small(**changes):
    quick = {"prior.size": 16, "prior.images": 16, "prior.null_images": 16, "scene.n_init": 200, "steps": 30}
    return preset("gallery").patch_all([*quick.items(), *changes.items()])


# ---- modes -----------------------------------------------------------------------------------------------


def test_a_ball_has_the_depth_and_the_normals_of_a_ball():
    render, cams = ball()
    z = modes.distances(render)
    assert z[32, 32].item() == pytest.approx(2.0, abs=0.01)
    assert z[0, 0].isnan()
    assert z.isnan().sum() > 400
    centres = torch.arange(65) + 0.5 - 32.5
    y, x = torch.meshgrid(centres / cams.Ks[0, 1, 1], centres / cams.Ks[0, 0, 0], indexing="ij")
    surface = torch.stack([x * z, y * z, z], -1)
    surface = (surface - cams.viewmats[0, :3, 3]) @ cams.viewmats[0, :3, :3]  # in the world: it is its own normal
    inner = surface.norm(dim=-1).isfinite() & (z < 2.4)
    found = modes.normals(render, cams)
    cosines = (found * surface)[inner].sum(-1)
    assert inner.sum() > 700
    assert cosines.mean() > 0.99
    assert cosines.min() > 0.9
    assert found[32, 32, 0] > 0.99  # the front faces +x


def test_colours_opacity_and_depth_as_pictures():
    render, cams = ball()
    picture, legend = modes.show("color", render, cams, WHITE)
    assert legend == ""
    assert abs(picture[32, 32].astype(int) - [230, 128, 26]).max() <= 2
    assert (picture[0, 0] == 255).all()
    picture, _ = modes.show("opacity", render, cams, WHITE)
    assert (picture[32, 32] >= 254).all()
    assert (picture[0, 0] == 0).all()
    picture, legend = modes.show("depth", render, cams, WHITE)
    assert (picture[0, 0] == 255).all()
    assert picture[32, 32, 0] > 200 > picture[32, 32, 2]
    assert legend.startswith("Depth: yellow 2.0")
    picture, _ = modes.show("normals", render, cams, 0 * WHITE)
    assert (picture[0, 0] == 0).all()
    assert picture[32, 32, 0] > 250


def test_an_empty_scene_says_so():
    cams = turntable(1, CameraSettings(), 16)
    nothing = Render(torch.ones(1, 3, 16, 16), torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))
    picture, legend = modes.show("depth", nothing, cams, WHITE)
    assert (picture == 255).all()
    assert "nothing" in legend
    assert (modes.show("normals", nothing, cams, WHITE).picture == 255).all()


@pytest.mark.parametrize("both_axes", [False, True])
def test_the_count_is_that_of_a_loop(both_axes):
    generator = torch.Generator().manual_seed(3)
    at = torch.rand(1, 300, 2, generator=generator) * 60 - 10  # some beyond the edges
    radii = torch.randint(0, 9, (1, 300), generator=generator)
    info = ScreenInfo(torch.stack([radii, radii], -1) if both_axes else radii, at)
    expected = torch.zeros(30, 40, dtype=torch.int64)
    for (x, y), r in zip(at[0].tolist(), radii[0].tolist(), strict=True):
        rows = [row for row in range(30) if y - r < row + 1 and row <= y + r]
        columns = [column for column in range(40) if x - r < column + 1 and column <= x + r]
        if r > 0 and rows and columns:
            expected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += 1
    assert torch.equal(modes.covering(info, 30, 40), expected)


def test_the_rasteriser_says_how_many_gaussians_cover_a_pixel():
    cams = turntable(1, CameraSettings(distance_min=3.0, distance_max=3.0), 32, elevation=0.0)
    means = torch.tensor([[0.0, 0, 0], [0.2, 0, 0], [0.0, 0.9, 0.0]])
    render = rasteriser_for("cpu")(
        means,
        torch.ones(3, 4),
        torch.full((3, 3), 0.05),
        torch.ones(3),
        torch.ones(3, 3),
        cams.viewmats,
        cams.Ks,
        32,
        32,
    )
    picture, legend = modes.show("count", render, cams, WHITE)
    assert legend.endswith("pale 2")
    assert picture[16, 16].sum() > picture[0, 0].sum()


def test_unknown_modes_and_counts_without_gaussians_are_refused():
    render, cams = ball(9)
    with pytest.raises(ValueError, match="there are color, depth"):
        modes.show("x-ray", render, cams, WHITE)
    with pytest.raises(ValueError, match="no Gaussians"):
        modes.show("count", render, cams, WHITE)


def test_scenes_offer_the_modes_that_they_have():
    assert view_modes(preset("gallery").scene) == (SPLATS, *modes.MODES)
    assert "count" not in view_modes(preset("gallery-field").scene)
    assert view_modes(preset("playground").scene) == ()


# ---- the session -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("aspect", [0.01, 0.5, 1.0, 2.5, 50.0])
@pytest.mark.parametrize("per_pixel", [math.inf, 1e-12, 1e-5, 1.0])
def test_images_are_as_large_as_their_time_allows(aspect, per_pixel):
    cams = camera_of(shot(aspect=aspect), per_pixel)
    assert SMALLEST <= max(cams.width, cams.height) <= LARGEST
    if per_pixel == 1e-5 and aspect == 1.0:
        assert cams.width == cams.height == round(math.sqrt(QUICK / per_pixel))
    seen_up_to = 0.5 * cams.height / cams.Ks[0, 1, 1].item()
    assert math.atan(seen_up_to) == pytest.approx(math.radians(20), abs=1e-4)


def test_a_session_renders_what_is_asked_while_it_waits_and_while_it_runs():
    session = Session(small())
    thread = threading.Thread(target=lambda: session.run(start=False), daemon=True)
    thread.start()
    session.rendering.ask(shot())  # before there is a scene
    session.send(Patch((("steps", 100_000),)))
    until(lambda: session.status.phase == "ready", 180)  # kernels may have to be compiled
    session.rendering.ask(shot("depth", FINE))
    until(lambda: (seen := session.rendering.seen.get()) is not None and seen.shot.mode == "depth")
    session.send(Resume())
    until(lambda: session.state.step > 5)
    before = session.rendering.seen.version
    until(lambda: session.rendering.seen.version > before + 2)  # it follows the run
    seen = session.rendering.seen.get()
    assert seen is not None
    assert seen.shot.seconds == QUICK  # and takes little of its time
    session.rendering.ask(None)
    session.send(Pause())
    until(lambda: session.status.phase == "paused")
    last = session.rendering.seen.version
    session.send(Resume())
    until(lambda: session.state.step > 20)
    assert session.rendering.seen.version == last
    session.send(Stop())
    thread.join(10)


def test_renders_leave_the_run_as_it_is():
    ends = []
    for looked_at in (False, True):
        session = Session(small())
        if looked_at:
            session.rendering.ask(shot("normals", FINE))
        session.run(until=12)
        ends.append(session.state.scene.state_dict())
        assert (session.rendering.seen.get() is not None) == looked_at
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0] if isinstance(ends[0][name], torch.Tensor))


def test_many_shots_cost_one_call():
    calls = []
    rendering = Session(small()).rendering
    rendering._call = lambda: calls.append(0)
    for _ in range(50):
        rendering.ask(shot())
    assert len(calls) == 1


def test_what_cannot_be_drawn_is_said():
    session = Session(default_settings("mixture"))
    session.prepare()
    session.rendering.ask(shot("no such mode"))
    session.rendering.answer(session._run, running=False)
    assert "there are color" in trouble_of(session)
    flat = Session(preset("playground"))
    flat.prepare()
    flat.rendering.ask(shot())
    flat.rendering.answer(flat._run, running=False)
    assert "flat" in trouble_of(flat)


def trouble_of(session: Session) -> str:
    seen = session.rendering.seen.get()
    assert seen is not None
    return seen.trouble


# ---- the view --------------------------------------------------------------------------------------------


def viser_camera(azimuth: float = 30.0, elevation: float = 20.0, **changes) -> SimpleNamespace:
    viewmat = (
        look_at(torch.tensor([azimuth]), torch.tensor([elevation]), torch.tensor([3.0]), 40.0, 8, 8)
        .viewmats[0]
        .double()
    )
    rotation = viewmat[:3, :3].numpy().T
    values = {
        "wxyz": SO3.from_matrix(rotation).wxyz,
        "position": -rotation @ viewmat[:3, 3].numpy(),
        "fov": 0.7,
        "image_width": 600,
        "image_height": 400,
    }
    return SimpleNamespace(**{**values, **changes})


def test_a_shot_is_what_the_browsers_camera_sees():
    found = shot_of(viser_camera(), "color", (1.0, 1.0, 1.0), QUICK)
    expected = look_at(torch.tensor([30.0]), torch.tensor([20.0]), torch.tensor([3.0]), 40.0, 8, 8).viewmats[0]
    assert found is not None
    assert np.allclose(found.viewmat, expected.numpy(), atol=1e-5)
    assert found.aspect == 1.5


@pytest.mark.parametrize(
    "changes",
    [
        {"wxyz": (0, 0, 0, 0)},
        {"position": (math.nan, 0, 0)},
        {"fov": 0.0},
        {"fov": 4.0},
        {"image_height": 0},
        {"image_width": None},
    ],
)
def test_cameras_that_see_nothing_ask_for_nothing(changes):
    assert shot_of(viser_camera(**changes), "color", (1.0, 1.0, 1.0), QUICK) is None
    assert cameras_of(viser_camera(**changes)) is None


def test_a_browsers_camera_as_ours():
    found = cameras_of(viser_camera())
    assert found is not None
    expected = look_at(
        torch.tensor([30.0]), torch.tensor([20.0]), torch.tensor([3.0]), math.degrees(0.7), found.width, found.height
    )
    assert found.width == 1.5 * found.height
    for name in ("viewmats", "Ks", "azimuth", "elevation", "distance"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4)


class Draughtsman:
    """Answers each shot at once."""

    def __init__(self) -> None:
        self.seen: Latest[Rendered] = Latest()
        self.asked: list[Shot | None] = []

    def ask(self, shot: Shot | None) -> None:
        self.asked.append(shot)
        if shot is not None:
            self.seen.set(Rendered(shot, modes.Shown(np.zeros((4, 6, 3), np.uint8), f"legend of {shot.mode}")))


def test_a_still_camera_gets_a_fine_image_and_the_browsers_scene_comes_back():
    hung: list[np.ndarray | None] = []
    renders = Draughtsman()
    view = RenderedView(renders, hung.append)
    view.moved(viser_camera())
    assert renders.asked == []  # nobody wants renders yet
    view.show("depth")
    until(lambda: [s.seconds for s in renders.asked if s] == [QUICK, FINE, FINE])
    until(lambda: view.legend == "legend of depth")
    view.moved(viser_camera(azimuth=90.0))
    until(lambda: len(renders.asked) == 6)
    time.sleep(0.6)
    assert [s.seconds for s in renders.asked if s] == 2 * [QUICK, FINE, FINE]  # no more until it moves again
    view.show(None)
    assert renders.asked[-1] is None
    assert hung[-1] is None
    assert view.legend == ""
    view.close()


def test_a_view_hides_the_gaussians_while_it_shows_renders():
    latest, shown = Latest(), frame(1)
    assert shown.scene is not None
    view = SplatView(latest, renders=Draughtsman())
    rendered = view._rendered
    assert rendered is not None

    def splats_are(visible: bool) -> bool:
        return view._splats is not None and view._splats.visible == visible

    try:
        latest.set(shown)
        until(lambda: splats_are(True))
        rendered.moved(viser_camera())
        view.show_as("normals")
        until(lambda: splats_are(False))
        assert view.mode == "normals"
        latest.set(frame(2))
        view.replay(((1, shown.scene),))  # films are made of Gaussians
        until(lambda: view.replayed == 1 and splats_are(True))
        until(lambda: view.replayed is None and splats_are(False))
        view.show_as(SPLATS)
        assert splats_are(True)
        assert view.mode == SPLATS
        with pytest.raises(ValueError, match="there are splats, color"):
            view.show_as("x-ray")
    finally:
        view.close()
        assert view.join(5)
