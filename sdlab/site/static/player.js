// @ts-check
/* Plays a recorded run: one sheet of pictures around the object, one of the lens, and charts with a cursor. */

{
  const run = JSON.parse(/** @type {HTMLElement} */ (document.getElementById("run")).textContent ?? "{}");
  const player = /** @type {HTMLElement} */ (document.getElementById("player"));
  /** @template {Element} T @param {string} what @returns {T} */
  const part = (what) => /** @type {T} */ (player.querySelector(`[data-${what}]`));
  const scrub = /** @type {HTMLInputElement} */ (part("scrub")), button = /** @type {HTMLButtonElement} */ (part("play"));
  const PLAY = 9; // s that a run takes to play
  const last = run.steps.length - 1;
  scrub.max = String(last);

  /** @param {string} file @returns {HTMLImageElement} */
  const load = (file) => Object.assign(new Image(), { src: file });
  const views = load(run.views.file), lens = run.lens.cells ? load(run.lens.file) : null;

  // ---- parts ----
  const canvas = /** @type {HTMLCanvasElement} */ (part("views"));
  [canvas.width, canvas.height] = run.views.size;
  /** @type {HTMLCanvasElement[]} */ const cells = [];
  for (let k = 0; k < run.lens.cells; k++) {
    const figure = document.createElement("figure"), cell = document.createElement("canvas");
    cell.width = cell.height = run.lens.size;
    cell.setAttribute("role", "img");
    cell.setAttribute("aria-label", run.lens.labels[k]);
    cell.title = run.lens.captions[k];
    const caption = document.createElement("figcaption");
    caption.textContent = run.lens.labels[k];
    figure.append(cell, caption);
    part("lens").append(figure);
    cells.push(cell);
  }
  const charts = run.curves.map(chart);

  /** @param {{ title: string, points: [number, number][] }} curve */
  function chart({ title, points }) {
    const box = document.createElement("div"), values = points.map((p) => p[1]);
    const low = Math.min(0, ...values), high = Math.max(...values, low + 1e-9), end = run.steps[last];
    /** @param {number} step */ const x = (step) => ((step / end) * 200).toFixed(1);
    const line = points.map(([step, v], n) => `${n ? "L" : "M"}${x(step)} ${(60 - ((v - low) / (high - low)) * 58).toFixed(1)}`);
    box.innerHTML =
      `<h3><span></span><output></output></h3><svg viewBox="0 0 200 60" preserveAspectRatio="none" aria-hidden="true">` +
      `<path d="${line.join("")}"/><line y1="0" y2="60"/></svg>`;
    /** @type {Element} */ (box.querySelector("span")).textContent = title;
    part("charts").append(box);
    return (/** @type {number} */ step) => {
      const cursor = /** @type {Element} */ (box.querySelector("line"));
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(step));
      const nearest = points.reduce((best, p) => (Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best));
      /** @type {Element} */ (box.querySelector("output")).textContent = Math.abs(nearest[1]) < 1e-5 ? "0" : String(Number(nearest[1].toPrecision(3)));
    };
  }

  /** @param {number} n the frame */
  function show(n) {
    const [w, h] = run.views.size, pen = canvas.getContext("2d"), { columns } = run.views;
    if (views.complete) pen?.drawImage(views, (n % columns) * w, Math.floor(n / columns) * h, w, h, 0, 0, w, h);
    const s = run.lens.size;
    if (lens?.complete) cells.forEach((cell, k) => cell.getContext("2d")?.drawImage(lens, k * s, n * s, s, s, 0, 0, s, s));
    const step = run.steps[n], { t, alpha, sigma, w: weight, view } = run.numbers[n];
    part("step").textContent = `step ${step}`;
    part("numbers").textContent = t === undefined ? "" :
      `${view ? `${view}, ` : ""}t = ${t}, alpha ${alpha}, sigma ${sigma}, w ${weight}`;
    charts.forEach((/** @type {(step: number) => void} */ draw) => draw(step));
    scrub.setAttribute("aria-valuetext", `step ${step}`);
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
  for (const image of lens ? [views, lens] : [views]) image.addEventListener("load", () => show(Number(scrub.value)));
  show(Number(scrub.value));
  if (!still) views.decode().then(() => play(true)).catch(() => undefined);
}
