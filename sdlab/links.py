"""Links: settings, and what a page hides and locks, as the query of its address.

    ?preset=gallery-esd&prompt=a+red+bear&seed=7&losses.esd.lam=0.7&hide=lens,timeline&lock=losses.esd&text=large

A link names a preset and the knobs that differ from it, so that people can read and edit it. `read` never raises: it
says what is wrong with each part that it skips. Links come from strangers, so by default they choose no files and no
models; see `CLOSED`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote_plus, unquote_plus

from sdlab import settings as catalogue
from sdlab.knobs import FrozenDict, check, parse, shown
from sdlab.settings import Settings

MOST_CHARACTERS = 8_000  # servers and proxies refuse addresses that are not much longer
MOST_PARTS = 250  # more than there are knobs
TEXT_SIZES = ("normal", "large")
WORDS = ("preset", "prior.kind", "scene.kind", "hide", "lock", "text", "lesson", "page")  # all other names are knobs'
ALIASES = {"prompt": "prompt.text", "loss": "active"}
FIRST = ("prompt.text", "active", "seed", "steps")  # of the knobs in a link that the page writes
ALL, PRESET = "all", "preset"
LOCKS = (ALL, PRESET, "losses")  # what can be locked besides groups and knobs
# parameters that sites add to addresses: themes of Gradio and the Hub, campaigns
FOREIGN = re.compile(r"__.*|utm_.*|fbclid|gclid|logs|embed")
FILE = "it names a file or a model, which a link must not choose: set it on the page"
CLOSED: Mapping[str, str] = dict.fromkeys(
    ("prior.path", "prior.revision", "scene.file", "scene.picture", "scene.shap_e"), FILE
)
OWN_MODELS = ("", "toybox")  # values of prior.path that load nothing from elsewhere
SHAP_E = "shap-e"  # begins the values of scene.start for which scene.shap_e is loaded

Admit = Callable[[Settings, Settings], Settings]


def anything(wanted: Settings, base: Settings) -> Settings:
    """Admit all settings."""
    return wanted


class Link(NamedTuple):
    """What a link says. `problems` has one sentence for each part that was skipped or repaired."""

    settings: Settings
    preset: str | None = None
    hide: tuple[str, ...] = ()  # parts of the page, groups, knobs
    lock: tuple[str, ...] = ()  # groups, paths of knobs, ALL, PRESET
    text: str = ""  # one of `TEXT_SIZES`; "" leaves it to the reader
    lesson: str = ""  # name of the lesson that it opens, "" for none
    page: int = 0  # of the lesson, from 0; links count from 1
    problems: tuple[str, ...] = ()

    def locks(self, path: str) -> bool:
        """Return whether a knob cannot be changed."""
        return is_below(path, self.lock)

    def must_keep(self, before: Settings, wanted: Settings) -> None:
        """Raise ValueError, which names the knob, if `wanted` changes a locked one."""
        for path, value in before.differences(wanted):
            if self.locks(path):
                raise ValueError(f"{path} = {shown(value)}: it is locked by the link that opened this page")

    def kept(self, before: Settings, wanted: Settings) -> Settings:
        """Return `wanted` with the locked knobs as in `before`. ValueError if that is not possible."""
        for group in ("prior", "scene"):
            if self.locks(group) and getattr(before, group).kind != getattr(wanted, group).kind:
                raise ValueError(f"{group} is locked by the link that opened this page")
        old = before.knobs()
        return wanted.patch_all([(p, old[p].value) for p in wanted.knobs() if p in old and self.locks(p)])


def is_below(path: str, names: Collection[str]) -> bool:
    """Return whether `names` has a path, a group that it is in, or `ALL`."""
    parts = path.split(".")
    return ALL in names or any(".".join(parts[: n + 1]) in names for n in range(len(parts)))


# ---- writing ---------------------------------------------------------------------------------------------


def write(
    settings: Settings,
    preset: str | None,
    base: Settings,
    hide: Sequence[str] = (),
    lock: Sequence[str] = (),
    text: str = "",
    closed: Collection[str] = CLOSED,
    place: tuple[str, int] | None = None,
) -> str:
    """Return the query, without "?", of a link to `settings`, as differences from `base`: those of `preset`, or if it
    is None of the lesson in `place` (name and page from 0), or a server's own. Knobs that are `closed` to links are
    left out, see `left_out`."""
    said = [("preset", preset)] if preset is not None else []
    said += [("lesson", place[0]), ("page", str(place[1] + 1))] if place is not None else []
    for group in ("prior", "scene"):
        if (kind := getattr(settings, group).kind) != getattr(base, group).kind:
            said.append((f"{group}.kind", kind))
    changes = dict(_with_kinds(base, settings.prior.kind, settings.scene.kind).differences(settings))
    names = {path: name for name, path in ALIASES.items()}
    for path in sorted(changes, key=lambda path: FIRST.index(path) if path in FIRST else len(FIRST)):
        if path not in closed:
            said.append((names.get(path, path), _written(changes[path])))
    said += [(name, ",".join(values)) for name, values in (("hide", hide), ("lock", lock)) if values]
    said += [("text", text)] if text else []
    return "&".join(f"{name}={quote_plus(value, safe=',')}" for name, value in said)


def left_out(settings: Settings, base: Settings, closed: Collection[str] = CLOSED) -> list[str]:
    """Return the knobs that `write` leaves out, although they differ from `base` and matter."""
    before = _with_kinds(base, settings.prior.kind, settings.scene.kind)
    found = [path for path, _ in before.differences(settings) if path in closed]
    return [path for path in found if path != "scene.shap_e" or settings.knob("scene.start").value.startswith(SHAP_E)]


def nearest(settings: Settings, presets: Mapping[str, Settings]) -> str | None:
    """Return the preset, of the same kinds of prior and scene, that differs from `settings` in the fewest knobs."""
    kinds = _kinds(settings)
    alike = {name: len(s.differences(settings)) for name, s in presets.items() if _kinds(s) == kinds}
    return min(alike, key=alike.__getitem__, default=None)


def _kinds(settings: Settings) -> tuple[str, str]:
    return settings.prior.kind, settings.scene.kind


def _written(value: Any) -> str:
    """Return a value as `parse` reads it back exactly."""
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else repr(value)


# ---- reading ---------------------------------------------------------------------------------------------


def read(
    query: str,
    own: Settings,
    presets: Mapping[str, Settings],
    parts: Collection[str] = (),
    closed: Mapping[str, str] = CLOSED,
    admit: Admit = anything,
    lessons: Mapping[str, Sequence[Settings]] = FrozenDict(),
) -> Link:
    """Return what the query of an address says, with or without its "?"; never raises.

    A link without a preset starts from the page of one of `lessons`, which has settings for each page, or from a
    server's `own` settings. It may name one of `presets`, see
    `that_load_nothing`, hide the `parts` of a page, and set no knob that is `closed`, which says why. `admit` is called
    with settings and those that they vary, and returns them as the server allows them; its ValueError begins with the
    path of the knob at fault.
    """
    problems: list[str] = []
    said = dict(_parts(query, problems))
    lesson, page = _lesson(said, lessons, problems)
    preset, base = _base(said, lessons[lesson][page] if lesson else own, presets, problems)
    base = _of_kinds(said, base, closed, problems)
    names = Names(base, said.get("active"))
    settings = _admitted(base, _changes(said, base, names, closed, problems), own, admit, problems)
    hide = _listed(said.get("hide", ""), "hide", parts, names, problems)
    lock = _listed(said.get("lock", ""), "lock", LOCKS, names, problems)
    text = said.get("text", "")
    if text and text not in TEXT_SIZES:
        problems.append(f"text = {shown(text)}: must be one of {', '.join(TEXT_SIZES)}")
        text = ""
    return Link(settings, preset, hide, lock, text, lesson, page, tuple(problems))


def that_load_nothing(presets: Mapping[str, Settings], own: Settings) -> dict[str, Settings]:
    """Return the presets that load no file or model which a server's `own` settings do not use."""
    return {name: settings for name, settings in presets.items() if not loads(settings, own)}


