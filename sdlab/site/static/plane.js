// @ts-check
/* The playground: points of the plane under a loss, computed here, drawn on a canvas. */

import { Plane, REWARDED, Run, streams } from "./distill.js";

/**
 * @import { Point, Settings } from "./distill.js"
 * @typedef {{ name: string, label: string, help: string, value: any, lo: number, hi: number, choices: string[] }} Knob
 * @typedef {{ name: string, title: string, formula: string, look: string, knobs: Knob[], all: Record<string, any> }} Loss
 */

const world = JSON.parse(/** @type {HTMLElement} */ (document.getElementById("world")).textContent ?? "{}");
const REACH = 1.9; // the plane is shown from -REACH to REACH
const TRAIL = 60; // steps
const RATE = 40; // steps a second
const HELD = 3; // standard deviations within which a point has reached a Gaussian

/** @template {HTMLElement} T @param {string} id @returns {T} */
const $ = (id) => /** @type {T} */ (document.getElementById(id));
const canvas = /** @type {HTMLCanvasElement} */ ($("plane")), pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
/** @param {string} id */ const input = (id) => /** @type {HTMLInputElement} */ ($(id));

/** @type {Settings} */
const settings = {
  active: world.active,
  steps: world.steps,
  texts: { pos: "", uncond: "", neg: "", source: "", target: "" },
  losses: Object.fromEntries(world.losses.map((/** @type {Loss} */ one) => [one.name, { ...one.all }])),
  schedule: world.schedule,
  optim: { ...world.optim },
};
let start = /** @type {Point} */ ([...world.start]), seed = world.seed;
let plane = new Plane(world.layouts.eight, world.std, world.noise_schedule);
/** @type {Point[][]} */ let trails = [];
let run = begin();
let running = false, credit = 0, before = 0, trouble = "";
/** @type {{ key: string, picture: HTMLCanvasElement } | null} */ let ground = null;

/** Put the points at the start. */
function begin() {
  const noise = streams(seed).randn("scene", Number(input("count").value || world.count), -1);
  const spread = Number(input("spread").value || 0);
  const made = new Run(plane, noise.map(([x, y]) => /** @type {Point} */ ([start[0] + spread * x, start[1] + spread * y])), streams(seed));
  trails = [made.points];
  return made;
}

function reset() {
  run = begin();
  trouble = "";
  draw();
}

function advance() {
  if (!run.advance(settings)) trouble = "a step was skipped: its gradient was not finite";
  trails.push(run.points);
  if (trails.length > TRAIL) trails.shift();
  if (run.step >= settings.steps) go(false);
}

/** @param {boolean} on */
function go(on) {
  if (on && run.step >= settings.steps) reset();
  running = on;
  $("go").textContent = on ? "Pause" : "Start";
  before = performance.now();
  if (on) requestAnimationFrame(tick);
}

/** @param {number} now */
function tick(now) {
  if (!running) return;
  credit = Math.min(credit + ((now - before) / 1000) * RATE, 4); // a slow loss takes fewer steps
  before = now;
  const until = performance.now() + 24;
  while (credit >= 1 && running && performance.now() < until) {
    advance();
    credit -= 1;
  }
  draw();
  requestAnimationFrame(tick);
}

// ---- drawing ----

/** Where a point of the plane is on the canvas. @param {Point} p @returns {Point} */
function at([x, y]) {
  const unit = Math.min(canvas.width, canvas.height) / (2 * REACH);
  return [canvas.width / 2 + x * unit, canvas.height / 2 - y * unit];
}

const dark = matchMedia("(prefers-color-scheme: dark)");

function landscape() {
  const fine = 3, w = Math.ceil(canvas.width / fine), h = Math.ceil(canvas.height / fine);
  const key = [w, h, dark.matches, settings.texts.pos, input("layout").value].join();
  if (ground?.key === key) return ground.picture;
  const picture = document.createElement("canvas");
  [picture.width, picture.height] = [w, h];
  const image = new ImageData(w, h), unit = Math.min(canvas.width, canvas.height) / (2 * REACH);
  const [paper, asked, other] = dark.matches
    ? [[20, 20, 24], [99, 102, 241], [52, 54, 66]] : [[255, 255, 255], [129, 135, 245], [222, 224, 232]];
  const tops = ["", settings.texts.pos].map((text) => Math.max(...plane.mixture(text).map((m) => plane.density(m.x, m.y, text))));
  for (let j = 0, n = 0; j < h; j++)
    for (let i = 0; i < w; i++, n += 4) {
      const x = (i * fine - canvas.width / 2) / unit, y = (canvas.height / 2 - j * fine) / unit;
      const all = (plane.density(x, y, "") / tops[0]) ** 0.4, near = (plane.density(x, y, settings.texts.pos) / tops[1]) ** 0.4;
      for (let c = 0; c < 3; c++) {
        const far = paper[c] + all * (other[c] - paper[c]);
        image.data[n + c] = far + near * (asked[c] - far);
      }
      image.data[n + 3] = 255;
    }
  picture.getContext("2d")?.putImageData(image, 0, 0);
  ground = { key, picture };
  return picture;
}

