// @ts-check
// Whether the server answers. A line above the status says since when it does not, and goes when it answers again.

const LOST_AFTER = 2000, CHECK_EVERY = 250; // ms
const ASLEEP = 2000; // ms between two checks that are due every `CHECK_EVERY`: the computer or this tab slept meanwhile

let heard = performance.now(); // time of the last answer, or since when one has been awaited in full wakefulness
let checked = heard, asked = false, lost = false;

/** Note that the server has answered. */
export function answered() {
  heard = performance.now();
  if (lost) show(false);
}

/** Note that an answer is awaited from now on; before the first request, nothing can be lost. */
export function asking() {
  if (!asked) heard = performance.now();
  asked = true;
}

/** Return whether the line is shown. */
export const isLost = () => lost;

/** @param {boolean} now */
function show(now) {
  lost = now;
  document.body.classList.toggle("lost", now);
  const line = document.getElementById("connection-line");
  if (!line) return;
  line.textContent = now ? text() : "";
}

function text() {
  const since = new Date(Date.now() - (performance.now() - heard)).toLocaleTimeString();
  const why = navigator.onLine ? "The server has not answered" : "This computer is offline, and the server has not answered";
  return `${why} since ${since}. What is shown may be out of date. The page keeps trying.`;
}

setInterval(() => {
  const now = performance.now();
  if (now - checked > ASLEEP) heard = now;
  checked = now;
  if (asked && !lost && now - heard > LOST_AFTER) show(true);
}, CHECK_EVERY);
