// @ts-check
// The plane: points on their paths under the density, the terms' pulls on one of them, and the start to be dragged.
// Points move at the screen's rate, whatever the rate of the frames.

import { Arrows } from "./arrows.js";
import { $, coarse, colour, make, pressed, setText, still } from "./dom.js";
import { Landscape, reachOf } from "./landscape.js";
import { drawAxes, drawFit, drawNames, drawPlaces, drawPoints, drawStart, drawTrails, nameOf, placed } from "./layers.js";
import { Paths } from "./paths.js";

/**
 * @import { Frame, Ground, PlaneFrame, PlaneGround, Point } from "./message.js"
 * @import { View } from "./layers.js"
 */

const CATCH_UP = 0.13; // s in which what is shown catches up with the frame
const REPLAY = 5; // s
const FARTHEST = 5; // how far from the middle the plane is shown at most

export class Plane {
  /**
   * @param {() => void} redraw asks for a call of `draw`
   * @param {(text: string) => void} say shows a note
   */
  constructor(redraw, say) {
    this.redraw = redraw;
    this.say = say;
    this.paths = new Paths();
    this.landscape = new Landscape();
    this.arrows = new Arrows();
    this.shown = 0; // the fractional step at which points are drawn
    /** @type {number | null} */
    this.reach = null; // how far from the middle the plane is shown
    /** @type {number | null} */
    this.room = null; // the reach that points outside need
    /** @type {number | null} */
    this.replaying = null; // when a replay began
    this.chosen = 0; // the point whose arrows are shown
    /** @type {number | null} */
    this.hovered = null; // the point under the pointer, whose arrows are shown instead
    /** @type {Point | null} */
    this.start = null; // while it is dragged or on its way to the server
    this.dragging = false;
    /** @type {number[] | null} */
    this.fit = null; // the fitted Gaussian as drawn
  }

  /** @param {PlaneFrame} frame @param {Frame | null} before */
  take(frame, before) {
    const { paths } = this;
    if (paths.take(frame) || before?.kind !== "plane") {
      this.shown = before?.kind === "plane" ? paths.numbers[0] : paths.last();
      this.replaying = this.hovered = this.room = null;
      this.chosen = Math.min(this.chosen, paths.n - 1);
      this.arrows.reset();
    }
    if (frame.fit) this.shown = paths.last();
    if (!this.dragging && (before?.kind !== "plane" || before.run !== frame.run)) this.start = null;
    this.fit = frame.fit && (this.fit ?? [...frame.fit]);
  }

  /** The point whose arrows are shown now. */
  point() { return Math.min(this.hovered ?? this.chosen, this.paths.n - 1); }

  /** @param {PlaneFrame} frame */
  startAt(frame) { return this.start ?? frame.start?.at ?? null; }

  /**
   * Where the plane lies on the canvas: left of the card, or above it.
   * @returns {View}
   */
  view() {
    const { clientWidth: width, clientHeight: height } = $("plane");
    const card = $("card").getBoundingClientRect();
    const below = card.width > 0.7 * width;
    const [right, bottom, top] = below ? [width, card.top, 30] : [card.left, height - 24, 0];
    const unit = Math.min(right - (below ? 0 : 90), bottom - top) / (2 * (this.reach ?? 1));
    return { width, height, x: right / 2, y: (top + bottom) / 2, unit };
  }

  /**
   * Show the numbers on the card.
   * @param {PlaneFrame} frame
   * @param {PlaneGround | null} ground
   */
  showReadings(frame, ground) {
    this.arrows.showLegend(frame, this.redraw);
    const t = frame.arrays.t.data[this.point()], places = frame.held.length, fits = Boolean(frame.fit);
    setText($("t"), t === undefined ? "" : `t = ${t}`);
    setText($("who"), fits ? "sample" : "point");
    setText($("reached"), places === 1 ? `${Math.round(100 * frame.held[0])} % of them there`
      : `${frame.reached} of ${places} places reached`);
    document.body.dataset.reached = String(frame.reached);
    const bars = $("shares");
    while (bars.children.length > places) bars.lastChild.remove();
    while (bars.children.length < places) make("i", bars);
    const most = places === 1 ? 1 : Math.max(0.25, ...frame.held);
    frame.held.forEach((share, k) => {
      bars.children[k].style.setProperty("--share", `${(100 * share) / most}%`);
      bars.children[k].title = `${ground ? nameOf(ground, k) : ""}: ${Math.round(100 * share)} %`;
    });
    $("trails").hidden = $("replay").hidden = fits;
    const hint = !frame.start || frame.start.locked ? ""
      : coarse() || innerWidth < 640 ? "Drag the ring to move the start. Touch a point to see its arrows."
      : "Drag the ring to move the start. Point at a particle to see its arrows; a click keeps it.";
    setText($("hint"), hint);
    $("hint").hidden = !hint;
  }

