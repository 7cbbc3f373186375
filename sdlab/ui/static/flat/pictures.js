// @ts-check
// A flat scene of images: each as it is, with its saturation over the steps.

import { $, make, setText, svg } from "./dom.js";

/** @import { Ground, PicturesFrame } from "./message.js" */

const HIGH = 1.25; // times as saturated as true images counts as high

/** Saturation over the steps: rows of [step, one number for each image]. */
class Course {
  /** @type {number[][]} */
  rows = [];

  last() { return this.rows.at(-1)?.[0] ?? -1; }

  /** @param {PicturesFrame} frame */
  take({ after, arrays: { saturations: { shape, data } } }) {
    if (after < 0 || this.rows[0]?.length !== shape[1]) this.rows = [];
    for (let i = 0; i < shape[0]; i++) this.rows.push([...data.subarray(i * shape[1], (i + 1) * shape[1])]);
  }
}

export class Pictures {
  course = new Course();
  /** @type {ImageBitmap | null} */
  #sheet = null;

  /** @param {PicturesFrame} frame @param {Ground | null} ground */
  async take(frame, ground) {
    this.course.take(frame);
    const { shape, data } = frame.arrays.sheet;
    if (shape[0]) {
      this.#sheet?.close();
      this.#sheet = await createImageBitmap(new Blob([/** @type {Uint8Array<ArrayBuffer>} */ (data)]));
    }
    const box = $("pictures"), { count, size: [rows, columns] } = frame, sheet = this.#sheet;
    box.hidden = false;
    while (box.children.length > count) box.lastChild.remove();
    while (box.children.length < count) addFigure(box);
    const across = Math.ceil(Math.sqrt(count));
    [...box.children].forEach((figure, k) => {
      const canvas = figure.querySelector("canvas");
      if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
      const [left, top] = [(k % across) * columns, Math.floor(k / across) * rows];
      canvas.getContext("2d").drawImage(sheet, left, top, columns, rows, 0, 0, columns, rows);
    });
    box.classList.toggle("coarse", Math.max(rows, columns) <= 128);
    box.classList.toggle("many", count > 16);
    this.showCourse(frame, ground);
    $("card").hidden = $("colours").hidden = false;
    this.arrange();
  }

  /** Make the images as large as the place beside the card allows. */
  arrange() {
    const box = $("pictures"), n = box.children.length;
    if (!n) return;
    const stage = $("stage").getBoundingClientRect(), card = $("card").getBoundingClientRect();
    const below = card.width > 0.7 * stage.width;
    const margin = below ? 10 : 18, gap = below ? 8 : 14, foot = n > 16 ? 0 : 30;
    const width = (below ? stage.width : card.left) - 2 * margin, tall = (below ? card.top : stage.height) - 2 * margin;
    let best = [0, 1];
    for (let columns = 1; columns <= n; columns++) {
      const rows = Math.ceil(n / columns);
      const side = Math.floor(Math.min((width - gap * (columns - 1)) / columns, (tall - gap * (rows - 1)) / rows - foot));
      if (side > best[0]) best = [side, columns];
    }
    const [side, columns] = best;
    Object.assign(box.style, { left: `${margin}px`, top: `${margin}px`, width: `${width}px`, height: `${tall}px` });
    box.style.gridTemplateColumns = `repeat(${columns}, ${side}px)`;
    box.style.setProperty("--side", `${side}px`);
  }

  /**
   * Show the saturation of each image and of all together, beside that of true images.
   * @param {PicturesFrame} frame
   * @param {Ground | null} ground
   */
  showCourse(frame, ground) {
    const { rows } = this.course, now = rows.at(-1);
    if (!now) return;
    const mean = (/** @type {number[]} */ row) => row.slice(1).reduce((a, b) => a + b, 0) / (row.length - 1);
    const wanted = ground?.kind === "pictures" ? ground.true : null;
    const high = (/** @type {number} */ value) => wanted !== null && value > HIGH * wanted;
    const top = Math.max(0.3, (wanted ?? 0) * 1.4, ...rows.map((row) => Math.max(...row.slice(1))));
    [...$("pictures").children].forEach((figure, k) => {
      const value = figure.querySelector(".value");
      setText(value, now[k + 1].toFixed(2));
      value.classList.toggle("high", high(now[k + 1]));
      plot(figure.querySelector(".spark"), rows.map((row) => [row[0], row[k + 1]]), top, wanted);
    });
    const value = mean(now);
    setText($("mean"), value.toFixed(2));
    $("mean").classList.toggle("high", high(value));
    setText($("about-true"), wanted === null ? "" : `true pictures: ${wanted.toFixed(2)}`);
    plot($("course"), rows.map((row) => [row[0], mean(row)]), top, wanted);
    const late = frame.step > 0.3 * frame.planned; // images that begin as noise have settled by then
    setText($("verdict"), "How far R, G and B lie apart. " + (wanted === null ? ""
      : high(value) ? `More than in true pictures (dashed)${late ? ": over-saturated" : ""}.`
      : "Dashed: in true pictures of this prompt."));
    document.body.dataset.saturation = value.toFixed(4);
  }
}

/** @param {Element} box */
function addFigure(box) {
  const figure = make("figure", box);
  make("canvas", figure);
  make("span", figure, "number", String(box.children.length));
  const caption = make("figcaption", figure);
  make("span", caption, "value").title = "saturation";
  make("div", caption, "spark");
}

/**
 * Draw a curve from 0 to `top`, and a dashed line at `wanted`.
 * @param {Element} box
 * @param {number[][]} points step, value
 * @param {number} top
 * @param {number | null} wanted
 */
function plot(box, points, top, wanted) {
  box.replaceChildren();
  const picture = svg("svg", box, { class: "plot", viewBox: "0 0 100 100", preserveAspectRatio: "none" });
  const y = (/** @type {number} */ v) => 100 - (100 * v) / top;
  svg("line", picture, { class: "base", x1: 0, x2: 100, y1: 100, y2: 100 });
  if (wanted !== null) svg("line", picture, { class: "true", x1: 0, x2: 100, y1: y(wanted), y2: y(wanted) });
  const first = points[0][0], span = Math.max(points[points.length - 1][0] - first, 1);
  const line = points.map(([step, v]) => `${((100 * (step - first)) / span).toFixed(2)},${y(v).toFixed(2)}`);
  svg("polyline", picture, { points: line.join(" ") });
}
