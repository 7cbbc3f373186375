"""Table 3.1 of the SBP thesis (McAllister 2024, UCB/EECS-2024-177) at the scale of the toybox.

Every method distils one image per caption in the prior's own space, from the same start, with the same timesteps, noise
and number of steps. DDIM sampling is included for comparison. The images of a method are compared with real images of
the same captions and with DDIM samples, by distances between the judge's features.

- Captions are pairs of a colour and an object that the prior knows, such as "a red bear". The thesis uses 5000 captions
  of COCO. FID over so few images only allows comparisons between rows; the row `true`, with other real images of the
  captions, shows its value for equal distributions. KID has no such bias.
- A batch holds up to BATCH captions, each with its own text. A loss that trains psi has one psi per batch, conditioned
  on each image's text; in the thesis, every image has its own LoRA.
- Rows named LOSS@PROTOCOL have the settings of a protocol, such as `sds@thesis`: the thesis' guidance scales, SDS 100,
  NFSD and VSD 7.5, SBP 40 in its first stage, and CSD's ramp in its direction. Rows without one have the preset's,
  which suit the toybox: SDS 7.5, CSD with its paper's constants. `sbp@thesis:form=full` is the full bridge of
  section 4.1.
- Every row is journalled by seed: an interrupted table continues where it ended.
- Seconds cover steps and warm-up, divided by the images of the batch, without loading and compiling. Evaluations are
  network evaluations per image; one training pass of psi counts as one.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from sdlab.auxiliary.score import TrainsScore
from sdlab.experiments.journal import Journal, key_of
from sdlab.experiments.objects import Runner, save_small, write_json
from sdlab.experiments.protocols import DDIM, Method
from sdlab.live.session import Session
from sdlab.metrics.distances import fid, kid
from sdlab.metrics.images import saturation
from sdlab.pictures import to_uint8
from sdlab.progress import progress_bar
from sdlab.prompts import PromptBank, PromptSettings, views_of, wording
from sdlab.rng import StepRng
from sdlab.settings import Settings
from sdlab.step import BUILD_STEP, needs_warm_up, step, warm_up
from sdlab.toybox import judge, pictures
from sdlab.toybox.figures import caption_of, plain_facts
from sdlab.toybox.objects import OBJECTS
from sdlab.toybox.sample import denoised
from sdlab.toybox.words import Facts
from sdlab.types import Cameras, Cond, Prior, cat_conds

STEPS = 60  # the whole table then takes about 40 minutes on two idle cores with a network of 64 pixels
TRUE = "true"  # the row of real images
BATCH = 16  # captions per batch
SCALE, SAMPLING_STEPS = 4.0, 30  # of DDIM: the guidance scale on the prior's model card (thesis: 20 steps)
LESSON = 10  # cost of one training pass of psi (forward and backward) in evaluations, to estimate the time left
SHOWN = 8  # captions on the contact sheet
CELL = 72  # pixels per side of an image on it
BATCH_SEEDS = 1000  # distance between the seeds of two rounds, since each batch of a round has its own seed


class Size(NamedTuple):
    """How much is measured. The references are `true_each` real and `ddim_each` DDIM images per caption."""

    captions: int = 64
    seeds: int = 2
    true_each: int = 8
    ddim_each: int = 4


QUICK = Size(captions=8, seeds=1, true_each=4, ddim_each=1)
QUICK_STEPS = 40


# ---- captions ----------------------------------------------------------------------------------------------------


def captions_for(prior: Prior, count: int) -> list[Facts]:
    """Return `count` different pairs of an object and a colour that the prior knows, alternating both.

    Raises ValueError if it knows fewer.
    """
    known = {
        (name, colour)
        for name in OBJECTS
        for colour in pictures.COLOURS
        if not prior.remark(caption_of(plain_facts(name, colour)))
    }
    names = [name for name in OBJECTS if any((name, colour) in known for colour in pictures.COLOURS)]
    colours = [colour for colour in pictures.COLOURS if any((name, colour) in known for name in OBJECTS)]
    # along diagonals, so that a few captions cover as many colours as objects
    pairs = [(name, colours[(k + i) % len(colours)]) for k in range(len(colours)) for i, name in enumerate(names)]
    pairs = [pair for pair in pairs if pair in known]
    if len(pairs) < count:
        raise ValueError(
            f"--captions {count}: the prior {prior.name} knows only {len(pairs)} pairs of an object and a colour"
        )
    return [plain_facts(*pair) for pair in pairs[:count]]


class CaptionBank(PromptBank):
    """Conditions each image on its own text instead of `prompt.text`."""

    def __init__(self, prior: Prior, texts: Sequence[str]) -> None:
        super().__init__(prior)
        self._texts = tuple(texts)

    def bind(
        self, s: PromptSettings, roles: tuple[str, ...], cams: Cameras, reference: PromptSettings | None = None
    ) -> dict[str, Cond]:
        """Return role -> conditioning of the images, one per camera."""
        views = views_of(s, cams)
        each = [dataclasses.replace(s, text=text) for text in self._texts]
        return {
            role: cat_conds([self._embed(wording(own, role, view)) for own, view in zip(each, views, strict=True)])
            for role in roles
        }


def batches(count: int) -> list[slice]:
    """Split `count` into the fewest parts of at most BATCH, nearly equal since engines compile for a batch size."""
    parts = -(-count // BATCH)
    ends = [round(count * k / parts) for k in range(parts + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]


# ---- images ------------------------------------------------------------------------------------------------------


class Made(NamedTuple):
    """The images [n, 3, S, S] in [0, 1] of one method and seed, with seconds and evaluations per image."""

    rgb: Tensor
    seconds: float | None = None
    evaluations: int | None = None
    skipped: int = 0  # steps with a non-finite gradient


class Interrupted(Exception):
    """Ctrl-C: the images in progress are dropped."""


def real_images(facts: Sequence[Facts], each: int, size: int, first: int = 0) -> Tensor:
    """Render `each` real images of all `facts` from the judge's series, [n, 3, size, size] in [0, 1].

    The first `first` images of each are skipped.
    """
    begin = judge.HELD_OUT + first * len(facts)
    shots = [judge.shot_of(begin + i, f) for i, f in enumerate(list(facts) * each)]
    return torch.from_numpy(np.concatenate(list(pictures.render_parts(shots, size)))).permute(0, 3, 1, 2)


class Studio:
    """Makes images of `facts`; `bar` counts evaluations, a training pass of psi by its cost."""

    def __init__(self, runner: Runner, facts: Sequence[Facts], bar: tqdm | None = None) -> None:
        self.runner = runner
        self.facts = facts
        self.texts = [caption_of(f) for f in facts]
        self._bar = bar
        self._begun = 0  # evaluations of the work in progress

    def sampled(self, each: int) -> Tensor:
        """Draw `each` DDIM samples of every caption, each from its own noise."""
        found = []
        for k in range(each):
            for number, part in enumerate(batches(len(self.texts))):
                shape = (part.stop - part.start, *self.runner.prior.shape)
                noise = torch.randn(shape, generator=StepRng(k, number)("reference"))
                found.append(self._ddim(self.texts[part], noise.to(self.runner.device)))
        return torch.cat(found)

    def make(self, method: Method, seed: int) -> Made:
        """Make one image of each caption. Raises Interrupted once the runner is told to stop."""
        found, seconds, evaluations, skipped = [], 0.0, 0, 0
        for number, part in enumerate(batches(len(self.texts))):
            texts = self.texts[part]
            s = method.settings.patch_all([("scene.n", len(texts)), ("seed", seed * BATCH_SEEDS + number)])
            if method.label == DDIM:
                scene = s.scene.build(StepRng(s.seed_of_start, BUILD_STEP), self.runner.device, self.runner.prior, "")
                started = time.perf_counter()
                found.append(self._ddim(texts, scene.params["latents"].detach()))
                seconds += time.perf_counter() - started
                evaluations = 2 * SAMPLING_STEPS
                continue
            session = self.runner.session(s)
            evaluations = self._distil(session, CaptionBank(self.runner.prior, texts))
            found.append(self.runner.prior.decode(session.state.scene.params["latents"].detach()).cpu())
            seconds += session.state.seconds
            skipped += session.state.skipped
        return Made(torch.cat(found), seconds / len(self.texts), evaluations, skipped)

    def _distil(self, session: Session, bank: PromptBank) -> int:
        """Take the session's planned steps; return the evaluations per image."""
        state, s, prior = session.state, session.effective, session.prior
        evaluations = 0
        while state.step < s.steps:
            self._count(len(state.scene.params["latents"]) * _weight(s))
            if needs_warm_up(state, s):
                evaluations += warm_up(state, s, prior, bank)
            else:
                evaluations += step(state, s, prior, bank).nfe
        return evaluations

    def _ddim(self, texts: Sequence[str], noise: Tensor) -> Tensor:
        self._count(2 * SAMPLING_STEPS * len(texts))
        prior = self.runner.prior
        prior.prepare([2 * len(texts)])  # only the first references have to be compiled
        white = prior.encode(torch.ones(1, 3, prior.image_size, prior.image_size, device=noise.device))
        cond = cat_conds([prior.embed(text) for text in [*[""] * len(texts), *texts]])
        return prior.decode(denoised(prior, white, noise, cond, SCALE, SAMPLING_STEPS)).cpu()

    def _count(self, evaluations: int) -> None:
        if self.runner.stop.is_set():
            raise Interrupted
        if self._bar is not None:
            self._bar.update(self._begun)
        self._begun = evaluations


