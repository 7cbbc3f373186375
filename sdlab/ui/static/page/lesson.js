// @ts-check
// The lesson that is open: its page, the question before an effect, what the page waits for, and the parts it outlines.

import { openMenu } from "./lessons.js";
import { act, part } from "./news.js";

/** @typedef {{ name: string, page: number, pages: number, where: string, html: string, points: string[] }} Shown */
/** @typedef {{ said: string, reading: string, promise: string, meaning: string, value: number | null, low: number | null, high: number | null, reached: boolean, missed: boolean }} Wait */
/** @typedef {{ page: number, asks: boolean, choice: number | null, right: number | null, because: string, wait: Wait | null }} Walked */

/** @type {Record<string, string>} what lessons call parts of the page; all other names are groups and knobs */
const PLACES = {
  view: "#stage", status: "#status", timeline: "#timeline", prompt: "#prompt", buttons: "#run-buttons",
  losses: "#form .losses", formula: "#form .loss", knobs: '#form section[data-owner^="losses."]', preset: "#form .preset",
  settings: "#form .groups", branch: '[data-do="branch"]', link: "[data-share]",
  lens: '#tabs [data-tab="lens"]', charts: '#tabs [data-tab="charts"]', compare: '#tabs [data-tab="versus"]',
  results: '#tabs [data-tab="results"]', own: '#tabs [data-tab="own"]',
};
const TABS = ["lens", "charts", "compare", "results", "own"];
const LATER = 1500; // ms after which parts that an act has made are there

/** The nodes of a part, a group or a knob. @param {string} name */
function nodesOf(name) {
  const path = CSS.escape(name);
  const found = PLACES[name] ?? `#form [data-path="${path}"], #form [data-group="${path}"], #form section[data-owner="${path}"]`;
  return /** @type {HTMLElement[]} */ ([...document.querySelectorAll(found)]);
}

/** Outline parts of the page. @param {string[]} names */
function outline(names) {
  const wanted = new Set(names.flatMap(nodesOf));
  for (const node of document.querySelectorAll(".pointed")) if (!wanted.has(/** @type {HTMLElement} */ (node))) node.classList.remove("pointed");
  for (const node of wanted) node.classList.add("pointed");
  for (const node of document.querySelectorAll("[data-point]")) { // such as to an editor that this server has not
    const button = /** @type {HTMLElement} */ (node);
    button.hidden = !nodesOf(button.dataset.point ?? "").length;
  }
}

/** Open what hides a part, and scroll to it. @param {string} name */
function goTo(name) {
  if (TABS.includes(name)) nodesOf(name)[0]?.click();
  for (const node of nodesOf(name)) {
    const fold = node.closest("details");
    if (fold && !node.closest("[hidden]")) fold.open = true;
  }
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const node = nodesOf(name).find((each) => each.checkVisibility());
  node?.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
}

