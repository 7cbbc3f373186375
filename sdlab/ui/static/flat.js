// The view of a flat scene (sdlab/ui/flat_view.py): asks for the latest frame and draws it. Points move along their
// ways at the screen's rate, whatever the rate of the frames.
"use strict";

const SOON = 40, LATE = 400, AWAY = 1000; // ms until the next question: after news, without any, in a hidden page
const RECENT = 1000; // ms after the last news in which more are expected any moment
const CATCH_UP = 0.13; // s in which what is shown comes to where the points are
const FRAME = 30; // ms between drawings, so that a small machine has time for the run itself
const KEPT = 2e6; // numbers of the ways that are remembered
const TRAIL = 60; // steps that are drawn behind each point
const SEGMENTS = 9000; // of trails in one drawing
const REPLAY = 5; // s
const ARROW = 0.78; // length of the longest arrow, in units of the plane
const FARTHEST = 5; // how far from the middle the plane is shown at most
const REACHED = 0.01; // share of the points from which a place counts as reached (sdlab/experiments/playground.py)
const HIGH = 1.25; // times as saturated as true pictures: that is much

const $ = (id) => document.getElementById(id);
const dark = () => document.documentElement.classList.contains("dark");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const still = matchMedia("(prefers-reduced-motion: reduce)");

function setText(node, text) { if (node.textContent !== text) node.textContent = text; }

function make(tag, parent, name = "", text = "") {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text) node.textContent = text;
  parent?.append(node);
  return node;
}

function svg(tag, parent, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  parent?.append(node);
  return node;
}

// ---- what the server says --------------------------------------------------------------------------------------------

const ARRAYS = { float32: Float32Array, int32: Int32Array, int16: Int16Array, uint8: Uint8Array };

function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  for (const [name, [type, shape, offset]] of Object.entries(header.arrays)) {
    const size = shape.reduce((a, b) => a * b, 1);
    header.arrays[name] = { shape, data: new ARRAYS[type](buffer, 4 + length + offset, size) };
  }
  return header;
}

let frame = null; // the latest message
let ground = null;
let groundAsked = "";

async function ask() {
  const last = frame?.kind === "plane" ? ways.last() : frame?.kind === "pictures" ? course.last() : -1;
  const query = new URLSearchParams({ since: frame?.version ?? "", run: frame?.run ?? 0, row: last });
  const answer = await fetch(`now?${query}`, { cache: "no-store" });
  if (answer.status === 404) return "over";
  if (answer.status !== 200) return answer.status === 204 ? "same" : "wrong";
  const message = unpack(await answer.arrayBuffer());
  if (groundAsked !== message.ground) askGround(message.ground);
  await show(message);
  return "new";
}

async function askGround(key) {
  groundAsked = key;
  try {
    const answer = await fetch("ground", { cache: "no-store" });
    if (answer.status === 200) ground = unpack(await answer.arrayBuffer());
    // the prompt may have changed in between, or there is none yet: then the next frame asks once more
    if (ground?.ground !== key) groundAsked = "";
  } catch { groundAsked = ""; }
  landscape.forget();
  if (frame?.kind === "pictures") pictures.showCourse();
  redraw();
}

async function follow() {
  let wait = SOON, failures = 0, news = 0;
  for (;;) {
    try {
      const found = await ask();
      failures = found === "wrong" ? failures + 1 : 0;
      if (found === "over") { say("This run has ended."); return; }
      if (found === "new") news = performance.now();
      wait = performance.now() - news < RECENT ? SOON : Math.min(wait * 1.5, LATE);
    } catch (e) {
      if (!(e instanceof TypeError)) throw e; // fetch's own, when there is no connection
      failures++;
    }
    if (failures > 2) { say("No connection; trying again \u2026"); wait = AWAY; }
    await new Promise((done) => setTimeout(done, document.hidden ? AWAY : wait));
  }
}

function say(text) {
  setText($("note"), text);
  $("note").classList.toggle("over", frame !== null);
}

async function show(message) {
  const before = frame;
  if (message.kind === "plane") {
    frame = message;
    plane.take(message, before);
  } else {
    await pictures.take(message, before);
    frame = message;
  }
  say("");
  const flat = frame.kind === "plane";
  for (const id of ["plane", "terms", "tools"]) $(id).hidden = !flat;
  for (const id of ["pictures", "colours"]) $(id).hidden = flat;
  $("places").hidden = !(flat && frame.held.length);
  $("card").hidden = false;
  setText($("loss"), frame.loss.title);
  setText($("step"), `step ${frame.step}`);
  showFormula(frame.loss);
  Object.assign(document.body.dataset, { kind: frame.kind, step: frame.step });
  if (flat) plane.showReadings();
  redraw();
}

let formulaShown = "";

function showFormula({ formula, colours }) { // typeset by the server, which escapes it
  if (formula === formulaShown) return;
  formulaShown = formula;
  $("formula").innerHTML = formula;
  for (const symbol of $("formula").querySelectorAll("[data-symbol]")) {
    const tone = colours[symbol.dataset.symbol];
    if (tone) symbol.style.color = `var(--${tone})`;
    symbol.classList.toggle("term", Boolean(tone));
  }
}