def _weight(s: Settings) -> int:
    """Return the evaluations of one step per image, including the cost of training psi."""
    psi = 1 + LESSON * s.loss.lessons if isinstance(s.loss, TrainsScore) else 0
    return sum(s.loss.calls()) + psi


def total_evaluations(size: Size, todo: Sequence[Method]) -> int:
    """Return the evaluations of the references and of `todo`, which holds a method once for each seed."""
    sampling = 2 * SAMPLING_STEPS
    rows = [
        sampling if m.label == DDIM else _weight(m.settings) * (m.settings.steps + m.settings.loss.warm_up_steps())
        for m in todo
    ]
    return size.captions * (sum(rows) + size.ddim_each * sampling)


# ---- the table ---------------------------------------------------------------------------------------------------


class References(NamedTuple):
    """Features [m, d] of the reference images, by name."""

    features: dict[str, Tensor]
    read: Callable[[Tensor], Tensor]  # images -> features


def references(studio: Studio, size: Size) -> References:
    classifier = judge.load()

    def read(rgb: Tensor) -> Tensor:
        return judge.features(classifier, rgb)

    true = real_images(studio.facts, size.true_each, studio.runner.prior.image_size)
    return References({TRUE: read(true), DDIM: read(studio.sampled(size.ddim_each))}, read)


