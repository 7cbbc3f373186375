// @ts-check
// A row of buttons of which one is chosen: the Tab key reaches the chosen one; arrow keys, Home and End choose another.

/**
 * Call it after adding the click listener. Returns a function that updates the row after a choice by other means.
 * @param {Element} node @param {string} chosen the attribute that is "true" on the chosen button
 */
export function arrows(node, chosen) {
  const all = () => /** @type {HTMLElement[]} */ ([...node.querySelectorAll("[data-value], [data-tab]")])
    .filter((button) => button.checkVisibility());
  const update = () => {
    const buttons = all();
    const one = buttons.find((button) => button.getAttribute(chosen) === "true") ?? buttons[0];
    for (const button of buttons) button.tabIndex = button === one ? 0 : -1;
  };
  node.addEventListener("keydown", (e) => {
    const event = /** @type {KeyboardEvent} */ (e);
    const buttons = all();
    const at = buttons.indexOf(/** @type {HTMLElement} */ (event.target));
    /** @type {Record<string, number>} */
    const targets = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: -1 };
    const to = targets[event.key];
    if (at < 0 || to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const button = /** @type {HTMLElement} */ (buttons.at(to % buttons.length));
    button.focus();
    button.click();
    update();
  });
  node.addEventListener("click", update);
  node.addEventListener("toggle", update, true); // of a fold inside, whose own event does not bubble
  return update;
}