// ---- the plane: ways of the points -----------------------------------------------------------------------------------

const ways = { // rows of one run, each the places of all points after one step
  rows: [], numbers: [], run: 0, n: 0,
  last() { return this.numbers.at(-1) ?? -1; },
  take(message) {
    const { rows, way } = message.arrays;
    const n = way.shape[1];
    const begins = message.run !== this.run || n !== this.n || (rows.data.length && rows.data[0] < this.numbers[0]);
    if (begins) Object.assign(this, { rows: [], numbers: [], run: message.run, n });
    if (message.fit) this.rows.length = this.numbers.length = 0; // samples have no way: each step draws new ones
    rows.data.forEach((number, i) => {
      while (this.numbers.length && this.numbers.at(-1) >= number) { this.numbers.pop(); this.rows.pop(); }
      const row = Float32Array.from(way.data.subarray(2 * n * i, 2 * n * (i + 1)), (v) => v / message.unit);
      this.numbers.push(number);
      this.rows.push(row);
    });
    while (this.rows.length > 2 && this.rows.length * n * 2 > KEPT) { this.rows.shift(); this.numbers.shift(); }
    return begins;
  },
  indexOf(number) { // the fractional index of a fractional step
    const at = this.numbers;
    if (number <= at[0]) return 0;
    let lo = 0, hi = at.length - 1;
    if (number >= at[hi]) return hi;
    while (hi - lo > 1) { const mid = (lo + hi) >> 1; if (at[mid] <= number) lo = mid; else hi = mid; }
    return lo + (number - at[lo]) / (at[hi] - at[lo]);
  },
  at(index, point) { // [x, y] at a fractional index
    const i = Math.min(Math.floor(index), this.rows.length - 1), share = index - i;
    const a = this.rows[i], b = this.rows[Math.min(i + 1, this.rows.length - 1)];
    return [0, 1].map((c) => a[2 * point + c] + share * (b[2 * point + c] - a[2 * point + c]));
  },
};

// ---- the plane: its landscape ----------------------------------------------------------------------------------------

const landscape = {
  picture: document.createElement("canvas"), key: "",
  forget() { this.key = ""; },
  reach() { // how far the hills go, with their labels
    if (ground?.kind !== "plane") return 1.5;
    const { shape: [n], data } = ground.arrays.all;
    let found = 0;
    for (let k = 0; k < n; k++) found = Math.max(found, ...[1, 2].map((c) => Math.abs(data[4 * k + c]) + 3 * data[4 * k + 3] + 0.2));
    return found;
  },
  draw(pen, view, t, quick) {
    if (ground?.kind !== "plane") return;
    const key = [view.width, view.height, view.x, view.y, view.unit, dark(), t ?? "", quick, ground.ground].join();
    if (key !== this.key) { this.paint(view, t, t === null && !quick ? 2 : 4); this.key = key; }
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.picture, 0, 0, view.width, view.height);
  },
  paint(view, t, fine) { // `fine` pixels of the screen for one of the landscape: more while it changes
    const [w, h] = [Math.ceil(view.width / fine), Math.ceil(view.height / fine)];
    this.picture.width = w;
    this.picture.height = h;
    const image = new ImageData(w, h);
    const paint = image.data;
    // light: paper, the hills that are asked for, the others; each as red, green, blue
    const [paper, low, high, other] = dark()
      ? [[16, 18, 26], [49, 50, 110], [129, 140, 248], [44, 48, 62]]
      : [[248, 249, 253], [205, 212, 250], [110, 118, 240], [222, 225, 234]];
    const squared = t === null ? null : ground.arrays.alphas_cumprod.data[Math.min(Math.max(t, 0), 999)];
    const more = squared === null ? 0 : (1 - squared) / squared; // noise in the plane's own units
    const asked = hills(ground.arrays.asked, more), all = hills(ground.arrays.all, more);
    for (let j = 0, at = 0; j < h; j++) {
      const y = (view.y - j * fine) / view.unit;
      for (let i = 0; i < w; i++, at += 4) {
        const x = (i * fine - view.x) / view.unit;
        const far = 0.9 * stepped(height(all, x, y)), near = stepped(height(asked, x, y));
        for (let c = 0; c < 3; c++) {
          let v = paper[c] + far * (other[c] - paper[c]);
          const peak = low[c] + near * (high[c] - low[c]);
          v += Math.min(near * 2.2, 1) * (peak - v);
          paint[at + c] = v;
        }
        paint[at + 3] = 255;
      }
    }
    this.picture.getContext("2d").putImageData(image, 0, 0);
  },
};

function hills({ shape, data }, more) {
  const made = [];
  for (let k = 0; k < shape[0]; k++) {
    const [weight, x, y, std] = data.subarray(4 * k, 4 * k + 4);
    const variance = std * std + more;
    made.push({ x, y, variance, top: weight / variance });
  }
  const peak = Math.max(...made.map(({ x, y }) => made.reduce((sum, m) => sum + value(m, x, y), 0)));
  for (const m of made) m.top /= peak;
  return made;
}