def loads(settings: Settings, own: Settings) -> str:
    """Return the knob by which settings load a file or a model that `own` do not use, "" if there is none."""
    knobs, known = settings.knobs(), own.knobs()
    for path in ("prior.path", "scene.start"):
        value = knobs[path].value if path in knobs else ""
        harmless = value in OWN_MODELS if path == "prior.path" else not value.startswith(SHAP_E)
        if not harmless and not (path in known and known[path].value == value):
            return path
    return ""


class Names:
    """What names in a link stand for, where `active` is the loss (None or an unknown one: that of `settings`). Without
    its group, a name may be a knob of this loss or of a group, unless two have the same."""

    def __init__(self, settings: Settings, active: str | None = None) -> None:
        self._settings = settings
        self.knobs = settings.knobs()
        self.groups = settings.groups()
        own = f"losses.{active if active in settings.losses else settings.active}."
        found: dict[str, list[str]] = {}
        for path in self.knobs:
            if not path.startswith("losses.") or path.startswith(own):
                found.setdefault(path.rpartition(".")[2], []).append(path)
        alone = {name: paths[0] for name, paths in found.items() if len(paths) == 1 and name not in WORDS}
        self.short = alone | ALIASES

    def path(self, name: str) -> str:
        """Return the path of a knob. ValueError with suggestions if there is none of this name."""
        path = name if name in self.knobs else self.short.get(name, name)
        return path if path in self.knobs else self._settings.knob(path).path

    def find(self, name: str) -> str:
        """Return the name of a group or the path of a knob. ValueError as in `path`."""
        return name if name in self.groups else self.path(name)


