"""The policy for visitors: what a public server locks, which settings and files it accepts, how long seats last.

Settings belong to the server's owner. On a server that only its owner can reach, nothing is locked.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sdlab import examples
from sdlab import settings as catalogue
from sdlab.examples import Example
from sdlab.knobs import Knob
from sdlab.live.clients import NO_LIMIT, Bucket, Client
from sdlab.live.state import Run
from sdlab.parsing import OWN, VISITOR, Limits
from sdlab.priors.gallery import GalleryPrior
from sdlab.scenes.splats import Splats
from sdlab.settings import Settings
from sdlab.ui.budgets import Budgets
from sdlab.ui.uploads import MOST_RUN, NAME, RUN, UPLOADS
from sdlab.ui.veil import Veil, name_of

# Each set of prior knobs is one more prior in the pool, and a path could name any folder or model; so could the paths
# of the scene. Galleries of visitors' own sizes or seeds would fill the memory and be drawn again for each of them.
NETWORK = ("path", "revision", "engine", "precision", "vae_precision", "low_memory", "threads")
GALLERY = (
    *("size", "images", "null_images", "candidates", "spread", "background", "background_std", "shift", "seed"),
    *("one_object", "front_share", "up", "turn"),
)
LOCKED = (*(f"prior.{name}" for name in (*NETWORK, *GALLERY)), "scene.picture", "scene.file", "scene.shap_e")
# locked knobs that the server's own settings, being of another kind, do not have: visitors trigger no download
DEFAULTS = {"scene.shap_e": ""}
PATHS = ("prior.path", "scene.file", "scene.picture")  # knobs that may hold a path

MAX_LANES, VISITOR_LANES = 4, 3  # per page
VISITOR_FILES = 3  # results of one page that are not finished
MESSAGES = 20.0, 80.0  # acts a second of one page, and at once; a slider that is dragged sends about 30
POLLS = 10.0, 40.0  # requests for news; a page sends 2
UPLOADED = 1_000_000.0, 60_000_000.0  # bytes a second of one page, and at once: 60 MB a minute
PATIENCE = 2.0  # seconds for which messages that come too fast are held up, before they are refused
MAX_UPLOAD = 20_000_000  # bytes of one uploaded file
MAX_SETTINGS = 20_000  # characters of a settings file
OWNER_IDLE, VISITOR_IDLE = 3600.0, 600.0  # seconds without a sign of life after which a seat ends
VISITOR_UNSEEN = 300.0  # seconds without anybody looking at the page or using it, after which its run pauses
ARRIVING = 60.0  # seconds within which a page must first ask for news to keep its new seat


def public(settings: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings that visitors of a public server start with, and the knobs that are locked for them."""
    if isinstance(settings.scene, Splats) and not settings.scene.start.startswith("shap-e"):
        settings = settings.patch("scene.shap_e", "")  # visitors must not make the server download gigabytes
    return settings, LOCKED


def max_bytes(knob: str, locked: bool) -> int:
    """Return the size limit of a file for `knob`, or of a run's; lower where visitors upload it because paths are
    locked."""
    most = MOST_RUN if knob == RUN else UPLOADS[knob].most
    return min(most, MAX_UPLOAD) if locked else most


def limits(locked: bool) -> Limits:
    """Return what parsing an uploaded file may take; less where visitors upload it because paths are locked."""
    return VISITOR if locked else OWN


# a run of Stable Diffusion in bursts, where a server can give it a GPU for some seconds: short, and with few Gaussians,
# because they are drawn on the CPU, too
GPU_PRESET = "dreamfusion"
GPU_CHANGES = (
    *(("steps", 1000), ("camera.views", 2), ("scene.n_init", 2000), ("scene.max_gaussians", 8000)),
    *(("scene.densify_every", 100), ("scene.shap_e", "")),
)


