// @ts-check
// The prompt and the run buttons.

import { act, newDesk, part } from "./news.js";
import { listen } from "./keys.js";
import { isDark } from "./memory.js";
import { hurryViews } from "./stage.js";

const MAX_LINES = 3; // of the prompt before it scrolls

/** @param {HTMLElement} element */
export function mount(element) {
  const text = mountPrompt(/** @type {HTMLTextAreaElement} */ (element.querySelector("textarea")));
  const buttons = /** @type {HTMLButtonElement[]} */ ([...element.querySelectorAll("#run-buttons button")]);
  const again = /** @type {HTMLButtonElement} */ (element.querySelector("#again"));
  for (const button of buttons)
    button.addEventListener("click", () => {
      hurryViews();
      act(button.id === "pause" ? { do: "pause" } : { do: button.id, prompt: text() });
    });
  again.addEventListener("click", () => newDesk(isDark()));
  part("controls", ({ can, again: label }) => {
    for (const button of buttons) button.disabled = !can[button.id];
    again.hidden = !label;
    again.textContent = label;
  });
  listen(document);
}

/** Returns what reads the prompt as it is typed. @param {HTMLTextAreaElement} field */
function mountPrompt(field) {
  let typing = false; // something is typed that was not sent yet
  const fit = () => {
    field.style.height = "auto";
    const { lineHeight, paddingTop, paddingBottom } = getComputedStyle(field);
    const most = MAX_LINES * parseFloat(lineHeight) + parseFloat(paddingTop) + parseFloat(paddingBottom);
    if (field.scrollHeight) field.style.height = `${Math.min(field.scrollHeight, most) + 2}px`; // and the border
  };
  const submit = () => {
    if (!typing) return;
    typing = false;
    act({ do: "prompt", text: field.value });
  };
  field.addEventListener("input", () => { typing = true; fit(); });
  field.addEventListener("blur", submit);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  part("prompt", (value) => {
    if (typing) return;
    field.value = value;
    fit();
  });
  fit();
  return () => {
    typing = false;
    return field.value;
  };
}
