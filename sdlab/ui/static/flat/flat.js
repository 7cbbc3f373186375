// @ts-check
// The view of a flat scene (sdlab/ui/flat_view.py): asks for the latest frame and has it drawn.
// Types are checked by `npx -p typescript tsc -p sdlab/ui/static/flat/jsconfig.json`.

import { $, setText } from "./dom.js";
import { unpack } from "./message.js";
import { Pictures } from "./pictures.js";
import { Plane } from "./plane.js";

/** @import { Frame, Ground } from "./message.js" */

const SOON = 40, LATE = 400, AWAY = 1000; // ms until the next request: after news, without any, in a hidden page
const RECENT = 1000; // ms after the last news in which more is expected
const FRAME = 30; // ms between drawings, so that a small machine has time for the run itself

export const latest = {
  /** @type {Frame | null} */
  frame: null,
  /** @type {Ground | null} */
  ground: null,
  drawing: false, // whether a drawing is due
};
export const plane = new Plane(redraw, say);
export const pictures = new Pictures();

let groundAsked = "";
let formulaShown = "";
let drawnAt = 0;

// ---- what the server says

/** Ask for the latest frame. Return the outcome: "new", "same", "over" or "wrong". */
async function ask() {
  const { frame } = latest;
  const row = frame?.kind === "plane" ? plane.paths.last() : frame?.kind === "pictures" ? pictures.course.last() : -1;
  const run = frame?.kind === "plane" ? frame.run : 0;
  const query = new URLSearchParams({ since: frame?.version ?? "", run: String(run), row: String(row) });
  const answer = await fetch(`now?${query}`, { cache: "no-store" });
  if (answer.status === 205) return "over";
  if (answer.status !== 200) return answer.status === 204 ? "same" : "wrong";
  /** @type {Frame} */
  const found = unpack(await answer.arrayBuffer());
  if (groundAsked !== found.ground) askGround(found.ground);
  await show(found);
  return "new";
}

/** @param {string} key */
async function askGround(key) {
  groundAsked = key;
  try {
    const answer = await fetch("ground", { cache: "no-store" });
    if (answer.status === 200) latest.ground = unpack(await answer.arrayBuffer());
    // the prompt may have changed meanwhile, or there is no prior yet: then the next frame asks again
    if (latest.ground?.ground !== key) groundAsked = "";
  } catch { groundAsked = ""; }
  plane.landscape.forget();
  if (latest.frame?.kind === "pictures") pictures.showCourse(latest.frame, latest.ground);
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

/** Show a note, over the view if there is one. @param {string} text */
function say(text) {
  setText($("note"), text);
  $("note").classList.toggle("over", latest.frame !== null);
}

/** @param {Frame} frame */
async function show(frame) {
  if (!latest.frame) parent.postMessage({ live: true }, location.origin);
  if (frame.kind === "plane") plane.take(frame, latest.frame);
  else await pictures.take(frame, latest.ground);
  latest.frame = frame;
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
  if (flat) plane.showReadings(frame, planeGround());
  redraw();
}

/** Show the loss's formula, which the server has typeset and escaped, its terms in the colours of their arrows. @param {Frame["loss"]} loss */
function showFormula({ formula, colours }) {
  if (formula === formulaShown) return;
  formulaShown = formula;
  $("formula").innerHTML = formula;
  for (const symbol of $("formula").querySelectorAll("[data-symbol]")) {
    const tone = colours[symbol.dataset.symbol];
    if (tone) symbol.style.color = `var(--${tone})`;
    symbol.classList.toggle("term", Boolean(tone));
  }
}

// ---- drawing when there is reason to

const planeGround = () => (latest.ground?.kind === "plane" ? latest.ground : null);

function redraw() {
  if (latest.drawing) return;
  latest.drawing = true;
  requestAnimationFrame(turn);
}

/** @param {number} now */
function turn(now) {
  if (now - drawnAt < FRAME) { requestAnimationFrame(turn); return; }
  const seconds = Math.min((now - drawnAt) / 1000, 0.1), { frame } = latest;
  drawnAt = now;
  latest.drawing = false;
  if (frame?.kind === "plane" && plane.draw(frame, planeGround(), seconds)) redraw();
}

/** @param {boolean} on */
function setDark(on) {
  document.documentElement.classList.toggle("dark", on);
  plane.landscape.forget();
  redraw();
}

setDark(new URLSearchParams(location.search).has("dark"));
addEventListener("message", ({ source, origin, data }) => {
  if (source === parent && origin === location.origin && typeof data?.dark === "boolean") setDark(data.dark);
});
new ResizeObserver(() => { pictures.arrange(); redraw(); }).observe($("stage"));
plane.listen(() => (latest.frame?.kind === "plane" ? { frame: latest.frame, ground: planeGround() } : null));
follow();
