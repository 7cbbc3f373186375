"""The settings tree: patches, ranges, TOML, presets, registries."""

import dataclasses
import pickle
import time
from pathlib import Path

import pytest

from sdlab import settings
from sdlab.knobs import MOST_SHOWN, FrozenDict, check, parse, read_file
from sdlab.settings import Settings, from_toml, to_toml


@pytest.fixture
def s():
    return Settings()


def test_a_patch_is_a_copy(s):
    t = s.patch("losses.sds.cfg", 20)
    assert t.losses["sds"].cfg == 20.0
    assert s.losses["sds"].cfg == 7.5
    assert s.differences(t) == [("losses.sds.cfg", 20.0)]


def test_settings_are_values(s):
    t = s.patch("prompt.text", "a blue car")
    assert pickle.loads(pickle.dumps(t)) == t
    assert hash(pickle.loads(pickle.dumps(t))) == hash(t)
    assert s != t


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("losses.sds.cfg", 1000, ["losses.sds.cfg", "1000", "0 to 200"]),
        ("losses.sds.cfg", "much", ["losses.sds.cfg", "'much'", "a number"]),
        ("losses.sds.cfg", float("nan"), ["losses.sds.cfg", "nan"]),
        ("losses.sds.cgf", 7, ["losses.sds.cgf", "did you mean", "losses.sds.cfg"]),
        ("cfg", 7, ["'cfg'", "losses.sds.cfg"]),
        ("camera.views", 2.5, ["camera.views", "2.5", "whole number"]),
        ("camera.views", True, ["camera.views"]),
        ("prompt.text", "x" * 10_000, ["prompt.text", "10000 characters", "at most 300"]),
        ("prompt.view_dependent", 1, ["prompt.view_dependent", "true or false"]),
        ("active", "sdz", ["active", "'sdz'", "sds"]),
        ("schedule.kind", "cosine", ["schedule.kind", "'cosine'", "uniform"]),
        ("schedule.t_min", 0.99, ["schedule.t_min", "t_max"]),
        ("camera.distance_min", 9.0, ["camera.distance_min", "camera.distance_max"]),
        ("scene.scale_min", 0.5, ["scene.scale_min", "scene.scale_max"]),
        ("scene.kind", "field", ["scene.kind", "preset"]),
    ],
)
def test_bad_values_name_the_knob_what_was_given_and_what_is_allowed(s, path, value, words):
    with pytest.raises(ValueError, match=r".") as e:
        s.patch(path, value)
    for word in words:
        assert word in str(e.value)
    assert len(str(e.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        '[prior]\nkind = "{long}"',
        '[scene]\nkind = "{long}"',
        'active = "{long}"',
        "{long} = 1",
        "[camera]\n{long} = 1",
        'steps = "{long}"',
        'steps = ["{long}"]',
        '[prompt]\nview_dependent = "{long}"',
        '[prompt]\ntext = "{long}"',
        '[prompt]\ntarget = "{{{long}}}"',
        '[schedule]\nkind = "{long}"',
    ],
)
@pytest.mark.parametrize("n", [310, 5000])
def test_no_refusal_repeats_an_over_long_value(text, n):
    with pytest.raises(ValueError, match=r"own\.toml: ") as e:
        from_toml(text.format(long=n * "x"), "own.toml")
    assert MOST_SHOWN * "x" not in str(e.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_settings_are_read_as_a_browser_or_an_editor_gives_them(encoding):
    text = 'steps = 7\n[about]\nuploads = "a.glb"\n'.encode(encoding).decode()
    assert from_toml(text, "own.toml").steps == 7
    assert settings.uploads_of(text) == "a.glb"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_settings_in_another_encoding_say_so(encoding):
    raw = '[prompt]\ntext = "ein grüner Bär"\nsteps = [\n'.encode(encoding)
    with pytest.raises(ValueError, match=r"own\.toml is not valid TOML: .*; it is not encoded in UTF-8, save"):
        from_toml(raw.decode("utf-8", "replace"), "own.toml")  # as browsers decode a file


@pytest.mark.parametrize(
    "given", ["'/no/such.ply'", '"/no/such.ply"', " /no/such.ply", "/no/such.ply\n", " '/no/such.ply' "]
)
def test_a_file_with_something_around_its_path_is_hinted_at(given):
    with pytest.raises(ValueError, match=r"scene\.file cannot be read: .*around it, it is '/no/such\.ply'$"):
        read_file(Path(given), 10, "scene.file")
    with pytest.raises(ValueError, match=r"scene\.file cannot be read: No such file or directory$"):
        read_file(Path("/no/such.ply"), 10, "scene.file")


def test_no_refusal_repeats_an_over_long_name():
    for refuse in (settings.preset, settings.default_settings, Settings):
        with pytest.raises(ValueError, match=r"'xxx.*\.\.\. \(5000 characters\)") as e:
            refuse(5000 * "x")
        assert MOST_SHOWN * "x" not in str(e.value)


def test_the_start_has_the_seed_of_the_run_unless_it_is_given_one(s):
    t = s.patch("seed", 7)
    assert (t.start_seed, t.seed_of_start) == (-1, 7)
    assert "start_seed" not in to_toml(t), "files of before mean what they meant"
    assert t.patch("start_seed", 0).seed_of_start == 0


def test_a_pair_moves_as_one_change(s):
    t = s.patch_all([("camera.distance_min", 4.0), ("camera.distance_max", 5.0)])
    assert (t.camera.distance_min, t.camera.distance_max) == (4.0, 5.0)


def test_every_knob_has_help_and_a_default_within_its_range(s):
    for path, k in s.knobs().items():
        assert k.help, path
        assert check(k, k.value) == k.value, path
        if k.type in (int, float):
            assert k.lo is not None, path
            assert k.hi is not None, path


def test_every_loss_has_a_name_a_formula_and_a_paper():
    for name, cls in settings.losses().items():
        assert name == cls.kind
        assert dataclasses.is_dataclass(cls)
        for text in (cls.title, cls.paper, cls.formula, cls.look_for):
            assert isinstance(text, str)
            assert text


def test_toml_holds_only_differences_and_comes_back_equal(s):
    t = s.patch_all([("prompt.text", 'a "red"\nbear'), ("losses.sds.cfg", 12.5), ("seed", 3), ("camera.views", 4)])
    text = to_toml(t)
    assert from_toml(text) == t
    assert "distance" not in text
    assert from_toml(to_toml(s)) == s


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("camera = [", ["somewhere", "TOML"]),
        ("[camera]\nviewz = 2", ["somewhere", "camera.viewz", "camera.views"]),
        ('[prior]\nkind = "oracle"', ["prior.kind", "oracle", "mixture"]),
        ("[camera]\nviews = 900", ["camera.views", "900", "1 to 16"]),
        ("camera = 3", ["'camera'"]),
        ("prior = 3", ["'prior'"]),
    ],
)
def test_bad_files_name_the_file_and_the_knob(text, words):
    with pytest.raises(ValueError, match=r".") as e:
        from_toml(text, "somewhere")
    for word in words:
        assert word in str(e.value)


