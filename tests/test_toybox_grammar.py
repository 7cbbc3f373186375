"""What prompts say in the toybox's words."""

import numpy as np
import pytest

from sdlab.prompts import DESCRIPTORS, NEGATIVE, QUALITY
from sdlab.toybox import pictures, words
from sdlab.toybox.grammar import Reading, read
from sdlab.toybox.objects import OBJECTS, seconds_of


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", {}),
        ("a red bear", {"object": "bear", "colour": "red"}),
        ("A RED Bear!", {"object": "bear", "colour": "red"}),
        ("two red teddy bears", {"object": "bear", "colour": "red", "unknown": ("two",)}),
        (
            "a shiny spotted blue teapot, side view",
            {"object": "teapot", "colour": "blue", "material": "shiny", "pattern": "spotted", "view": "side view"},
        ),
        ("a bear wearing a blue hat", {"object": "bear", "second": "hat", "second_colour": "blue"}),
        (
            "a green box under a red bear",
            {"object": "bear", "colour": "red", "second": "box", "second_colour": "green"},
        ),
        ("an oil painting of a green frog", {"object": "frog", "colour": "green", "style": "painting"}),
        ("rear view of a grey kitty", {"object": "cat", "colour": "gray", "view": "back view"}),
        ("a bear, red", {"object": "bear", "colour": "red"}),
        ("a bear in the fog", {"object": "bear", "corruptions": ("foggy",)}),
        ("blurry, noisy", {"corruptions": ("blurry", "noisy")}),
        ("low-resolution bear", {"object": "bear", "corruptions": ("pixelated",)}),
        ("ugly", {"flawed": True}),
        (f"a red bear, {QUALITY}", {"object": "bear", "colour": "red", "good": True}),
        (f"a red bear, {DESCRIPTORS}", {"object": "bear", "colour": "red", "corruptions": tuple(words.DESCRIPTORS)}),
        (
            NEGATIVE,
            {
                "corruptions": ("blurry", "hazy", "pixelated"),
                "flawed": True,
                "unknown": ("unrealistic", "dull", "dark", "gloomy"),
            },
        ),
    ],
)
def test_a_prompt_is_read_in_standard_words(text, says):
    assert read(text) == Reading(**says)


@pytest.mark.parametrize(
    ("text", "kept", "reason"),
    [
        ("a bear and a cat", Reading(object="bear"), "'cat', because there is room for one object"),
        ("a red and blue bear", Reading(object="bear", colour="blue"), "'red', because one noun has one colour"),
        ("a car wearing a hat", Reading(object="car"), "'hat', because the car can only have box or ball"),
        ("a bear, front view, back view", Reading(object="bear", view="front view"), "'front view' is said already"),
        ("a painting of a blurry bear", Reading(object="bear", style="painting"), "paintings have no such flaws"),
        ("a red bear, blue", Reading(object="bear", colour="red"), "'blue', because the object is red already"),
    ],
)
def test_what_cannot_be_shown_is_said_with_its_reason(text, kept, reason):
    said = read(text)
    assert said._replace(ignored=()) == kept
    assert len(said.ignored) == 1
    assert reason in said.ignored[0]


def test_every_caption_of_the_data_is_read_as_its_image():
    """Captions leave out colours, and of corrupted images sometimes everything but the flaws; what they say is read."""
    full = 0
    for i in range(600):
        shot = pictures.describe(11, i)
        said, facts = read(shot.caption), shot.facts
        if not said.object:  # "a red thing", or the flaws alone
            continue
        full += 1
        assert said.object == facts.object, shot.caption
        assert said.colour in ("", facts.colour), shot.caption
        assert (said.material, said.pattern, said.style) == (facts.material, facts.pattern, facts.style), shot.caption
        assert said.second == facts.second, shot.caption
        assert said.second_colour in ("", facts.second_colour), shot.caption
        assert said.view == facts.view, shot.caption
        assert set(said.corruptions) == set(facts.corruptions), shot.caption
        assert not said.ignored, shot.caption
    assert full > 500


def test_every_object_has_every_second_object_that_it_can_have():
    for name in OBJECTS:
        for second in seconds_of(name):
            said = read(f"a red {name} with a blue {second}")
            assert (said.object, said.colour, said.second, said.second_colour) == (name, "red", second, "blue")


def test_nonsense_is_read_as_nothing():
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(chr(int(c)) for c in rng.integers(1, 0x2FFF, int(rng.integers(1, 60))))
        said = read(text)
        assert said.object == ""
    assert read("a" * 300).unknown == ("a" * 300,)
