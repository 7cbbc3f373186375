"""Links: what is written is read back exactly, and what is wrong with a link is said and skipped."""

from __future__ import annotations

import itertools
import math
import random
import string
from collections.abc import Iterator
from urllib.parse import quote_plus

import pytest

from sdlab import options
from sdlab.knobs import Knob
from sdlab.links import (
    ALIASES,
    CLOSED,
    MOST_CHARACTERS,
    MOST_PARTS,
    WORDS,
    Link,
    Names,
    left_out,
    nearest,
    read,
    that_load_nothing,
    write,
)
from sdlab.settings import Settings, default_settings, from_toml, preset, preset_names, priors, scenes, to_toml
from sdlab.ui import visitors
from sdlab.ui.layout import STATIC
from sdlab.ui.links import LOCKABLE, PARTS, Links
from sdlab.ui.visitors import Visitors, public

PRESETS = {name: preset(name) for name in preset_names()}
OWN = PRESETS["gallery"]
OFFERED = that_load_nothing(PRESETS, OWN)
LESSONS = {"paths": (OWN, OWN.patch("camera.views", 3))}  # settings of each page


def opened(query: str, own: Settings = OWN) -> Link:
    return read(query, own, OFFERED, PARTS, lessons=LESSONS)


def another_value(k: Knob, rng: random.Random) -> object:
    """A value that the knob allows, with as many digits as a float has."""
    if k.choices:
        return rng.choice(k.choices)
    if k.type is bool:
        return not k.value
    if k.type is str:
        return "".join(rng.choice("aä字 &=+%#?,;\"'<>\\\n\0🐻") for _ in range(min(int(k.hi or 20), 20)))
    lo, hi = (-1e6 if k.lo is None else k.lo), (1e6 if k.hi is None else k.hi)
    return rng.randint(int(lo), int(hi)) if k.type is int else rng.uniform(lo, hi)


def varied(settings: Settings, rng: random.Random, share: float = 1.0) -> Settings:
    """Settings with other values of as many knobs as are compatible."""
    for path, k in settings.knobs().items():
        if path not in CLOSED and rng.random() < share:
            try:
                settings = settings.patch(path, another_value(k, rng))
            except ValueError:  # the end of a range, below its beginning
                continue
    return settings


def test_every_knob_of_every_kind_comes_back_exactly():
    rng = random.Random(0)
    for prior in priors():
        for scene in scenes():
            whole = default_settings(prior, scene)
            groups, values = list(whole.groups()), varied(whole, rng).knobs()
            for n in range(0, len(groups), 3):  # all at once would be a longer link than any server takes
                few = set(groups[n : n + 3])
                paths = [p for p in values if p.rpartition(".")[0] in few and p not in CLOSED and p != "scene.start"]
                wanted = whole.patch_all([(p, values[p].value) for p in paths])
                found = opened(write(wanted, "gallery", OWN))
                assert (found.problems, found.preset) == ((), "gallery")
                assert found.settings == wanted


@pytest.mark.parametrize("value", [math.pi * 1e-7, 0.1 + 0.2, 5e-324, 1.0, 999.9999999999999, -0.0])
def test_floats_keep_every_bit(value: float):
    wanted = OWN.patch_all([("losses.esd.lam", min(value, 1.0)), ("optim.grad_clip", value)])
    assert opened(write(wanted, None, OWN)).settings == wanted


def test_a_link_is_short_and_reads_like_a_sentence():
    wanted = PRESETS["gallery-esd"].patch_all(
        [("seed", 7), ("prompt.text", "a blue bear & a cat"), ("losses.esd.lam", 0.7), ("steps", 250)]
    )
    query = write(wanted, "gallery-esd", PRESETS["gallery-esd"], ["lens", "timeline"], ["losses.esd.lam"], "large")
    assert query == (
        "preset=gallery-esd&prompt=a+blue+bear+%26+a+cat&seed=7&steps=250&losses.esd.lam=0.7"
        "&hide=lens,timeline&lock=losses.esd.lam&text=large"
    )
    assert opened(f"?{query}") == Link(wanted, "gallery-esd", ("lens", "timeline"), ("losses.esd.lam",), "large")