class Visitors:
    """The policy of one server: its own settings and the knobs that its visitors cannot change. `gpu` is the run that
    they may have in bursts on a GPU; None where there are none."""

    def __init__(self, settings: Settings, locked: Collection[str] = (), in_bursts: bool = False) -> None:
        self.settings = settings
        self.gpu = catalogue.preset(GPU_PRESET).patch_all(GPU_CHANGES) if in_bursts else None
        self.locked = frozenset(locked)
        own = settings.knobs()
        self._paths = {path: own[path].value for path in PATHS if path in own and own[path].value}
        self.veil = Veil(self._paths.values()) if locked else None
        shipped = {name: catalogue.preset(name) for name in catalogue.preset_names()}
        # priors of presets that read no files and load nothing
        self._harmless = {s.prior for s in shipped.values() if isinstance(s.prior, GalleryPrior) and not s.prior.path}
        self.offered = {name: wanted for name, wanted in shipped.items() if self.allows(wanted)}
        self.presets = list(self.offered)
        gpu = [self.gpu] if self.gpu is not None else []
        self.budgets = Budgets([settings, *gpu, *(shipped[name] for name in self.presets)]) if self.locked else None
        self.most_lanes = VISITOR_LANES if self.locked else MAX_LANES
        found = ((name, self._as_admitted(example)) for name, example in examples.load(self.offered).items())
        self.examples = {name: example for name, example in found if example is not None}

    def client(self, address: str, seats: int) -> Client:
        """Return a new client at a network address ("" if unknown), with its limits on a server that has `seats`."""
        if self.budgets is None:
            return Client()
        own = max(seats // 2, 1)
        return Client(address, own, self.budgets, Bucket(*MESSAGES), Bucket(*POLLS), Bucket(*UPLOADED))

    def _as_admitted(self, example: Example) -> Example | None:
        """Return an example as visitors may run it, None if they may not."""
        try:
            settings, *beside = (self.admitted(lane, self.settings) for lane in example.lanes)
        except ValueError:
            return None
        return example._replace(settings=settings, beside=beside[0] if beside else None)

    def shown(self, k: Knob, kind: str) -> Knob:
        """Return a knob as the form shows it, for a scene of this `kind`: with the range that visitors have."""
        if self.budgets is None:
            return k
        own = self.budgets.range_of(k, kind)
        if own is k:
            return k
        return own._replace(help=f"{k.help} (here at most {own.hi:,}; on your own computer {k.hi:,})")

    def must_have_room(self, unfinished: int) -> None:
        """Raise ValueError if a page with so many `unfinished` results may not ask for another."""
        if self.locked and unfinished >= VISITOR_FILES:
            raise ValueError(
                f"{unfinished} files are being made already, and visitors of this server may have {VISITOR_FILES} at a "
                f"time: wait for one, or cancel one; {NO_LIMIT}"
            )

    def must_have_lane(self, lanes: int) -> None:
        """Raise ValueError if a page with so many `lanes` may not have another."""
        if lanes >= self.most_lanes:
            more = f", as many as visitors of this server may have; {NO_LIMIT}" if self.locked else ""
            raise ValueError(f"there are {lanes} lanes already: close one first{more}")

    def charge_upload(self, client: Client, size: int) -> None:
        """Raise ValueError if `client` uploads more than it may."""
        wait = client.uploads.take(size)
        if wait > 0:
            raise ValueError(
                f"an upload of {size / 1e6:.1f} MB: visitors of this server may upload {60 * UPLOADED[0] / 1e6:.0f} MB "
                f"a minute; try again in {wait:.0f} s; {NO_LIMIT}"
            )

    def allows(self, wanted: Settings) -> bool:
        """Return whether a visitor may run these settings; another prior would bypass the lock on the prior's path."""
        theirs = wanted.knobs()
        return all(
            theirs[path].value == value
            for path, value in self._fixed(wanted)
            if path.startswith("prior.") and not _is_upload(path, wanted)  # `fit` drops files
        )

    def fit(self, wanted: Settings) -> Settings:
        """Return `wanted` with all locked knobs as on this server; a run that loses its file does without one."""
        changes, knobs = self._fixed(wanted), wanted.knobs()
        default = catalogue.default_settings(wanted.prior.kind, wanted.scene.kind)
        for path, value in list(changes):
            if _is_upload(path, wanted) and knobs[path].value != value:
                switch = UPLOADS[path].switch
                if knobs[switch].value in UPLOADS[path].uses:
                    changes.append((switch, default.knob(switch).value))
        return wanted.patch_all(changes)

    def read(self, text: str, name: str) -> Settings:
        """Return the settings in the text of a visitor's file; ValueError says what is wrong with the file `name`."""
        name = name if len(name) <= NAME else f"...{name[-NAME:]}"
        if len(text) > MAX_SETTINGS:
            raise ValueError(f"{name} has {len(text):,} characters; settings have at most {MAX_SETTINGS:,}")
        try:
            return self.admitted(self._with_paths(catalogue.from_toml(text, name)), self.settings)
        except ValueError as e:
            raise ValueError(str(e) if str(e).startswith(name) else f"{name}: {e}") from e

    def admitted(self, wanted: Settings, before: Settings) -> Settings:
        """Return settings as visitors may have them. ValueError that says why not; if it is about a change from
        `before`, it begins with the path of the knob."""
        if not self.allows(wanted):
            raise ValueError("it is for another prior, and this server's prior cannot be changed")
        wanted = self.fit(wanted)
        if self.budgets is not None:
            self.budgets(wanted, Run.of(before))
        return wanted

    def told(self, what: Any) -> Any:
        """Return a text or JSON as visitors may see it: without the server's folders."""
        return what if self.veil is None else self.veil(what)

    def shared(self, settings: Settings) -> Settings:
        """Return a run's settings as visitors may save them: with names in place of paths."""
        if self.veil is None:
            return settings
        knobs = settings.knobs()
        return settings.patch_all([(p, name_of(knobs[p].value)) for p in PATHS if p in knobs and knobs[p].value])

    def _with_paths(self, saved: Settings) -> Settings:
        """Return settings that `shared` has made with the server's own paths."""
        knobs, own = saved.knobs(), self._paths if self.veil is not None else {}
        return saved.patch_all([(p, v) for p, v in own.items() if p in knobs and knobs[p].value == name_of(v)])

    def _fixed(self, wanted: Settings) -> list[tuple[str, Any]]:
        """Return the locked knobs that `wanted` has, with their values: those of the server's own settings, or the
        defaults where its scene or prior is of another kind. A harmless prior stays as it is."""
        default = catalogue.default_settings(wanted.prior.kind, wanted.scene.kind)
        sources = {
            group: self.settings if getattr(self.settings, group).kind == getattr(wanted, group).kind else default
            for group in ("prior", "scene")
        }
        fixed = []
        for path in self.locked.intersection(wanted.knobs()):
            if path.startswith("prior.") and wanted.prior in self._harmless:
                continue
            source = sources.get(path.partition(".")[0], self.settings)
            value = source.knob(path).value
            fixed.append((path, DEFAULTS.get(path, value) if source is default else value))
        return fixed


def _is_upload(path: str, settings: Settings) -> bool:
    return path in UPLOADS and UPLOADS[path].fits(settings)
