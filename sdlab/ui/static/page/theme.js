// @ts-check
// The title bar: the lane on a shared GPU, where there is one, large text, and light or dark. The system's theme is followed until the user chooses one.

import { act } from "./news.js";
import { isDark, isLarge, keepLarge, keepTheme, restoreTheme, setLarge, wasLarge } from "./memory.js";
import { tellViews } from "./stage.js";

/** @param {HTMLElement} element */
export function mount(element) {
  setLarge(wasLarge());
  element.querySelector("[data-large]")?.addEventListener("click", () => keepLarge(setLarge(!isLarge())));
  element.querySelector("[data-gpu]")?.addEventListener("click", () => act({ do: "gpu" }));
  const tell = () => {
    tellViews();
    act({ do: "look", dark: isDark() });
  };
  element.querySelector("[data-theme]")?.addEventListener("click", () => {
    keepTheme(document.body.classList.toggle("dark"));
    tell();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(() => { // after Gradio's own
    restoreTheme();
    tell();
  }));
}