  /**
   * Draw everything. Return whether something still moves.
   * @param {PlaneFrame} frame
   * @param {PlaneGround | null} ground null until it has come
   * @param {number} seconds since the last drawing
   */
  draw(frame, ground, seconds) {
    const canvas = $("plane"), pen = canvas.getContext("2d"), { paths } = this;
    const zooming = this.#zoom(frame, ground, seconds), view = this.view();
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const [width, height] = [view.width, view.height].map((side) => Math.round(side * ratio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = colour("ground");
    pen.fillRect(0, 0, view.width, view.height);
    const busy = this.#advance(frame, seconds);
    const t = frame.arrays.t.data[this.point()];
    if (ground) this.landscape.draw(pen, view, ground, pressed("noised") && t !== undefined ? t : null, zooming);
    drawAxes(pen, view);
    const known = ground?.ground === frame.ground ? ground : null; // of this very prompt
    if (known) drawPlaces(pen, view, frame, known);
    const index = paths.indexOf(this.shown), point = this.point(), start = this.startAt(frame);
    if (pressed("trails") && !frame.fit) drawTrails(pen, view, paths, index, point);
    if (frame.fit) drawFit(pen, view, this.fit ?? frame.fit);
    if (start) {
      const label = this.dragging ? start.map((v) => v.toFixed(2)).join(", ") : frame.fit ? "start of the mean" : "start";
      drawStart(pen, view, start, label, this.dragging);
    }
    drawPoints(pen, view, paths, index, point, Boolean(frame.fit));
    if (known) drawNames(pen, view, frame, known, start);
    const moving = this.arrows.draw(pen, frame, point, placed(view, paths.at(index, point)), view.unit, seconds);
    document.body.dataset.drawn = String(Number(document.body.dataset.drawn ?? 0) + 1);
    return busy || moving || zooming;
  }

  /** Move what is shown towards the frame. Return whether there is more to come. @param {PlaneFrame} frame @param {number} seconds */
  #advance(frame, seconds) {
    const [first, last] = [this.paths.numbers[0], this.paths.last()];
    if (this.replaying !== null) {
      const share = (performance.now() - this.replaying) / 1000 / REPLAY;
      if (share < 1) { this.shown = first + share * (last - first); return true; }
      this.replaying = null;
    }
    const rest = last - this.shown, step = still.matches ? 1 : 1 - Math.exp(-seconds / CATCH_UP);
    this.shown = still.matches || Math.abs(rest) < 0.02 ? last : this.shown + rest * step;
    let busy = this.shown !== last;
    const fit = this.fit;
    if (frame.fit && fit) {
      frame.fit.forEach((v, k) => {
        fit[k] += (v - fit[k]) * step;
        busy ||= Math.abs(v - fit[k]) > 1e-3;
      });
    }
    return busy;
  }

  /**
   * Zoom out for a start far out and for points that leave, by half units, so that the view stays calm otherwise.
   * Return whether it still moves.
   * @param {PlaneFrame} frame
   * @param {PlaneGround | null} ground
   * @param {number} seconds
   */
  #zoom(frame, ground, seconds) {
    const row = this.paths.rows[this.paths.rows.length - 1], out = [];
    if (this.dragging || !row) return false;
    for (let p = 0; p < this.paths.n; p++) out.push(Math.max(Math.abs(row[2 * p]), Math.abs(row[2 * p + 1])));
    out.sort((a, b) => a - b);
    const far = out[Math.floor(0.9 * (out.length - 1))] - 0.1, least = ground ? reachOf(ground) : 1.5;
    const room = this.room = far > (this.room ?? 0) ? Math.min(Math.ceil(2 * far) / 2 + 0.5, FARTHEST) : this.room;
    const start = (this.startAt(frame) ?? []).map((v) => Math.abs(v) + 0.3);
    const wanted = Math.max(least, far > least ? room ?? 0 : 0, ...start);
    const share = still.matches || !this.reach ? 1 : 1 - Math.exp(-seconds / 0.25);
    const reach = this.reach ?? wanted;
    this.reach = Math.abs(wanted - reach) < 0.01 ? wanted : reach + share * (wanted - reach);
    return this.reach !== wanted;
  }

  // ---- pointer and keys