function value(hill, x, y) {
  const squared = ((x - hill.x) ** 2 + (y - hill.y) ** 2) / hill.variance;
  return squared > 60 ? 0 : hill.top * Math.exp(-0.5 * squared);
}

function height(made, x, y) { // a soft power of the density, so that the foot of a hill shows
  let sum = 0;
  for (const m of made) sum += value(m, x, y);
  return sum < 1e-9 ? 0 : sum ** 0.36;
}

function stepped(v) { // soft terraces
  const n = 6, whole = Math.floor(v * n), rest = v * n - whole;
  const edge = Math.min(rest / 0.16, 1);
  return 0.45 * v + 0.55 * Math.min((whole + edge * edge * (3 - 2 * edge)) / n, 1);
}

// ---- the plane: what is drawn and done -------------------------------------------------------------------------------

const plane = {
  shown: 0, // the step, a fraction, at which the points are drawn
  reach: null, // how far from the middle the plane is shown
  room: null, // what that is for points that have left
  replaying: null, // the time at which a replay began
  chosen: 0, hovered: null,
  off: new Set(), // terms whose arrows are not shown
  start: null, // while it is dragged or on its way to the server
  dragging: false,
  arrows: new Map(), // name -> [x, y] as drawn, which follows the frame softly
  longest: 1,
  fit: null,

  take(message, before) {
    if (ways.take(message) || before?.kind !== "plane") {
      this.shown = ways.last();
      if (before?.kind === "plane" && ways.numbers[0] < ways.last()) this.shown = ways.numbers[0];
      this.replaying = null;
      this.chosen = Math.min(this.chosen, ways.n - 1);
      this.hovered = this.room = null;
      this.longest = 1;
    }
    if (message.fit) this.shown = ways.last();
    if (!this.dragging && (before?.kind !== "plane" || before.run !== message.run)) this.start = null;
    this.fit ??= message.fit;
    if (!message.fit) this.fit = null;
  },

  point() { return Math.min(this.hovered ?? this.chosen, ways.n - 1); },

  // A prediction of noise pulls away from the noise that it sees (sign -1); what a loss subtracts pulls the other way.
  vector({ name, sign }) { // of the chosen point, in units of noise, as a pull
    const array = frame.arrays[`term ${name}`];
    const i = this.point();
    if (!array || i >= array.shape[0]) return null;
    return [sign * array.data[2 * i], sign * array.data[2 * i + 1]];
  },

  showReadings() {
    this.showLegend();
    const t = frame.arrays.t.data[this.point()];
    setText($("t"), t === undefined ? "" : `t = ${t}`);
    setText($("who"), frame.fit ? "sample" : "point");
    const places = frame.held.length;
    setText($("reached"), places === 1 ? `${Math.round(100 * frame.held[0])} % of them there` : `${frame.reached} of ${places} places reached`);
    document.body.dataset.reached = frame.reached;
    const bars = $("shares");
    while (bars.children.length > places) bars.lastChild.remove();
    while (bars.children.length < places) make("i", bars);
    const most = places === 1 ? 1 : Math.max(0.25, ...frame.held);
    frame.held.forEach((share, k) => {
      bars.children[k].style.setProperty("--share", `${(100 * share) / most}%`);
      bars.children[k].title = `${nameOf(k)}: ${Math.round(100 * share)} %`;
    });
    const fits = Boolean(frame.fit);
    $("trails").hidden = $("replay").hidden = fits;
    const hint = frame.start && !frame.start.locked ? (coarse() || innerWidth < 640 ? "Drag the ring to move the start. Touch a point to see its arrows."
      : "Drag the ring to move the start. Point at a particle to see its arrows; a click keeps it.") : "";
    setText($("hint"), hint);
    $("hint").hidden = !hint;
  },

  showLegend() {
    const legend = $("legend");
    const key = JSON.stringify(frame.terms);
    if (legend.dataset.key === key) return;
    legend.dataset.key = key;
    legend.replaceChildren();
    $("terms").classList.toggle("empty", !frame.terms.length);
    for (const { name, symbol: [symbol, below], text, colour: tone } of frame.terms) {
      const button = make("button", legend, name);
      button.type = "button";
      button.dataset.term = name;
      button.style.setProperty("--tone", `var(--${tone})`);
      button.setAttribute("aria-pressed", String(!this.off.has(name)));
      const swatch = svg("svg", button, { viewBox: "0 0 22 10", "aria-hidden": "true" });
      svg("path", swatch, { d: "M0 5H15M14 1L21 5L14 9Z" });
      const em = make("em", button, "", symbol);
      if (below) make("sub", em, "", below);
      make("span", button, "", text);
      button.title = `${text}; click to show or hide it`;
      button.addEventListener("click", () => {
        if (!this.off.delete(name)) this.off.add(name);
        button.setAttribute("aria-pressed", String(!this.off.has(name)));
        redraw();
      });
    }
    if (!frame.terms.length) make("span", legend, "none", "Press Start to see them.");
  },

  draw(seconds) {
    const canvas = $("plane"), pen = canvas.getContext("2d");
    const zooming = this.zoom(seconds), view = this.view(canvas);
    const ratio = Math.min(devicePixelRatio || 1, 2);
    if (canvas.width !== Math.round(view.width * ratio) || canvas.height !== Math.round(view.height * ratio)) {
      canvas.width = Math.round(view.width * ratio);
      canvas.height = Math.round(view.height * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = colour("ground");
    pen.fillRect(0, 0, view.width, view.height);
    const busy = this.advance(seconds);
    const t = frame.arrays.t.data[this.point()];
    landscape.draw(pen, view, pressed("noised") && t !== undefined ? t : null, zooming);
    this.drawAxes(pen, view);
    this.drawPlaces(pen, view);
    const index = ways.indexOf(this.shown);
    if (pressed("trails") && !frame.fit) this.drawTrails(pen, view, index);
    if (frame.fit) this.drawFit(pen, view);
    this.drawStart(pen, view);
    this.drawPoints(pen, view, index);
    this.drawNames(pen, view);
    const moving = this.drawArrows(pen, view, index, seconds);
    document.body.dataset.drawn = Number(document.body.dataset.drawn ?? 0) + 1;
    return busy || moving || zooming;
  },

  advance(seconds) { // whether there is more to come
    const [first, last] = [ways.numbers[0], ways.last()];
    if (this.replaying !== null) {
      const share = (performance.now() - this.replaying) / 1000 / REPLAY;
      if (share < 1) { this.shown = first + share * (last - first); return true; }
      this.replaying = null;
    }
    const rest = last - this.shown;
    this.shown = still.matches || Math.abs(rest) < 0.02 ? last : this.shown + rest * (1 - Math.exp(-seconds / CATCH_UP));
    let busy = this.shown !== last;
    if (frame.fit && this.fit) {
      frame.fit.forEach((v, k) => {
        this.fit[k] += (v - this.fit[k]) * (still.matches ? 1 : 1 - Math.exp(-seconds / CATCH_UP));
        busy ||= Math.abs(v - this.fit[k]) > 1e-3;
      });
    }
    return busy;
  },

  view(canvas) { // where the plane lies on the canvas: left of the card, or above it
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const card = $("card").getBoundingClientRect();
    const below = card.width > 0.7 * width;
    const [right, bottom, top] = below ? [width, card.top, 30] : [card.left, height - 24, 0];
    return { width, height, x: right / 2, y: (top + bottom) / 2, unit: Math.min(right - (below ? 0 : 90), bottom - top) / (2 * this.reach) };
  },

  zoom(seconds) { // step back for a start far out, and when points leave: by halves, so that it is calm otherwise
    if (this.dragging) return false;
    const row = ways.rows.at(-1), out = [];
    for (let p = 0; p < ways.n; p++) out.push(Math.max(Math.abs(row[2 * p]), Math.abs(row[2 * p + 1])));
    out.sort((a, b) => a - b);
    const far = out[Math.floor(0.9 * (out.length - 1))] - 0.1, least = landscape.reach();
    if (far > (this.room ?? 0)) this.room = Math.min(Math.ceil(2 * far) / 2 + 0.5, FARTHEST);
    const wanted = Math.max(least, far > least ? this.room : 0, ...(this.startAt() ?? []).map((v) => Math.abs(v) + 0.3));
    const share = still.matches || !this.reach ? 1 : 1 - Math.exp(-seconds / 0.25);
    this.reach = Math.abs(wanted - (this.reach ?? wanted)) < 0.01 ? wanted : (this.reach ?? wanted) + share * (wanted - (this.reach ?? wanted));
    return this.reach !== wanted;
  },


  place(view, [x, y]) { return [view.x + x * view.unit, view.y - y * view.unit]; },
  startAt() { return this.start ?? frame.start?.at ?? null; },

  drawAxes(pen, view) {
    pen.strokeStyle = dark() ? "rgba(255,255,255,.05)" : "rgba(17,24,39,.055)";
    pen.lineWidth = 1;
    pen.beginPath();
    for (let k = -8; k <= 8; k++) {
      const [x, y] = this.place(view, [k, k]).map((v) => Math.round(v) + 0.5);
      pen.moveTo(x, 0); pen.lineTo(x, view.height);
      pen.moveTo(0, y); pen.lineTo(view.width, y);
    }
    pen.stroke();
  },

  drawPlaces(pen, view) {
    if (ground?.kind !== "plane" || ground.ground !== frame.ground) return;
    const { shape, data } = ground.arrays.asked;
    for (let k = 0; k < shape[0]; k++) {
      const [, x, y, std] = data.subarray(4 * k, 4 * k + 4);
      const at = this.place(view, [x, y]);
      const here = (frame.held[k] ?? 0) >= REACHED;
      pen.strokeStyle = here ? colour("accent") : dark() ? "rgba(255,255,255,.18)" : "rgba(79,70,229,.22)";
      pen.lineWidth = here ? 1.6 : 1;
      pen.setLineDash(here ? [] : [3, 4]);
      pen.beginPath();
      pen.arc(...at, 3 * std * view.unit, 0, 7);
      pen.stroke();
      pen.setLineDash([]);
    }
  },

  drawNames(pen, view) { // of the places, outside of each; inside where the start is in the way
    if (ground?.kind !== "plane" || ground.ground !== frame.ground) return;
    const { shape, data } = ground.arrays.asked, small = view.unit < 110;
    const start = this.startAt() && this.place(view, this.startAt());
    pen.textBaseline = "middle";
    for (let k = 0; k < shape[0]; k++) {
      const [, x, y, std] = data.subarray(4 * k, 4 * k + 4);
      const share = frame.held[k] ?? 0, here = share >= REACHED;
      const out = (3 * std + 0.1) / (Math.hypot(x, y) || 1);
      const [outside, inside] = [1 + out, 1 - out].map((times) => this.place(view, [x * times, y * times]));
      const moved = start && Math.hypot(start[0] - outside[0], start[1] - outside[1]) < 42;
      const at = moved ? inside : outside;
      const percent = `${Math.round(100 * share)} %`;
      const text = small ? (here ? percent : "") : here ? `${nameOf(k)} ${percent}` : nameOf(k);
      // away from the ring, to whichever side it lies
      pen.textAlign = Math.abs(x) < 0.1 || small ? "center" : (x > 0) === !moved ? "left" : "right";
      pen.font = `${here ? 600 : 400} ${small ? 10 : 12}px system-ui, sans-serif`;
      pen.fillStyle = here ? colour("accent") : colour("soft");
      halo(pen, text, ...at);
    }
  },

  drawTrails(pen, view, index) {
    const n = ways.n;
    const steps = Math.min(TRAIL, Math.max(3, Math.floor(SEGMENTS / n)));
    const end = Math.floor(index), begin = Math.max(0, end - steps);
    if (index <= 0) return;
    const strong = n > 300 ? 0.25 : n > 40 ? 0.42 : 0.75;
    pen.strokeStyle = colour("point");
    pen.lineWidth = n > 300 ? 0.8 : 1.1;
    pen.lineJoin = "round";
    const bands = 10; // of age, each drawn at once
    const size = (index - begin) / bands;
    const chosen = this.point();
    for (let band = 0; band < bands; band++) {
      const from = begin + band * size, to = from + size;
      pen.globalAlpha = strong * ((band + 1) / bands) ** 1.6;
      pen.beginPath();
      for (let p = 0; p < n; p++) if (p !== chosen) this.trace(pen, view, p, from, to);
      pen.stroke();
    }
    pen.globalAlpha = 1; // that of the chosen point whole, as far as it is known
    pen.strokeStyle = colour("ink");
    pen.lineWidth = 1.3;
    pen.globalAlpha = 0.55;
    pen.beginPath();
    this.trace(pen, view, chosen, 0, index);
    pen.stroke();
    pen.globalAlpha = 1;
  },

  trace(pen, view, point, from, to) {
    pen.moveTo(...this.place(view, ways.at(from, point)));
    for (let i = Math.floor(from) + 1; i < to; i++) pen.lineTo(view.x + ways.rows[i][2 * point] * view.unit, view.y - ways.rows[i][2 * point + 1] * view.unit);
    pen.lineTo(...this.place(view, ways.at(to, point)));
  },

  drawFit(pen, view) {
    const [x, y, a, b] = this.fit ?? frame.fit;
    const at = this.place(view, [x, y]);
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
  },

  drawPoints(pen, view, index) {
    const n = ways.n, size = (n > 300 ? 2 : n > 120 ? 2.6 : 3.4) * (view.unit < 110 ? 0.8 : 1);
    pen.fillStyle = colour("point");
    pen.strokeStyle = dark() ? "rgba(16,18,26,.75)" : "rgba(255,255,255,.9)";
    pen.lineWidth = 1;
    pen.globalAlpha = frame.fit ? 0.55 : 0.9;
    const chosen = this.point();
    for (let p = 0; p < n; p++) {
      if (p === chosen) continue;
      const [x, y] = this.place(view, ways.at(index, p));
      if (x < -9 || y < -9 || x > view.width + 9 || y > view.height + 9) continue;
      pen.beginPath();
      pen.arc(x, y, size, 0, 7);
      pen.fill();
      pen.stroke();
    }
    pen.globalAlpha = 1;
    pen.beginPath();
    pen.arc(...this.place(view, ways.at(index, chosen)), size + 2.4, 0, 7);
    pen.fillStyle = colour("point");
    pen.fill();
    pen.strokeStyle = colour("ink");
    pen.lineWidth = 1.8;
    pen.stroke();
  },

  drawStart(pen, view) {
    const at = this.startAt();
    if (!at) return;
    const [x, y] = this.place(view, at);
    pen.strokeStyle = colour("ground");
    pen.lineWidth = 5;
    for (const pass of [0, 1]) {
      if (pass) { pen.strokeStyle = colour("good"); pen.lineWidth = 2; }
      pen.beginPath();
      pen.arc(x, y, this.dragging ? 14 : 11, 0, 7);
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) { pen.moveTo(x + 11 * dx, y + 11 * dy); pen.lineTo(x + 16 * dx, y + 16 * dy); }
      pen.stroke();
    }
    pen.font = "600 11px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillStyle = colour("good");
    halo(pen, this.dragging ? at.map((v) => v.toFixed(2)).join(", ") : frame.fit ? "start of the mean" : "start", x, y - 25);
  },

  drawArrows(pen, view, index, seconds) { // whether they still move
    const shown = frame.terms.filter(({ name }) => !this.off.has(name)).sort((a, b) => b.broad - a.broad);
    let moving = false, longest = 0;
    const share = still.matches ? 1 : 1 - Math.exp(-seconds / 0.07);
    for (const term of frame.terms) {
      const { name } = term, to = this.vector(term);
      if (!to) { this.arrows.delete(name); continue; }
      const at = this.arrows.get(name) ?? to;
      const next = [0, 1].map((c) => at[c] + share * (to[c] - at[c]));
      moving ||= Math.hypot(to[0] - next[0], to[1] - next[1]) > 0.01;
      this.arrows.set(name, next);
      if (shown.includes(term)) longest = Math.max(longest, Math.hypot(...to));
    }
    // the scale grows at once with the longest arrow and shrinks slowly, in steps, so that lengths can be compared
    this.longest = Math.max(longest, this.longest * Math.exp(-seconds / 6), 1e-3);
    const unit = round125(ARROW / this.longest) * view.unit; // pixels of one unit of noise
    this.showScale(shown.length && this.arrows.size ? unit : 0);
    const from = this.place(view, ways.at(index, this.point()));
    const tip = (v) => [from[0] + v[0] * unit, from[1] - v[1] * unit];
    this.drawSum(pen, shown, from, tip);
    const labels = [];
    for (const { name, symbol: [symbol, below], colour: tone, broad } of shown) {
      const v = this.arrows.get(name);
      if (!v) continue;
      arrow(pen, from, tip(v), colour(tone), broad ? 5.4 : name === "residual" ? 3.4 : 2.4);
      labels.push([symbol, below, tip(v), colour(tone)]);
    }
    writeLabels(pen, from, labels);
    return moving;
  },

  drawSum(pen, shown, from, tip) { // where two terms make up the step, the sides of their parallelogram
    const step = this.arrows.get("residual");
    if (!step || !shown.some(({ name }) => name === "residual")) return;
    const pull = this.arrows.get("guided") ?? this.arrows.get(frame.terms[0].name);
    const rivals = shown.filter(({ sign }) => sign > 0);
    const rival = rivals.length === 1 && this.arrows.get(rivals[0].name);
    if (!pull || !rival) return;
    const off = Math.hypot(pull[0] + rival[0] - step[0], pull[1] + rival[1] - step[1]);
    if (off > 0.03 * this.longest) return;
    pen.setLineDash([3, 4]);
    pen.strokeStyle = colour("soft");
    pen.lineWidth = 1.2;
    pen.beginPath();
    pen.moveTo(...tip(pull)); pen.lineTo(...tip(step)); pen.lineTo(...tip(rival));
    pen.stroke();
    pen.setLineDash([]);
  },

  showScale(unit) {
    let units = 1;
    while (unit && unit * units < 22) units *= units % 2 ? 2 : 2.5;
    const node = $("scale");
    const key = unit ? `${units},${Math.round(unit * units)}` : "";
    if (node.dataset.key === key) return;
    node.dataset.key = key;
    node.hidden = !unit;
    node.firstElementChild.style.width = `${unit * units}px`;
    setText(node.lastElementChild, units === 1 ? "1 unit of noise" : `${units} units of noise`);
  },

  // ---- hands on it

  near(event) { // [what is under the pointer, point or null]
    const canvas = $("plane"), view = this.view(canvas), box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const reach = event.pointerType === "mouse" ? 17 : 30;
    const at = this.startAt();
    if (at && frame.start && !frame.start.locked) {
      const [sx, sy] = this.place(view, at);
      const far = Math.hypot(x - sx, y - sy);
      if (far < reach) return ["start", null];
    }
    let best = reach, found = null;
    const index = ways.indexOf(this.shown);
    for (let p = 0; p < ways.n; p++) {
      const [px, py] = this.place(view, ways.at(index, p));
      const far = Math.hypot(px - x, py - y);
      if (far < best) [best, found] = [far, p];
    }
    return found === null ? ["", null] : ["point", found];
  },

  placeOf(event) { // within the knobs' range
    const canvas = $("plane"), view = this.view(canvas), box = canvas.getBoundingClientRect();
    const at = [(event.clientX - box.left - view.x) / view.unit, (view.y - event.clientY + box.top) / view.unit];
    return this.within(at);
  },

  within(at) { return at.map((v, c) => Math.min(Math.max(v, frame.start.range[c][0]), frame.start.range[c][1])); },

  async moveStart() {
    const [x, y] = this.start;
    $("hint").classList.add("read");
    try {
      const answer = await fetch("start", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ x, y }),
      });
      if (!answer.ok) throw new TypeError(await answer.text());
      const said = await answer.json();
      if (!this.dragging) this.start = [said.x, said.y];
    } catch (e) {
      this.start = null;
      say(`The start was not moved: ${e.message}`);
    }
    redraw();
  },

  listen() {
    const canvas = $("plane");
    canvas.addEventListener("pointerdown", (event) => {
      if (!frame || event.button) return;
      const [what, found] = this.near(event);
      if (what === "start") {
        this.dragging = true;
        canvas.setPointerCapture(event.pointerId);
        this.start = this.placeOf(event);
      } else if (what === "point") {
        this.chosen = found;
        this.showReadings();
      }
      redraw();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!frame) return;
      if (this.dragging) this.start = this.placeOf(event);
      else {
        const [what, found] = event.pointerType === "mouse" ? this.near(event) : ["", null];
        canvas.style.cursor = what === "start" ? "grab" : what ? "pointer" : "";
        if (found === this.hovered) return;
        this.hovered = found;
        this.showReadings();
      }
      redraw();
    });
    const drop = (event) => {
      if (!this.dragging) return;
      this.dragging = false;
      if (event.type === "pointerup") this.moveStart();
      else this.start = null;
      redraw();
    };
    canvas.addEventListener("pointerup", drop);
    canvas.addEventListener("pointercancel", drop);
    canvas.addEventListener("pointerleave", () => {
      if (this.hovered === null) return;
      this.hovered = null;
      this.showReadings();
      redraw();
    });
    let typed;
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!by || !frame?.start || frame.start.locked) return;
      event.preventDefault();
      this.start = this.within(this.startAt().map((v, c) => v + 0.05 * by[c]));
      clearTimeout(typed);
      typed = setTimeout(() => this.moveStart(), 350);
      redraw();
    });
    for (const id of ["trails", "noised"]) {
      $(id).addEventListener("click", () => {
        $(id).setAttribute("aria-pressed", String(!pressed(id)));
        redraw();
      });
    }
    $("replay").addEventListener("click", () => { this.replaying = performance.now(); redraw(); });
  },
};

