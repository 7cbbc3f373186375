// @ts-check
// The button that compares all losses.

import { act } from "./news.js";

/** @param {HTMLElement} element */
export function mount(element) {
  element.querySelector("button")?.addEventListener("click", () => act({ do: "compare" }));
}
