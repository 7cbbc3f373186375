// @ts-check
/* Plays a recorded run: one sheet of pictures around the object, one of the lens, and charts with a cursor. */

{
  const run = JSON.parse(/** @type {HTMLElement} */ (document.getElementById("run")).textContent ?? "{}");
  const player = /** @type {HTMLElement} */ (document.getElementById("player"));
  /** @template {Element} T @param {string} what @returns {T} */
  const part = (what) => /** @type {T} */ (player.querySelector(`[data-${what}]`));
  const scrub = /** @type {HTMLInputElement} */ (part("scrub")), button = /** @type {HTMLButtonElement} */ (part("play"));
  const PLAY = 9; // s that a run takes to play
  const last = run.steps.length - 1, first = run.steps[0], end = Math.max(run.steps[last], first + 1);
  scrub.max = String(last);
  part("scrubber").hidden = !last;

  /** @param {string} file @returns {HTMLImageElement} */
  const load = (file) => {
    const image = new Image();
    image.addEventListener("load", () => show(Number(scrub.value)));
    image.addEventListener("error", () => {
      missing = `The pictures of this page are missing: ${file} has to lie beside it.`;
      show(Number(scrub.value));
    });
    image.src = file;
    return image;
  };
  const silent = run.numbers.every((/** @type {{ t?: number }} */ one) => one.t === undefined);
  let missing = "";
  const views = load(run.views.file), lens = run.lens.cells ? load(run.lens.file) : null;

  // ---- parts ----
  const canvas = /** @type {HTMLCanvasElement} */ (part("views"));
  [canvas.width, canvas.height] = run.views.size;
  canvas.classList.toggle("pixels", canvas.width < 200); // small images are shown as they are
  /** @type {HTMLCanvasElement[]} */ const cells = [];
  for (let k = 0; k < run.lens.cells; k++) {
    const figure = document.createElement("figure"), cell = document.createElement("canvas");
    cell.width = cell.height = run.lens.size;
    cell.setAttribute("role", "img");
    figure.append(cell, document.createElement("figcaption"));
    part("lens").append(figure);
    cells.push(cell);
  }
  const charts = run.curves.map(chart);

  /** @param {{ title: string, points: [number, number][], bounds?: number[] }} curve its bounds are thresholds */
  function chart({ title, points, bounds = [] }) {
    const box = document.createElement("div"), values = [...points.map((p) => p[1]), ...bounds];
    const low = Math.min(0, ...values), high = Math.max(...values, low + 1e-9);
    /** @param {number} step */ const x = (step) => (((step - first) / (end - first)) * 200).toFixed(1);
    /** @param {number} v */ const y = (v) => (60 - ((v - low) / (high - low)) * 58).toFixed(1);
    const line = points.map(([step, v], n) => `${n ? "L" : "M"}${x(step)} ${y(v)}`);
    box.innerHTML =
      `<h3><span></span><output></output></h3><svg viewBox="0 0 200 60" preserveAspectRatio="none" aria-hidden="true">` +
      bounds.map((v) => `<path class="bound" d="M0 ${y(v)}H200"/>`).join("") +
      `<path d="${line.join("")}"/><line y1="0" y2="60"/></svg>`;
    /** @type {Element} */ (box.querySelector("span")).textContent = title;
    part("charts").append(box);
    return (/** @type {number} */ step) => {
      const cursor = /** @type {Element} */ (box.querySelector("line"));
      for (const side of ["x1", "x2"]) cursor.setAttribute(side, x(step));
      const nearest = points.reduce((best, p) => (Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best));
      /** @type {Element} */ (box.querySelector("output")).textContent = Math.abs(nearest[1]) < 1e-5 ? "0" : String(Number(nearest[1].toPrecision(3)));
    };
  }

  /** @param {number} n the frame */
  function show(n) {
    const [w, h] = run.views.size, { columns, count } = run.views, at = Math.min(n, count - 1);
    if (views.complete && views.naturalWidth)
      canvas.getContext("2d")?.drawImage(views, (at % columns) * w, Math.floor(at / columns) * h, w, h, 0, 0, w, h);
    if (lens?.complete && lens.naturalWidth) cells.forEach((cell, k) => showCell(cell, k, n, lens));
    const step = run.steps[n], { t, alpha, sigma, w: weight, view } = run.numbers[n];
    part("step").textContent = run.labels[n];
    part("numbers").textContent =
      missing || (t === undefined ? "" : `${view ? `${view}, ` : ""}t = ${t}, alpha ${alpha}, sigma ${sigma}, w ${weight}`);
    part("numbers").hidden = !missing && silent;
    charts.forEach((/** @type {(step: number) => void} */ draw) => draw(step));
    scrub.setAttribute("aria-valuetext", run.labels[n]);
  }

  /** @param {HTMLCanvasElement} cell @param {number} k its place in the row @param {number} n @param {HTMLImageElement} sheet */
  function showCell(cell, k, n, sheet) {
    const s = run.lens.size, { labels, captions } = run.lens.rows[n], figure = /** @type {HTMLElement} */ (cell.parentElement);
    figure.hidden = labels[k] === undefined;
    if (figure.hidden) return;
    cell.getContext("2d")?.drawImage(sheet, k * s, n * s, s, s, 0, 0, s, s);
    cell.setAttribute("aria-label", captions[k]);
    cell.title = captions[k];
    /** @type {Element} */ (figure.lastElementChild).textContent = labels[k];
  }

  // ---- playing ----
  let began = 0, from = 0;
  /** @param {boolean} on */
  function play(on) {
    button.textContent = on ? "Pause" : "Play";
    if (!on) {
      began = 0;
      return;
    }
    from = Number(scrub.value) >= last ? 0 : Number(scrub.value);
    began = performance.now();
    requestAnimationFrame(tick);
  }
  /** @param {number} now */
  function tick(now) {
    if (!began) return;
    const n = Math.min(from + Math.floor((Math.max(now - began, 0) / 1000) * (last / PLAY)), last);
    if (n !== Number(scrub.value)) {
      scrub.value = String(n);
      show(n);
    }
    if (n < last) requestAnimationFrame(tick);
    else play(false);
  }
  button.addEventListener("click", () => play(!began));
  scrub.addEventListener("input", () => {
    play(false);
    show(Number(scrub.value));
  });
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (still) scrub.value = String(last);
  show(Number(scrub.value));
  if (last && !still) // from when the views are first seen
    new IntersectionObserver((seen, self) => {
      if (!seen.some((one) => one.isIntersecting)) return;
      self.disconnect();
      views.decode().then(() => play(true)).catch(() => undefined); // missing pictures are told by their own event
    }).observe(canvas);
}