/** @param {HTMLElement} element */
export function mount(element) {
  /** @template {HTMLElement} T @param {string} selector */
  const find = (selector) => /** @type {T} */ (element.querySelector(selector));
  /** @type {HTMLElement} */
  const section = find(".lesson"), where = find(".where"), body = find(".page"), said = find("[role=status]");
  /** @type {HTMLButtonElement} */
  const back = find("[data-back]"), next = find("[data-next]"), again = find("[data-again]"), handIn = find("[data-hand-in]");
  /** @type {Shown | null} */
  let shown = null;
  let predicted = false; // by this reader, who then looks for the answer
  let turned = false; // by this reader, who then looks for the new page

  /** @param {number} page */
  const turn = (page) => {
    turned = true;
    act({ do: "lesson", name: shown?.name, page });
  };
  back.addEventListener("click", () => { if (shown) turn(shown.page - 1); });
  next.addEventListener("click", () => {
    if (shown && shown.page + 1 < shown.pages) turn(shown.page + 1);
    else openMenu();
  });
  again.addEventListener("click", () => { if (shown) act({ do: "lesson", name: shown.name, page: shown.page, again: true }); });
  find("[data-leave]").addEventListener("click", () => act({ do: "lesson", name: "" }));
  body.addEventListener("click", (event) => {
    const button = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest("[data-choice], [data-point]"));
    if (button?.dataset.choice) {
      predicted = true;
      act({ do: "predict", choice: Number(button.dataset.choice) });
    }
    if (button?.dataset.point) goTo(button.dataset.point);
  });

  document.addEventListener("click", (event) => { // in the menu
    if (/** @type {Element} */ (event.target).closest?.("[data-lesson]")) turned = true;
  });

  part("lesson", (/** @type {Shown | null} */ lesson) => {
    shown = lesson;
    section.dataset.name = lesson?.name ?? "";
    section.hidden = !lesson;
    for (const node of [document.body, document.getElementById("desk")]) node?.classList.toggle("in-lesson", Boolean(lesson));
    if (!lesson) return outline([]);
    const place = document.createElement("span");
    place.textContent = `page ${lesson.page + 1} of ${lesson.pages}`;
    where.replaceChildren(`${lesson.where}, `, place);
    body.innerHTML = lesson.html;
    outline(lesson.points);
    back.disabled = lesson.page === 0;
    handIn.hidden = lesson.page + 1 < lesson.pages;
    next.textContent = lesson.page + 1 < lesson.pages ? "Next" : "All lessons";
    body.scrollTop = 0;
    for (const name of lesson.points) if (TABS.includes(name)) nodesOf(name)[0]?.click();
    setTimeout(() => outline(shown?.points ?? []), LATER);
    if (!turned) return;
    turned = false;
    const heading = /** @type {HTMLElement | null} */ (body.querySelector("h2"));
    heading?.focus({ preventScroll: true });
    section.scrollIntoView({ block: "nearest" });
  });

  part("walk", (/** @type {Walked | null} */ walk) => {
    if (!walk) return;
    const { asks, choice, right, because, wait } = walk;
    section.classList.toggle("asks", asks);
    next.classList.toggle("primary", !asks && (!wait || wait.reached || wait.missed));
    for (const node of body.querySelectorAll("[data-choice]")) {
      const button = /** @type {HTMLButtonElement} */ (node), own = Number(button.dataset.choice);
      button.disabled = !asks;
      button.hidden = !asks && own < 0;
      button.setAttribute("aria-pressed", String(own === choice && own >= 0));
      button.classList.toggle("right", own === right);
    }
    const verdict = body.querySelector(".verdict");
    if (verdict && verdict.innerHTML !== because) verdict.innerHTML = because;
    showWait(body, wait);
    if (predicted && !asks) {
      predicted = false;
      const question = body.querySelector(".ask");
      if (question) body.scrollTop += question.getBoundingClientRect().top - body.getBoundingClientRect().top; // what follows it comes in sight
    }
    const news = wait?.reached || wait?.missed ? wait.said : "";
    if (said.textContent !== news) said.textContent = news; // read aloud
  });
}

/** @param {HTMLElement} body @param {Wait | null} wait */
function showWait(body, wait) {
  const box = /** @type {HTMLElement | null} */ (body.querySelector(".waits"));
  if (!box) return;
  const [promise, meaning, bar, done, goal, now] = [".promise", ".meaning", ".bar", ".bar i", ".bar b", ".now"]
    .map((selector) => /** @type {HTMLElement} */ (box.querySelector(selector)));
  box.hidden = !wait;
  if (!wait) return;
  box.classList.toggle("reached", wait.reached);
  promise.textContent = `Waits until ${wait.promise}.`;
  meaning.textContent = wait.meaning && `${wait.reading}: ${wait.meaning}`;
  now.textContent = wait.said;
  const bound = wait.low ?? wait.high, value = wait.value;
  bar.hidden = bound === null || value === null || bound <= 0 || value < 0;
  if (bar.hidden || bound === null || value === null) return;
  const end = 1.25 * Math.max(bound, value);
  done.style.width = `${(100 * value) / end}%`;
  goal.style.left = `${(100 * bound) / end}%`;
}
