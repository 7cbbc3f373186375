// @ts-check
// Where the points of one run were, step by step.

/** @import { PlaneFrame, Point } from "./message.js" */

const KEPT = 2e6; // numbers kept

export class Paths {
  constructor() {
    /** @type {Float32Array[]} */
    this.rows = []; // the places of all points after one step: x, y, x, y, ...
    /** @type {number[]} */
    this.numbers = []; // the step of each row
    this.run = 0;
    this.n = 0; // points
  }

  /** The number of the latest step, -1 before there is any. */
  last() { return this.numbers.at(-1) ?? -1; }

  /**
   * Add the rows of a frame. Return whether it begins another run.
   * @param {PlaneFrame} frame
   */
  take(frame) {
    const { rows, way } = frame.arrays;
    const n = way.shape[1];
    const begins = frame.run !== this.run || n !== this.n || (rows.data.length > 0 && rows.data[0] < this.numbers[0]);
    if (begins) Object.assign(this, { rows: [], numbers: [], run: frame.run, n });
    if (frame.fit && rows.data.length) this.rows.length = this.numbers.length = 0; // samples, new ones after each step
    rows.data.forEach((number, i) => {
      while (this.numbers.length && this.last() >= number) { this.numbers.pop(); this.rows.pop(); }
      this.numbers.push(number);
      this.rows.push(Float32Array.from(way.data.subarray(2 * n * i, 2 * n * (i + 1)), (v) => v / frame.unit));
    });
    while (this.rows.length > 2 && this.rows.length * n * 2 > KEPT) { this.rows.shift(); this.numbers.shift(); }
    return begins;
  }

  /** The fractional index of a fractional step. @param {number} number */
  indexOf(number) {
    const at = this.numbers;
    if (number <= at[0]) return 0;
    let lo = 0, hi = at.length - 1;
    if (number >= at[hi]) return hi;
    while (hi - lo > 1) { const mid = (lo + hi) >> 1; if (at[mid] <= number) lo = mid; else hi = mid; }
    return lo + (number - at[lo]) / (at[hi] - at[lo]);
  }

  /**
   * Where a point is at a fractional index; NaN, where nothing is drawn, before there is any row.
   * @param {number} index
   * @param {number} point
   * @returns {Point}
   */
  at(index, point) {
    const i = Math.min(Math.floor(index), this.rows.length - 1), share = index - i;
    const a = this.rows[i], b = this.rows[Math.min(i + 1, this.rows.length - 1)];
    if (!a) return [NaN, NaN];
    const [x, y] = [2 * point, 2 * point + 1];
    return [a[x] + share * (b[x] - a[x]), a[y] + share * (b[y] - a[y])];
  }
}