def scores_of(made: Made, studio: Studio, against: References) -> dict[str, float]:
    """Return the scores of one method and seed."""
    found = against.read(made.rgb)
    scores = {}
    for name, features in against.features.items():
        scores |= {f"fid_{name}": fid(found, features), f"kid_{name}": kid(found, features)}
    read = studio.runner.read(to_uint8(made.rgb))
    pairs = list(zip(read, studio.facts, strict=True))
    scores["saturation"] = float(saturation(made.rgb).mean())
    scores["object"] = sum(seen.object == wanted.object for seen, wanted in pairs) / len(pairs)
    scores["colour"] = sum(seen.colour == wanted.colour for seen, wanted in pairs) / len(pairs)
    if made.seconds is not None:
        scores["seconds"] = made.seconds
    return scores


class Row:
    """One row of the table, seed by seed."""

    def __init__(self, label: str, title: str) -> None:
        self.label = label
        self.title = title
        self.made: list[Made] = []
        self.scores: list[dict[str, float]] = []
        self.note = ""

    def add(self, made: Made, scores: dict[str, float]) -> None:
        self.made.append(made)
        self.scores.append(scores)

    def to_json(self) -> dict[str, Any]:
        """Return every score as its mean, standard deviation over the seeds (None for one seed) and values per seed."""
        found: dict[str, Any] = {"method": self.label, "title": self.title, "seeds": len(self.scores)}
        for name in self.scores[0] if self.scores else ():
            each = [scores[name] for scores in self.scores]
            std = statistics.stdev(each) if len(each) > 1 else None
            found[name] = {"mean": statistics.mean(each), "std": std, "each": each}
        if self.made:
            found["evaluations"] = self.made[0].evaluations
            found["skipped"] = sum(made.skipped for made in self.made)
        return {**found, "note": self.note}


