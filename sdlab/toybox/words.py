"""Vocabulary and captions of the toybox.

`Facts` describes what an image shows; `write_caption` words it the way users, and the losses, write prompts:

    a red bear                                  a shiny spotted blue teapot, side view
    a bear wearing a blue hat                   a red mushroom on a green box, overhead view
    an oil painting of a green frog             rear view of a grey kitty
    a red bear, front view, oversaturated, smooth, pixelated        blurry, noisy

Each table lists the standard wording first, or as the key; the rest are synonyms, which are rarer. PLAIN_SHARE of the
captions use only standard wordings and add nothing beyond the facts: "a <colour> <object>[, <view word>]" for most
images. No word has two meanings. Everything a caption says is true of its image, apart from FILLERS and TAILS, but
not everything true is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

PLAIN_SHARE = 0.45
NAMELESS_SHARE = 0.01  # fraction of captions that do not name the object: "a red thing"
COLOURLESS_SHARE = 0.08  # fraction of captions that do not name the object's colour
ALONE_SHARE = 0.1  # fraction of corrupted images' captions that only name the flaws, as negative prompts do

OBJECTS: dict[str, tuple[str, ...]] = {
    "bear": ("teddy bear", "teddy"),
    "cat": ("kitten", "kitty"),
    "rabbit": ("bunny", "hare"),
    "dog": ("puppy", "doggy"),
    "pig": ("piglet", "piggy"),
    "elephant": (),
    "frog": ("toad",),
    "penguin": (),
    "owl": (),
    "duck": ("duckling",),
    "fish": (),
    "robot": ("android", "droid"),
    "person": ("human", "man", "woman"),  # a toy figure could be either
    "snowman": (),
    "car": ("automobile", "auto"),
    "bus": (),
    "train": ("locomotive", "steam train"),
    "airplane": ("plane", "aeroplane"),
    "boat": ("ship",),
    "rocket": ("spaceship", "space rocket"),
    "house": ("cottage", "home"),
    "castle": ("fortress",),
    "chair": (),
    "sofa": ("couch", "settee"),
    "mug": ("cup", "coffee cup"),
    "teapot": ("tea pot",),
    "clock": ("alarm clock",),
    "lamp": (),
    "pumpkin": ("jack-o-lantern",),
    "cactus": (),
    "mushroom": ("toadstool",),
    "tree": ("fir tree", "pine tree", "fir"),
}
COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("scarlet", "crimson"),
    "orange": (),
    "yellow": ("golden",),
    "green": ("emerald",),
    "blue": ("azure",),
    "purple": ("violet",),
    "pink": (),
    "brown": (),
    "white": (),
    "gray": ("grey", "silver"),
    "black": (),
    "turquoise": ("teal", "cyan"),
}
# "a tree" implies a green one, so captions of these objects may omit the colour only if it is listed here.
NATURAL: dict[str, tuple[str, ...]] = {
    "bear": ("brown", "black"),
    "cat": ("orange", "gray", "black"),
    "rabbit": ("white", "gray", "brown"),
    "dog": ("brown", "white", "black"),
    "pig": ("pink",),
    "elephant": ("gray",),
    "frog": ("green",),
    "penguin": ("black",),
    "owl": ("brown",),
    "duck": ("yellow", "white"),
    "fish": ("orange",),
    "castle": ("gray",),
    "pumpkin": ("orange",),
    "cactus": ("green",),
    "mushroom": ("red", "brown"),
    "tree": ("green",),
}
MATERIALS: dict[str, tuple[str, ...]] = {"shiny": ("glossy",), "matte": ("matt",)}
PATTERNS: dict[str, tuple[str, ...]] = {"striped": ("stripy",), "spotted": ("dotted", "polka dot")}
PATTERN_PHRASES = {"striped": ("with stripes",), "spotted": ("with spots", "with dots", "with polka dots")}

# {} is the second object: article, colour and one of the words in SECONDS.
RELATIONS: dict[str, tuple[str, ...]] = {
    "hat": ("wearing {}", "with {}", "in {}"),
    "scarf": ("wearing {}", "with {}", "in {}"),
    "box": ("on {}", "standing on {}", "sitting on {}", "on top of {}"),
    "ball": ("next to {}", "beside {}", "and {}", "with {}", "near {}"),
}
SECONDS: dict[str, tuple[str, ...]] = {"hat": (), "scarf": (), "box": ("cube", "block"), "ball": ("sphere",)}
# The same relations with the objects swapped: "a green box under a red bear".
REVERSED: dict[str, tuple[str, ...]] = {"box": ("under", "below"), "ball": ("next to", "beside", "and", "near")}

FRONT, SIDE, BACK, OVERHEAD = VIEW_WORDS = ("front view", "side view", "back view", "overhead view")
VIEW_NAMES: dict[str, tuple[str, ...]] = {  # may also come first: "rear view of a red bear"
    FRONT: ("frontal view", "view from the front"),
    SIDE: ("profile view", "view from the side"),
    BACK: ("rear view", "view from behind", "view from the back"),
    OVERHEAD: ("top view", "top-down view", "view from above"),
}
VIEW_PHRASES: dict[str, tuple[str, ...]] = {
    FRONT: ("from the front", "seen from the front", "facing the camera"),
    SIDE: ("from the side", "seen from the side", "in profile"),
    BACK: ("from behind", "seen from behind", "from the back", "seen from the back"),
    OVERHEAD: ("from above", "seen from above", "from the top"),
}

# The source prompt of SBP (arXiv 2406.09417, section 4.2) in its order; every word has training images that show it.
DESCRIPTORS: dict[str, tuple[str, ...]] = {
    "oversaturated": ("oversaturated colors", "oversaturated color"),
    "smooth": ("too smooth",),
    "pixelated": ("low resolution", "low-resolution"),
    "cartoon": ("cartoonish",),
    "foggy": ("misty", "in the fog"),
    "hazy": ("haze", "low contrast"),
    "blurry": ("blurred", "out of focus"),
    "bad structure": ("bad anatomy",),
    "noisy": ("grainy", "noise"),
    "malformed": ("deformed", "misshapen"),
}
NOUNS = frozenset({"bad structure"})  # not adjectives: "a blurry bear", but not "a bad structure bear"
FLAWED = ("low quality", "ugly", "bad quality", "worst quality")  # true of every corrupted image
QUALITIES = (
    "high quality",
    "detailed",
    "sharp",
    "highly detailed",
    "best quality",
    "high resolution",
    "detailed high resolution",
    "8k",
)
REALISMS = ("realistic", "photorealistic", "photo", "3d")  # used like QUALITIES, but not for paintings
PAINTING = "painting"
STYLES: dict[str, tuple[str, ...]] = {PAINTING: ("a painting of", "an oil painting of", "painting of")}
STYLE_MARKS: dict[str, tuple[str, ...]] = {PAINTING: ("painting", "oil painting")}
PREFIXES = (
    "a photo of",
    "a picture of",
    "an image of",
    "a dslr photo of",
    "a photograph of",
    "a 3d render of",
    "a 3d model of",
    "a rendering of",
)
ARTICLES = ("a", "an", "the")

# Words outside the vocabulary, so that <unk> is trained to mean "ignore this": a prompt such as "a fluffy red bear in
# the forest" must still work although the toybox does not know some of its words.
FILLERS = ("lovely", "fluffy", "funny", "cute", "little", "old")
THINGS = ("thing", "toy", "object")  # also outside the vocabulary, in place of the object's name
TAILS = ("in the forest", "in a garden", "at night", "looking happy", "with a guitar", "on the beach", "made of wood")

# The words shown to users, by group. Synonyms are understood but not listed.
GROUPS: dict[str, tuple[str, ...]] = {
    "objects": tuple(OBJECTS),
    "colours": tuple(COLOURS),
    "surfaces": tuple(MATERIALS),
    "patterns": tuple(PATTERNS),
    "second objects": ("wearing a blue hat", "wearing a blue scarf", "on a green box", "next to a red ball"),
    "views": VIEW_WORDS,
    "styles": ("a photo of", *STYLES[PAINTING][:2]),
    "descriptors": tuple(DESCRIPTORS),
    "qualities": QUALITIES[:3],
}


class Facts(NamedTuple):
    """What an image shows, in standard words; "" where a property is absent."""

    object: str
    colour: str
    material: str  # "", "shiny", "matte"
    pattern: str  # "", "striped", "spotted"
    second: str  # "", "hat", "scarf", "box", "ball"
    second_colour: str  # "" or a colour
    view: str  # "" or one of VIEW_WORDS
    style: str  # "" or "painting"
    corruptions: tuple[str, ...]  # descriptors, in the order in which they were applied


def vocabulary() -> list[str]:
    """Return every word that a caption can contain, in lower case, sorted; filler words are excluded on purpose."""
    tables = (OBJECTS, COLOURS, MATERIALS, PATTERNS, SECONDS, VIEW_NAMES, DESCRIPTORS)
    phrases = (PATTERN_PHRASES, RELATIONS, REVERSED, VIEW_PHRASES, STYLES, STYLE_MARKS)
    sources = [
        *(key for table in tables for key in table),
        *(wording for table in (*tables, *phrases) for wordings in table.values() for wording in wordings),
        *(*FLAWED, *QUALITIES, *REALISMS, *PREFIXES, *ARTICLES),
    ]
    return sorted({word for source in sources for word in re.findall(r"\w+", source)})


def word_list() -> dict[str, Any]:
    """Return the content of a saved model's words.json: `groups` to show to users, and all `names` of objects."""
    names = [name for word, synonyms in OBJECTS.items() for name in (word, *synonyms)]
    return {"groups": {group: list(words) for group, words in GROUPS.items()}, "names": names}


