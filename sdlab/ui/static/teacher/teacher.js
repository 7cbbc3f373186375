// @ts-check
// The teacher's page: the PIN first, then the class, asked for once a second.

import { mountGiving, showChoices } from "./give.js";
import { Closed, post, told } from "./net.js";
import { showSeats } from "./seats.js";
import { showAgain } from "./show.js";

/** @typedef {{ key: string, number: number, name: string, preset: string, prompt: string, loss: string, step: number, planned: number, phase: string, said: string, rate: string, lanes: number, last: string, ago: number, left: boolean, hidden: boolean, picture: string, around: boolean, lesson: null | { title: string, page: number, pages: number, predictions: { right: boolean }[] } }} Seat */
/** @typedef {{ addresses: string[], seats: number, waiting: number, capacity: string, frozen: boolean, message: string, late: string, desks: Seat[] }} Board */

const POLL_EVERY = 1000; // ms
const THEME = "sdlab-theme"; // the same as on the students' pages

/** @param {string} id */
const element = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

let open = false;

/** Show the door or the class. @param {boolean} now */
function show(now) {
  const changed = now !== open || element("door").hidden === element("class").hidden;
  open = now;
  for (const id of ["class", "count", "out"]) element(id).hidden = !open;
  element("door").hidden = open;
  if (!changed) return;
  if (open) showChoices();
  else element("pin").focus();
}

async function poll() {
  try {
    const board = /** @type {Board} */ (await told("room"));
    show(true);
    element("lost").textContent = "";
    showBoard(board);
  } catch (error) {
    if (error instanceof Closed) {
      show(false);
      return; // until the PIN is given
    }
    element("lost").textContent = "The server does not answer. What is shown may be out of date; this page keeps trying.";
  }
  setTimeout(poll, POLL_EVERY);
}

/** @param {Board} board */
function showBoard(board) {
  const waiting = board.waiting ? `, ${board.waiting} waiting` : "";
  element("count").textContent = `${board.desks.length} of ${board.seats} seats taken${waiting}`;
  element("addresses").textContent = board.addresses.join("  or  ");
  element("capacity").textContent = `Speed with the preset that pages open with: ${board.capacity}.`;
  element("capacity").hidden = !board.capacity;
  element("nobody").hidden = board.desks.length > 0;
  showSeats(board.desks);
  mountGiving(board);
  showAgain(board.desks);
}

element("door").querySelector("form")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = /** @type {HTMLInputElement} */ (element("pin")), error = element("door").querySelector(".error");
  const pin = field.value;
  field.value = "";
  try {
    const answer = await post("pin", { pin });
    if (error) error.textContent = answer.ok ? "" : await answer.text();
    if (answer.ok) poll();
  } catch {
    if (error) error.textContent = "The server does not answer: try again.";
  }
});

element("out").addEventListener("click", () => post("out", {}).catch(() => undefined));

// ---- light or dark -------------------------------------------------------------------------------------------------

/** @param {boolean} dark */
const dress = (dark) => document.documentElement.classList.toggle("dark", dark);

const system = matchMedia("(prefers-color-scheme: dark)");
/** @type {string | null} */
let chosen = null;
try { chosen = localStorage.getItem(THEME); } catch { /* this browser keeps nothing */ }
dress(chosen === null ? system.matches : chosen === "dark");
system.addEventListener("change", () => { if (chosen === null) dress(system.matches); });
element("theme").addEventListener("click", () => {
  chosen = dress(!document.documentElement.classList.contains("dark")) ? "dark" : "light";
  try { localStorage.setItem(THEME, chosen); } catch { /* as above */ }
});

poll();
