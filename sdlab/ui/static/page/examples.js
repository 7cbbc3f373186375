// @ts-check
// The row of examples below the stage, which the title bar opens and closes.

import { cameByLink, keepExamples, wereExamplesOpen } from "./memory.js";
import { act } from "./news.js";
import { hurryViews } from "./stage.js";

/** @param {HTMLElement} element */
export function mount(element) {
  const row = /** @type {HTMLElement} */ (element.querySelector("section"));
  const hint = /** @type {HTMLElement} */ (row.querySelector("[data-hint]"));
  const cards = /** @type {HTMLElement[]} */ ([...row.querySelectorAll("[data-example]")]);
  let chosen = hint.dataset.hint ?? "";

  show(row, wereExamplesOpen() ?? !cameByLink);
  row.addEventListener("click", (event) => {
    const card = cardOf(event);
    if (!card) return;
    chosen = card.dataset.text ?? "";
    hurryViews();
    act({ do: "example", name: card.dataset.example });
  });
  for (const kind of ["pointerover", "focusin"])
    row.addEventListener(kind, (event) => { hint.textContent = cardOf(event)?.dataset.text ?? chosen; });
  for (const kind of ["pointerleave", "focusout"]) row.addEventListener(kind, () => { hint.textContent = chosen; });
  rove(row, cards);
  document.addEventListener("click", (event) => {
    if (!/** @type {Element} */ (event.target).closest?.("#title [data-examples]")) return;
    show(row, row.hidden);
    keepExamples(!row.hidden);
    if (!row.hidden) row.scrollIntoView({ block: "nearest" });
  });
}

/** @param {Event} event @returns {HTMLElement | null} */
const cardOf = (event) => /** @type {Element} */ (event.target).closest("[data-example]");

/** @param {HTMLElement} row @param {boolean} open */
function show(row, open) {
  row.hidden = !open;
  document.body.classList.toggle("examples-open", open);
  document.querySelector("#title [data-examples]")?.setAttribute("aria-expanded", String(open));
}

/** The Tab key reaches one of the cards, the arrow keys the others. @param {HTMLElement} row @param {HTMLElement[]} cards */
function rove(row, cards) {
  /** @param {HTMLElement} one */
  const reach = (one) => { for (const card of cards) card.tabIndex = card === one ? 0 : -1; };
  reach(cards[0]);
  row.addEventListener("focusin", (event) => { const card = cardOf(event); if (card) reach(card); });
  row.addEventListener("keydown", (event) => {
    const at = cards.indexOf(/** @type {HTMLElement} */ (event.target));
    /** @type {Record<string, number>} */
    const targets = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 };
    const to = targets[event.key];
    if (at < 0 || to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    cards.at(to % cards.length)?.focus();
  });
}