function draw() {
  const ratio = Math.min(devicePixelRatio || 1, 2), width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  pen.imageSmoothingQuality = "high";
  pen.drawImage(landscape(), 0, 0, canvas.width, canvas.height);
  pen.fillStyle = dark.matches ? "#9d9da8" : "#63636e";
  pen.font = `${12 * ratio}px system-ui, sans-serif`;
  pen.textAlign = "center";
  for (const [name, [x, y]] of Object.entries(plane.places)) {
    const [u, v] = at([x * 1.28, y * 1.28]);
    pen.fillText(name, Math.min(Math.max(u, 34 * ratio), canvas.width - 34 * ratio), v + 4 * ratio);
  }
  pen.strokeStyle = dark.matches ? "rgba(220, 220, 235, .16)" : "rgba(60, 60, 80, .13)";
  pen.lineWidth = ratio;
  pen.beginPath();
  run.points.forEach((_, i) => trails.forEach((points, n) => (n ? pen.lineTo(...at(points[i])) : pen.moveTo(...at(points[i])))));
  pen.stroke();
  pen.fillStyle = dark.matches ? "#fb923c" : "#d6402f";
  for (const point of run.points) {
    const [u, v] = at(point);
    pen.beginPath();
    pen.arc(u, v, 3 * ratio, 0, 2 * Math.PI);
    pen.fill();
  }
  pen.strokeStyle = dark.matches ? "#4ade80" : "#15803d";
  pen.lineWidth = 2 * ratio;
  pen.beginPath();
  pen.arc(...at(start), 7 * ratio, 0, 2 * Math.PI);
  pen.stroke();
  tell();
}

function tell() {
  const asked = plane.mixture(settings.texts.pos), reached = asked.map(() => 0);
  let outside = 0;
  for (const [x, y] of run.points) {
    const distances = asked.map((m) => Math.hypot(x - m.x, y - m.y)), k = distances.indexOf(Math.min(...distances));
    if (distances[k] <= HELD * plane.std) reached[k] += 1;
    if (Math.max(Math.abs(x), Math.abs(y)) > REACH) outside += 1;
  }
  const there = reached.reduce((a, b) => a + b, 0), modes = reached.filter((r) => r >= run.points.length / 100).length;
  $("said").textContent = `step ${run.step} of ${settings.steps}; ${there} of ${run.points.length} points have reached ` +
    `${asked.length > 1 ? `${modes} of ${asked.length} Gaussians` : "their Gaussian"}${outside ? `; ${outside} outside the picture` : ""}` +
    `${run.evaluations ? `; ${run.evaluations} evaluations a step` : ""}${trouble ? `; ${trouble}` : ""}`;
}

// ---- controls ----

/** @param {Loss} loss */
function showLoss(loss) {
  $("formula").innerHTML = loss.formula;
  $("look").textContent = loss.look;
  $("knobs").replaceChildren(...loss.knobs.map((knob) => knobOf(loss.name, knob)));
}

/** @param {string} loss @param {Knob} knob */
function knobOf(loss, knob) {
  const label = document.createElement("label"), name = document.createElement("span");
  label.className = "knob";
  label.title = knob.help;
  name.textContent = knob.label;
  label.append(name);
  const own = settings.losses[loss];
  if (knob.choices.length) {
    const choice = document.createElement("select");
    const offered = loss === "reward" && knob.name === "inner" ? REWARDED : knob.choices;
    choice.append(...offered.map((one) => new Option(one, one, false, one === own[knob.name])));
    choice.addEventListener("change", () => (own[knob.name] = choice.value));
    choice.style.gridColumn = "1 / -1";
    label.append(choice);
    return label;
  }
  const whole = Number.isInteger(knob.value) && Number.isInteger(knob.lo) && /steps|noises|stride|interval|little/.test(knob.name);
  const slider = Object.assign(document.createElement("input"), { type: "range", min: String(Math.max(knob.lo, -20)), max: String(Math.min(knob.hi, 20)), step: whole ? "1" : "any", value: String(own[knob.name]) });
  slider.setAttribute("aria-label", knob.label);
  const number = Object.assign(document.createElement("input"), { type: "number", min: String(knob.lo), max: String(knob.hi), step: whole ? "1" : "any", value: String(own[knob.name]) });
  for (const [from, to] of [[slider, number], [number, slider]])
    from.addEventListener("input", () => {
      const value = Number(from.value);
      if (from.value === "" || !Number.isFinite(value) || value < knob.lo || value > knob.hi) return from.setAttribute("aria-invalid", "true");
      from.removeAttribute("aria-invalid");
      own[knob.name] = whole ? Math.round(value) : value;
      to.value = String(Number(Number(value).toPrecision(4)));
    });
  label.append(slider, number);
  return label;
}

