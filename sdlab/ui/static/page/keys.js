// @ts-check
// Keys: Space toggles pause, `.` takes one step, `v` shows the lens's next view.

/** Listen to the keys of the page, or of a view in a frame of it. @param {Document | Window} target */
export function listen(target) {
  target.addEventListener("keydown", (event) => press(/** @type {KeyboardEvent} */ (event)));
}

/** @param {KeyboardEvent} event */
function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const target = /** @type {Element} */ (event.target);
  if (target.closest?.("input, textarea, select, button, summary, a, [contenteditable]")) return;
  if (event.key === " " && (click("pause") || click("start"))) event.preventDefault();
  if (event.key === "." && click("step")) event.preventDefault();
  if (event.key === "v") {
    const views = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("#preview [data-row]")]);
    views[(views.findIndex((view) => view.classList.contains("chosen")) + 1) % views.length]?.click();
  }
}

/** @param {string} id */
function click(id) {
  const button = /** @type {HTMLButtonElement | null} */ (document.getElementById(id));
  if (!button || button.disabled) return false;
  button.click();
  return true;
}

// A button clicked with a pointer gives up the focus: otherwise Space would press it again.
document.addEventListener("click", (event) => {
  if (event.detail > 0) /** @type {Element} */ (event.target).closest?.("button")?.blur();
});
