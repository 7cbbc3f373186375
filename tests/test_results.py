"""What can be taken home of a run: that other programs read it, and that making it disturbs nobody."""

import dataclasses
import io
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import trimesh
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from waiting import LONG, until

from sdlab.cameras import CameraSettings
from sdlab.export.mesh import write_glb
from sdlab.export.writers import Material, material_of, slug, write_ply, write_splat, write_turntable
from sdlab.live.session import Session
from sdlab.meshes.colours import SH_C0
from sdlab.settings import from_toml, preset
from sdlab.starts.clouds import read_cloud
from sdlab.types import RawSplats, SplatSnapshot
from sdlab.ui import recording, results
from sdlab.ui.guard import Guard
from sdlab.ui.recording import thinned, write_recording
from sdlab.ui.results import FORMATS, OF_SPLATS, Cancelled, Result, Shelf, Shelves, routes
from sdlab.ui.turns import Turns

RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.9)


def blob(centre: tuple[float, float, float], rgb: tuple[float, float, float], n: int = 300) -> RawSplats:
    """A dense ball of radius 0.25."""
    rng = np.random.default_rng(int(100 * centre[0]) % 97)
    direction = rng.normal(size=(n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    means = centre + 0.25 * direction * rng.random((n, 1)) ** (1 / 3)
    quats = rng.normal(size=(n, 4))
    return RawSplats(
        means.astype(np.float32),
        (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        np.log(rng.uniform(0.03, 0.06, (n, 3))).astype(np.float32),
        rng.normal(1.0, 0.5, n).astype(np.float32),
        np.tile(np.float32(rgb), (n, 1)),
    )


def joined(*parts: RawSplats) -> RawSplats:
    return RawSplats(*(np.concatenate(columns) for columns in zip(*(part[:5] for part in parts), strict=True)))


FIGURE = joined(blob((0.6, 0, -0.3), RED), blob((-0.6, 0, -0.3), BLUE), blob((0, 0, 0.5), GREEN))


def snapshot(n: int, rgb: tuple[float, float, float] = RED, seed: int = 0) -> SplatSnapshot:
    rng = np.random.default_rng(seed)
    return SplatSnapshot(
        (0.3 * rng.normal(size=(n, 3))).astype(np.float32),
        np.tile(0.1**2 * np.eye(3, dtype=np.float32), (n, 1, 1)),
        np.tile(np.float32(rgb), (n, 1)),
        np.full((n, 1), 0.9, np.float32),
    )


def material(**changes) -> Material:
    film = tuple((10 * i, snapshot(50 + i)) for i in range(4))
    return dataclasses.replace(Material(preset("mixture"), 30, FIGURE, film), **changes)


# ---- names -----------------------------------------------------------------------------------------------


def test_a_slug_is_a_harmless_part_of_a_name():
    assert slug("A Tüpfelhyäne, on a BEACH!") == "a-tupfelhyane-on-a-beach"
    assert slug("../../etc/passwd\0\n") == "etc-passwd"
    assert slug("熊") == slug("") == "untitled"
    long = slug("red panda " * 50)
    assert len(long) <= 48
    assert not long.endswith("-")


def test_files_are_named_after_prompt_loss_seed_and_step():
    s = preset("mixture").patch_all([("prompt.text", "C:\\a bear"), ("active", "esd"), ("seed", 7)])
    assert material(settings=s, step=120).name == "c-a-bear-esd-seed7-step120"


# ---- files of Gaussians ----------------------------------------------------------------------------------


def of_the_converter(s: RawSplats) -> bytes:
    """What convert.py of github.com/antmatter15/splat makes of a PLY with these columns."""
    order = np.argsort(-np.exp(s.log_scales.sum(1)) / (1 + np.exp(-s.opacity_logits)))
    buffer = io.BytesIO()
    for i in order:
        f_dc = (s.rgbs[i] - 0.5) / SH_C0
        color = np.array([*(0.5 + SH_C0 * f_dc), 1 / (1 + np.exp(-s.opacity_logits[i]))])
        buffer.write(s.means[i].astype(np.float32).tobytes())
        buffer.write(np.exp(s.log_scales[i]).astype(np.float32).tobytes())
        buffer.write((color * 255).clip(0, 255).astype(np.uint8).tobytes())
        turn = s.quats[i] / np.linalg.norm(s.quats[i])
        buffer.write((turn * 128 + 128).clip(0, 255).astype(np.uint8).tobytes())
    return buffer.getvalue()


def test_splat_is_what_the_converter_of_its_viewer_makes(tmp_path):
    assert write_splat(tmp_path / "x.splat", FIGURE) == 900
    ours = np.frombuffer((tmp_path / "x.splat").read_bytes(), np.uint8).reshape(900, 32)
    theirs = np.frombuffer(of_the_converter(FIGURE), np.uint8).reshape(900, 32)
    assert np.array_equal(ours[:, :24], theirs[:, :24])
    assert np.abs(ours[:, 24:].astype(int) - theirs[:, 24:]).max() <= 1  # a number on the edge, rounded in float32
    assert (ours != theirs).mean() < 0.01
    size = ours[:, 12:24].copy().view(np.float32).prod(1)
    assert np.all(np.diff(size * (ours[:, 27] / 255 + 0.005)) < 1e-6)  # the heavy ones first


def test_ply_and_splat_leave_out_what_is_not_finite(tmp_path):
    broken = FIGURE._replace(means=FIGURE.means.copy(), opacity_logits=FIGURE.opacity_logits.copy())
    broken.means[3, 1], broken.opacity_logits[5] = np.inf, np.nan
    assert write_ply(tmp_path / "x.ply", broken) == write_splat(tmp_path / "x.splat", broken) == 898
    assert (tmp_path / "x.splat").stat().st_size == 898 * 32


def test_ply_keeps_every_number(tmp_path):
    write_ply(tmp_path / "x.ply", FIGURE)
    back = read_cloud(tmp_path / "x.ply", 10, np.random.default_rng(0), "file").found
    assert isinstance(back, RawSplats)
    for name in ("means", "quats", "log_scales", "opacity_logits"):
        assert np.array_equal(getattr(back, name), getattr(FIGURE, name))
    assert np.allclose(back.rgbs, FIGURE.rgbs, atol=1e-6)


@pytest.fixture(scope="module")
def splat_transform() -> list[str]:
    """PlayCanvas's reader of Gaussians, fetched by npm if need be."""
    npx = shutil.which("npx")
    if npx is None:
        pytest.skip("there is no npx (Node.js) on this machine")
    command = [npx, "--yes", "@playcanvas/splat-transform@2.7.1"]
    try:
        subprocess.run([*command, "--version"], check=True, capture_output=True, timeout=60)
    except (subprocess.SubprocessError, OSError) as e:
        pytest.skip(f"splat-transform cannot be had or run here: {e}")
    return command


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "write"), [(".ply", write_ply), (".splat", write_splat)])
def test_an_independent_reader_finds_the_same_gaussians(suffix, write, splat_transform, tmp_path):
    source, table = tmp_path / f"x{suffix}", tmp_path / "x.csv"
    count = write(source, FIGURE)
    subprocess.run([*splat_transform, str(source), str(table)], check=True, capture_output=True, timeout=60)
    found = np.genfromtxt(table, delimiter=",", names=True)
    assert len(found) == count
    places = np.stack([found[axis] for axis in "xyz"], 1)
    assert np.allclose(np.sort(places, 0), np.sort(FIGURE.means, 0), atol=1e-5)
    red = 0.5 + SH_C0 * found["f_dc_0"]
    assert np.corrcoef(red, places[:, 0])[0, 1] > 0.5, "red lies in front"


# ---- the mesh --------------------------------------------------------------------------------------------


def seen_from(mesh: trimesh.Trimesh, direction: tuple[float, float, float]) -> np.ndarray:
    """RGB of the vertices that lie farthest towards `direction`, on average."""
    along = mesh.vertices @ np.float64(direction)
    return mesh.visual.vertex_colors[along > along.max() - 0.05, :3].mean(0)


def test_the_mesh_stands_upright_in_trimesh_and_looks_to_the_front(tmp_path):
    written = write_glb(tmp_path / "x.glb", FIGURE)
    mesh = trimesh.load(tmp_path / "x.glb", force="mesh")
    assert len(mesh.faces) == written
    assert mesh.visual.kind == "vertex"
    assert mesh.is_watertight
    assert mesh.volume > 0  # faces look outwards
    linear = {
        name: ((np.float64(rgb) + 0.055) / 1.055) ** 2.4 * 255 for name, rgb in (("r", RED), ("b", BLUE), ("g", GREEN))
    }
    assert np.abs(seen_from(mesh, (0, 0, 1)) - linear["r"]).max() < 3  # +z is the front of glTF
    assert np.abs(seen_from(mesh, (0, 0, -1)) - linear["b"]).max() < 3
    assert np.abs(seen_from(mesh, (0, 1, 0)) - linear["g"]).max() < 3  # +y is up
    assert np.allclose(mesh.bounds, [[-0.3, -0.6, -0.9], [0.3, 0.8, 0.9]], atol=0.06)


def test_the_file_of_a_mesh_says_that_it_is_approximate(tmp_path):
    write_glb(tmp_path / "x.glb", FIGURE, cells=32)
    raw = (tmp_path / "x.glb").read_bytes()
    tree = json.loads(raw[20 : 20 + int.from_bytes(raw[12:16], "little")])
    assert tree["asset"]["extras"]["about"] == FORMATS["glb"].about
    assert "approximation" in FORMATS["glb"].about


def test_fog_has_no_mesh_and_says_so(tmp_path):
    fog = FIGURE._replace(opacity_logits=np.full(900, -7.0, np.float32))
    thin = blob((0, 0, 0), RED, 3)._replace(opacity_logits=np.full(3, -2.0, np.float32))
    nothing = FIGURE.rows(slice(0))
    for s in (fog, thin, nothing):
        with pytest.raises(ValueError, match="nothing opaque"):
            write_glb(tmp_path / "x.glb", s)
    assert not (tmp_path / "x.glb").exists()


def test_one_gaussian_is_a_ball_of_its_size(tmp_path):
    one = RawSplats(
        np.float32([[0.5, 0, 0]]),
        np.float32([[1, 0, 0, 0]]),
        np.log(np.float32([[0.1] * 3])),
        np.float32([5]),
        np.float32([RED]),
    )
    write_glb(tmp_path / "x.glb", one)
    mesh = trimesh.load(tmp_path / "x.glb", force="mesh")
    radius = 0.1 * np.sqrt(2 * np.log(2))  # where exp(-d^2 / 2) is a half
    assert np.allclose(mesh.bounds, [[-radius, -radius, 0.5 - radius], [radius, radius, 0.5 + radius]], atol=0.005)


# ---- the turntable ---------------------------------------------------------------------------------------


def test_the_turntable_has_the_stated_number_of_frames_and_begins_at_the_front(tmp_path):
    said = []
    n = write_turntable(
        tmp_path / "x.mp4", FIGURE, CameraSettings(), size=63, frames=20, progress=lambda *now: said.append(now)
    )
    frames = iio.imread(tmp_path / "x.mp4", plugin="FFMPEG")
    assert frames.shape == (20, 64, 64, 3)
    assert n == 20
    middle = frames[:, 36:44, 28:36].astype(float).mean((1, 2))
    assert middle[0, 0] > middle[0, 2] + 80, "red in front"
    assert middle[10, 2] > middle[10, 0] + 80, "blue behind"
    assert said == [(i, 20) for i in range(21)]


# ---- the recording ---------------------------------------------------------------------------------------


def test_a_film_is_thinned_to_what_there_is_room_for():
    few = [(i, snapshot(10)) for i in range(5)]
    assert [step for step, _ in thinned(few)[0]] == [0, 1, 2, 3, 4]
    many = [(i, snapshot(10)) for i in range(200)]
    steps = [step for step, _ in thinned(many)[0]]
    assert len(steps) == recording.MAX_FRAMES
    assert (steps[0], steps[-1]) == (0, 199)
    assert max(np.diff(steps)) <= 4
    large = [(i, snapshot(60_000)) for i in range(30)]
    frames, most = thinned(large)
    assert len(frames) == recording.MIN_FRAMES
    assert len(frames) * most * recording.BYTES_PER_SPLAT + recording.CLIENT_BYTES <= recording.MAX_BYTES
    assert thinned([(0, snapshot(0))]) == ([], 0)


def test_a_large_growth_stays_within_its_size(tmp_path):
    film = tuple((i, snapshot(60_000, seed=i)) for i in range(14))
    assert write_recording(tmp_path / "x.html", film, "large") == recording.MIN_FRAMES
    assert (tmp_path / "x.html").stat().st_size < recording.MAX_BYTES


def test_a_film_without_gaussians_cannot_be_played(tmp_path):
    with pytest.raises(ValueError, match="nothing to replay"):
        write_recording(tmp_path / "x.html", ((0, snapshot(0)),), "empty")


def test_the_prompt_is_text_in_the_recording(tmp_path):
    write_recording(tmp_path / "x.html", ((0, snapshot(5)),), "</title><script>alert(1)</script>")
    text = (tmp_path / "x.html").read_text()
    assert "<title>&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;</title>" in text


def ball(n: int, front: tuple[float, float, float], back: tuple[float, float, float]) -> SplatSnapshot:
    """A ball whose halves differ in colour; those behind come last."""
    rng = np.random.default_rng(1)
    direction = rng.normal(size=(n, 3))
    direction = direction[np.argsort(-direction[:, 0])]
    means = 0.7 * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    rgbs = np.where(means[:, :1] > 0, np.float32(front), np.float32(back))
    plain = snapshot(n)
    return plain._replace(means=means.astype(np.float32), rgbs=rgbs.astype(np.float32))


@pytest.mark.browser
def test_the_recording_plays_from_a_file_without_a_network(tmp_path, browser):
    film = ((0, ball(400, RED, GREEN)), (50, ball(900, BLUE, GREEN)))
    write_recording(tmp_path / "x.html", film, 'A "bear" & a <b>hat</b>')
    page = browser.new_context(viewport={"width": 480, "height": 400}, offline=True).new_page()
    errors, asked = [], []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    page.goto((tmp_path / "x.html").as_uri())
    page.wait_for_selector("canvas")
    assert page.title() == 'A "bear" & a <b>hat</b>'

    def middle() -> np.ndarray:
        shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), float)
        return shot[150:190, 220:260].mean((0, 1))

    def is_(rgb: tuple[float, float, float]) -> bool:
        return bool(np.abs(middle() / 255 - rgb).max() < 0.12)

    for wanted in (RED, BLUE, RED):  # grows, and begins again; green, which is behind, never covers the front
        until(
            lambda wanted=wanted: is_(wanted), say=lambda wanted=wanted: f"{wanted} is not seen, now {middle() / 255}"
        )
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []


# ---- what a session gives --------------------------------------------------------------------------------


def test_a_session_gives_material_that_later_steps_do_not_change(quick, tmp_path):
    session = Session(quick)
    session.run(until=3)
    given = material_of(session.state.scene, session.effective, 3, ((1, snapshot(4)), (9, snapshot(4))))
    before = [column.copy() for column in given.splats[:5]]
    session.run(until=6)
    assert all(np.array_equal(a, b) for a, b in zip(before, given.splats[:5], strict=True))
    assert not np.array_equal(given.splats.means, session.state.scene.splats().means)
    assert [step for step, _ in given.film] == [1, 3], "what came after a jump back is not part of it"
    assert len(given.film[-1][1].means) == len(given.splats.means)


def test_a_flat_scene_gives_its_pictures_and_settings(tmp_path):
    session = Session(preset("playground"))
    session.run(until=2)
    picture = np.full((2, 8, 8, 3), 200, np.uint8)
    given = material_of(session.state.scene, session.effective, 2, (), picture)
    shelf = Shelf()
    ids = {kind: shelf.start(kind, given) for kind in ("png", "toml", "ply", "html", "mp4")}
    assert shelf.join(LONG)
    assert {kind: told(shelf, ids[kind]).phase for kind in ids} == {
        "png": "done",
        "toml": "done",
        **dict.fromkeys(("ply", "html", "mp4"), "failed"),
    }
    assert "no Gaussians" in told(shelf, ids["ply"]).message
    assert np.asarray(Image.open(shelf.file(ids["png"])[0])).shape == (8, 18, 3)
    shelf.close()