const coarse = () => matchMedia("(pointer: coarse)").matches;
const pressed = (id) => $(id).getAttribute("aria-pressed") === "true";

function nameOf(k) { // of a place that is asked for: its name among all
  if (ground?.kind !== "plane") return "";
  const [, x, y] = ground.arrays.asked.data.subarray(4 * k, 4 * k + 3);
  const { shape, data } = ground.arrays.all;
  for (let i = 0; i < shape[0]; i++) if (Math.hypot(data[4 * i + 1] - x, data[4 * i + 2] - y) < 1e-3) return ground.names[i] ?? "";
  return "";
}

function round125(v) {
  const power = 10 ** Math.floor(Math.log10(v));
  return [5, 2, 1].map((k) => k * power).find((k) => k <= v) ?? power;
}

function halo(pen, text, x, y) {
  pen.lineWidth = 3.5;
  pen.lineJoin = "round";
  pen.strokeStyle = colour("ground");
  pen.strokeText(text, x, y);
  pen.fillText(text, x, y);
}

function arrow(pen, from, to, tone, width) {
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  if (length < 1.5) return;
  const [ux, uy] = [(to[0] - from[0]) / length, (to[1] - from[1]) / length];
  const head = Math.min(4 + 2.4 * width, length), half = 0.42 * head;
  const neck = [to[0] - ux * head, to[1] - uy * head];
  for (const [paint, more] of [[colour("ground"), 2.4], [tone, 0]]) {
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

function writeLabels(pen, from, labels) { // beyond the tips, and beside each other where tips meet
  const taken = [];
  for (const [symbol, below, tip, tone] of labels) {
    const [dx, dy] = [tip[0] - from[0], tip[1] - from[1]], length = Math.hypot(dx, dy);
    if (length < 14) continue;
    const at = [tip[0] + (dx / length) * 13, tip[1] + (dy / length) * 13];
    while (taken.some(([x, y]) => Math.hypot(x - at[0], y - at[1]) < 19)) { at[0] += (dx / length) * 6 + 8; at[1] += (dy / length) * 6; }
    taken.push(at);
    pen.fillStyle = tone;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.font = "italic 600 15px Georgia, 'Times New Roman', serif";
    halo(pen, symbol, ...at);
    if (!below) continue;
    const width = pen.measureText(symbol).width;
    pen.font = "italic 600 10px Georgia, 'Times New Roman', serif";
    pen.textAlign = "left";
    halo(pen, below, at[0] + width / 2, at[1] + 5);
  }
}

// ---- pictures --------------------------------------------------------------------------------------------------------

const course = { // saturations: [step, one for each picture]
  rows: [],
  last() { return this.rows.at(-1)?.[0] ?? -1; },
  take({ after, arrays: { saturations: { shape, data } } }) {
    if (after < 0 || this.rows[0]?.length !== shape[1]) this.rows = [];
    for (let i = 0; i < shape[0]; i++) this.rows.push([...data.subarray(i * shape[1], (i + 1) * shape[1])]);
  },
};

const pictures = {
  sheet: null,

  async take(message) {
    course.take(message);
    const { shape, data } = message.arrays.sheet;
    if (shape[0]) {
      this.sheet?.close();
      this.sheet = await createImageBitmap(new Blob([data]));
    }
    const box = $("pictures"), { count, size: [rows, columns] } = message;
    box.hidden = false;
    while (box.children.length > count) box.lastChild.remove();
    while (box.children.length < count) this.addFigure(box);
    const across = Math.ceil(Math.sqrt(count));
    [...box.children].forEach((figure, k) => {
      const canvas = figure.querySelector("canvas");
      if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
      canvas.getContext("2d").drawImage(this.sheet, (k % across) * columns, Math.floor(k / across) * rows, columns, rows, 0, 0, columns, rows);
    });
    box.classList.toggle("coarse", Math.max(rows, columns) <= 128);
    box.classList.toggle("many", count > 16);
    this.showCourse();
    $("card").hidden = $("colours").hidden = false;
    this.arrange();
  },

  addFigure(box) {
    const figure = make("figure", box);
    make("canvas", figure);
    make("span", figure, "number", String(box.children.length));
    const caption = make("figcaption", figure);
    make("span", caption, "value").title = "saturation";
    make("div", caption, "spark");
  },

  arrange() { // as large as the place beside the card allows
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
  },

  late() { return frame !== null && frame.step > 0.3 * frame.planned; }, // pictures that begin as noise are past it

  showCourse() {
    const now = course.rows.at(-1);
    if (!now) return;
    const mean = (row) => row.slice(1).reduce((a, b) => a + b, 0) / (row.length - 1);
    const wanted = ground?.kind === "pictures" ? ground.true : null;
    const top = Math.max(0.3, (wanted ?? 0) * 1.4, ...course.rows.map((row) => Math.max(...row.slice(1))));
    [...$("pictures").children].forEach((figure, k) => {
      const value = figure.querySelector(".value");
      setText(value, now[k + 1].toFixed(2));
      value.classList.toggle("high", wanted !== null && now[k + 1] > HIGH * wanted);
      plot(figure.querySelector(".spark"), course.rows.map((row) => [row[0], row[k + 1]]), top, wanted);
    });
    const value = mean(now);
    setText($("mean"), value.toFixed(2));
    const high = wanted !== null && value > HIGH * wanted;
    $("mean").classList.toggle("high", high);
    setText($("about-true"), wanted === null ? "" : `true pictures: ${wanted.toFixed(2)}`);
    plot($("course"), course.rows.map((row) => [row[0], mean(row)]), top, wanted);
    setText($("verdict"), "How far R, G and B lie apart. " + (wanted === null ? ""
      : high ? `More than in true pictures (dashed)${this.late() ? ": over-saturated" : ""}.`
      : "Dashed: in true pictures of this prompt."));
    document.body.dataset.saturation = value.toFixed(4);
  },
};

function plot(box, points, top, wanted) {
  box.replaceChildren();
  const picture = svg("svg", box, { class: "plot", viewBox: "0 0 100 100", preserveAspectRatio: "none" });
  const y = (v) => 100 - (100 * v) / top;
  svg("line", picture, { class: "base", x1: 0, x2: 100, y1: 100, y2: 100 });
  if (wanted !== null && wanted !== undefined) svg("line", picture, { class: "true", x1: 0, x2: 100, y1: y(wanted), y2: y(wanted) });
  const [first, last] = [points[0][0], points.at(-1)[0]];
  const line = points.map(([step, v]) => `${((100 * (step - first)) / Math.max(last - first, 1)).toFixed(2)},${y(v).toFixed(2)}`);
  svg("polyline", picture, { points: line.join(" ") });
}

// ---- drawing when there is reason to ---------------------------------------------------------------------------------

let due = false, drawnAt = 0;

function redraw() {
  if (due) return;
  due = true;
  requestAnimationFrame(turn);
}

function turn(now) {
  if (now - drawnAt < FRAME) { requestAnimationFrame(turn); return; }
  const seconds = Math.min((now - drawnAt) / 1000, 0.1);
  drawnAt = now;
  due = false;
  if (frame?.kind === "plane" && plane.draw(seconds)) redraw();
}

function setDark(on) {
  document.documentElement.classList.toggle("dark", on);
  landscape.forget();
  redraw();
}

setDark(new URLSearchParams(location.search).has("dark"));
addEventListener("message", (event) => {
  if (event.source === parent && event.origin === location.origin && typeof event.data?.dark === "boolean") setDark(event.data.dark);
});
new ResizeObserver(() => { pictures.arrange(); redraw(); }).observe($("stage"));
plane.listen();
follow();
