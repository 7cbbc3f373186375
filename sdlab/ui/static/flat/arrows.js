// @ts-check
// The terms of the loss as arrows at one point of the plane, and their legend.

import { $, colour, make, setText, still, svg } from "./dom.js";
import { halo } from "./layers.js";

/**
 * @import { PlaneFrame, Point, Term } from "./message.js"
 * @import { Pen } from "./layers.js"
 */

const LENGTH = 0.78; // of the longest arrow, in units of the plane
const LETTERS = "Georgia, 'Times New Roman', serif";

export class Arrows {
  /** @type {Set<string>} */
  #off = new Set(); // names of the terms that are hidden
  /** @type {Map<string, Point>} */
  #drawn = new Map(); // name -> arrow as drawn, which follows the frame softly
  #longest = 1;

  /** Forget the scale, for another run. */
  reset() { this.#longest = 1; }

  /**
   * List the terms of the frame, each a button that hides its arrow.
   * @param {PlaneFrame} frame
   * @param {() => void} redraw
   */
  showLegend({ terms }, redraw) {
    const legend = $("legend");
    const key = JSON.stringify(terms);
    if (legend.dataset.key === key) return;
    legend.dataset.key = key;
    legend.replaceChildren();
    $("terms").classList.toggle("empty", !terms.length);
    for (const { name, symbol: [letter, subscript], text, colour: tone } of terms) {
      const button = make("button", legend, name);
      button.type = "button";
      button.dataset.term = name;
      button.style.setProperty("--tone", `var(--${tone})`);
      button.setAttribute("aria-pressed", String(!this.#off.has(name)));
      const swatch = svg("svg", button, { viewBox: "0 0 22 10", "aria-hidden": "true" });
      svg("path", swatch, { d: "M0 5H15M14 1L21 5L14 9Z" });
      const em = make("em", button, "", letter);
      if (subscript) make("sub", em, "", subscript);
      make("span", button, "", text);
      button.title = `${text}; click to show or hide it`;
      button.addEventListener("click", () => {
        if (!this.#off.delete(name)) this.#off.add(name);
        button.setAttribute("aria-pressed", String(!this.#off.has(name)));
        redraw();
      });
    }
    if (!terms.length) make("span", legend, "none", "Press Start to see them.");
  }

  /**
   * Draw the terms' pulls on `point`, whose place on the canvas is `from`. Return whether they still move.
   * @param {Pen} pen
   * @param {PlaneFrame} frame
   * @param {number} point
   * @param {Point} from
   * @param {number} plane pixels of one unit of the plane
   * @param {number} seconds since the last drawing
   */
  draw(pen, frame, point, from, plane, seconds) {
    const shown = frame.terms.filter(({ name }) => !this.#off.has(name)).sort((a, b) => Number(b.broad) - Number(a.broad));
    let moving = false, longest = 0;
    const share = still.matches ? 1 : 1 - Math.exp(-seconds / 0.07);
    for (const term of frame.terms) {
      const to = pullOf(frame, term, point);
      if (!to) { this.#drawn.delete(term.name); continue; }
      const at = this.#drawn.get(term.name) ?? to;
      /** @type {Point} */
      const next = [at[0] + share * (to[0] - at[0]), at[1] + share * (to[1] - at[1])];
      moving ||= Math.hypot(to[0] - next[0], to[1] - next[1]) > 0.01;
      this.#drawn.set(term.name, next);
      if (shown.includes(term)) longest = Math.max(longest, Math.hypot(...to));
    }
    // the scale grows at once with the longest arrow and shrinks slowly, in steps, so that lengths can be compared
    this.#longest = Math.max(longest, this.#longest * Math.exp(-seconds / 6), 1e-3);
    const unit = round125(LENGTH / this.#longest) * plane; // pixels of one unit of noise
    showScale(shown.length && this.#drawn.size ? unit : 0);
    /** @type {(v: Point) => Point} */
    const tip = ([x, y]) => [from[0] + x * unit, from[1] - y * unit];
    this.#drawSum(pen, frame.terms, shown, tip);
    /** @type {[string, string, Point, string][]} */
    const labels = [];
    for (const { name, symbol: [letter, subscript], colour: tone, broad } of shown) {
      const v = this.#drawn.get(name);
      if (!v) continue;
      drawArrow(pen, from, tip(v), colour(tone), broad ? 5.4 : name === "residual" ? 3.4 : 2.4);
      labels.push([letter, subscript, tip(v), colour(tone)]);
    }
    writeLabels(pen, from, labels);
    return moving;
  }

  /**
   * Where two terms make up the step, draw the sides of their parallelogram.
   * @param {Pen} pen
   * @param {Term[]} terms
   * @param {Term[]} shown
   * @param {(v: Point) => Point} tip
   */
  #drawSum(pen, terms, shown, tip) {
    const step = this.#drawn.get("residual");
    if (!step || !shown.some(({ name }) => name === "residual")) return;
    const pull = this.#drawn.get("guided") ?? this.#drawn.get(terms[0].name);
    const rivals = shown.filter(({ sign }) => sign > 0);
    const rival = rivals.length === 1 && this.#drawn.get(rivals[0].name);
    if (!pull || !rival) return;
    if (Math.hypot(pull[0] + rival[0] - step[0], pull[1] + rival[1] - step[1]) > 0.03 * this.#longest) return;
    pen.setLineDash([3, 4]);
    pen.strokeStyle = colour("soft");
    pen.lineWidth = 1.2;
    pen.beginPath();
    pen.moveTo(...tip(pull)); pen.lineTo(...tip(step)); pen.lineTo(...tip(rival));
    pen.stroke();
    pen.setLineDash([]);
  }
}

/**
 * The pull of a term on a point, in units of noise; null where the frame has none.
 * @param {PlaneFrame} frame
 * @param {Term} term
 * @param {number} point
 * @returns {Point | null}
 */
function pullOf(frame, { name, sign }, point) {
  const table = frame.arrays[`term ${name}`];
  if (!table || point >= table.shape[0]) return null;
  return [sign * table.data[2 * point], sign * table.data[2 * point + 1]];
}

/** Show how long one unit of noise is drawn. @param {number} unit in pixels, 0 for no arrows */
function showScale(unit) {
  let units = 1;
  while (unit && unit * units < 22) units *= units % 2 ? 2 : 2.5;
  const node = $("scale");
  const key = unit ? `${units},${Math.round(unit * units)}` : "";
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.hidden = !unit;
  node.firstElementChild.style.width = `${unit * units}px`;
  setText(node.lastElementChild, units === 1 ? "1 unit of noise" : `${units} units of noise`);
}

/** The next of 1, 2, 5, 10, ... below. @param {number} v */
function round125(v) {
  const power = 10 ** Math.floor(Math.log10(v));
  return [5, 2, 1].map((k) => k * power).find((k) => k <= v) ?? power;
}

/** @param {Pen} pen @param {Point} from @param {Point} to @param {string} tone @param {number} width */
function drawArrow(pen, from, to, tone, width) {
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  if (length < 1.5) return;
  const [ux, uy] = [(to[0] - from[0]) / length, (to[1] - from[1]) / length];
  const head = Math.min(4 + 2.4 * width, length), half = 0.42 * head;
  const neck = [to[0] - ux * head, to[1] - uy * head];
  for (const [paint, more] of /** @type {[string, number][]} */ ([[colour("ground"), 2.4], [tone, 0]])) {
    pen.strokeStyle = pen.fillStyle = paint;
    pen.lineWidth = width + more;
    pen.lineCap = "round";
    pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(neck[0] + ux, neck[1] + uy);
    pen.stroke();
    pen.beginPath();
    pen.moveTo(...to);
    pen.lineTo(neck[0] - uy * half, neck[1] + ux * half);
    pen.lineTo(neck[0] + uy * half, neck[1] - ux * half);
    pen.closePath();
    pen.lineWidth = more || 0.5;
    pen.stroke();
    pen.fill();
  }
  pen.lineCap = "butt";
}

/**
 * Write each symbol beyond its arrow's tip, side by side where tips meet.
 * @param {Pen} pen
 * @param {Point} from
 * @param {[string, string, Point, string][]} labels letter, subscript, tip, colour
 */
function writeLabels(pen, from, labels) {
  /** @type {Point[]} */
  const taken = [];
  for (const [letter, subscript, tip, tone] of labels) {
    const [dx, dy] = [tip[0] - from[0], tip[1] - from[1]], length = Math.hypot(dx, dy);
    if (length < 14) continue;
    /** @type {Point} */
    const at = [tip[0] + (dx / length) * 13, tip[1] + (dy / length) * 13];
    while (taken.some(([x, y]) => Math.hypot(x - at[0], y - at[1]) < 19)) {
      at[0] += (dx / length) * 6 + 8;
      at[1] += (dy / length) * 6;
    }
    taken.push(at);
    pen.fillStyle = tone;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.font = `italic 600 15px ${LETTERS}`;
    halo(pen, letter, ...at);
    if (!subscript) continue;
    const width = pen.measureText(letter).width;
    pen.font = `italic 600 10px ${LETTERS}`;
    pen.textAlign = "left";
    halo(pen, subscript, at[0] + width / 2, at[1] + 5);
  }
}
