// @ts-check
// The menu of lessons.

import { act } from "./news.js";

/** @type {HTMLDialogElement | undefined} */
let menu;

const current = () => /** @type {HTMLElement | null} */ (document.querySelector(".lesson"))?.dataset.name;

/** Show the menu, if it is not shown. */
export function openMenu() {
  if (!menu || menu.open) return;
  for (const button of menu.querySelectorAll("[data-lesson]"))
    button.setAttribute("aria-current", String(/** @type {HTMLElement} */ (button).dataset.lesson === current()));
  menu.showModal();
}

/** @param {HTMLElement} element */
export function mount(element) {
  menu = /** @type {HTMLDialogElement} */ (element.querySelector("dialog"));
  menu.addEventListener("click", (event) => {
    const button = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest("[data-lesson]"));
    if (!button) return;
    menu?.close();
    if (button.dataset.lesson !== current()) act({ do: "lesson", name: button.dataset.lesson });
  });
  document.addEventListener("click", (event) => {
    if (/** @type {Element} */ (event.target).closest?.("[data-lessons]")) openMenu();
  });
}