def test_names_may_be_short_where_one_knob_has_them():
    found = opened("loss=esd&prompt=a+cat&lam=0.5&views=4&seed=3&lock=lam,prompt&hide=lam,camera")
    assert not found.problems
    assert found.settings == OWN.patch_all(
        [("active", "esd"), ("prompt.text", "a cat"), ("losses.esd.lam", 0.5), ("camera.views", 4), ("seed", 3)]
    )
    assert found.lock == ("losses.esd.lam", "prompt"), "a group goes before a knob"
    assert found.hide == ("losses.esd.lam", "camera")
    alone = {path for path in OWN.knobs() if "." not in path}
    for settings in PRESETS.values():
        names = Names(settings).short
        assert not names.keys() & (set(WORDS) | settings.knobs().keys() - alone) - ALIASES.keys()
        assert all(path in settings.knobs() for path in names.values())


def test_the_order_of_parts_does_not_matter():
    parts = ["preset=playground-esd", "loss=esd", "lam=0.5", "scene.n=7", "seed=3"]
    found = {opened("&".join(random.Random(n).sample(parts, len(parts)))) for n in range(20)}
    assert len(found) == 1
    assert not found.pop().problems


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("preset=galery", "preset = 'galery': there is no such preset; did you mean gallery"),
        ("preset=zebra", "preset = 'zebra': there is no such preset; presets are gallery, "),
        ("preset=dreamfusion", "preset = 'dreamfusion': it loads a file or a model"),
        ("lossess.sds.cfg=3", "there is no knob 'lossess.sds.cfg'; did you mean losses.sds.cfg"),
        ("losses.sds.cfg=lots", "losses.sds.cfg = 'lots': must be a number"),
        ("losses.sds.cfg=nan", "losses.sds.cfg = nan: must be a number"),
        ("losses.sds.cfg=1e999", "losses.sds.cfg = inf: must be a number"),
        ("seed=-1", "seed = -1: must be a whole number from 0"),
        ("seed=1.5", "seed = 1.5: must be a whole number"),
        ("seed=3&seed=4", "seed = '4': it is given twice, and the first counts"),
        ("prompt=a&prompt.text=b", "prompt.text = 'b': it is given twice"),
        ("views=2&camera.views=3", "camera.views is given twice, and the first counts"),
        ("seed", "'seed': expected NAME=VALUE"),
        ("prompt=%ff%fe", "it is not valid UTF-8"),
        ("prompt=%ed%a0%80", "it is not valid UTF-8"),
        ("prompt.view_dependent=perhaps", "prompt.view_dependent = 'perhaps': must be true or false"),
        (f"prompt={'x' * 301}", "(301 characters): must be a text of at most 300"),
        ("distance_min=9", "camera.distance_min = 9 is above camera.distance_max"),
        ("prior.path=/etc/passwd", "prior.path = '/etc/passwd': it names a file or a model"),
        (
            "prior.path=//elsewhere.example/model",
            "prior.path = '//elsewhere.example/model': it names a file or a model",
        ),
        ("scene.shap_e=someone/else", "scene.shap_e = 'someone/else': it names a file or a model"),
        ("scene.start=shap-e", "scene.start = 'shap-e': it loads a model"),
        ("scene.file=~/.ssh/id_rsa", "scene.file = '~/.ssh/id_rsa': it names a file"),
        ("scene.kind=house", "scene.kind = 'house': must be one of"),
        ("prior.kind=__import__", "prior.kind = '__import__': must be one of"),
        ("hide=lense", "hide = 'lense': did you mean lens?"),
        ("hide=lens,attic", "hide = 'attic': there is no knob 'attic'"),
        ("lock=presets", "lock = 'presets': did you mean preset?"),
        ("lock=everything", "lock = 'everything': there is no knob 'everything'"),
        ("text=huge", "text = 'huge': must be one of normal, large"),
        ("lesson=pathz", "lesson = 'pathz': there is no such lesson here; did you mean paths?"),
        ("lesson=paths&page=3", "page = '3': the lesson paths has pages 1 to 2"),
        ("lesson=paths&page=two", "page = 'two': the lesson paths has pages 1 to 2"),
        ("page=2", "page = '2': it needs lesson=NAME"),
        ("=", "there is no knob ''"),
        (f"prompt={'x' * MOST_CHARACTERS}", "characters and is not read: 8,000 are allowed"),
        ("&".join(f"x{n}=1" for n in range(MOST_PARTS + 1)), f"the first {MOST_PARTS} are read"),
    ],
)
def test_what_is_wrong_is_named_and_skipped_and_the_rest_counts(query: str, said: str):
    found = opened(query)
    assert any(said in problem for problem in found.problems), found.problems
    changes = dict(OWN.differences(found.settings))
    assert changes.keys() <= {"seed", "camera.views", "prompt.text"}
    assert changes.get("prompt.text", "a") == "a"
    if len(query) < 1000:
        assert opened(f"{query}&steps=77").settings.steps == 77