def run_table(runner: Runner, wanted: Sequence[Method], size: Size, out: Path) -> dict[str, Any]:
    """Make and measure everything, print the table, and return what the JSON file contains.

    Writes table31.json and table31.png to the folder `out`; results so far are written even if it is interrupted or
    fails. Raises ValueError for a single caption, and for more captions than the prior knows.
    """
    if size.captions < 2:
        raise ValueError(f"--captions {size.captions}: FID and KID need at least 2")
    facts = captions_for(runner.prior, size.captions)
    journal = Journal(out)

    def key(method: Method, seed: int) -> str:
        return key_of(method.settings, "table31", method.label, seed, size, runner.prior.name)

    rows = [Row(TRUE, "real images"), *(Row(m.label, _title(m)) for m in wanted)]
    todo = [m for seed in range(size.seeds) for m in wanted if not journal.finished(key(m, seed))]
    planned = len(wanted) * size.seeds
    if len(todo) < planned:
        print(f"{planned - len(todo)} of {planned} results are in {journal.path}")
    bar = progress_bar(total_evaluations(size, todo), "evaluation", smoothing=0)
    studio = Studio(runner, facts, bar)
    dimension = 0

    def save() -> list[Row]:
        """Write what is finished; return these rows."""
        finished = [row for row in rows if row.scores or row.note]
        if finished:
            summary = _summary(studio, wanted, size, dimension)
            write_json(out / "table31.json", runner, summary, [row.to_json() for row in finished])
            save_sheet([row for row in finished if row.made], studio.texts, out / "table31.png")
        return finished

    try:
        bar.set_description_str("references")
        against = references(studio, size)
        dimension = against.features[TRUE].shape[1]
        for seed in range(size.seeds):
            made = Made(real_images(studio.facts, 1, runner.prior.image_size, size.true_each + seed))
            rows[0].add(made, scores_of(made, studio, against))
        for seed in range(size.seeds):
            for method, row in zip(wanted, rows[1:], strict=True):
                at = key(method, seed)
                if journal.finished(at):
                    row.add(*_recalled(journal, at))
                    continue
                bar.set_description_str(f"seed {seed}, {method.label}")
                try:
                    made = studio.make(method, seed)
                    scores = scores_of(made, studio, against)
                except (RuntimeError, ValueError) as e:
                    row.note = f"seed {seed} failed: {type(e).__name__}: {e}"
                else:
                    row.add(made, scores)
                    _remember(journal, at, made, scores)
                save()  # a run of 40 minutes may be killed without a chance to write
    except Interrupted:
        pass
    finally:
        bar.close()
        finished = save()
    result = _summary(studio, wanted, size, dimension) | {"rows": [row.to_json() for row in finished]}
    _print(result)
    print(f"results in {out}" if finished else "nothing written")
    return result


def _remember(journal: Journal, key: str, made: Made, scores: dict[str, float]) -> None:
    """Journal the scores of a row and seed, and the images of it that the sheet shows."""
    numbers = {"seconds": made.seconds, "evaluations": made.evaluations, "skipped": made.skipped, "scores": scores}
    journal.add(key, numbers, np.concatenate(list(to_uint8(made.rgb[:SHOWN])), 1))


