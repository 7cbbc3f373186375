"""A viser server per seat that shows the session's latest splats, or the images of a scene without any.

World and angles as in `sdlab.types`: +z up, the object's front towards +x, about one unit in radius. Images hang in
the plane x = 0 and face the front.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import viser

from sdlab.channel import Latest
from sdlab.console import say
from sdlab.errors import reason
from sdlab.live.manager import Seat
from sdlab.modes import MODES
from sdlab.pictures import grid
from sdlab.types import Cameras, Frame, SplatSnapshot
from sdlab.viewport.private import muted, start_server
from sdlab.viewport.rendered import RenderedView, Renders, cameras_of

SPLATS = "splats"  # the mode in which the browser draws
UPDATE_EVERY = 0.1  # seconds; a browser on a small machine draws splats no more often
WAIT = 0.5  # seconds between checks for a closed view
EYE = (3.6, 0.9, 1.1)  # in front of the object, slightly from its left and above
EYE_OF_PICTURES = (3.6, 0.0, 0.0)
FOVY = math.radians(40.0)
PICTURE = 2.4  # height of an image in world units
TOWARDS_X = (0.5, -0.5, -0.5, 0.5)  # wxyz: turns viser's images, whose rows run along +y, so that the rows run down
SHARP = 512  # pixels; smaller images are enlarged to about this size, so that the browser does not blur them
FLOOR = -1.15  # height of the floor, below the box that bounds the Gaussians
FLOOR_RADIUS = 2.2
FLOOR_CELL = 0.4
ECHO = 0.4  # seconds for which a browser still reports camera moves that the server made
FILM_SECONDS, FILM_SHOT = 8.0, 0.2  # of a film; upper limit for one shot
FILM_END = 1.2  # seconds of the last shot
FLOOR_COLOUR = {False: (226, 226, 230), True: (44, 44, 50)}  # by theme: dark or not
EMPTY_COLOUR = {False: (1.0, 1.0, 1.0), True: (0.08, 0.08, 0.08)}  # of renders where there is nothing, by theme
JPEG_QUALITY = 92


Film = tuple[tuple[int, SplatSnapshot | np.ndarray], ...]  # (step, Gaussians or the images of a flat scene)


def floor_lines() -> np.ndarray:
    """Return a round grid below the object as line segments [N, 2, 3]."""
    at = np.arange(-FLOOR_RADIUS + FLOOR_CELL / 2, FLOOR_RADIUS, FLOOR_CELL)
    half = np.sqrt(FLOOR_RADIUS**2 - at**2)
    z = np.full_like(at, FLOOR)
    along_x = np.stack([np.stack([-half, at, z], -1), np.stack([half, at, z], -1)], 1)
    along_y = along_x[..., [1, 0, 2]]
    return np.concatenate([along_x, along_y]).astype(np.float32)


class SplatView:
    """Shows the frames in `latest` until `close`. Its only thread reads frames, which are copies.

    If showing a frame fails, the view restarts once with a new server, to which browsers connect again; after a second
    failure it ends, and `trouble` says why.
    """

    trouble = ""  # for the user
    obstacle = ""  # why a browser's last attempt to connect failed

    def __init__(self, latest: Latest[Frame], dark: bool = False, renders: Renders | None = None) -> None:
        """With `renders`, `show_as` may show what the session's rasteriser draws."""
        self._latest = latest
        self._rendered = RenderedView(renders, self._put_behind) if renders is not None else None
        self._behind = False  # whether an image hangs behind the scene
        self._laying = threading.Lock()  # the floor is laid by several threads, and viser's objects belong to one
        self._closed = threading.Event()
        self._dark = dark
        self._peers: tuple[SplatView, ...] = ()  # views whose cameras follow this one
        self._told = -math.inf  # time when the server last moved this view's cameras
        self._film: Film = ()
        self._film_at: int | None = None  # step of the film's shot that is shown
        self._film_changed = False
        self._serve()
        self._thread = threading.Thread(target=self._follow, name="sdlab-view", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """The address of viser's WebSocket, which holds a secret: for `sdlab.viewport.proxy` only."""
        return self._server.address

    def _serve(self) -> None:
        """Start a server with an empty scene."""
        self._splats: viser.GaussianSplatHandle | None = None
        self._picture: viser.ImageHandle | None = None
        self._server = start_server()
        self._set_up_scene(self._dark)
        self._server.on_client_connect(self._watch)

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
        if self._rendered is not None:
            self._rendered.dress(EMPTY_COLOUR[dark])
        self._server.gui.configure_theme(dark_mode=dark, show_logo=False, show_share_button=False)
        self._lay_floor()

    def _lay_floor(self) -> None:
        """Draw the floor below an object; images have none."""
        # lines, because viser draws its own grid over Gaussians that are in front of it
        with self._laying:
            self._server.scene.add_line_segments(
                "/floor",
                floor_lines(),
                FLOOR_COLOUR[self._dark],
                thickness=1.0,
                thickness_units="screen",
                visible=self._picture is None and not self._behind,
            )

    def look_from_front(self) -> None:
        """Move the camera of every browser back to its initial position."""
        for client in self._server.get_clients().values():
            with client.atomic():
                client.camera.position = EYE if self._picture is None else EYE_OF_PICTURES
                client.camera.look_at = (0.0, 0.0, 0.0)
                client.camera.up_direction = (0.0, 0.0, 1.0)

    # ---- renders -----------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """What the view shows: SPLATS, or one of `sdlab.modes.MODES`."""
        return (self._rendered and self._rendered.mode) or SPLATS

    @property
    def legend(self) -> str:
        """What the colours of a mode mean, or why it shows nothing; "" for Gaussians."""
        return self._rendered.legend if self._rendered is not None else ""

    def show_as(self, mode: str) -> None:
        """Show Gaussians drawn by the browser (SPLATS), or renders in one of `sdlab.modes.MODES`. ValueError for
        another word."""
        if mode != SPLATS and mode not in MODES:
            raise ValueError(f"view {mode!r}; there are {', '.join((SPLATS, *MODES))}")
        if self._rendered is not None and not self._closed.is_set():
            self._rendered.show(None if mode == SPLATS else mode)

    def _put_behind(self, picture: np.ndarray | None) -> None:
        """Hang an image behind the scene and hide the Gaussians, or the reverse (None)."""
        shown = picture is not None and self._film_at is None
        self._server.scene.set_background_image(picture if shown else None, "jpeg", jpeg_quality=JPEG_QUALITY)
        if shown == self._behind:
            return
        self._behind = shown
        if self._splats is not None:
            self._splats.visible = not shown
        self._lay_floor()

    # ---- cameras that move together ----------------------------------------------------------------------

    def link(self, peers: Iterable[SplatView]) -> None:
        """Let the cameras of `peers` follow this view from now on; each peer is linked in the same way."""
        self._peers = tuple(peer for peer in peers if peer is not self)

    def begin_like(self, other: SplatView) -> None:
        """Start with the present camera of another view, and show what it shows."""
        self.show_as(other.mode)
        for client in other._server.get_clients().values():
            camera = client.camera
            with contextlib.suppress(AssertionError):  # a browser that has not reported its camera yet
                self._server.initial_camera.position = tuple(camera.position)
                self._server.initial_camera.look_at = tuple(camera.look_at)

    def cameras(self) -> Cameras | None:
        """Return the present camera of a browser that shows this view, in its size in pixels; None if there is none
        yet."""
        found = (cameras_of(client.camera) for client in self._server.get_clients().values())
        return next((cams for cams in found if cams is not None), None)

    def _watch(self, client: viser.ClientHandle) -> None:
        client.camera.on_update(self._moved)

    def _moved(self, camera: Any) -> None:
        """Pass a camera move (viser's handle) on to the peers, unless it echoes a move that the server made."""
        if self._rendered is not None:
            self._rendered.moved(camera)
        if time.monotonic() - self._told > ECHO:
            for peer in self._peers:
                peer._move_to(camera)

    def _move_to(self, camera: Any) -> None:
        if self._closed.is_set():
            return
        self._told = time.monotonic()
        for client in self._server.get_clients().values():
            with client.atomic():
                client.camera.position = camera.position
                client.camera.look_at = camera.look_at
                client.camera.up_direction = camera.up_direction

    # ---- replay -------------------------------------------------------------------------------------

    @property
    def replayed(self) -> int | None:
        """The step of the film that is shown, None outside a replay."""
        return self._film_at

    def replay(self, film: Film) -> None:
        """Play a film of (step, scene or images) in place of the present, which returns a moment after the end of the
        film. An empty film ends a replay."""
        self._film_changed, self._film = True, film

    def _play(self) -> None:
        """Play the film until its end, until the view closes or until another film comes."""
        self._film_changed = False
        film = self._film
        self._film_at = film[0][0] if film else None
        self._put_behind(None)  # films are made of Gaussians
        pause = min(FILM_SECONDS / max(len(film), 1), FILM_SHOT)
        for i, (step, shot) in enumerate(film):
            self._film_at = step
            if isinstance(shot, np.ndarray):
                self._hang(_enlarged(grid(shot)))
            else:
                self._lay(shot)
            end = time.monotonic() + (FILM_END if i == len(film) - 1 else pause)
            while not self._film_changed and time.monotonic() < end and not self._closed.wait(UPDATE_EVERY):
                pass
            if self._film_changed or self._closed.is_set():
                break
        self._film_at = None
        self.show_as(self.mode)

    def close(self) -> None:
        """Close the view without waiting; its thread stops the server, and so disconnects browsers, within `WAIT` s."""
        self._closed.set()
        if self._rendered is not None:
            self._rendered.close()

    def join(self, timeout: float) -> bool:
        """Wait until a closed view has ended; return False after `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        """Show frames until the view is closed; after a failure, begin again once."""
        try:
            self._show_frames()
        except (Exception, SystemExit) as e:
            say(f"a 3D view failed and was restarted ({reason(e)})")
            self._stop()
            self._show_again()
        finally:
            self._stop()

    def _show_again(self) -> None:
        """Show frames on a new server; a second failure ends the view."""
        self._film_changed, self._film_at = False, None  # what failed may have been a shot of the film
        try:
            self._serve()
            self._show_frames()
        except (Exception, SystemExit) as e:
            self._closed.set()
            self.trouble = f"The 3D view has stopped ({reason(e)}). The run goes on; branch it to get a new view."
            say(f"a 3D view failed again and has stopped ({reason(e)})")

    def _stop(self) -> None:
        with muted():
            self._server.stop()

    def _show_frames(self) -> None:
        version = 0
        while not self._closed.is_set():
            if self._film_changed:
                self._play()
                version = -1  # show the present again even if it has not changed
            if not self._latest.wait(version, WAIT if version >= 0 else 0.0):
                continue
            version = self._latest.version  # read before the frame: a frame in between is shown next time
            frame = self._latest.get()
            if frame is not None:
                self.show(frame)
            self._closed.wait(UPDATE_EVERY)

    def show(self, frame: Frame) -> None:
        """Send a frame to the browsers; called by the view's own thread."""
        scene = frame.scene
        if scene is None:
            if self._splats is not None:
                self._splats.remove()
                self._splats = None
            self._hang(_enlarged(grid(frame.preview)))
        else:
            self._lay(scene)

    def _lay(self, scene: SplatSnapshot) -> None:
        """Show Gaussians."""
        if self._picture is not None:
            self._picture.remove()
            self._picture = None
            self._lay_floor()
        if self._splats is None:
            self._splats = self._server.scene.add_gaussian_splats(
                "/splats",
                scene.means,
                scene.covariances,
                scene.rgbs,
                scene.opacities,
                visible=not self._behind,
            )
        else:
            self._splats.set_gaussians(scene.means, scene.covariances, scene.rgbs, scene.opacities)

    def _hang(self, picture: np.ndarray) -> None:
        """Show an image, uint8 [H, W, 3], in place of the object."""
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
    """The open views by token, which is the id of the seat."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[str, SplatView] = {}

    def open(self, seat: Seat, dark: bool = False) -> SplatView:
        """Open a view of the seat's session; it closes with the seat."""
        view = SplatView(seat.session.latest, dark, seat.session.rendering)
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
