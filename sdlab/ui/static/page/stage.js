// @ts-check
// The stage: one to four lanes, each with a view in a frame of its own.

import { act, part } from "./news.js";
import { acceptDrops } from "./drop.js";
import { listen } from "./keys.js";
import { isDark } from "./memory.js";
import { followLanes, giveWay, mountOpening } from "./opening.js";
import { copy } from "./share.js";

const SAID = 2000; // ms for which a button says that something was copied
const REST = 5000; // ms after which a button can be pressed again if its press was refused

/** @type {Record<string, string>} what a view says about how it draws, see viewport/static/view.js */
const DRAWING = {
  software: "This browser draws 3D without a GPU (software WebGL), so the view may lag behind the run.",
  off: "WebGL is off in this browser, so the 3D view stays empty. The lens below shows the images of the run.",
};

let drawing = ""; // what the last view has said

/** @typedef {{ do: string, label: string, title: string, can: boolean }} Burst the button of a lane in bursts */
/** @typedef {{ desk: string, token: string, address: string, tone: number, letter: string, loss: string, step: number, phase: string, focus: boolean, trouble: string, modes: [string, string][], mode: string, legend: string, burst: Burst | null }} Lane */

/** @param {HTMLElement} element */
export function mount(element) {
  const stage = /** @type {HTMLElement} */ (element.querySelector(".stage"));
  /** @type {Map<string, HTMLElement>} */
  const nodes = new Map(); // by the lane's token
  /** @type {Set<HTMLButtonElement>} */
  const resting = new Set(); // a second press would add another lane before the first one is there
  let desk = "";
  mountOpening(element);
  /** @type {HTMLButtonElement | null} */
  let copying = null; // the button that was pressed to copy a camera

  /** @param {HTMLButtonElement} button */
  const wake = (button) => { button.disabled = false; resting.delete(button); };
  /** @param {HTMLButtonElement} button @param {string} lane */
  const press = (button, lane) => {
    const verb = button.dataset.do ?? "";
    if (verb === "focus" && button.closest(".lane")?.classList.contains("focus")) return;
    if (button.classList.contains("burst")) {
      const { shown } = button.dataset;
      button.disabled = true;
      setTimeout(() => { if (button.dataset.shown === shown) button.disabled = false; }, REST);
    }
    if (verb === "branch") {
      button.disabled = true;
      resting.add(button);
      setTimeout(() => wake(button), REST);
    }
    if (verb === "camera") copying = button;
    act({ do: verb, lane });
  };

  part("camera", (/** @type {string} */ text) => {
    if (!copying || !text) return; // told again after a reload
    copied(copying, text);
    copying = null;
  });

  part("stage", (/** @type {Lane[]} */ lanes) => {
    followLanes(lanes);
    for (const [token, node] of nodes) {
      if (lanes.some((lane) => lane.token === token)) continue;
      node.remove();
      nodes.delete(token);
    }
    for (const lane of lanes) {
      let node = nodes.get(lane.token);
      if (!node) {
        node = laneNode((button) => press(button, lane.token), (mode) => act({ do: "draw", lane: lane.token, mode }));
        stage.append(node);
        nodes.set(lane.token, node);
        resting.forEach(wake);
      }
      showLane(node, lane);
    }
    stage.dataset.lanes = String(lanes.length);
    tellDrawing();
    if (!lanes.length || lanes[0].desk === desk) return;
    if (desk) tellWhatIsShown(); // a new desk on an old page
    desk = lanes[0].desk;
  });
}

/** @param {(button: HTMLButtonElement) => void} press @param {(mode: string) => void} draw */
function laneNode(press, draw) {
  const node = document.createElement("figure");
  node.className = "lane";
  node.innerHTML =
    '<figcaption><button type="button" class="name" data-do="focus"><i class="chip"></i><b></b><span></span></button>' +
    '<button type="button" data-do="keep" title="Keep this lane and close the others">keep</button>' +
    '<button type="button" data-do="close" title="Close this lane" aria-label="Close this lane">&times;</button></figcaption>' +
    '<div class="foot"><div class="notes" role="status"><p class="trouble"></p><p class="legend"></p></div>' +
    '<div class="tools"><button type="button" class="primary burst" hidden></button><select data-mode title="What the view shows, and who draws it" aria-label="What the view shows" hidden></select><button type="button" data-do="branch" title="Add a lane that continues from this step">' +
    'Branch here</button><button type="button" data-do="front">Front view</button>' +
    '<button type="button" data-do="camera" title="Copy this view\'s camera as JSON, in the form of exported cameras">Copy camera</button></div></div>';
  const frame = document.createElement("iframe");
  frame.addEventListener("load", () => {
    tell(frame);
    try { if (frame.contentWindow) for (const follow of [listen, acceptDrops]) follow(frame.contentWindow); } catch { /* a frame that is not ours */ }
  });
  node.insertBefore(frame, node.querySelector(".foot"));
  node.addEventListener("click", (event) => {
    const button = /** @type {HTMLButtonElement | null} */ (/** @type {Element} */ (event.target).closest("[data-do]"));
    if (button) press(button);
  });
  const mode = /** @type {HTMLSelectElement} */ (node.querySelector("[data-mode]"));
  mode.addEventListener("change", () => draw(mode.value));
  return node;
}