def test_of_two_values_that_contradict_each_other_as_few_as_possible_go():
    good = opened("distance_min=9&distance_max=12")
    assert not good.problems
    assert good.settings.camera.distance_min == 9.0
    found = opened("distance_min=9&camera.fovy=30&elevation_min=10")
    assert len(found.problems) == 1
    assert dict(OWN.differences(found.settings)) == {"camera.fovy": 30.0, "camera.elevation_min": 10.0}


def test_a_lesson_gives_the_settings_of_its_page_and_the_rest_varies_them():
    found = opened("lesson=paths&page=2&seed=5")
    assert (found.lesson, found.page, found.problems) == ("paths", 1, ())
    assert found.settings == OWN.patch_all([("camera.views", 3), ("seed", 5)])
    query = write(found.settings, None, LESSONS["paths"][1], place=("paths", 1))
    assert query == "lesson=paths&page=2&seed=5"
    assert opened("preset=mixture&lesson=paths").settings == OFFERED["mixture"], "a preset comes first"
    assert opened("lesson=paths").page == 0


def test_what_sites_add_to_addresses_is_no_part_of_a_link():
    assert opened("?__theme=dark&utm_source=mail&fbclid=x&embed=true&&") == Link(OWN)


# ---- noise -----------------------------------------------------------------------------------------------

ODD = [*string.printable, "ä", "字", "🐻", "\0", "\u202e", "\ud800", "%", "%zz", "&", "=", "..", "<script>"]


def good_links(rng: random.Random) -> Iterator[str]:
    while True:
        name = rng.choice(list(OFFERED))
        wanted = varied(OFFERED[name], rng, 0.03)
        hide, lock = (rng.sample(list(names), rng.randint(0, 3)) for names in (PARTS, LOCKABLE))
        yield write(wanted, name, OFFERED[name], hide, [x for x in lock if x in ("all", "preset", "camera", "seed")])


