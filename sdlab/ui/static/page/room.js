// @ts-check
// In a classroom: the seat's number, the student's name, what the teacher says, and whether everybody is paused.

import { act, part } from "./news.js";

/** @typedef {{ number: number, name: string, frozen: boolean, message: string }} Room */

const PAUSED = "The teacher has paused everybody.";
const HELD = "#lesson, #examples, #controls, #form, #timeline, #scrub, #versus-panel, #results, #drop"; // what changes runs or costs time
const HELD_BUTTONS = ".lane [data-do=branch], .lane [data-do=close], .lane [data-do=keep]";

/** @param {HTMLElement} element */
export function mount(element) {
  const [number, frozen, message] = ["[data-number]", ".frozen", ".message"]
    .map((selector) => /** @type {HTMLElement} */ (element.querySelector(selector)));
  const name = /** @type {HTMLInputElement} */ (element.querySelector("input"));
  const line = /** @type {HTMLElement} */ (number.closest(".room"));
  new IntersectionObserver(([{ isIntersecting }]) => { // a page that is held says why, wherever it is scrolled to
    element.style.minHeight = isIntersecting ? "" : `${line.offsetHeight}px`;
    line.classList.toggle("out", !isIntersecting);
  }).observe(element);
  name.addEventListener("change", () => act({ do: "name", name: name.value }));
  name.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.isComposing) name.blur(); });
  part("room", (/** @type {Room | null} */ room) => { // null while the page has no seat
    say(number, room ? `Seat ${room.number}` : "No seat");
    name.disabled = !room;
    if (room && document.activeElement !== name) name.value = room.name;
    say(frozen, room?.frozen ? PAUSED : "");
    say(message, room?.message ?? "");
    hold(room?.frozen ?? false);
  });
}

/** A screen reader reads each change. @param {HTMLElement} line @param {string} text */
function say(line, text) {
  if (line.textContent !== text) line.textContent = text;
}

/** Let nothing be pressed that the server would refuse now. @param {boolean} on */
function hold(on) {
  document.body.classList.toggle("held", on);
  for (const node of document.querySelectorAll(HELD)) /** @type {HTMLElement} */ (node).inert = on;
  for (const button of document.querySelectorAll(HELD_BUTTONS)) /** @type {HTMLButtonElement} */ (button).disabled = on;
}
