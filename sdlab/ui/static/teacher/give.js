// @ts-check
// What is done to the class, or to one seat of it: pause, reset, presets, lessons, links, messages.

import { act, Refused, told } from "./net.js";
import { nameOf } from "./seats.js";

/** @typedef {import("./teacher.js").Board} Board */
/** @typedef {import("./teacher.js").Seat} Seat */
/** @typedef {{ minutes: number, wrong: string[], answers: string[] }} Notes */
/** @typedef {{ presets: string[], lessons: { name: string, title: string, pages: string[], notes: Notes }[] }} Choices */

/** @param {string} selector */
const find = (selector) => /** @type {HTMLElement} */ (document.querySelector(selector));
const target = /** @type {HTMLSelectElement} */ (find("#target"));
const freeze = /** @type {HTMLButtonElement} */ (find("#freeze"));

/** Say what came of it. @param {string} text */
export function say(text) {
  find("#said").textContent = text;
}

/** Mean a seat from now on. @param {Seat} seat */
export function aim(seat) {
  target.value = seat.key;
  find(".give").scrollIntoView({ block: "nearest" });
  target.focus();
}

/** @param {Record<string, any>} what @param {string} done */
async function give(what, done) {
  say("...");
  try {
    const but = await act({ ...what, ...(target.value ? { seat: target.value } : {}) });
    say(but ? `${done} But: ${but}` : done);
  } catch (error) {
    say(error instanceof Refused ? error.message : "The server did not answer.");
  }
}

const whom = () => target.selectedOptions[0]?.textContent ?? "";

freeze.addEventListener("click", () => act({ do: "freeze", on: freeze.getAttribute("aria-pressed") !== "true" }).catch(() => undefined));
find("#reset").addEventListener("click", () => {
  if (confirm(`Reset ${whom()} to step 0?`)) give({ do: "reset" }, `${whom()} starts over from step 0.`);
});
find("#end").addEventListener("click", () => {
  const all = !target.value, runs = all ? "All seats end, and all runs are lost." : `${whom()} ends, and its run is lost.`;
  if (confirm(runs)) give({ do: "end" }, all ? "All seats have ended." : `${whom()} has ended.`);
});
find("#spoken button").addEventListener("click", () => act({ do: "message", text: "" }).catch(() => undefined));
find("#late button").addEventListener("click", () => act({ do: "forget" }).catch(() => undefined));

for (const form of /** @type {NodeListOf<HTMLFormElement>} */ (document.querySelectorAll("[data-give]")))
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const verb = form.dataset.give ?? "", given = Object.fromEntries(new FormData(form));
    if (verb === "message") {
      form.reset();
      return give({ do: verb, ...given }, given.text ? "Said to everybody." : "The message is gone.");
    }
    const page = verb === "lesson" ? { page: Number(given.page) } : {};
    return give({ do: verb, ...given, ...page }, `Given to ${whom()}.`);
  });

/** Show what follows the state of the class. @param {Board} board */
export function mountGiving(board) {
  const label = board.frozen ? "Let everybody continue" : "Pause everybody";
  if (freeze.textContent !== label) freeze.textContent = label;
  freeze.setAttribute("aria-pressed", String(board.frozen));
  find("#late").hidden = !board.late;
  find("#late span").textContent = `Latecomers also get ${board.late}.`;
  find("#spoken").hidden = !board.message;
  find("#spoken b").textContent = board.message;
  const key = JSON.stringify(board.desks.map((seat) => [seat.key, nameOf(seat)]));
  if (target.dataset.key === key) return;
  const chosen = target.value;
  target.dataset.key = key;
  target.replaceChildren(new Option("everybody", ""), ...board.desks.map((seat) => new Option(nameOf(seat), seat.key)));
  target.value = board.desks.some((seat) => seat.key === chosen) ? chosen : "";
}

/** Offer what can be given. */
export async function showChoices() {
  const { presets, lessons } = /** @type {Choices} */ (await told("choices"));
  find("[name=preset]").replaceChildren(...presets.map((name) => new Option(name)));
  const names = /** @type {HTMLSelectElement} */ (find("[name=name]")), pages = find("[name=page]");
  names.replaceChildren(...lessons.map(({ name, title }) => new Option(title, name)));
  const show = () => {
    const chosen = lessons.find(({ name }) => name === names.value);
    pages.replaceChildren(...(chosen?.pages ?? []).map((title, n) => new Option(`${n + 1}. ${title}`, String(n))));
    if (chosen) showNotes(chosen.title, chosen.notes);
  };
  names.onchange = show;
  show();
  find("[data-give=lesson]").hidden = !lessons.length;
}

/** Show what a teacher should know about a lesson. @param {string} title @param {Notes} notes */
function showNotes(title, { minutes, wrong, answers }) {
  find("#notes").hidden = false;
  find("#notes summary").textContent = `Notes on “${title}”`;
  find("#notes p").textContent = `Allow ${minutes} minutes in a class. What goes wrong, and what students ask:`;
  for (const [name, texts] of /** @type {[string, string[]][]} */ ([["wrong", wrong], ["answers", answers]]))
    find(`#notes .${name}`).innerHTML = texts.map((text) => `<li>${text}</li>`).join(""); // escaped by the server
}
