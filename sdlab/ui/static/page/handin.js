// @ts-check
// The dialog that hands in: a name, what was seen, and the file.

import { act, part } from "./news.js";

/** @typedef {import("./results.js").Item} Item */

/** @param {HTMLElement} element */
export function mount(element) {
  const dialog = /** @type {HTMLDialogElement} */ (element.querySelector("dialog"));
  const name = /** @type {HTMLInputElement} */ (dialog.querySelector("[data-name]"));
  const answer = /** @type {HTMLTextAreaElement} */ (dialog.querySelector("[data-answer]"));
  const make = /** @type {HTMLButtonElement} */ (dialog.querySelector("[data-make]"));
  const link = /** @type {HTMLAnchorElement} */ (dialog.querySelector("a"));
  const output = /** @type {HTMLOutputElement} */ (dialog.querySelector("output"));
  /** @type {string | undefined} */
  let last; // id of the newest hand-in
  let asked = false; // whether a file was asked for that has not come yet

  document.addEventListener("click", (event) => {
    if (!(/** @type {Element} */ (event.target).closest?.("[data-hand-in]")) || dialog.open) return;
    dialog.showModal();
    dialog.scrollTop = 0;
  });
  make.addEventListener("click", () => {
    asked = make.disabled = true;
    link.hidden = true;
    output.textContent = "Waiting for the runs ...";
    act({ do: "hand-in", name: name.value, answer: answer.value });
    setTimeout(() => { make.disabled = false; }, 3000); // a refusal is on the status line
  });
  name.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // it would close the dialog
    make.click();
  });
  part("handin", (/** @type {Item | null} */ item) => {
    if (!item || (asked && item.id === last)) return;
    const done = item.state === "done";
    output.textContent = done || item.state === "failed" ? item.said : `Making the file: ${item.said}`;
    link.hidden = !done;
    [link.href, link.download, link.textContent] = [item.address, item.name, item.name];
    if (item.state === "waiting" || item.state === "working") return;
    last = item.id;
    make.disabled = false;
    if (done && asked) link.click();
    asked = false;
  });
}
