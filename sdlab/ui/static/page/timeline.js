// @ts-check
// The timeline: how far the run is, the moments it can go back to, its changes, and the replay.

import { act, part } from "./news.js";

/** @typedef {{ step: number, kind: string, text: string }} Entry */
/** @typedef {{ lane?: string, step?: number, planned?: number, kept?: number[], entries?: Entry[], shots?: number[], replay?: number | null }} History */

/** @param {HTMLElement} element */
export function mount(element) {
  const [track, ticks, done, now] = [".track", ".ticks", ".done", ".now"]
    .map((selector) => /** @type {HTMLElement} */ (element.querySelector(selector)));
  const replay = /** @type {HTMLButtonElement} */ (element.querySelector("[data-replay]"));
  let drawn = "";
  /** @type {History} */
  let shown = {};

  /** @param {History} history */
  const show = (history) => {
    shown = history;
    const { lane, step = 0, planned = 1, kept = [], entries = [], shots = [], replay: at = null } = history;
    const end = Math.max(planned, step, kept.at(-1) ?? 0, 1);
    /** @param {number} s */
    const place = (s) => `${(100 * Math.min(s, end)) / end}%`;
    done.style.width = now.style.left = place(at ?? step);
    replay.disabled = shots.length < 2;
    replay.textContent = at === null ? "\u25b7" : "\u25a0";
    replay.title = at === null ? "Replay the run" : `Replaying step ${at}; press to return to the present`;
    const key = JSON.stringify([lane, end, kept, entries]);
    if (key === drawn) return;
    drawn = key;
    const changes = entries.filter((entry) => entry.kind !== "start");
    ticks.replaceChildren(
      ...kept.map((s) => moment(s, place(s), () => act({ do: "goto", lane: shown.lane, step: s }))),
      ...changes.map((entry) => change(entry, place(entry.step))),
    );
  };
  replay.addEventListener("click", () => act({ do: (shown.replay ?? null) === null ? "replay" : "live", lane: shown.lane }));
  track.title = "Dots are moments you can return to; marks are changes";
  show(shown);
  part("timeline", show);
}

/** @param {number} step @param {string} left @param {() => void} go */
function moment(step, left, go) {
  const node = document.createElement("button");
  node.type = "button";
  node.className = "kept";
  node.style.left = left;
  node.title = `Go back to step ${step}`;
  node.setAttribute("aria-label", node.title);
  node.addEventListener("click", go);
  return node;
}

/** @param {Entry} entry @param {string} left */
function change({ kind, step, text }, left) {
  const node = document.createElement("i");
  node.className = `event ${kind}`;
  node.style.left = left;
  node.title = `Step ${step}: ${text}`;
  return node;
}