  /**
   * Follow the pointer, the keys and the buttons. `now` returns the latest frame, or null unless it shows the plane.
   * @param {() => { frame: PlaneFrame, ground: PlaneGround | null } | null} now
   */
  listen(now) {
    const canvas = $("plane");
    canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      const { frame, ground } = now() ?? {};
      if (!frame || event.button) return;
      const hit = this.#under(frame, event);
      if (hit === "start") {
        this.dragging = true;
        canvas.setPointerCapture(event.pointerId);
        this.start = this.#placeOf(frame, event);
      } else if (hit !== null) {
        this.chosen = hit;
        this.showReadings(frame, ground ?? null);
      }
      this.redraw();
    });
    canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      const { frame, ground } = now() ?? {};
      if (!frame) return;
      if (this.dragging) this.start = this.#placeOf(frame, event);
      else {
        const hit = event.pointerType === "mouse" ? this.#under(frame, event) : null;
        canvas.style.cursor = hit === "start" ? "grab" : hit === null ? "" : "pointer";
        const point = hit === "start" ? null : hit;
        if (point === this.hovered) return;
        this.hovered = point;
        this.showReadings(frame, ground ?? null);
      }
      this.redraw();
    });
    const drop = (/** @type {PointerEvent} */ event) => {
      if (!this.dragging) return;
      this.dragging = false;
      if (event.type === "pointerup") this.#moveStart();
      else this.start = null;
      this.redraw();
    };
    canvas.addEventListener("pointerup", drop);
    canvas.addEventListener("pointercancel", drop);
    canvas.addEventListener("pointerleave", () => {
      const { frame, ground } = now() ?? {};
      if (!frame || this.hovered === null) return;
      this.hovered = null;
      this.showReadings(frame, ground ?? null);
      this.redraw();
    });
    let typed = 0;
    canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      const { frame } = now() ?? {};
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      const at = frame && this.startAt(frame);
      if (!by || !at || frame.start?.locked) return;
      event.preventDefault();
      this.start = within(frame, [at[0] + 0.05 * by[0], at[1] + 0.05 * by[1]]);
      clearTimeout(typed);
      typed = setTimeout(() => this.#moveStart(), 350);
      this.redraw();
    });
    for (const id of ["trails", "noised"]) {
      $(id).addEventListener("click", () => {
        $(id).setAttribute("aria-pressed", String(!pressed(id)));
        this.redraw();
      });
    }
    $("replay").addEventListener("click", () => { this.replaying = performance.now(); this.redraw(); });
  }

  /**
   * What is under the pointer: "start", the number of a point, or null.
   * @param {PlaneFrame} frame
   * @param {PointerEvent} event
   */
  #under(frame, event) {
    const view = this.view(), box = $("plane").getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const reach = event.pointerType === "mouse" ? 17 : 30;
    const start = this.startAt(frame);
    if (start && frame.start && !frame.start.locked) {
      const [sx, sy] = placed(view, start);
      if (Math.hypot(x - sx, y - sy) < reach) return "start";
    }
    let best = reach, found = null;
    const index = this.paths.indexOf(this.shown);
    for (let p = 0; p < this.paths.n; p++) {
      const [px, py] = placed(view, this.paths.at(index, p));
      const far = Math.hypot(px - x, py - y);
      if (far < best) [best, found] = [far, p];
    }
    return found;
  }

  /** The place under the pointer, within the knobs' range. @param {PlaneFrame} frame @param {PointerEvent} event */
  #placeOf(frame, event) {
    const view = this.view(), box = $("plane").getBoundingClientRect();
    return within(frame, [
      (event.clientX - box.left - view.x) / view.unit,
      (view.y - event.clientY + box.top) / view.unit,
    ]);
  }

  async #moveStart() {
    const [x, y] = this.start ?? [0, 0];
    $("hint").classList.add("read");
    try {
      const answer = await fetch("start", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ x, y }),
      });
      if (!answer.ok) throw new TypeError(await answer.text());
      const moved = await answer.json();
      if (!this.dragging) this.start = [moved.x, moved.y];
    } catch (e) {
      this.start = null;
      this.say(`The start was not moved: ${/** @type {Error} */ (e).message}`);
    }
    this.redraw();
  }
}

/**
 * The place nearest to `at` that the knobs allow.
 * @param {PlaneFrame} frame
 * @param {Point} at
 * @returns {Point}
 */
function within(frame, at) {
  const [x, y] = frame.start?.range ?? [at, at];
  return [Math.min(Math.max(at[0], x[0]), x[1]), Math.min(Math.max(at[1], y[0]), y[1])];
}
