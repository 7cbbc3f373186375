// @ts-check
// The status line. What it says is repeated in a live region, for screen readers: one that is replaced at each poll, as
// the line is, would be read again and again.

import { part } from "./news.js";

const READ_EVERY = 3000; // ms; how far a warm-up is changes more often than anyone can listen

/** @param {HTMLElement} element */
export function mount(element) {
  const line = /** @type {HTMLElement} */ (element.querySelector("[data-panel]"));
  const live = /** @type {HTMLElement} */ (element.querySelector("[data-live]"));
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const read = () => {
    timer = undefined;
    const said = [...line.querySelectorAll("strong, .say")].map((node) => node.textContent).join(". ");
    if (live.textContent !== said) live.textContent = said;
  };
  part("status", (html) => {
    line.innerHTML = html;
    timer ??= setTimeout(read, live.textContent ? READ_EVERY : 0);
  });
}