def _parts(query: str, problems: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of each part of a query, the first of a name."""
    if len(query) > MOST_CHARACTERS:
        problems.append(f"the link has {len(query):,} characters and is not read: {MOST_CHARACTERS:,} are allowed")
        return
    given = query.removeprefix("?").split("&")
    if len(given) > MOST_PARTS:
        problems.append(f"the link has {len(given):,} parts, of which the first {MOST_PARTS} are read")
    seen = set()
    for part in filter(None, given[:MOST_PARTS]):
        name, equals, value = part.partition("=")
        try:
            name, value = unquote_plus(name, errors="strict").strip(), unquote_plus(value, errors="strict")
            (name + value).encode()
        except UnicodeError:
            problems.append(f"{shown(part)}: it is not valid UTF-8")
            continue
        path = ALIASES.get(name, name)
        if FOREIGN.fullmatch(name):
            continue
        if not equals:
            problems.append(f"{shown(part)}: expected NAME=VALUE")
        elif path in seen:
            problems.append(f"{name} = {shown(value)}: it is given twice, and the first counts")
        else:
            seen.add(path)
            yield path, value


def _lesson(said: Mapping[str, str], lessons: Mapping[str, Sequence[Settings]], problems: list[str]) -> tuple[str, int]:
    """Return the lesson that a link opens, "" for none, and its page from 0."""
    name, page = said.get("lesson", ""), said.get("page")
    if name not in lessons:
        if name:
            near = difflib.get_close_matches(name[:100], lessons, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"lessons are {', '.join(lessons) or 'none'}"
            problems.append(f"lesson = {shown(name)}: there is no such lesson here; {hint}")
        elif page is not None:
            problems.append(f"page = {shown(page)}: it needs lesson=NAME")
        return "", 0
    pages = len(lessons[name])
    if page is not None and (not re.fullmatch("[0-9]{1,4}", page) or not 1 <= int(page) <= pages):
        problems.append(f"page = {shown(page)}: the lesson {name} has pages 1 to {pages}")
        page = None
    return name, int(page or 1) - 1


def _base(
    said: Mapping[str, str], own: Settings, presets: Mapping[str, Settings], problems: list[str]
) -> tuple[str | None, Settings]:
    """Return the preset of a link, None if it has none that can be used, and the settings to start from."""
    name = said.get("preset")
    if name is None:
        return None, own
    if name in presets:
        return name, presets[name]
    why = "it loads a file or a model, which a link must not choose"
    if name not in catalogue.preset_names():
        near = difflib.get_close_matches(name[:100], presets, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"presets are {', '.join(presets)}"
        why = f"there is no such preset; {hint}"
    problems.append(f"preset = {shown(name)}: {why}")
    return None, own


def _with_kinds(base: Settings, prior: str, scene: str) -> Settings:
    """Return `base` with the defaults of other kinds of prior and scene. ValueError for an unknown kind."""
    members = catalogue.default_settings(prior, scene)
    other = {
        group: getattr(members, group)
        for group in ("prior", "scene")
        if getattr(members, group).kind != getattr(base, group).kind
    }
    return dataclasses.replace(base, **other)


def _of_kinds(said: Mapping[str, str], base: Settings, closed: Mapping[str, str], problems: list[str]) -> Settings:
    for group in ("prior", "scene"):
        path, kinds = f"{group}.kind", {"prior": base.prior.kind, "scene": base.scene.kind}
        kind = said.get(path, kinds[group])
        if kind == kinds[group]:
            continue
        if path in closed:
            problems.append(f"{path} = {shown(kind)}: {closed[path]}")
            continue
        try:
            base = _with_kinds(base, **{**kinds, group: kind})
        except ValueError as e:
            problems.append(str(e))
    return base


def _changes(
    said: Mapping[str, str], base: Settings, names: Names, closed: Mapping[str, str], problems: list[str]
) -> dict[str, Any]:
    """Return path -> value of the knobs in a link that can be used."""
    found: dict[str, Any] = {}
    for name in [name for name in said if name not in WORDS]:
        try:
            path = names.path(name)
            k = names.knobs[path]
            value = check(k, parse(k, said[name]))
            if why := _refused(path, value, k.value, closed):
                raise ValueError(f"{path} = {shown(value)}: {why}")
            if path in found:
                raise ValueError(f"{name} = {shown(value)}: {path} is given twice, and the first counts")
        except ValueError as e:
            problems.append(str(e))
        else:
            found[path] = value
    return _compatible(base, found, problems)


def _refused(path: str, value: Any, before: Any, closed: Mapping[str, str]) -> str:
    """Return why a link may not change a knob from `before` to `value`, or ""."""
    if path in closed:
        return closed[path] if value != before else ""
    if "scene.shap_e" in closed and path == "scene.start" and value.startswith(SHAP_E) and value != before:
        return "it loads a model, which a link must not choose: set it on the page"
    return ""


def _compatible(base: Settings, changes: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the changes without those that contradict others of their group, such as two ends of a range."""
    kept = dict(changes)
    if not _contradiction(base, changes):
        return kept
    for prefix in dict.fromkeys(path.rpartition(".")[0] for path in changes):
        own = {path: value for path, value in changes.items() if path.rpartition(".")[0] == prefix}
        wrong = _contradiction(base, own)
        if not wrong:
            continue
        guilty = next((path for path in own if not _contradiction(base, _without(own, path))), "")
        problems.append(wrong)
        kept = _without(kept, *([guilty] if guilty else own))
    return kept


def _contradiction(base: Settings, changes: Mapping[str, Any]) -> str:
    try:
        base.patch_all(changes.items())
    except ValueError as e:
        return str(e)
    return ""


def _without(changes: Mapping[str, Any], *paths: str) -> dict[str, Any]:
    return {path: value for path, value in changes.items() if path not in paths}


def _admitted(base: Settings, changes: dict[str, Any], own: Settings, admit: Admit, problems: list[str]) -> Settings:
    """Return `base` with those of the changes that the server admits, or its own settings if it admits not even
    `base`."""
    while True:
        try:
            return admit(base.patch_all(changes.items()), base)
        except ValueError as e:
            if str(e) not in problems:
                problems.append(str(e))
            guilty = str(e).partition(" = ")[0]
            if guilty in changes:
                changes = _without(changes, guilty)
            elif changes:
                changes = {}
            else:
                return own


def _listed(text: str, word: str, own: Collection[str], names: Names, problems: list[str]) -> tuple[str, ...]:
    """Return the names in a list: those that the word has of its `own`, and groups and knobs. Others are problems."""
    found: dict[str, None] = {}
    for name in filter(None, (name.strip() for name in text.split(","))):
        try:
            found[name if name in own else names.find(name)] = None
        except ValueError as e:
            near = difflib.get_close_matches(name[:100], own, n=1, cutoff=0.7)
            problems.append(f"{word} = {shown(name)}: {f'did you mean {near[0]}?' if near else e}")
    return tuple(found)
