// @ts-check
// The list of seats, by number.

import { act } from "./net.js";
import { say, aim } from "./give.js";
import { showSeat } from "./show.js";

/** @typedef {import("./teacher.js").Seat} Seat */

const PICTURE_EVERY = 2000; // ms between two pictures of a seat, and only while it is in view

/** @type {Map<string, Card>} */
const cards = new Map(); // by key
const list = /** @type {HTMLElement} */ (document.getElementById("seats"));
const watching = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const card = cards.get(/** @type {HTMLElement} */ (entry.target).dataset.key ?? "");
    if (card) card.inView = entry.isIntersecting;
  }
});

/** How a seat is called. @param {Seat} seat */
export const nameOf = (seat) => (seat.name ? `${seat.number} \u00b7 ${seat.name}` : `Seat ${seat.number}`);

/** @param {number} seconds */
function since(seconds) {
  return seconds < 60 ? `${seconds} s ago` : seconds < 3600 ? `${Math.floor(seconds / 60)} min ago` : `${Math.floor(seconds / 3600)} h ago`;
}

/** Why nobody sees a seat's page, "" if somebody may. @param {Seat} seat */
const away = (seat) => (seat.left ? "page closed" : seat.hidden ? "page hidden" : "");

/** How far a seat's lesson is. @param {Seat} seat */
export function lessonOf({ lesson }) {
  if (!lesson) return "";
  const asked = lesson.predictions.length, right = asked ? `, ${lesson.predictions.filter((each) => each.right).length} of ${asked} predictions right` : "";
  return `page ${lesson.page + 1}/${lesson.pages}, ${lesson.title}${right}`;
}

/** @param {string} tag @param {string} name @param {string} [text] */
function node(tag, name, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

class Card {
  /** @param {Seat} seat */
  constructor(seat) {
    this.seat = seat;
    this.inView = false;
    this.drawn = "";
    this.drawnAt = -Infinity;
    this.node = node("li", "seat card");
    this.node.dataset.key = seat.key;
    this.picture = document.createElement("img");
    this.picture.alt = "";
    this.frame = node("div", "frame");
    this.frame.append(this.picture);
    this.title = node("h2", "");
    /** @type {Record<string, HTMLElement>} */
    this.lines = Object.fromEntries(["state", "run", "prompt", "lesson"].map((name) => [name, node("p", name)]));
    [this.last, this.ago] = [node("span", "what"), node("span", "ago")];
    const text = node("div", "text"), last = node("p", "last");
    last.append(this.last, this.ago);
    text.append(this.title, ...Object.values(this.lines), last);
    const buttons = node("div", "buttons");
    for (const [label, press] of /** @type {[string, () => void][]} */ ([
      ["Show", () => showSeat(this.seat)],
      ["Give", () => aim(this.seat)],
      ["Reset", () => this.ask("reset", "starts over from step 0.", "starts over from step 0.")],
      ["End", () => this.ask("end", "ends, and its run is lost.", "has ended.")],
    ])) {
      const button = /** @type {HTMLButtonElement} */ (node("button", "", label));
      button.type = "button";
      button.addEventListener("click", press);
      buttons.append(button);
    }
    this.node.append(this.frame, text, buttons);
    watching.observe(this.node);
  }

  /** Do something after a question. @param {string} verb @param {string} what @param {string} done */
  async ask(verb, what, done) {
    const name = nameOf(this.seat);
    if (!confirm(`${name} ${what}`)) return;
    say(await act({ do: verb, seat: this.seat.key }).then((but) => but || `${name} ${done}`, (error) => error.message));
  }

  /** @param {Seat} seat */
  show(seat) {
    this.seat = seat;
    const state = [seat.said, seat.rate, seat.lanes > 1 ? `${seat.lanes} lanes` : "", away(seat)];
    const run = [`step ${seat.step}/${seat.planned}`, seat.loss, seat.preset];
    write(this.title, nameOf(seat));
    write(this.lines.state, state.filter(Boolean).join(" \u00b7 "));
    write(this.lines.run, run.filter(Boolean).join(" \u00b7 "));
    write(this.lines.prompt, seat.prompt);
    write(this.lines.lesson, lessonOf(seat));
    write(this.last, seat.last);
    write(this.ago, `, ${since(seat.ago)}`);
    for (const line of [this.title, this.last, ...Object.values(this.lines)]) line.title = line.textContent ?? "";
    this.node.dataset.phase = seat.phase;
    this.node.classList.toggle("away", Boolean(away(seat)));
    for (const button of this.node.querySelectorAll("button"))
      button.setAttribute("aria-label", `${button.textContent}: ${nameOf(seat)}`);
    const now = performance.now();
    if (!seat.picture || !this.inView || this.drawn === seat.picture || now - this.drawnAt < PICTURE_EVERY) return;
    [this.drawn, this.drawnAt] = [seat.picture, now];
    this.picture.src = `picture/${seat.key}/front?v=${seat.picture}`;
  }
}

/** Change a text only if it differs, so that a selection stays. @param {HTMLElement} node @param {string} text */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** @param {Seat[]} seats */
export function showSeats(seats) {
  for (const [key, card] of cards) {
    if (seats.some((seat) => seat.key === key)) continue;
    watching.unobserve(card.node);
    card.node.remove();
    cards.delete(key);
  }
  seats.forEach((seat, place) => {
    let card = cards.get(seat.key);
    if (!card) cards.set(seat.key, (card = new Card(seat)));
    if (list.children[place] !== card.node) list.insertBefore(card.node, list.children[place] ?? null);
    card.show(seat);
  });
}
