// @ts-check
// Files dropped onto the page: settings are opened; so are those of a run's folder in a ZIP file, and if it has a
// checkpoint, the page offers to continue from there, as it does with its own run after a restart of the server.

import { upload } from "./files.js";
import { act, part } from "./news.js";

const MAX_SETTINGS = 100000; // bytes; more than the server accepts, so that the server can say why it refuses a file
const RUN = "run"; // in the place of a knob
const GONE = 300; // ms without "dragover", which browsers repeat, after which a file is no longer over the page

/** @type {HTMLElement | undefined} */
let overlay;
/** @type {HTMLElement | undefined} */
let box; // says what came of a file, and makes the offer
let most = 0; // bytes of a run
/** @type {ReturnType<typeof setTimeout> | undefined} */
let hiding;

/** @param {boolean} on */
function show(on) {
  clearTimeout(hiding);
  if (overlay) overlay.hidden = !on;
  if (on) hiding = setTimeout(() => show(false), GONE);
}

/** Open a file with settings. @param {File} file */
export async function openSettings(file) {
  act({ do: "settings", settings: await file.slice(0, MAX_SETTINGS).text(), name: file.name });
}

/** Accept files that are dropped onto the page, or onto a view in a frame of it. @param {Window} target */
export function acceptDrops(target) {
  const files = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  target.addEventListener("dragover", (event) => {
    if (!files(event)) return;
    event.preventDefault(); // otherwise the browser would leave the page for the file
    show(true);
  });
  target.addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    show(false);
    take([...(event.dataTransfer?.files ?? [])]);
  });
}

/** @param {File[]} dropped */
function take(dropped) {
  const [file] = dropped;
  if (dropped.length !== 1) return say(`${dropped.length} files were dropped: one at a time is opened.`);
  if (/\.toml$/i.test(file.name)) return openSettings(file);
  if (!/\.zip$/i.test(file.name))
    return say(`${file.name} is neither settings (.toml) nor a run's folder as a ZIP file; upload other files at their knobs.`);
  upload(file, most, RUN, say, (problem) => (problem ? say(problem) : make()));
}

/** @type {{ said: string, step: number } | null} the run that can be continued */
let offered = null;

/** Make the offer that there is, or close the box. */
function make() {
  if (!offered) return say("");
  say(offered.said, `Continue from step ${offered.step}`);
}

/** Say something in the box, or close it. @param {string} text @param {string} [offer] of its first button */
function say(text, offer = "") {
  if (!box) return;
  const [line, yes, no] = ["p", "[data-yes]", "[data-no]"].map((found) => /** @type {HTMLElement} */ (box?.querySelector(found)));
  box.hidden = !text;
  line.textContent = text;
  yes.hidden = !offer;
  yes.textContent = offer;
  no.textContent = offer ? "Not now" : "Close";
}

/** @param {HTMLElement} element @param {{ value: { most: number } }} props */
export function mount(element, props) {
  overlay = /** @type {HTMLElement} */ (element.querySelector(".drop-here"));
  most = props.value.most;
  acceptDrops(window);
  box = /** @type {HTMLElement} */ (element.querySelector(".offer"));
  box.querySelector("[data-yes]")?.addEventListener("click", () => { say(""); act({ do: "continue" }); });
  box.querySelector("[data-no]")?.addEventListener("click", () => { say(""); act({ do: "decline" }); });
  part("offer", (run) => {
    offered = run;
    if (run) make();
  });
}
