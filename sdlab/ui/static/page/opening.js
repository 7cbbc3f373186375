// @ts-check
// The recording of a finished run that plays on the stage until a view shows the scene. Before a visitor has started
// their first run, it goes on in a corner, because the scene itself waits and is only a ball.

import { keepWelcomed, wasWelcomed } from "./memory.js";

const FADE = 400; // ms, see page.css
const PATIENCE = 4000; // ms after which a view that does not say that it shows its scene is shown nevertheless
const STARTS = "#start, #step, [data-do='burst'], [data-example]"; // what starts a run, also by a key

/** @typedef {{ address: string, step: number, phase: string, focus: boolean }} Lane */

/** @type {HTMLElement | null} */
let figure = null;
/** @type {Lane | undefined} the lane in focus */
let lane;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let waiting;
let started = wasWelcomed();

/** @param {string} selector */
const within = (selector) => /** @type {HTMLElement} */ (figure?.querySelector(selector));

/** @param {HTMLElement} element of the stage */
export function mountOpening(element) {
  figure = element.querySelector(".opening");
  const picture = /** @type {HTMLImageElement} */ (within("img")), film = picture.src, button = within("button");
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const name = () => { button.textContent = playing ? "Stop" : "Play"; };
  picture.addEventListener("error", leave);
  button.addEventListener("click", () => {
    if (isBeside()) return leave();
    playing = !playing;
    figure?.querySelector("source")?.remove(); // what the visitor asks for counts
    picture.src = playing ? film : picture.dataset.still ?? "";
    name();
  });
  name();
  button.hidden = false;
}

/** @param {Lane} lane */
const inSpace = (lane) => lane.address.startsWith("viewport/");
const isBeside = () => figure?.classList.contains("beside");

/** Say what is being prepared; a view that stays silent takes over after a while. @param {Lane[]} lanes */
export function followLanes(lanes) {
  if (!figure) return;
  lane = lanes.find((one) => one.focus);
  if (isBeside()) return lanes.length > 1 ? leave() : undefined; // it would cover the lanes' names
  const prepared = lane && !["loading", "compiling"].includes(lane.phase);
  const yours = !lane ? "" : prepared ? " The view of yours is opening." : " Yours is being prepared.";
  within("span").textContent = `A recording of a finished run.${yours}`;
  if (lane?.phase === "failed" || (lane && !inSpace(lane))) leave(); // the recording shows an object
  else if (prepared) waiting ??= setTimeout(giveWay, PATIENCE);
}

/** Let the live view take the place of the recording. */
export function giveWay() {
  clearTimeout(waiting);
  if (!figure || isBeside() || figure.classList.contains("leaving")) return;
  const goesOn = !started && lane && inSpace(lane) && lane.step === 0 && lane.phase !== "running";
  if (!goesOn) return leave();
  figure.classList.add("leaving");
  setTimeout(() => figure && standBeside(figure), FADE);
}

/** Go on in a corner. @param {HTMLElement} figure */
function standBeside(figure) {
  if (started) return leave();
  figure.classList.replace("leaving", "beside");
  within("span").textContent = "A recording: what Start does";
  const button = within("button");
  button.textContent = "\u00d7";
  button.setAttribute("aria-label", "Close the recording");
}

/** Remove the recording for good. */
function leave() {
  const old = figure;
  figure = null;
  old?.classList.add("leaving");
  setTimeout(() => old?.remove(), FADE);
}

document.addEventListener("click", (event) => {
  if (!/** @type {Element} */ (event.target).closest?.(STARTS)) return;
  started = true;
  keepWelcomed();
  if (isBeside()) leave();
});
