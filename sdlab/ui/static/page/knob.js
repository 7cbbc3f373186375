// @ts-check
// The control of one knob: a field, and a slider where the range is closed.

import { act } from "./news.js";
import { mountUpload } from "./files.js";
import { setSymbol } from "./formula.js";

/** @typedef {{ path: string, node: HTMLElement, show: (value: any) => void }} Control */

const SLIDER_STEPS = 1000;
export const SEND_EVERY = 120; // ms while a slider is dragged

/** Small numbers as people write learning rates: 1e-4. @param {any} value */
export function written(value) {
  return typeof value === "number" && value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential() : value;
}

/** Positions of a slider and the values they stand for. @param {DOMStringMap} range */
function scale({ lo: low, hi: high, step: notch, log: isLog, kind }) {
  const [lo, hi, step] = [low, high, notch].map(Number);
  const log = isLog !== undefined, whole = kind === "int";
  // a logarithmic scale cannot reach 0: its left end then stands for 0, and the scale proper begins a little above
  const floor = !log || lo > 0 ? lo : whole ? 1 : hi / 1e6;
  return {
    /** @param {number} value */
    position(value) {
      if (!log) return (SLIDER_STEPS * (value - lo)) / (hi - lo);
      if (value <= floor) return value < floor ? 0 : 1;
      return (SLIDER_STEPS * Math.log(value / floor)) / Math.log(hi / floor);
    },
    /** @param {number} position */
    value(position) {
      if (position <= 0) return lo;
      if (position >= SLIDER_STEPS) return hi;
      const share = position / SLIDER_STEPS;
      const value = log
        ? Number((floor * (hi / floor) ** share).toPrecision(2))
        : Number((Math.round((lo + (hi - lo) * share) / step) * step).toPrecision(6));
      return Math.min(Math.max(whole ? Math.round(value) : value, lo), hi);
    },
  };
}

/** Colour the track up to the thumb. @param {HTMLInputElement} slider */
function fill(slider) {
  slider.style.setProperty("--share", `${(100 * Number(slider.value)) / SLIDER_STEPS}%`);
}

/** @param {HTMLElement} node @returns {Control} */
export function mountKnob(node) {
  const path = node.dataset.path ?? "", kind = node.dataset.kind;
  const field = /** @type {HTMLInputElement} */ (node.querySelector("[data-field]"));
  const slider = /** @type {HTMLInputElement | null} */ (node.querySelector("input[type=range]"));
  const { position, value } = scale(node.dataset);
  /** @type {any} */
  let shown; // the value that the server and this control agree on, as far as is known here
  let typing = false; // something is typed that was not sent yet
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let waiting; // sends the slider's position

  /** @param {any} v */
  const send = (v) => act({ do: "knob", knob: path, value: v });
  /** @param {number} v */
  const place = (v) => {
    if (!slider) return;
    slider.value = String(position(v));
    fill(slider);
  };
  /** @param {any} v */
  const show = (v) => {
    shown = v;
    if (!typing && waiting === undefined) { // otherwise the user's own change follows, and wins
      if (kind === "bool") field.checked = v;
      else field.value = written(v);
      place(v);
    }
    symbol();
  };
  /** @param {any} v */
  const change = (v) => {
    clearTimeout(waiting);
    waiting = undefined;
    if (v === shown) return;
    shown = v;
    send(v);
  };
  const symbol = () => {
    if (node.dataset.of) setSymbol(node.closest("[data-owner]"), node.dataset.of, written(field.value));
  };

  field.addEventListener("input", () => { typing = true; symbol(); });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || field.tagName !== "TEXTAREA") return;
    event.preventDefault(); // a text is a single line, even if it wraps
    field.blur();
  });
  field.addEventListener("change", () => {
    typing = false;
    if (kind === "bool") return change(field.checked);
    if (kind === "text" || kind === "choice") return change(field.value);
    const v = Number(field.value);
    if (field.value.trim() === "") return show(shown);
    if (!Number.isFinite(v) || Math.abs(v) > Number.MAX_SAFE_INTEGER) { // the server says what is allowed, and quotes it
      send(field.value);
      return show(shown);
    }
    place(v);
    change(v);
  });
  field.addEventListener("blur", () => { // typed and taken back, which fires no "change"
    if (!typing) return;
    typing = false;
    show(shown);
  });
  slider?.addEventListener("input", () => {
    const v = value(Number(slider.value));
    field.value = written(v);
    fill(slider);
    symbol();
    waiting ??= setTimeout(() => change(value(Number(slider.value))), SEND_EVERY);
  });
  slider?.addEventListener("change", () => change(value(Number(slider.value))));
  node.querySelector("[data-now]")?.addEventListener("click", () => {
    const status = /** @type {HTMLElement | null} */ (document.querySelector(".status[data-step]"));
    if (!status) return; // there is no run
    typing = false;
    field.value = status.dataset.step ?? "";
    change(Number(field.value));
  });
  const upload = /** @type {HTMLElement | null} */ (node.querySelector("[data-upload]"));
  if (upload) mountUpload(upload, path);
  if (node.dataset.of) light(node);
  return { path, node, show };
}

/** Light up the knob's symbol in the formula while the knob is hovered over or has the focus. @param {HTMLElement} node */
function light(node) {
  /** @param {boolean} on */
  const set = (on) => {
    for (const symbol of node.closest("[data-owner]")?.querySelectorAll("[data-symbol]") ?? [])
      if (/** @type {HTMLElement} */ (symbol).dataset.symbol === node.dataset.of) symbol.classList.toggle("lit", on);
  };
  for (const event of ["pointerenter", "focusin"]) node.addEventListener(event, () => set(true));
  for (const event of ["pointerleave", "focusout"]) node.addEventListener(event, () => set(false));
}
