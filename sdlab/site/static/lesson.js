// @ts-check
/* A page of a lesson: its question is answered, or skipped, before the effect is shown. */

{
  const ask = document.getElementById("ask"), after = /** @type {HTMLElement} */ (document.getElementById("after"));
  if (ask) {
    const right = Number(ask.dataset.answer);
    /** @type {HTMLButtonElement[]} */ const buttons = [...ask.querySelectorAll("button")];
    /** @param {string} what @returns {HTMLElement} */
    const part = (what) => /** @type {HTMLElement} */ (ask.querySelector(`[data-${what}]`));
    const because = part("because");
    because.hidden = after.hidden = true;

    /** @param {number} choice the index of an answer, or -1 */
    const choose = (choice) => {
      part("right").hidden = choice !== right;
      part("wrong").hidden = choice === right;
      for (const button of buttons) {
        const own = Number(button.dataset.choice);
        if (own < 0) button.hidden = true;
        button.setAttribute("aria-disabled", "true");
        button.setAttribute("aria-pressed", String(own === choice));
        button.classList.toggle("right", own === right);
      }
      part("verdict").append(...because.childNodes); // a screen reader says what is added to a status
      because.remove();
      after.hidden = false;
      if (choice < 0) buttons[right].focus({ preventScroll: true }); // the pressed one is gone
    };
    for (const button of buttons)
      button.addEventListener("click", () => {
        if (after.hidden) choose(Number(button.dataset.choice));
      });
  }
}