/** @param {HTMLElement} node @param {Lane} lane */
function showLane(node, lane) {
  const frame = /** @type {HTMLIFrameElement} */ (node.querySelector("iframe"));
  if (frame.getAttribute("src") !== lane.address) frame.setAttribute("src", lane.address);
  frame.title = `view of the scene, lane ${lane.letter}, ${lane.loss}`;
  node.style.order = String(lane.tone);
  node.classList.toggle("focus", lane.focus);
  node.dataset.flat = String(lane.address.startsWith("flat/"));
  const [chip, name, state] = [".chip", ".name b", ".name span"].map((selector) => /** @type {HTMLElement} */ (node.querySelector(selector)));
  chip.className = `chip tone-${lane.tone}`;
  chip.textContent = lane.letter;
  name.textContent = lane.loss;
  state.textContent = `step ${lane.step}${lane.phase === "running" ? "" : `, ${lane.phase}`}`;
  note(node, ".trouble", lane.trouble);
  note(node, ".legend", lane.legend);
  showBurst(/** @type {HTMLButtonElement} */ (node.querySelector(".burst")), lane.burst);
  showModes(/** @type {HTMLSelectElement} */ (node.querySelector("[data-mode]")), lane);
}

/** Show the button by which a burst starts or ends, of a lane that has one. @param {HTMLButtonElement} button @param {Burst | null} burst */
function showBurst(button, burst) {
  const shown = JSON.stringify(burst);
  if (button.dataset.shown === shown) return; // a press under way stays
  button.dataset.shown = shown;
  button.hidden = !burst;
  if (!burst) return;
  button.dataset.do = burst.do;
  button.textContent = burst.label;
  button.title = burst.title;
  button.disabled = !burst.can;
}

/** Copy a camera, and say so in its button. @param {HTMLButtonElement} button @param {string} text */
async function copied(button, text) {
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "to-copy";
  document.body.append(field);
  const label = button.textContent;
  button.textContent = (await copy(field)) ? "Copied" : "Copying failed";
  field.remove();
  button.focus();
  setTimeout(() => { button.textContent = label; }, SAID);
}

/** Offer the ways in which a view may show its scene. @param {HTMLSelectElement} select @param {Lane} lane */
function showModes(select, lane) {
  const offered = lane.modes.map(([mode]) => mode).join();
  if (select.dataset.offered !== offered) {
    select.dataset.offered = offered;
    select.replaceChildren(...lane.modes.map(([mode, label]) => new Option(label, mode)));
    select.hidden = !lane.modes.length;
    select.dataset.shown = "";
  }
  if (select.dataset.shown !== lane.mode) select.value = select.dataset.shown = lane.mode; // a choice under way stays
}

/** Say something over the view, or nothing. @param {HTMLElement} node @param {string} line @param {string} text */
function note(node, line, text) {
  const place = /** @type {HTMLElement} */ (node.querySelector(line));
  if (place.textContent !== text) place.textContent = text; // a screen reader reads each change
}

// Views say when they show their scene, and 3D views how they draw.
addEventListener("message", ({ origin, source, data }) => {
  if (origin !== location.origin) return;
  if (data?.live === true) giveWay();
  if (typeof data?.drawing !== "string") return;
  for (const frame of document.querySelectorAll(".lane iframe"))
    if (/** @type {HTMLIFrameElement} */ (frame).contentWindow === source) drawing = data.drawing;
  tellDrawing();
});

/** Say below the stage, where nothing covers it, how this browser draws 3D, if it is slow or not at all. */
function tellDrawing() {
  const line = document.getElementById("drawing-line");
  const said = document.querySelector('.lane[data-flat="false"]') ? DRAWING[drawing] ?? "" : "";
  if (line && line.textContent !== said) line.textContent = said;
}

/** Tell a new desk which tab is open, and take the lens back to each step's own timestep. */
function tellWhatIsShown() {
  act({ do: "tab", tab: document.getElementById("readings")?.dataset.tab ?? "lens" });
  /** @type {HTMLElement | null} */ (document.querySelector("#scrub [data-live]:not(:disabled)"))?.click();
}

/** Views that are pages of ours follow the theme; viser is told by the server. @param {HTMLIFrameElement} frame */
function tell(frame) {
  frame.contentWindow?.postMessage({ dark: isDark() }, location.origin);
}

/** Let views show the effect of a press without delay. */
export function hurryViews() {
  for (const frame of document.querySelectorAll(".lane iframe"))
    /** @type {HTMLIFrameElement} */ (frame).contentWindow?.postMessage({ pressed: true }, location.origin);
}

export function tellViews() {
  for (const frame of document.querySelectorAll(".lane iframe")) tell(/** @type {HTMLIFrameElement} */ (frame));
}
