// @ts-check
// The lens's slider: the timestep at which the prior is asked, instead of each step's own, and its button: the exact
// predictions beside the network's.

import { act } from "./news.js";
import { SEND_EVERY } from "./knob.js";

/** @param {HTMLElement} element */
export function mount(element) {
  const slider = /** @type {HTMLInputElement} */ (element.querySelector("input"));
  const output = /** @type {HTMLOutputElement} */ (element.querySelector("output"));
  const live = /** @type {HTMLButtonElement} */ (element.querySelector("[data-live]"));
  const exact = /** @type {HTMLButtonElement} */ (element.querySelector("[data-exact]"));
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
  exact.addEventListener("click", () => {
    const on = exact.getAttribute("aria-pressed") !== "true";
    exact.setAttribute("aria-pressed", String(on));
    act({ do: "exact", on });
  });
  show(null);
}
