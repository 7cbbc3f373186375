"""A viser server per seat that shows the session's latest splats, or its pictures where there is nothing else.

World and angles as in `sdlab.types`: +z up, the object's front towards +x, about one unit in radius. Pictures hang in
the plane x = 0, to be looked at from the front.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

import numpy as np
import rich
import viser

from sdlab.channel import Latest
from sdlab.manager import Seat
from sdlab.pictures import grid
from sdlab.types import Frame

UPDATE_EVERY = 0.1  # seconds; a browser draws no more splats than that on a small machine
WAIT = 0.5  # seconds between looks at whether the view was closed
EYE = (3.6, 0.9, 1.1)  # in front of the object, slightly from its left and above
EYE_OF_PICTURES = (3.6, 0.0, 0.0)
FOVY = math.radians(40.0)
PICTURE = 2.4  # height of what hangs there, in world units
TOWARDS_X = (0.5, -0.5, -0.5, 0.5)  # wxyz: turns viser's pictures, whose rows run along +y, so that they run down
SHARP = 512  # pixels; smaller pictures are enlarged to about that, so that the browser does not smear them
FLOOR = -1.15  # height of the floor: below the box in which Gaussians are kept
FLOOR_RADIUS = 2.2
FLOOR_CELL = 0.4
FLOOR_COLOUR = {False: (226, 226, 230), True: (44, 44, 50)}  # by whether the page is dark


class LocalServer(viser.ViserServer):
    """A viser server that never opens a public tunnel: by default any client may ask for one."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        return None


_muting = threading.Lock()


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """viser prints when a server starts or stops, even when told not to; one line per visitor is too much."""
    console = rich.get_console()
    with _muting:
        quiet, console.quiet = console.quiet, True
        try:
            yield
        finally:
            console.quiet = quiet


def _start_server() -> LocalServer:
    """A server on a free port of the loop-back interface."""
    with _muted():
        return LocalServer(host="127.0.0.1", port=0, verbose=False)


def floor_lines() -> np.ndarray:
    """A round net below the object: segments [N, 2, 3]."""
    at = np.arange(-FLOOR_RADIUS + FLOOR_CELL / 2, FLOOR_RADIUS, FLOOR_CELL)
    half = np.sqrt(FLOOR_RADIUS**2 - at**2)
    z = np.full_like(at, FLOOR)
    along_x = np.stack([np.stack([-half, at, z], -1), np.stack([half, at, z], -1)], 1)
    along_y = along_x[..., [1, 0, 2]]
    return np.concatenate([along_x, along_y]).astype(np.float32)


class SplatView:
    """Shows what `latest` holds until `close`; its one thread only reads frames, which are copies."""

    def __init__(self, latest: Latest[Frame], dark: bool = False) -> None:
        self._latest = latest
        self._closed = threading.Event()
        self.shown_step: int | None = None  # of the frame last sent to the browser
        self._server = _start_server()
        self.port: int = self._server.get_port()
        self._splats: viser.GaussianSplatHandle | None = None
        self._picture: viser.ImageHandle | None = None
        self._dark = dark
        self._set_up_scene(dark)
        self._thread = threading.Thread(target=self._follow, name="sdlab-view", daemon=True)
        self._thread.start()

    def _set_up_scene(self, dark: bool) -> None:
        scene = self._server.scene
        scene.set_up_direction("+z")
        self._server.initial_camera.position = EYE
        self._server.initial_camera.look_at = (0.0, 0.0, 0.0)
        self._server.initial_camera.fov = FOVY
        self.set_dark(dark)

    def set_dark(self, dark: bool) -> None:
        """Follow the page's theme."""
        if self._closed.is_set():
            return
        self._dark = dark
        self._server.gui.configure_theme(dark_mode=dark, show_logo=False, show_share_button=False)
        self._lay_floor()

    def _lay_floor(self) -> None:
        """Below an object; pictures need none."""
        # lines, because viser draws its own grid over Gaussians that are in front of it
        self._server.scene.add_line_segments(
            "/floor",
            floor_lines(),
            FLOOR_COLOUR[self._dark],
            thickness=1.0,
            thickness_units="screen",
            visible=self._picture is None,
        )

    def look_from_front(self) -> None:
        """Take every browser's camera back to where it began."""
        for client in self._server.get_clients().values():
            with client.atomic():
                client.camera.position = EYE if self._picture is None else EYE_OF_PICTURES
                client.camera.look_at = (0.0, 0.0, 0.0)
                client.camera.up_direction = (0.0, 0.0, 1.0)

    def close(self) -> None:
        """Returns at once; the thread stops the server within `WAIT` seconds, which disconnects the browsers."""
        self._closed.set()

    def join(self, timeout: float) -> bool:
        """Wait for the end of a closed view; False when `timeout` seconds pass first."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        version = 0
        try:
            while not self._closed.is_set():
                if not self._latest.wait(version, WAIT):
                    continue
                version = self._latest.version  # read before the frame: one that comes in between is shown next time
                frame = self._latest.get()
                if frame is not None:
                    self._show(frame)
                    self.shown_step = frame.step
                self._closed.wait(UPDATE_EVERY)
        finally:
            with _muted():
                self._server.stop()

    def _show(self, frame: Frame) -> None:
        scene = frame.scene
        if scene is None:
            if self._splats is not None:
                self._splats.remove()
                self._splats = None
            self._hang(_enlarged(grid(frame.preview)))
            return
        if self._picture is not None:
            self._picture.remove()
            self._picture = None
            self._lay_floor()
        if self._splats is None:
            self._splats = self._server.scene.add_gaussian_splats(
                "/splats", scene.means, scene.covariances, scene.rgbs, scene.opacities
            )
        else:
            self._splats.set_gaussians(scene.means, scene.covariances, scene.rgbs, scene.opacities)

    def _hang(self, picture: np.ndarray) -> None:
        """Show a picture, uint8 [H, W, 3], where the object would stand."""
        height, width, _ = picture.shape
        size = {"render_width": PICTURE * width / height, "render_height": PICTURE}
        if self._picture is not None:
            self._picture.image = picture
            return
        self._picture = self._server.scene.add_image("/picture", picture, **size, format="png", wxyz=TOWARDS_X)
        self._server.initial_camera.position = EYE_OF_PICTURES
        self._lay_floor()
        self.look_from_front()


def _enlarged(picture: np.ndarray) -> np.ndarray:
    times = max(1, SHARP // max(picture.shape[:2]))
    return picture.repeat(times, 0).repeat(times, 1)


class Viewports:
    """The open views by token; a seat's id is the token of its view."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[str, SplatView] = {}

    def open(self, seat: Seat, dark: bool = False) -> SplatView:
        """A view of the seat's session; it closes with the seat."""
        view = SplatView(seat.session.latest, dark)
        with self._lock:
            self._views[seat.id] = view
        seat.on_close.append(lambda: self._forget(seat.id))
        return view

    def get(self, token: str) -> SplatView | None:
        with self._lock:
            return self._views.get(token)

    def close_all(self) -> None:
        for token in list(self._views):
            self._forget(token)

    def _forget(self, token: str) -> None:
        with self._lock:
            view = self._views.pop(token, None)
        if view is not None:
            view.close()