function readTexts() {
  const prompt = input("prompt").value;
  /** @param {string} template */ const filled = (template) => template.replaceAll("{prompt}", prompt);
  Object.assign(settings.texts, { pos: prompt, target: filled(world.target), source: filled(input("source").value), neg: input("negative").value });
}

/** @param {string} id @param {(value: number) => void} take */
function onNumber(id, take) {
  const field = input(id);
  field.addEventListener("change", () => {
    const value = Math.min(Math.max(Number(field.value), Number(field.min)), Number(field.max));
    field.value = String(value);
    take(value);
  });
}

/** Where the pointer is in the plane. @param {PointerEvent} event @returns {Point} */
function placeOf(event) {
  const box = canvas.getBoundingClientRect(), unit = Math.min(box.width, box.height) / (2 * REACH);
  return [(event.clientX - box.left - box.width / 2) / unit, (box.top + box.height / 2 - event.clientY) / unit];
}

function wire() {
  const byName = new Map(world.losses.map((/** @type {Loss} */ one) => [one.name, one]));
  const choice = /** @type {HTMLSelectElement} */ ($("loss"));
  choice.append(...world.losses.map((/** @type {Loss} */ one) => new Option(one.title, one.name, false, one.name === settings.active)));
  choice.addEventListener("change", () => {
    settings.active = choice.value;
    showLoss(byName.get(choice.value));
  });
  showLoss(byName.get(settings.active));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("go").addEventListener("click", () => go(!running));
  $("one").addEventListener("click", () => {
    go(false);
    advance();
    draw();
  });
  $("reset").addEventListener("click", reset);
  for (const id of ["prompt", "source", "negative"]) input(id).addEventListener("input", () => { readTexts(); draw(); });
  $("layout").addEventListener("change", () => {
    plane = new Plane(world.layouts[input("layout").value], input("layout").value === "four" ? 0.2 : world.std, world.noise_schedule);
    offer();
    reset();
  });
  onNumber("count", reset);
  onNumber("spread", reset);
  onNumber("seed", (value) => { seed = value; reset(); });
  onNumber("steps", (value) => (settings.steps = value));
  onNumber("rate", (value) => (settings.optim.lr = value));
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    start = placeOf(event);
    reset();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    start = placeOf(event);
    reset();
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.key === " ") go(!running);
    else if (move) {
      start = [start[0] + 0.05 * move[0], start[1] + 0.05 * move[1]];
      reset();
    } else return;
    event.preventDefault();
  });
  new ResizeObserver(draw).observe(canvas);
  dark.addEventListener("change", draw);
}

/** Offer the names of the places for the prompt. */
function offer() {
  $("places").replaceChildren(...["all of them", ...Object.keys(plane.places)].map((name) => new Option(name, name)));
}

/** Take the settings in the address: the fields of the page by name, x and y of the start, and knobs as loss.knob. What
 * does not exist or is out of range stays as it is. */
function readAddress() {
  const told = new URLSearchParams(location.hash.slice(1)), byName = new Map(world.losses.map((/** @type {Loss} */ one) => [one.name, one]));
  if (byName.has(told.get("loss"))) settings.active = /** @type {string} */ (told.get("loss"));
  for (const id of ["prompt", "source", "negative"]) if (told.has(id)) input(id).value = (told.get(id) ?? "").slice(0, 200);
  for (const id of ["count", "spread", "rate", "steps", "seed"]) {
    const value = numberIn(told.get(id), Number(input(id).min), Number(input(id).max));
    if (value !== null) input(id).value = String(value);
  }
  start = [numberIn(told.get("x"), -4, 4) ?? start[0], numberIn(told.get("y"), -4, 4) ?? start[1]];
  for (const { name, knobs } of byName.values())
    for (const knob of knobs) {
      const given = told.get(`${name}.${knob.name}`);
      const value = knob.choices.length ? knob.choices.find((/** @type {string} */ one) => one === given) : numberIn(given, knob.lo, knob.hi);
      if (value !== null && value !== undefined) settings.losses[name][knob.name] = value;
    }
  seed = Number(input("seed").value);
  settings.steps = Number(input("steps").value);
  settings.optim.lr = Number(input("rate").value);
}

/** A number in a text, null unless it is within the limits. @param {string | null} text @param {number} low @param {number} high */
function numberIn(text, low, high) {
  const value = Number(text);
  return text && value >= low && value <= high ? value : null;
}

Object.assign(input("prompt"), { value: world.prompt });
Object.assign(input("source"), { value: world.source });
Object.assign(input("negative"), { value: world.negative });
for (const [id, value] of Object.entries({ count: world.count, spread: 0, rate: settings.optim.lr, steps: settings.steps, seed })) input(id).value = String(value);
readAddress();
offer();
readTexts();
wire();
reset();
