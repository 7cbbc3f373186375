// @ts-check
// The active loss's formula, with the present value below each symbol.

import { part } from "./news.js";

/** Show the value of a symbol below it, or none. @param {Element | null} card @param {string} symbol @param {any} value */
export function setSymbol(card, symbol, value) {
  for (const found of card?.querySelectorAll(".formula [data-symbol]") ?? []) {
    const node = /** @type {HTMLElement} */ (found);
    if (node.dataset.symbol !== symbol) continue;
    if (value === undefined) delete node.dataset.now;
    else node.dataset.now = value;
  }
}

/** @param {Element} form */
export function mountFormulas(form) {
  /** @type {Record<string, string>} */
  let last = {};
  part("live", ({ loss, formula, values }) => {
    const card = form.querySelector(`section[data-owner="losses.${loss}"]`); // which the form may show only now
    card?.querySelectorAll(".formula").forEach((node, n) => { /** @type {HTMLElement} */ (node).hidden = n !== formula; });
    for (const symbol of Object.keys(last)) if (!(symbol in values)) setSymbol(form, symbol, undefined); // step 0 again
    for (const [symbol, value] of Object.entries(values)) setSymbol(card, symbol, value);
    last = values;
  });
}
