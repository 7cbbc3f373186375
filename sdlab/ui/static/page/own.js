// @ts-check
// The editor of the user's own loss, and how it compares with SDS. Only the address that the program prints has the key
// with which a tab may write the file.

import { act, part } from "./news.js";
import { editorKey } from "./memory.js";

/** @typedef {{ cosine: number | null, ratio: number | null, t: number[], note: string }} Beside */
/** @typedef {{ name: string, text: string, version: number, error: string, exercise: string, beside: Beside | null }} Own */

const INDENT = "    ";
const READ_ONLY = "This tab shows the file. To write it here, open the whole address that the program has printed.";

/** @param {HTMLElement} element */
export function mount(element) {
  const field = /** @type {HTMLTextAreaElement} */ (element.querySelector("textarea"));
  const label = /** @type {HTMLElement} */ (element.querySelector("label"));
  const error = /** @type {HTMLElement} */ (element.querySelector("#own-error"));
  const said = /** @type {HTMLElement} */ (element.querySelector("[data-said]"));
  const apply = /** @type {HTMLButtonElement} */ (element.querySelector("[data-apply]"));
  const again = /** @type {HTMLButtonElement} */ (element.querySelector("[data-again]"));
  let key = editorKey();
  /** @type {Own | undefined} */
  let told;
  let behind = false; // the file has changed under what was typed

  const state = () => {
    const changed = told !== undefined && field.value !== told.text;
    apply.disabled = !key || !changed;
    behind &&= changed;
    said.textContent = behind ? "the file has changed, too: Apply replaces it"
      : changed ? "changed, not applied yet"
      : told?.error ? "the version before it stays in use" : "in use";
    if (!key) said.textContent = READ_ONLY;
  };
  /** @param {Own} own */
  const show = (own) => {
    const untouched = told === undefined || field.value === told.text;
    if (untouched && field.value !== own.text) field.value = own.text;
    behind ||= !untouched && told?.text !== own.text;
    told = own;
    label.textContent = own.name;
    if (error.textContent !== own.error) error.textContent = own.error; // read out again only if it is another one
    compared(element, own.beside);
    state();
  };
  const send = () => { if (!apply.disabled) act({ do: "own", text: field.value, key }); };

  const unlock = () => { field.readOnly = again.disabled = !key; };
  unlock();
  addEventListener("hashchange", () => { // the printed address was opened in this tab
    key = editorKey();
    unlock();
    state();
  });
  field.addEventListener("input", state);
  apply.addEventListener("click", send);
  again.addEventListener("click", () => {
    if (told) field.value = told.exercise;
    state();
    field.focus();
  });
  element.querySelector("[data-beside]")?.addEventListener("click", () => act({ do: "beside" }));
  typing(field, send);
  part("own", show);
}

/** Tab indents, until Escape gives it back to the keyboard's user; Ctrl + Enter applies.
 * @param {HTMLTextAreaElement} field @param {() => void} send */
function typing(field, send) {
  let leaving = false;
  field.addEventListener("blur", () => { leaving = false; });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leaving = true;
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); send(); }
    else if (event.key === "Tab" && !event.shiftKey && !leaving && !field.readOnly) {
      event.preventDefault();
      field.setRangeText(INDENT, field.selectionStart, field.selectionEnd, "end");
      field.dispatchEvent(new Event("input"));
    }
  });
}

/** @param {HTMLElement} element @param {Beside | null} beside */
function compared(element, beside) {
  /** @param {string} name @param {string} text */
  const put = (name, text) => { /** @type {HTMLElement} */ (element.querySelector(`[data-${name}]`)).textContent = text; };
  /** @param {number | null | undefined} value @param {number} digits */
  const number = (value, digits) => (value === null || value === undefined ? "\u2013" : value.toFixed(digits));
  put("cosine", number(beside?.cosine, 3));
  put("ratio", number(beside?.ratio, 2));
  const note = beside?.note ? ` ${beside.note}` : "";
  put("about", beside
    ? `At the same images, noise and t = ${beside.t.join(", ")}. SDS itself has 1 and 1.${note}`
    : "Not compared yet. SDS itself has 1 and 1.");
}
