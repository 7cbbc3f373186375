// @ts-check
// The lens's slider: the timestep at which the prior is asked, instead of each step's own.

import { act } from "./news.js";
import { SEND_EVERY } from "./knob.js";

/** @param {HTMLElement} element */
export function mount(element) {
  const slider = /** @type {HTMLInputElement} */ (element.querySelector("input"));
  const output = /** @type {HTMLOutputElement} */ (element.querySelector("output"));
  const live = /** @type {HTMLButtonElement} */ (element.querySelector("[data-live]"));
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let waiting;
  /** @param {number | null} t */
  const show = (t) => {
    output.textContent = t === null ? "as in each step" : `t = ${t}`;
    live.disabled = t === null;
  };
  /** @param {number | null} t */
  const ask = (t) => { clearTimeout(waiting); waiting = undefined; act({ do: "probe", t }); };
  slider.addEventListener("input", () => {
    show(Number(slider.value));
    waiting ??= setTimeout(() => ask(Number(slider.value)), SEND_EVERY);
  });
  live.addEventListener("click", () => { show(null); ask(null); });
  show(null);
}