def broken(query: str, rng: random.Random) -> str:
    """A link after an accident: cut, shuffled, doubled, or with other characters in it."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(query))
        match rng.randint(0, 6):
            case 0:
                query = query[:at]
            case 1:
                query = query[:at] + "".join(rng.choices(ODD, k=rng.randint(1, 8))) + query[at:]
            case 2:
                query = query[:at] + query[at + rng.randint(1, 9) :]
            case 3:
                query += f"&{rng.choice(query.split('&'))}"
            case 4:
                name = rng.choice(list(OWN.knobs()))
                query += f"&{name}={rng.choice(['', '-1', '1e400', 'nan', 'true', '0x10', '9' * 400, '/etc', '<b>'])}"
            case 5:
                query = "&".join(rng.sample(parts := query.split("&"), len(parts)))
            case 6:
                query = query.replace(rng.choice("=&.+%"), rng.choice(ODD))
    return query


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.nightly)])
def test_broken_links_are_repaired_with_a_reason(count: int):
    """Settings stay sound, and whatever a link lost is named: without problems, it is another way to write what it
    gives."""
    rng = random.Random(count)
    links = list(itertools.islice(good_links(rng), 60))
    repaired = 0
    for n in range(count):
        query = broken(rng.choice(links), rng)
        found = opened(query)
        assert all(isinstance(problem, str) and problem for problem in found.problems)
        if n % 10:
            repaired += bool(found.problems)
            continue
        assert from_toml(to_toml(found.settings)) == found.settings
        assert not left_out(found.settings, OFFERED[found.preset] if found.preset else OWN), "no file, no model"
        base = OFFERED[found.preset] if found.preset is not None else OWN
        again = opened(write(found.settings, found.preset, base, found.hide, found.lock, found.text))
        assert again == found._replace(problems=()), query
        repaired += bool(found.problems)
    assert count // 2 < repaired < count, "most are broken, and not all of them beyond recognition"


# ---- what a server allows --------------------------------------------------------------------------------


def shared() -> Links:
    return Links(Visitors(*public(OWN)))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("prior.images=16000", "prior.images = 16000: it is fixed on this server"),
        ("preset=dreamfusion", "preset = 'dreamfusion': it loads a file or a model"),
        ("prior.path=/etc", "prior.path = '/etc': it is fixed on this server"),
        ("camera.views=16", "camera.views = 16: visitors of this server may choose at most 12"),
        ("scene.max_gaussians=2000000&seed=3", "scene.max_gaussians = 2,000,000: visitors of this server may choose"),
    ],
)
def test_limits_of_a_shared_server_hold_for_links(query: str, said: str):
    found = shared().read(f"{query}&steps=77")
    assert len(found.problems) == 1
    assert said in found.problems[0]
    assert dict(public(OWN)[0].differences(found.settings)) == {"steps": 77} | ({"seed": 3} if "seed" in query else {})


def test_links_choose_none_of_the_knobs_that_hold_a_path():
    assert CLOSED.keys() >= {*options.PATHS, *visitors.PATHS}


def test_an_owner_may_trust_links():
    query = "?preset=toybox-2d&prior.path=/models/sd"
    careful, trusting = Links(Visitors(OWN)), Links(Visitors(OWN), trusted=True)
    assert careful.read(query).settings.knob("prior.path").value == "toybox"
    assert not trusting.read(query).problems
    assert trusting.read(query).settings.knob("prior.path").value == "/models/sd"
    assert trusting.read("preset=dreamfusion").settings == PRESETS["dreamfusion"]
    locked = Links(Visitors(*public(OWN)), trusted=True)
    assert "it is fixed on this server" in locked.read("prior.path=/etc").problems[0]


def test_the_page_writes_the_link_that_opens_what_it_shows():
    links = Links(Visitors(OWN))
    for name in ("gallery-esd", "playground", "gallery-field"):
        wanted = PRESETS[name].patch_all([("seed", 5), ("prompt.text", "<b>a cat")])
        for picked in (name, None, "gallery"):
            told = links.told(wanted, picked, None, Link(OWN))
            assert told["remarks"] == []
            assert links.read(told["query"]).settings == wanted
    assert nearest(PRESETS["gallery-sdi"], PRESETS) == "gallery-sdi"


def test_a_link_of_a_shared_server_names_a_preset_and_works_elsewhere():
    own = public(OWN)[0]
    told = shared().told(own.patch("seed", 5), "gallery", None, Link(own))
    assert (told["query"], told["remarks"]) == ("preset=gallery&seed=5", [])
    assert shared().read(told["query"]).settings == own.patch("seed", 5)
    assert opened(told["query"]).settings == OWN.patch("seed", 5)


def test_what_a_link_cannot_hold_is_said():
    own = PRESETS["toybox"].patch("prior.path", "/models/mine")
    links = Links(Visitors(own))
    told = links.told(own.patch("seed", 5), "toybox", None, Link(own))
    assert told["query"] == "seed=5", "only this server has the model"
    assert links.read(told["query"]).settings == own.patch("seed", 5)
    told = links.told(own.patch("prior.path", "/models/other"), "toybox", 120, Link(own))
    assert [remark.partition(":")[0] for remark in told["remarks"]] == [
        "prior.path is not part of the link",
        "the run was changed at step 120",
    ]
    assert "/models" not in told["query"]


def test_locks_cover_groups_and_hold_against_presets():
    link = opened("preset=gallery-esd&lam=0.5&lock=losses.esd,camera")
    now, wanted = link.settings, PRESETS["gallery-vsd"].patch("camera.views", 7)
    assert [link.locks(path) for path in ("losses.esd.lam", "camera.fovy", "losses.sds.cfg", "seed")] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match=r"camera\.views = 7: it is locked by the link"):
        link.must_keep(now, now.patch_all([("seed", 3), ("camera.views", 7)]))
    kept = link.kept(now, wanted)
    assert (kept.active, kept.camera, kept.losses["esd"]) == ("vsd", now.camera, now.losses["esd"])
    with pytest.raises(ValueError, match="scene is locked"):
        opened("lock=scene").kept(OWN, PRESETS["playground"])
    assert opened("lock=all").kept(OWN, wanted) == OWN


def test_the_page_can_hide_and_lock_what_it_offers():
    css = (STATIC / "page.css").read_text(encoding="utf-8")
    assert all(f'[data-hide~="{part}"]' in css for part in PARTS)
    assert not opened(f"lock={','.join(LOCKABLE)}&hide={quote_plus(','.join(PARTS))}").problems
