// @ts-check
// The density behind the points: the mixture's, or what is left of it at a noise level.

import { dark } from "./dom.js";

/**
 * @import { PlaneGround, Table } from "./message.js"
 * @import { View } from "./layers.js"
 *
 * @typedef {{ x: number, y: number, variance: number, top: number }} Hill
 */

export class Landscape {
  #picture = document.createElement("canvas");
  #key = "";

  /** Draw again next time. */
  forget() { this.#key = ""; }

  /**
   * Draw the density at timestep `t`, null for the data's own density; coarser while the view zooms.
   * @param {CanvasRenderingContext2D} pen
   * @param {View} view
   * @param {PlaneGround} ground
   * @param {number | null} t
   * @param {boolean} zooming
   */
  draw(pen, view, ground, t, zooming) {
    const key = [view.width, view.height, view.x, view.y, view.unit, dark(), t ?? "", zooming, ground.ground].join();
    if (key !== this.#key) {
      this.#paint(view, ground, t, t === null && !zooming ? 2 : 4);
      this.#key = key;
    }
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.#picture, 0, 0, view.width, view.height);
  }

  /**
   * @param {View} view
   * @param {PlaneGround} ground
   * @param {number | null} t
   * @param {number} fine pixels of the screen for one of the landscape
   */
  #paint(view, ground, t, fine) {
    const [w, h] = [Math.ceil(view.width / fine), Math.ceil(view.height / fine)];
    Object.assign(this.#picture, { width: w, height: h });
    const image = new ImageData(w, h);
    const paint = image.data;
    // paper, foot and top of the hills that are asked for, other hills; each as red, green, blue
    const [paper, low, high, other] = dark()
      ? [[16, 18, 26], [49, 50, 110], [129, 140, 248], [44, 48, 62]]
      : [[248, 249, 253], [205, 212, 250], [110, 118, 240], [222, 225, 234]];
    const squared = t === null ? 1 : ground.arrays.alphas_cumprod.data[Math.min(Math.max(t, 0), 999)];
    const noise = (1 - squared) / squared; // variance in the plane's own units
    const asked = hills(ground.arrays.asked, noise), all = hills(ground.arrays.all, noise);
    for (let j = 0, at = 0; j < h; j++) {
      const y = (view.y - j * fine) / view.unit;
      for (let i = 0; i < w; i++, at += 4) {
        const x = (i * fine - view.x) / view.unit;
        const far = 0.9 * terraced(height(all, x, y)), near = terraced(height(asked, x, y));
        for (let c = 0; c < 3; c++) {
          let v = paper[c] + far * (other[c] - paper[c]);
          const peak = low[c] + near * (high[c] - low[c]);
          v += Math.min(near * 2.2, 1) * (peak - v);
          paint[at + c] = v;
        }
        paint[at + 3] = 255;
      }
    }
    this.#picture.getContext("2d")?.putImageData(image, 0, 0);
  }
}

/**
 * How far from the middle the hills and their labels reach.
 * @param {PlaneGround} ground
 */
export function reachOf(ground) {
  const { shape: [n], data } = ground.arrays.all;
  let found = 0;
  for (let k = 0; k < n; k++)
    found = Math.max(found, ...[1, 2].map((c) => Math.abs(data[4 * k + c]) + 3 * data[4 * k + 3] + 0.2));
  return found;
}

/**
 * The components of a mixture with `noise` added, the highest place at 1.
 * @param {Table} table
 * @param {number} noise
 * @returns {Hill[]}
 */
function hills({ shape, data }, noise) {
  /** @type {Hill[]} */
  const made = [];
  for (let k = 0; k < shape[0]; k++) {
    const [weight, x, y, std] = data.subarray(4 * k, 4 * k + 4);
    const variance = std * std + noise;
    made.push({ x, y, variance, top: weight / variance });
  }
  const peak = Math.max(...made.map(({ x, y }) => made.reduce((sum, m) => sum + value(m, x, y), 0)));
  for (const m of made) m.top /= peak;
  return made;
}

/** @param {Hill} hill @param {number} x @param {number} y */
function value(hill, x, y) {
  const squared = ((x - hill.x) ** 2 + (y - hill.y) ** 2) / hill.variance;
  return squared > 60 ? 0 : hill.top * Math.exp(-0.5 * squared);
}

/** A soft power of the density, so that the foot of a hill shows. @param {Hill[]} made @param {number} x @param {number} y */
function height(made, x, y) {
  let sum = 0;
  for (const m of made) sum += value(m, x, y);
  return sum < 1e-9 ? 0 : sum ** 0.36;
}

/** Turn a slope into soft terraces. @param {number} v */
function terraced(v) {
  const n = 6, whole = Math.floor(v * n), rest = v * n - whole;
  const edge = Math.min(rest / 0.16, 1);
  return 0.45 * v + 0.55 * Math.min((whole + edge * edge * (3 - 2 * edge)) / n, 1);
}
