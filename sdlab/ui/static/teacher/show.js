// @ts-check
// One seat for the room: its pictures as large as the screen allows, and what it does. Nothing can be changed here.

import { lessonOf, nameOf } from "./seats.js";

/** @typedef {import("./teacher.js").Seat} Seat */

const VIEWS = 12, COLUMNS = 4, TURN_EVERY = 400; // of the sheet of views around the object; ms
const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("show"));
/** @param {string} selector */
const find = (selector) => /** @type {HTMLElement} */ (dialog.querySelector(selector));
const turning = find(".turn div"), seen = /** @type {HTMLImageElement} */ (find(".seen img"));
const still = matchMedia("(prefers-reduced-motion: reduce)");

let key = "", drawn = "", view = 0;

/** @param {Seat} seat */
export function showSeat(seat) {
  [key, drawn, view] = [seat.key, "", 0];
  turning.style.backgroundImage = "";
  seen.removeAttribute("src");
  show(seat);
  dialog.showModal();
}

/** Follow the seat that is shown. @param {Seat[]} seats */
export function showAgain(seats) {
  if (!dialog.open) return;
  const seat = seats.find((each) => each.key === key);
  if (seat) show(seat);
  else dialog.close(); // it has ended
}

/** @param {Seat} seat */
function show(seat) {
  find("h2").textContent = nameOf(seat);
  find(".facts").textContent = [`step ${seat.step} of ${seat.planned}`, seat.said, seat.rate].filter(Boolean).join(" \u00b7 ");
  find(".prompt").textContent = seat.prompt;
  find(".more").textContent = [seat.loss, seat.preset, lessonOf(seat), seat.last].filter(Boolean).join(" \u00b7 ");
  find(".turn").hidden = !seat.around;
  if (!seat.picture || drawn === seat.picture) return;
  drawn = seat.picture;
  seen.src = `picture/${seat.key}/seen?v=${drawn}`;
  if (seat.around) load(`picture/${seat.key}/around?v=${drawn}`);
}

/** Change the sheet of views once it is there, so that the object does not blink. @param {string} address */
function load(address) {
  const sheet = new Image();
  sheet.onload = () => { turning.style.backgroundImage = `url("${address}")`; };
  sheet.src = address;
}

function turn() {
  if (dialog.open && !still.matches) view = (view + 1) % VIEWS;
  const [column, row] = [view % COLUMNS, Math.floor(view / COLUMNS)];
  turning.style.backgroundPosition = `${(100 * column) / (COLUMNS - 1)}% ${(100 * row) / (VIEWS / COLUMNS - 1)}%`;
}

setInterval(turn, TURN_EVERY);
find("button").addEventListener("click", () => dialog.close());
