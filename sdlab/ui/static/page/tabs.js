// @ts-check
// The tabs below the scene, and the choice of the lens's view.

import { act } from "./news.js";
import { arrows } from "./arrows.js";

/** @param {HTMLElement} element */
export function mount(element) {
  element.addEventListener("click", (event) => {
    const chosen = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest("[data-tab]"));
    if (!chosen) return;
    const tab = chosen.dataset.tab ?? "";
    /** @type {HTMLElement} */ (document.getElementById("readings")).dataset.tab = tab;
    for (const button of element.querySelectorAll("[data-tab]"))
      button.setAttribute("aria-selected", String(button === chosen));
    act({ do: "tab", tab });
  });
  arrows(element, "aria-selected")();
  document.addEventListener("click", (event) => { // the preview may not be there yet
    const view = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest("#preview [data-row]"));
    if (view) act({ do: "view", row: Number(view.dataset.row) });
  });
}