def test_every_preset_loads_and_says_what_it_is():
    names = settings.preset_names()
    assert {"toybox", "janus", "mixture"} <= set(names)
    for name in names:
        assert isinstance(settings.preset(name), Settings)
        assert settings.about(name)["text"]


def test_a_preset_may_say_only_what_differs_from_another(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "PRESETS", tmp_path)
    (tmp_path / "one.toml").write_text('steps = 7\n[prior]\nkind = "mixture"\nstd = 0.3\n[losses.sds]\ncfg = 3.0\n')
    (tmp_path / "two.toml").write_text('[about]\nbase = "one"\ntitle = "Two"\n[losses.sds]\ncfg = 4.0\n')
    (tmp_path / "three.toml").write_text('[about]\nbase = "two"\n[prior]\nkind = "diffusers"\n')
    two, three = settings.preset("two"), settings.preset("three")
    assert (two.steps, two.prior.kind, two.prior.std, two.losses["sds"].cfg) == (7, "mixture", 0.3, 4.0)
    assert (three.steps, three.losses["sds"].cfg) == (7, 4.0)
    assert three.prior == settings.default_settings().prior, "another kind of prior starts from its defaults"
    assert settings.about("two")["title"] == "Two"
    assert settings.about("three")["title"] == "three", "title and text are not inherited"
    assert settings.from_toml((tmp_path / "two.toml").read_text(), "a copy of it") == two, "a file may do so, too"
    with pytest.raises(ValueError, match=r"own.toml: there is no preset 'oen'; did you mean one"):
        settings.from_toml('[about]\nbase = "oen"\n', "own.toml")


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"toybx.*did you mean toybox.*list presets"):
        settings.preset("toybx")


def test_parse_reads_what_a_shell_gives(s):
    assert parse(s.knob("camera.views"), "4") == 4
    assert parse(s.knob("losses.sds.cfg"), "1e1") == 10.0
    assert parse(s.knob("prompt.view_dependent"), "False") is False
    assert parse(s.knob("prompt.text"), "42") == "42"
    with pytest.raises(ValueError, match=r"seed = 12345678901234567890123: must"):  # which a float would round
        parse(s.knob("seed"), "12345678901234567890123")
    with pytest.raises(ValueError, match=r"seed = inf: must"):
        parse(s.knob("seed"), "9" * 5000)
    with pytest.raises(ValueError, match="true or false"):
        parse(s.knob("prompt.view_dependent"), "maybe")


def test_frozen_dict():
    d = FrozenDict({"a": 1})
    assert d.replace("a", 2)["a"] == 2
    assert d["a"] == 1
    assert hash(d) == hash(FrozenDict({"a": 1}))
    assert pickle.loads(pickle.dumps(d)) == d
    with pytest.raises(TypeError):
        d["a"] = 3


def test_a_member_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    import sdlab.losses

    (tmp_path / "brokenloss.py").write_text("class X(Distillation): ...")
    monkeypatch.setattr(sdlab.losses, "__path__", [*sdlab.losses.__path__, str(tmp_path)])
    with pytest.raises(RuntimeError, match=r"sdlab/losses/brokenloss\.py cannot be imported: NameError"):
        settings.family(sdlab.losses, sdlab.losses.Distillation)


@pytest.mark.parametrize(
    "text", ["a." * 9000 + "a = 1", "[" + "a." * 9000 + "a]", "x = " + "[" * 9000, "x = " + "{a=" * 6000]
)
def test_settings_that_nest_deeply_are_refused_at_once(text: str):
    began = time.process_time()
    with pytest.raises(ValueError, match=r"^x\.toml(: tables are nested too deeply$| is not valid TOML: )"):
        from_toml(text, "x.toml")
    assert time.process_time() - began < 0.5