def _recalled(journal: Journal, key: str) -> tuple[Made, dict[str, float]]:
    found, strip = journal.get(key), journal.strip(key)
    assert found is not None
    assert strip is not None
    size = len(strip)
    rgb = torch.from_numpy(strip.copy()).unfold(1, size, size).permute(1, 2, 0, 3) / 255
    return Made(rgb, found["seconds"], found["evaluations"], found["skipped"]), found["scores"]


def _title(method: Method) -> str:
    if method.label == DDIM:
        return f"DDIM, {SAMPLING_STEPS} steps"
    return " ".join([method.settings.loss.title, *method.label.split(":")[1:]])


def _summary(studio: Studio, wanted: Sequence[Method], size: Size, dimension: int) -> dict[str, Any]:
    first = wanted[0].settings
    return {
        "captions": studio.texts,
        "steps": first.steps,
        "batch": max(part.stop - part.start for part in batches(size.captions)),
        "planned_seeds": size.seeds,
        "features": dimension,
        "references": {TRUE: size.true_each * size.captions, DDIM: size.ddim_each * size.captions},
        "ddim": {"steps": SAMPLING_STEPS, "cfg": SCALE},
        "changes": {m.label: dict(studio.runner.settings.differences(m.settings)) for m in wanted if m.label != DDIM},
    }


class Column(NamedTuple):
    title: str
    scale: float
    form: str  # format of the number


COLUMNS = {
    "fid_true": Column("FID true", 1.0, ".3f"),
    "kid_true": Column("KID true", 1e3, ".1f"),
    "fid_ddim": Column("FID DDIM", 1.0, ".3f"),
    "kid_ddim": Column("KID DDIM", 1e3, ".1f"),
    "object": Column("object", 1e2, ".0f"),
    "colour": Column("colour", 1e2, ".0f"),
    "saturation": Column("saturation", 1.0, ".3f"),
    "seconds": Column("s/image", 1.0, ".2f"),
}
WIDTH = 16  # characters of a column


def _print(result: dict[str, Any]) -> None:
    """Print the table, with KID in thousandths and the judge's votes in percent."""
    texts, of = result["captions"], result["references"]
    print(f"{len(texts)} captions, {result['steps']} steps; {of[TRUE]} real images, {of[DDIM]} DDIM samples")
    print(f"{'':16}" + "".join(f"{column.title:>{WIDTH}}" for column in COLUMNS.values()) + f"{'evaluations':>13}")
    for row in result["rows"]:
        cells = "".join(f"{_cell(row.get(name), column):>{WIDTH}}" for name, column in COLUMNS.items())
        evaluations = row.get("evaluations")
        print(f"{row['method']:16}{cells}{evaluations if evaluations else '-':>13}  {row['note']}".rstrip())
    print(
        f"KID x 1000, unbiased. FID of {len(texts)} images with {result['features']} features is biased upwards; "
        f"row {TRUE!r} is its floor. ± over seeds."
    )


def _cell(found: dict[str, Any] | None, column: Column) -> str:
    if found is None:
        return "-"
    values = [column.scale * found[name] for name in ("mean", "std") if found[name] is not None]
    return " ± ".join(f"{value:{column.form}}" for value in values)


def save_sheet(rows: Sequence[Row], texts: Sequence[str], path: Path) -> None:
    """Write the images of the first seed, methods by captions, in a PNG limited by `save_small`."""
    left, top = 120, 34
    shown = min(SHOWN, len(texts))
    sheet = Image.new("RGB", (left + shown * (CELL + 4), top + len(rows) * (CELL + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(size=13), ImageFont.load_default(size=10)
    for column, text in enumerate(texts[:shown]):
        _, colour, name = text.split(maxsplit=2)
        pen.multiline_text((left + column * (CELL + 4), 4), f"{colour}\n{name}", fill=(70, 70, 78), font=small)
    for number, row in enumerate(rows):
        y = top + number * (CELL + 4)
        label = row.label.replace(":", "\n")
        pen.multiline_text((6, y + CELL // 2 - 8), label, fill=(40, 40, 48), font=font)
        for column, image in enumerate(to_uint8(row.made[0].rgb[:shown])):
            cell = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(cell, (left + column * (CELL + 4), y))
    save_small(sheet, path)
