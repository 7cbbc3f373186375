"""The replay of a run as one HTML file that needs no server and no network: viser's client with a recording in it.

It shows the same as the page's own view, from the same initial camera, and plays in a loop; the camera can be moved.
"""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np

from sdlab.export.writers import Film, Tally, finite, unwatched
from sdlab.types import SplatSnapshot
from sdlab.viewport.client import CHANGES, NOTICE
from sdlab.viewport.splat_view import EYE, FLOOR, FLOOR_COLOUR, FLOOR_RADIUS, FOVY, floor_lines, muted, start_server

MAX_BYTES = 12_000_000  # of the file, approximately
CLIENT_BYTES = 900_000  # of viser's client, which the file contains
BYTES_PER_SPLAT = 32 * 4 / 3  # in base64, without compression
MIN_FRAMES = 12  # frames that are kept before Gaussians are dropped
MAX_FRAMES = 60
SECONDS = 8.0  # duration of a replay, whatever its number of frames
REST = 2.0  # seconds of the last frame

# A worker that viser creates from a blob sorts the splats. In a page opened from a file, whose origin is "null",
# Chromium refuses a blob as a module, and splats would be drawn in arbitrary order; a data URL is accepted.
SORTING = """<script>
if (location.protocol === "file:") {
  const PlainBlob = Blob, address = URL.createObjectURL, scripts = new WeakMap();
  window.Blob = function (parts, options) {
    const blob = new PlainBlob(parts, options);
    if (/javascript/.test(blob.type) && parts.every((part) => typeof part === "string"))
      scripts.set(blob, parts.join(""));
    return blob;
  };
  window.Blob.prototype = PlainBlob.prototype;
  URL.createObjectURL = (blob) => scripts.has(blob)
    ? "data:text/javascript;charset=utf-8," + encodeURIComponent(scripts.get(blob))
    : address.call(URL, blob);
}
</script>"""


def write_recording(path: Path, film: Film, title: str, dark: bool = False, progress: Tally = unwatched) -> int:
    """Write an HTML file of about `MAX_BYTES` at most that plays `film`; return the number of its frames.

    To fit, frames are dropped evenly, then the smallest and most transparent Gaussians. `title` is shown as plain text.
    Raises ValueError for a film without Gaussians, OSError when the file cannot be written.
    """
    frames, most = thinned([(step, finite(snapshot)) for step, snapshot in film])
    if not frames:
        raise ValueError("there is nothing to replay: no step of this run has been recorded yet")
    server = start_server()
    try:
        scene = server.scene
        scene.set_up_direction("+z")
        server.initial_camera.position = EYE
        server.initial_camera.look_at = (0.0, 0.0, 0.0)
        server.initial_camera.fov = FOVY
        scene.add_line_segments("/floor", floor_lines(), FLOOR_COLOUR[dark], thickness=1.0, thickness_units="screen")
        shown = [_heaviest(snapshot, most) for _, snapshot in frames]
        count = max(len(snapshot.means) for snapshot in shown)
        splats = scene.add_gaussian_splats("/splats", *_filled(shown[0], count))
        label = scene.add_label("/step", _caption(frames[0][0]), position=(0.0, -0.6 * FLOOR_RADIUS, FLOOR))
        recording = server.get_scene_serializer()
        for done, snapshot in enumerate(shown):
            progress(done, len(frames) + 1)
            splats.set_gaussians(*_filled(snapshot, count))
            label.text = _caption(frames[done][0])
            recording.insert_sleep(REST if done == len(frames) - 1 else SECONDS / len(frames))
        document = recording.as_html(dark_mode=dark)
    finally:
        with muted():
            server.stop()
    progress(len(frames), len(frames) + 1)
    head = f"<head><title>{html.escape(title)}</title>{NOTICE}{CHANGES}{SORTING}"
    path.write_text(document.replace("<head>", head, 1), encoding="utf-8")
    progress(len(frames) + 1, len(frames) + 1)
    return len(frames)


def thinned(film: list[tuple[int, SplatSnapshot]]) -> tuple[list[tuple[int, SplatSnapshot]], int]:
    """Return the frames of a film that fit into `MAX_BYTES`, including the first and the last, and the limit of
    Gaussians per frame."""
    film = [frame for frame in film if len(frame[1].means) > 0]
    if not film:
        return [], 0
    room = int((MAX_BYTES - CLIENT_BYTES) / BYTES_PER_SPLAT)
    largest = max(len(snapshot.means) for _, snapshot in film)
    frames = min(len(film), MAX_FRAMES, max(MIN_FRAMES, room // largest))
    chosen = np.unique(np.linspace(0, len(film) - 1, frames).round().astype(int))
    return [film[i] for i in chosen], room // len(chosen)


def _heaviest(s: SplatSnapshot, most: int) -> SplatSnapshot:
    """Return the `most` largest and most opaque Gaussians, in their order."""
    if len(s.means) <= most:
        return s
    weights = s.opacities[:, 0] * np.sqrt(np.maximum(np.linalg.det(s.covariances), 0))
    some = np.sort(np.argpartition(-weights, most)[:most])
    return SplatSnapshot(*(column[some] for column in s))


def _filled(s: SplatSnapshot, count: int) -> SplatSnapshot:
    """Pad with invisible Gaussians to `count`: when their number changes, viser's client draws only one of them until
    it has sorted them again. They take almost no space when compressed."""
    more = count - len(s.means)
    padding = SplatSnapshot(
        np.zeros((more, 3), np.float32),
        np.tile(1e-6 * np.eye(3, dtype=np.float32), (more, 1, 1)),
        np.zeros((more, 3), np.float32),
        np.zeros((more, 1), np.float32),
    )
    return SplatSnapshot(*(np.concatenate(parts) for parts in zip(s, padding, strict=True)))


def _caption(step: int) -> str:
    return f"step {step:,}"
