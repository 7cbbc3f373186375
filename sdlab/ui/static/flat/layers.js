// @ts-check
// What is drawn on the plane, layer by layer.

import { colour, dark } from "./dom.js";

/**
 * @import { PlaneFrame, PlaneGround, Point } from "./message.js"
 * @import { Paths } from "./paths.js"
 *
 * Where the plane lies on the canvas: its size, its middle, and the pixels of one unit.
 * @typedef {{ width: number, height: number, x: number, y: number, unit: number }} View
 *
 * @typedef {CanvasRenderingContext2D} Pen
 */

const TRAIL = 60; // steps drawn behind each point
const SEGMENTS = 9000; // of trails in one drawing
const REACHED = 0.01; // share of the points from which a place counts as reached (sdlab/experiments/playground.py)

/**
 * Where a place of the plane lies on the canvas.
 * @param {View} view
 * @param {Point} at
 * @returns {Point}
 */
export const placed = (view, [x, y]) => [view.x + x * view.unit, view.y - y * view.unit];

/** Write text with a rim in the colour of the ground. @param {Pen} pen @param {string} text @param {number} x @param {number} y */
export function halo(pen, text, x, y) {
  pen.lineWidth = 3.5;
  pen.lineJoin = "round";
  pen.strokeStyle = colour("ground");
  pen.strokeText(text, x, y);
  pen.fillText(text, x, y);
}

/** @param {Pen} pen @param {View} view */
export function drawAxes(pen, view) {
  pen.strokeStyle = dark() ? "rgba(255,255,255,.05)" : "rgba(17,24,39,.055)";
  pen.lineWidth = 1;
  pen.beginPath();
  for (let k = -8; k <= 8; k++) {
    const [x, y] = placed(view, [k, k]).map((v) => Math.round(v) + 0.5);
    pen.moveTo(x, 0); pen.lineTo(x, view.height);
    pen.moveTo(0, y); pen.lineTo(view.width, y);
  }
  pen.stroke();
}

/** Draw a ring around each place that is asked for. @param {Pen} pen @param {View} view @param {PlaneFrame} frame @param {PlaneGround} ground */
export function drawPlaces(pen, view, frame, ground) {
  const { shape, data } = ground.arrays.asked;
  for (let k = 0; k < shape[0]; k++) {
    const [, x, y, std] = data.subarray(4 * k, 4 * k + 4);
    const here = (frame.held[k] ?? 0) >= REACHED;
    pen.strokeStyle = here ? colour("accent") : dark() ? "rgba(255,255,255,.18)" : "rgba(79,70,229,.22)";
    pen.lineWidth = here ? 1.6 : 1;
    pen.setLineDash(here ? [] : [3, 4]);
    pen.beginPath();
    pen.arc(...placed(view, [x, y]), 3 * std * view.unit, 0, 7);
    pen.stroke();
    pen.setLineDash([]);
  }
}

/**
 * Write the names of the places, outside of each; inside where the start is in the way.
 * @param {Pen} pen
 * @param {View} view
 * @param {PlaneFrame} frame
 * @param {PlaneGround} ground
 * @param {Point | null} start
 */
export function drawNames(pen, view, frame, ground, start) {
  const { shape, data } = ground.arrays.asked, small = view.unit < 110;
  const ring = start && placed(view, start);
  pen.textBaseline = "middle";
  for (let k = 0; k < shape[0]; k++) {
    const [, x, y, std] = data.subarray(4 * k, 4 * k + 4);
    const share = frame.held[k] ?? 0, here = share >= REACHED;
    const out = (3 * std + 0.1) / (Math.hypot(x, y) || 1);
    const [outside, inside] = [1 + out, 1 - out].map((times) => placed(view, [x * times, y * times]));
    const moved = ring !== null && Math.hypot(ring[0] - outside[0], ring[1] - outside[1]) < 42;
    const percent = `${Math.round(100 * share)} %`;
    const text = small ? (here ? percent : "") : here ? `${nameOf(ground, k)} ${percent}` : nameOf(ground, k);
    // away from the place, to whichever side it lies
    pen.textAlign = Math.abs(x) < 0.1 || small ? "center" : (x > 0) === !moved ? "left" : "right";
    pen.font = `${here ? 600 : 400} ${small ? 10 : 12}px system-ui, sans-serif`;
    pen.fillStyle = here ? colour("accent") : colour("soft");
    halo(pen, text, ...(moved ? inside : outside));
  }
}

/**
 * The name of a requested place, looked up by position among all places.
 * @param {PlaneGround} ground
 * @param {number} k
 */
export function nameOf(ground, k) {
  const [, x, y] = ground.arrays.asked.data.subarray(4 * k, 4 * k + 3);
  const { shape, data } = ground.arrays.all;
  for (let i = 0; i < shape[0]; i++)
    if (Math.hypot(data[4 * i + 1] - x, data[4 * i + 2] - y) < 1e-3) return ground.names[i] ?? "";
  return "";
}