def one_of(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Draw one word, uniformly."""
    return words[int(rng.random() * len(words))]


class Pen:
    """Draws wordings; a plain pen uses standard wordings only."""

    def __init__(self, rng: np.random.Generator, plain: bool) -> None:
        self.rng = rng
        self.plain = plain

    def may(self, share: float) -> bool:
        """Return True with this probability; always False for a plain pen."""
        return not self.plain and self.rng.random() < share

    def word(self, standard: str, synonyms: Mapping[str, Sequence[str]], share: float) -> str:
        """Return the standard word or, with this probability, a synonym."""
        return one_of(self.rng, synonyms[standard]) if synonyms[standard] and self.may(share) else standard

    def noun(self, words: Sequence[str]) -> str:
        """Return the words with the correct article, or occasionally another one or none."""
        vowel = words[0][0] in "aeiou"
        article = "an" if vowel and self.rng.random() < 0.85 else "a"  # "a orange cat" is what prompt templates produce
        if self.may(0.25):
            article = "the" if self.rng.random() < 0.3 else ""
        return " ".join(w for w in (article, *words) if w)


def write_caption(rng: np.random.Generator, facts: Facts) -> str:
    """Write a caption for an image of `facts`: at most 75 words and commas, however many corruptions there are."""
    if facts.corruptions and rng.random() < ALONE_SHARE:
        return ", ".join(descriptors(Pen(rng, rng.random() < PLAIN_SHARE), facts))
    pen = Pen(rng, rng.random() < PLAIN_SHARE)
    adjective = ""
    if len(facts.corruptions) == 1 and not NOUNS.intersection(facts.corruptions) and pen.may(0.25):
        adjective = facts.corruptions[0]
    before, after = framing(pen, facts, adjective)
    subject = scene(pen, facts, "" if before else adjective)
    view, in_front = viewing(pen, facts.view, bare=not before)
    parts = [f"{view} {subject}" if in_front else f"{before} {subject}".strip()]
    if view and not in_front:
        if pen.may(0.4):
            parts[0] += f" {view}"
        else:
            parts.append(view)
    caption = ", ".join(marked(pen, parts, [*after, *([] if adjective else marks(pen, facts))]))
    if pen.may(0.04):
        caption = caption.replace(",", "")
    return f"{caption}." if pen.may(0.03) else caption


def scene(pen: Pen, facts: Facts, adjective: str) -> str:
    """Return the object, the second object and their relation, such as "a striped red bear on a green box"."""
    subject = main_object(pen, facts, adjective)
    if facts.second:
        words = [pen.word(facts.second, SECONDS, 0.2)]
        if facts.second_colour and not pen.may(0.1):
            words.insert(0, pen.word(facts.second_colour, COLOURS, 0.15))
        second = pen.noun(words)
        if facts.second in REVERSED and pen.may(0.12):
            subject = f"{second} {one_of(pen.rng, REVERSED[facts.second])} {subject}"
        else:
            standard, *others = RELATIONS[facts.second]
            subject += " " + (one_of(pen.rng, others) if pen.may(0.4) else standard).format(second)
    return f"{subject} {one_of(pen.rng, TAILS)}" if pen.may(0.06) else subject


def main_object(pen: Pen, facts: Facts, adjective: str) -> str:
    """Return the main object with its adjectives, such as "a shiny red bear with stripes"."""
    rng = pen.rng
    name = one_of(rng, THINGS) if rng.random() < NAMELESS_SHARE else pen.word(facts.object, OBJECTS, 0.22)
    colour = pen.word(facts.colour, COLOURS, 0.15) if names_colour(rng, facts) else ""
    material = pen.word(facts.material, MATERIALS, 0.2) if facts.material else ""
    pattern, phrase = "", ""
    if facts.pattern and pen.may(0.25):
        phrase = one_of(rng, PATTERN_PHRASES[facts.pattern])
    elif facts.pattern:
        pattern = pen.word(facts.pattern, PATTERNS, 0.3)
    surface = [colour, pattern] if pen.may(0.3) else [pattern, colour]
    late = colour if not facts.second and not phrase and pen.may(0.03) else ""  # "a bear, red"
    words = [adjective, material, *(w for w in surface if w != late), name]
    if pen.may(0.12):
        words.insert(0, one_of(rng, FILLERS))
        if pen.may(0.2):
            words.insert(0, one_of(rng, FILLERS))
    subject = pen.noun([w for w in words if w])
    if late:
        return f"{subject}, {late}"
    return f"{subject} {phrase}" if phrase else subject


def names_colour(rng: np.random.Generator, facts: Facts) -> bool:
    """Draw whether the caption names the object's colour: usually, and always where leaving it out would mislead."""
    if facts.second:  # its colour would otherwise be the only one in the caption
        return True
    natural = NATURAL.get(facts.object)
    if natural is None:
        return rng.random() >= COLOURLESS_SHARE
    if facts.colour not in natural:
        return True
    return rng.random() >= min(COLOURLESS_SHARE * len(COLOURS) / len(natural), 0.35)


def framing(pen: Pen, facts: Facts, adjective: str) -> tuple[str, list[str]]:
    """Return (a prefix such as "a painting of", style words to append); the prefix absorbs the adjective."""
    if facts.style:
        if pen.may(0.35):
            return "", [one_of(pen.rng, STYLE_MARKS[facts.style])]
        standard, *others = STYLES[facts.style]
        before = one_of(pen.rng, others) if pen.may(0.4) else standard
        return (f"{pen.noun([adjective, PAINTING])} of" if adjective else before), []
    if adjective:
        return (f"{pen.noun([adjective, 'picture'])} of" if pen.may(0.4) else ""), []
    if not pen.may(0.3):
        return "", []
    if not facts.corruptions and pen.may(0.2):
        return f"{pen.noun([one_of(pen.rng, QUALITIES[:4]), 'photo'])} of", []
    return one_of(pen.rng, PREFIXES[:4] if pen.may(0.6) else PREFIXES), []


def viewing(pen: Pen, view: str, bare: bool) -> tuple[str, bool]:
    """Return (words for the view, whether they come first: "rear view of"); first only if there is no other prefix."""
    if not view:
        return "", False
    in_front = bare and pen.may(0.15)
    if in_front or not pen.may(0.35):
        view = pen.word(view, VIEW_NAMES, 0.2)
    else:
        view = one_of(pen.rng, VIEW_PHRASES[view])
    if not in_front:
        return view, False
    return (f"{pen.noun([view])} of" if pen.may(0.3) else f"{view} of"), True


def marks(pen: Pen, facts: Facts) -> list[str]:
    """Return words about the image as a whole."""
    if facts.corruptions:
        return descriptors(pen, facts)
    if not pen.may(0.3):
        return []
    known = [*QUALITIES, *([] if facts.style else REALISMS)]
    count = 1 + int(pen.rng.random() * 3)
    # half of the time one of the three common ones, otherwise any
    chosen = [one_of(pen.rng, QUALITIES[:3] if pen.may(0.5) else known) for _ in range(count)]
    return list(dict.fromkeys(chosen))


def descriptors(pen: Pen, facts: Facts) -> list[str]:
    """Return the words for the corruptions, occasionally with a general one such as "low quality"."""
    words = [pen.word(c, DESCRIPTORS, 0.25) for c in facts.corruptions]
    if pen.may(0.2):
        words.insert(int(pen.rng.random() * (len(words) + 1)), one_of(pen.rng, FLAWED))
    return words


def marked(pen: Pen, parts: list[str], added: list[str]) -> list[str]:
    """Insert marks into the caption parts (scene, view): at the end, before the view, or in front of everything."""
    where = pen.rng.random()
    if where < 0.55:
        return [*parts, *added]
    if where < 0.8 or pen.plain:
        return [parts[0], *added, *parts[1:]]
    return [*added, *parts]
