"""A page of a lesson as HTML, and the menu of lessons. Texts are escaped; of Markdown, a small subset is shown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from sdlab.lessons import Lesson, Walk
from sdlab.lessons.lesson import PLACES, Ask, Page
from sdlab.lessons.readings import COMPARED, meaning_of
from sdlab.ui.form import TITLES
from sdlab.ui.formulas import formula
from sdlab.ui.links import PARTS
from sdlab.ui.wording import label_of, number, sentence

PLACE_NAMES = {**{name: PARTS.get(name, name) for name in PLACES}, "view": "View", "status": "Status", "own": "My loss"}


def menu(lessons: Sequence[Lesson]) -> str:
    """Return a button for each lesson."""
    rows = "".join(
        f'<li><button type="button" data-lesson="{html.escape(each.name)}">'
        f"<b>{each.number}. {html.escape(each.title)}</b>"
        f"<span>{each.minutes:g} min, {len(each.pages)} pages</span><i>{inline(each.summary)}</i></button></li>"
        for each in lessons
    )
    return f"<ol>{rows}</ol>" if rows else '<p class="none">This server has no lessons.</p>'


# ---- Markdown ----------------------------------------------------------------------------------------------


def inline(text: str) -> str:
    """Return a line of Markdown as escaped HTML: *em*, **strong**, `code`."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(f"<code>{html.escape(part)}</code>" if i % 2 else _stressed(part) for i, part in enumerate(parts))


def _stressed(text: str) -> str:
    shown = re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"<strong>\1</strong>", html.escape(text))
    return re.sub(r"(?<!\w)\*(\S(?:.*?\S)?)\*(?!\w)", r"<em>\1</em>", shown)


def prose(text: str) -> str:
    """Return paragraphs and lists, whose items begin with "- ", as escaped HTML."""
    return "".join(_block(block.splitlines()) for block in re.split(r"\n\s*\n", text.strip()) if block.strip())


def _block(lines: Sequence[str]) -> str:
    """Return a paragraph, followed by a list if there is one."""
    start = next((i for i, line in enumerate(lines) if line.lstrip().startswith("- ")), len(lines))
    items: list[str] = []
    for line in lines[start:]:
        if line.lstrip().startswith("- "):
            items.append(line.lstrip()[2:].strip())
        else:
            items[-1] += f" {line.strip()}"
    said = f"<p>{inline(' '.join(line.strip() for line in lines[:start]))}</p>" if start else ""
    return said + (f"<ul>{''.join(f'<li>{inline(item)}</li>' for item in items)}</ul>" if items else "")


# ---- a page ------------------------------------------------------------------------------------------------


def page_key(walk: Walk | None) -> tuple[str, int] | None:
    """Return what `lesson_page` depends on."""
    return None if walk is None else (walk.lesson.name, walk.page)


def lesson_page(walk: Walk | None) -> dict[str, Any] | None:
    """Return the page of a lesson that is shown, with what it points at; None without a lesson."""
    if walk is None:
        return None
    page, lesson = walk.shown, walk.lesson
    return {
        "name": lesson.name,
        "page": walk.page,
        "pages": len(lesson.pages),
        "where": f"{lesson.number}. {lesson.title}",
        "html": _page(page),
        "points": list(page.highlight),
    }


def _page(page: Page) -> str:
    parts = [f'<h2 tabindex="-1">{inline(page.title)}</h2>', prose(page.text)]
    if page.formula:
        parts.append(
            f'<figure><p class="formula">{formula(page.formula)}</p><figcaption>{html.escape(page.source)}</figcaption>'
            "</figure>"
        )
    if page.highlight:
        links = "".join(
            f'<button type="button" data-point="{html.escape(name)}">{html.escape(_place(name))}</button>'
            for name in page.highlight
        )
        parts.append(f'<p class="points"><span>Outlined:</span> {links}</p>')
    parts += [_ask(page.ask)] if page.ask is not None else []
    after = f"<p class='look'><b>Look for:</b> {inline(page.look)}</p>" if page.look else ""
    if page.wait is not None:
        after += (
            '<div class="waits" hidden><p class="promise"></p><p class="meaning"></p>'
            '<div class="bar" aria-hidden="true"><i></i><b></b></div><p class="now"></p></div>'
        )
    if page.answer:
        after += f'<details class="answer"><summary>Why?</summary>{prose(page.answer)}</details>'
    return "".join(parts) + f'<div class="after">{after}</div>'


def _ask(ask: Ask) -> str:
    choices = "".join(
        f'<button type="button" data-choice="{i}" aria-pressed="false">{inline(choice)}</button>'
        for i, choice in enumerate(ask.choices)
    )
    return (
        f'<div class="ask" role="group" aria-label="Your prediction"><p class="question">{inline(ask.question)}</p>'
        f'<div class="choices">{choices}</div><button type="button" data-choice="-1">Skip, and show it</button>'
        '<p class="verdict" role="status"></p></div>'
    )


def _place(name: str) -> str:
    """Return what the page calls a part, a group or a knob."""
    if name in PLACE_NAMES:
        return PLACE_NAMES[name]
    if name == "active":
        return PARTS["losses"]
    if name.startswith("losses.") and name.count(".") == 1:
        return PARTS["knobs"]
    return label_of(name) if "." in name or name in ("seed", "steps") else TITLES.get(name, name.capitalize())


def walk_told(walk: Walk | None) -> dict[str, Any] | None:
    """Return what changes while a page of a lesson is shown: the question's answer, and what it waits for."""
    if walk is None:
        return None
    told, ask = walk.told(), walk.shown.ask
    told["because"] = "" if ask is None or walk.asks else _verdict(ask, walk.choice)
    wait = told["wait"]
    if wait is not None:
        is_clear = wait["reading"].startswith(COMPARED)  # what it waits for says all there is to say
        told["wait"] = {**wait, "meaning": "" if is_clear else meaning_of(wait["reading"]), **_said(wait)}
    return told


def _verdict(ask: Ask, choice: int | None) -> str:
    word = "Right" if choice == ask.answer else f"It is “{html.escape(ask.choices[ask.answer])}”"
    return f"<b>{word}</b>: {inline(ask.because)}"


def _said(wait: dict[str, Any]) -> dict[str, str]:
    """Return what a predicate waits for, and how far it is."""
    now = f"now {number(wait['value'])}" if wait["value"] is not None else "no reading yet"
    goal = _goal(wait["low"], wait["high"])
    of = f" of {wait['steps']}" if wait["steps"] and not wait["reading"] else ""
    steps = f"{wait['taken']}{of} steps on this page"
    if wait["reached"]:
        value = f": it is {number(wait['value'])}" if wait["value"] is not None else ""
        return {"said": f"Reached at step {wait['step']}{value}."}
    if wait["lacks"]:
        return {"said": "This compares with an earlier page: go through that one first."}
    if wait["missed"]:
        return {"said": f"Not reached after {steps} ({now}{goal}). Press Again, or go on."}
    return {"said": sentence(f"{now}{goal}; {steps}.") if wait["reading"] else f"{steps}."}


def _goal(low: float | None, high: float | None) -> str:
    """Return between which bounds a reading must be."""
    if low is not None and high is not None:
        return f", must be between {number(low)} and {number(high)}"
    if low is not None:
        return f", must be at least {number(low)}"
    return f", must be at most {number(high)}" if high is not None else ""
