// @ts-check
// The form: the loss, the preset picker, and a control for every knob.

import { act, part } from "./news.js";
import { arrows } from "./arrows.js";
import { openSettings } from "./drop.js";
import { chooseFile } from "./files.js";
import { mountFormulas } from "./formula.js";
import { mountKnob } from "./knob.js";

/** @typedef {{ values: Record<string, any>, owners: string[], preset: string | null }} Shown */

/** @param {HTMLElement} element @param {{ value: Shown }} props */
export function mount(element, props) {
  /** @param {Element} within */
  const mounted = (within) => /** @type {HTMLElement[]} */ ([...within.querySelectorAll("[data-path]")])
    .map((node) => (node.dataset.kind === "buttons" ? mountLosses(node) : mountKnob(node)));
  let controls = mounted(element);
  const sections = /** @type {HTMLElement[]} */ ([...element.querySelectorAll("[data-owner]")]);

  /** @param {Shown} shown */
  const show = ({ values, owners }) => {
    for (const section of sections) section.hidden = !owners.includes(section.dataset.owner ?? "");
    for (const { path, node, show } of controls)
      if (path in values && !node.closest("[data-owner][hidden]")) show(values[path]);
  };
  mountFormulas(element);
  mountPresets(element, props.value.preset);
  show(props.value);
  part("form", show);
  part("card", (card) => { // the user's own loss has another version
    const section = sections.find(({ dataset }) => dataset.owner === card.owner);
    const button = element.querySelector(`.losses [data-value="${card.owner.slice("losses.".length)}"]`);
    if (!section || !button) return;
    section.innerHTML = card.html;
    [button.textContent, /** @type {HTMLElement} */ (button).title] = [card.title, card.look_for];
    controls = controls.filter(({ node }) => node.isConnected);
    for (const control of mounted(section)) {
      controls.push(control);
      if (control.path in card.values) control.show(card.values[control.path]);
    }
  });
}

/** @param {HTMLElement} element @param {string | null} preset */
function mountPresets(element, preset) {
  const picker = /** @type {HTMLSelectElement} */ (element.querySelector("[data-preset]"));
  const about = /** @type {HTMLElement} */ (element.querySelector("[data-about-preset]"));
  const describe = () => { about.textContent = picker.selectedOptions[0]?.dataset.about ?? ""; };
  /** @param {string | null} name */
  const show = (name) => { picker.value = name ?? ""; describe(); };

  picker.addEventListener("change", () => { describe(); act({ do: "preset", preset: picker.value }); });
  const open = /** @type {HTMLButtonElement} */ (element.querySelector("[data-open]"));
  chooseFile(open, /** @type {HTMLInputElement} */ (element.querySelector("[data-settings]")), openSettings);
  show(preset);
  part("preset", show);
}

/** The loss: a button for each; the fold of the others names the active one. @param {HTMLElement} node */
function mountLosses(node) {
  const buttons = /** @type {HTMLElement[]} */ ([...node.querySelectorAll("[data-value]")]);
  const others = node.querySelector("details"), summary = others?.querySelector("summary");
  const title = summary?.textContent;
  /** @type {string | undefined} */
  let shown;
  /** @param {string | undefined} value */
  const show = (value) => {
    shown = value;
    for (const button of buttons) button.setAttribute("aria-checked", String(button.dataset.value === value));
    const folded = others?.querySelector('[aria-checked="true"]');
    if (summary) summary.textContent = folded ? `${title}: ${folded.textContent}` : title ?? "";
    others?.classList.toggle("chosen", Boolean(folded));
    update();
  };
  node.addEventListener("click", (event) => {
    const button = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest("[data-value]"));
    if (!button || button.dataset.value === shown) return;
    show(button.dataset.value);
    act({ do: "knob", knob: "active", value: shown });
  });
  const update = arrows(node, "aria-checked");
  return { path: "active", node, show };
}