# ---- the shelf -------------------------------------------------------------------------------------------


def told(shelf: Shelf, result_id: str) -> Result:
    return next(result for result in shelf.list() if result.id == result_id)


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()
    yield shelf
    shelf.close()
    assert shelf.join(LONG)


class Slow:
    """A format whose writer waits to be let on, one step of ten at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = threading.Semaphore(0)
        self.working = 0
        self.most = 0
        monkeypatch.setattr(results, "FORMATS", {**FORMATS, "slow": FORMATS["toml"]._replace(write=self.write)})

    def write(self, path: Path, m: Material, progress) -> None:
        path.write_text("half")
        for i in range(10):
            self.working += 1
            self.most = max(self.most, self.working)
            assert self.steps.acquire(timeout=LONG)
            self.working -= 1
            progress(i + 1, 10)


@pytest.mark.slow
def test_every_format_of_splats_is_made_in_order_and_named(shelf):
    given = material()
    ids = [shelf.start(kind, given) for kind in OF_SPLATS]
    assert shelf.join(LONG)
    listed = shelf.list()
    assert [r.id for r in listed] == ids[::-1], "newest first"
    assert {r.phase for r in listed} == {"done"}
    for r in listed:
        path, again = shelf.file(r.id)
        assert again == r
        assert r.name == given.name + FORMATS[r.kind].suffix
        assert path.stat().st_size == r.size > 0
        assert r.share == 1.0
    toml = shelf.file(ids[-1])[0].read_text()
    assert from_toml(toml) == given.settings


def test_progress_is_told_and_what_is_not_there_yet_is_not_given(shelf, monkeypatch):
    slow = Slow(monkeypatch)
    first, second = shelf.start("slow", material()), shelf.start("slow", material())
    until(lambda: told(shelf, first).phase == "working")
    assert told(shelf, first).seconds_left is None
    slow.steps.release(4)
    until(lambda: told(shelf, first).share == 0.4)
    assert told(shelf, first).seconds_left > 0
    assert told(shelf, second).phase == "waiting"
    assert shelf.file(first) is None
    slow.steps.release(16)
    assert shelf.join(LONG)
    assert {r.phase for r in shelf.list()} == {"done"}


def test_cancelling_in_the_middle_leaves_no_file_and_lets_the_next_one_be_made(shelf, monkeypatch):
    slow = Slow(monkeypatch)
    first, second, third = (shelf.start("slow", material()) for _ in range(3))
    slow.steps.release(3)
    until(lambda: told(shelf, first).share == 0.3)
    folder = Path(shelf._folder.name)
    assert len(list(folder.iterdir())) == 1
    assert shelf.cancel(first)
    assert shelf.cancel(third), "one that waits"
    slow.steps.release(11)
    assert shelf.join(LONG)
    assert [told(shelf, i).phase for i in (first, second, third)] == ["cancelled", "done", "cancelled"]
    assert [p.name for p in folder.iterdir()] == [shelf.file(second)[0].name]
    assert not shelf.cancel(second), "it is there"
    assert not shelf.cancel("unknown")


@pytest.mark.parametrize("kind", ["glb", "mp4", "html"])
def test_the_slow_writers_can_be_stopped_and_leave_nothing_running(kind, tmp_path):
    looks = 0
    threads = threading.active_count()

    def stop(done: int, total: int) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        FORMATS[kind].write(tmp_path / f"x{FORMATS[kind].suffix}", material(), stop)
    until(lambda: threading.active_count() <= threads, 10)


def test_a_writer_that_fails_says_why_and_the_next_one_is_made(shelf, monkeypatch):
    def full(path: Path, m: Material, progress) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    def broken(path: Path, m: Material, progress) -> None:
        raise ZeroDivisionError("a bug")

    toml = FORMATS["toml"]
    added = {"full": toml._replace(write=full), "broken": toml._replace(write=broken)}
    monkeypatch.setattr(results, "FORMATS", {**FORMATS, **added})
    ids = [shelf.start(kind, material()) for kind in ("full", "broken", "toml")]
    assert shelf.join(LONG)
    told_of = [told(shelf, i) for i in ids]
    assert [r.phase for r in told_of] == ["failed", "failed", "done"]
    assert "No space left on device" in told_of[0].message
    assert "a bug" in told_of[1].message
    assert len(list(Path(shelf._folder.name).iterdir())) == 1
    assert shelf.file(ids[0]) is None


def test_the_oldest_files_go_when_they_are_too_many_or_too_large(shelf, monkeypatch):
    monkeypatch.setattr(results, "MOST", 3)
    ids = []
    for _ in range(5):
        ids.append(shelf.start("toml", material()))
        assert shelf.join(LONG)
    assert [r.id for r in shelf.list()] == ids[:1:-1]
    assert len(list(Path(shelf._folder.name).iterdir())) == 3
    assert shelf.file(ids[0]) is None
    monkeypatch.setattr(results, "MOST_BYTES", 10)
    last = shelf.start("toml", material())
    assert shelf.join(LONG)
    assert [r.id for r in shelf.list()] == [last], "the newest stays"


def test_too_many_waiting_and_unknown_formats_are_refused(shelf, monkeypatch):
    slow = Slow(monkeypatch)
    shelf.start("slow", material())
    until(lambda: shelf.list()[0].phase == "working")
    for _ in range(results.MOST_WAITING):
        shelf.start("toml", material())
    with pytest.raises(RuntimeError, match="waiting"):
        shelf.start("toml", material())
    with pytest.raises(ValueError, match="the formats are toml"):
        shelf.start("exe", material())
    slow.steps.release(10)


def test_closing_removes_the_files_also_those_in_the_making(monkeypatch):
    slow = Slow(monkeypatch)
    shelf = Shelf()
    done = shelf.start("toml", material())
    until(lambda: shelf.file(done) is not None)
    folder = Path(shelf._folder.name)
    assert folder.stat().st_mode & 0o077 == 0, "nobody else may look"
    shelf.start("slow", material())
    slow.steps.release(2)
    until(lambda: shelf.list()[0].share == 0.2)
    shelf.close()
    slow.steps.release(1)
    assert shelf.join(LONG)
    assert not folder.exists()
    assert shelf.list() == []
    with pytest.raises(RuntimeError, match="ended"):
        shelf.start("toml", material())


def test_shelves_of_a_server_work_one_at_a_time(monkeypatch):
    slow = Slow(monkeypatch)
    shelves = Shelves()
    mine, other = shelves.open("mine"), shelves.open("other")
    assert shelves.open("mine") is mine, "the same after a refresh"
    mine.start("slow", material())
    until(lambda: slow.working == 1)
    waits = other.start("slow", material())
    time.sleep(0.3)
    assert told(other, waits).phase == "waiting"
    slow.steps.release(20)
    assert mine.join(LONG)
    assert other.join(LONG)
    assert told(other, waits).phase == "done"
    assert slow.most == 1
    folders = [Path(shelf._folder.name) for shelf in (mine, other)]
    shelves.close_all()
    assert not any(folder.exists() for folder in folders)
    assert shelves.get("mine") is None


def test_a_file_does_not_wait_for_another_visitors_files(monkeypatch):
    slow = Slow(monkeypatch)
    shelves = Shelves()
    hog, other, third = (shelves.open(name) for name in ("hog", "other", "third"))
    many = [hog.start("slow", material()) for _ in range(8)]
    slow.steps.release(3)
    until(lambda: told(hog, many[0]).share == 0.3 and slow.working == 1)
    quick = [shelf.start(kind, material()) for shelf, kind in ((other, "toml"), (third, "ply"))]
    slow.steps.release(1)
    assert other.join(LONG)
    assert third.join(LONG)
    assert [told(shelf, i).phase for shelf, i in zip((other, third), quick, strict=True)] == ["done", "done"]
    assert (told(hog, many[0]).phase, told(hog, many[0]).share) == ("working", 0.4), "one step was all they waited for"
    assert told(hog, many[1]).phase == "waiting"
    slow.steps.release(100)
    shelves.close_all()
    assert hog.join(LONG)


def test_turns_are_taken_in_order_and_given_up():
    turns = Turns()
    taken: list[str] = []

    def take(name: str) -> None:
        assert turns.take()
        taken.append(name)
        turns.let_others()
        taken.append(name)
        turns.pass_on()

    assert turns.take()
    turns.let_others()  # nobody waits
    threads = [threading.Thread(target=take, args=(name,)) for name in "abc"]
    for waiting, thread in enumerate(threads, 2):
        thread.start()
        until(lambda waiting=waiting: len(turns._line) == waiting)
    assert not turns.take(lambda: False), "not wanted any more"
    turns.pass_on()
    for thread in threads:
        thread.join(LONG)
    assert taken == list("abcabc")
    assert turns.take()


@pytest.mark.slow
def test_a_run_steps_on_while_files_are_made(quick, shelf):
    session = Session(quick.patch("steps", 100_000))
    session.prepare()
    session.run(until=5)
    given = material_of(session.state.scene, session.effective, 5)
    ids = [shelf.start(kind, given) for kind in ("mp4", "glb", "html")]
    steps = 0
    while any(r.phase in ("waiting", "working") for r in shelf.list()):
        steps += 1
        session.run(until=5 + steps)
    assert steps > 10
    assert {told(shelf, i).phase for i in ids} <= {"done", "failed"}
    assert told(shelf, ids[0]).phase == "done"


# ---- downloads -------------------------------------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[tuple[Shelves, TestClient]]:
    shelves, app = Shelves(), FastAPI()
    app.add_middleware(Guard)
    app.include_router(routes(shelves))
    with TestClient(app, "http://127.0.0.1") as client:
        yield shelves, client
    shelves.close_all()


def finished(shelf: Shelf, kind: str) -> str:
    result_id = shelf.start(kind, material())
    until(lambda: shelf.file(result_id) is not None)
    return result_id


def test_a_result_is_sent_to_be_saved_under_its_name(served):
    shelves, client = served
    shelf = shelves.open("token")
    for kind in ("toml", "html", "splat"):
        result_id = finished(shelf, kind)
        answer = client.get(f"/results/token/{result_id}")
        path, result = shelf.file(result_id)
        assert answer.status_code == 200
        assert answer.content == path.read_bytes()
        assert answer.headers["content-disposition"] == f'attachment; filename="{result.name}"'
        assert answer.headers["content-type"].split(";")[0] == FORMATS[kind].media_type
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_seats_cannot_see_each_others_files(served):
    shelves, client = served
    mine, other = shelves.open("mine"), shelves.open("other")
    result_id = finished(mine, "toml")
    assert client.get(f"/results/mine/{result_id}").status_code == 200
    assert client.get(f"/results/other/{result_id}").status_code == 404
    assert client.get(f"/results/nobody/{result_id}").status_code == 404
    assert other.list() == []
    name = mine.file(result_id)[0].name
    for guess in (name, f"../{name}", f"..%2f{name}", "%2e%2e", "unfinished.toml"):
        assert client.get(f"/results/mine/{guess}").status_code == 404
    foreign = {"Origin": "https://example.org"}
    assert client.get(f"/results/mine/{result_id}", headers=foreign).status_code == 403
    shelves.close("mine")
    assert client.get(f"/results/mine/{result_id}").status_code == 404


def test_a_file_that_has_been_swept_away_is_not_there(served):
    shelves, client = served
    shelf = shelves.open("token")
    result_id = finished(shelf, "toml")
    shelf.file(result_id)[0].unlink()
    assert client.get(f"/results/token/{result_id}").status_code == 404