/** @param {Pen} pen @param {View} view @param {Paths} paths @param {number} index @param {number} chosen */
export function drawTrails(pen, view, paths, index, chosen) {
  const n = paths.n;
  const steps = Math.min(TRAIL, Math.max(3, Math.floor(SEGMENTS / n)));
  const begin = Math.max(0, Math.floor(index) - steps);
  if (index <= 0) return;
  const strong = n > 300 ? 0.25 : n > 40 ? 0.42 : 0.75;
  pen.strokeStyle = colour("point");
  pen.lineWidth = n > 300 ? 0.8 : 1.1;
  pen.lineJoin = "round";
  const bands = 10; // of age, each drawn in one go
  const size = (index - begin) / bands;
  for (let band = 0; band < bands; band++) {
    const from = begin + band * size, to = from + size;
    pen.globalAlpha = strong * ((band + 1) / bands) ** 1.6;
    pen.beginPath();
    for (let p = 0; p < n; p++) if (p !== chosen) trace(pen, view, paths, p, from, to);
    pen.stroke();
  }
  // the chosen point's whole path, as far as it is known
  pen.strokeStyle = colour("ink");
  pen.lineWidth = 1.3;
  pen.globalAlpha = 0.55;
  pen.beginPath();
  trace(pen, view, paths, chosen, 0, index);
  pen.stroke();
  pen.globalAlpha = 1;
}

/** @param {Pen} pen @param {View} view @param {Paths} paths @param {number} point @param {number} from @param {number} to */
function trace(pen, view, paths, point, from, to) {
  pen.moveTo(...placed(view, paths.at(from, point)));
  for (let i = Math.floor(from) + 1; i < to; i++) {
    const row = paths.rows[i];
    pen.lineTo(view.x + row[2 * point] * view.unit, view.y - row[2 * point + 1] * view.unit);
  }
  pen.lineTo(...placed(view, paths.at(to, point)));
}

/** Draw a Gaussian at one and two standard deviations. @param {Pen} pen @param {View} view @param {number[]} fit */
export function drawFit(pen, view, [x, y, a, b]) {
  const at = placed(view, [x, y]);
  for (const [times, alpha] of [[2, 0.1], [1, 0.16]]) {
    pen.beginPath();
    pen.ellipse(...at, times * a * view.unit, times * b * view.unit, 0, 0, 7);
    pen.globalAlpha = alpha;
    pen.fillStyle = colour("point");
    pen.fill();
    pen.globalAlpha = times === 1 ? 1 : 0.6;
    pen.strokeStyle = colour("point");
    pen.lineWidth = times === 1 ? 2 : 1;
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

/**
 * @param {Pen} pen
 * @param {View} view
 * @param {Paths} paths
 * @param {number} index
 * @param {number} chosen
 * @param {boolean} faint
 */
export function drawPoints(pen, view, paths, index, chosen, faint) {
  const n = paths.n, size = (n > 300 ? 2 : n > 120 ? 2.6 : 3.4) * (view.unit < 110 ? 0.8 : 1);
  pen.fillStyle = colour("point");
  pen.strokeStyle = dark() ? "rgba(16,18,26,.75)" : "rgba(255,255,255,.9)";
  pen.lineWidth = 1;
  pen.globalAlpha = faint ? 0.55 : 0.9;
  for (let p = 0; p < n; p++) {
    if (p === chosen) continue;
    const [x, y] = placed(view, paths.at(index, p));
    if (x < -9 || y < -9 || x > view.width + 9 || y > view.height + 9) continue;
    pen.beginPath();
    pen.arc(x, y, size, 0, 7);
    pen.fill();
    pen.stroke();
  }
  pen.globalAlpha = 1;
  pen.beginPath();
  pen.arc(...placed(view, paths.at(index, chosen)), size + 2.4, 0, 7);
  pen.fillStyle = colour("point");
  pen.fill();
  pen.strokeStyle = colour("ink");
  pen.lineWidth = 1.8;
  pen.stroke();
}

/**
 * Draw the ring at the start, with its label.
 * @param {Pen} pen
 * @param {View} view
 * @param {Point} at
 * @param {string} label
 * @param {boolean} dragging
 */
export function drawStart(pen, view, at, label, dragging) {
  const [x, y] = placed(view, at);
  for (const [tone, width] of /** @type {[string, number][]} */ ([["ground", 5], ["good", 2]])) {
    pen.strokeStyle = colour(tone);
    pen.lineWidth = width;
    pen.beginPath();
    pen.arc(x, y, dragging ? 14 : 11, 0, 7);
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 11 * dx, y + 11 * dy);
      pen.lineTo(x + 16 * dx, y + 16 * dy);
    }
    pen.stroke();
  }
  pen.font = "600 11px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillStyle = colour("good");
  halo(pen, label, x, y - 25);
}
