// @ts-check
// A panel: HTML made by the server, shown unchanged.

import { part } from "./news.js";

/** @param {HTMLElement} element */
export function mount(element) {
  const node = /** @type {HTMLElement} */ (element.querySelector("[data-panel]"));
  part(node.dataset.panel ?? "", (html) => { node.innerHTML = html; });
}
