// @ts-check
// The tour of the page: offered on the first visit, and to be had from the title bar. It shows what is visible, so a
// link that hides parts shortens it. driver.js is fetched when it starts.

import { keepWelcomed, wasWelcomed } from "./memory.js";

/** @typedef {{ element: string, title: string, text: () => string }} Stop */

const STOPS = /** @type {Stop[]} */ ([
  { element: "#prompt", title: "What to make", text: () =>
    "Objects such as \u201ca blue train\u201d or \u201ca striped cat wearing a hat\u201d. Change the words at any time: the object follows." },
  { element: "#run-buttons", title: "Start", text: () =>
    "A ball of Gaussians grows into the object. Space pauses and continues; Reset begins again." },
  { element: "#form .losses", title: "The loss", text: () =>
    "Fifteen ways to distil a score. Choose another while it runs; its formula shows the present values." },
  { element: "#stage", title: "The object", text: () =>
    "Drag to turn it, scroll to come closer. \u201cBranch here\u201d adds a second run from this step, to compare." },
  { element: "#tabs", title: "What the loss sees", text: () =>
    `${visibleTabs()}: pictures of the step, figures over time, all losses at one state, files to keep.` },
  { element: "#title [data-examples]", title: "Examples", text: () =>
    `Losses beside each other, illusions, sketches, points on a plane: one click opens and starts each.${ofLessons()}` },
  { element: "#title [data-share]", title: "A link", text: () =>
    "It opens the page with exactly these settings. The question mark beside it starts this tour again." },
]);

const ofLessons = () => (document.querySelector("#title [data-lessons]")?.checkVisibility() ? " Lessons, beside it, explain what you see." : "");

const visibleTabs = () => [...document.querySelectorAll("#tabs [data-tab]")]
  .filter((tab) => tab.checkVisibility()).map((tab) => tab.textContent).join(", ");

/** @param {HTMLElement} element */
export function mount(element) {
  const offer = /** @type {HTMLElement} */ (element.querySelector(".tour-offer"));
  const settle = () => { offer.hidden = true; keepWelcomed(); };
  offer.hidden = wasWelcomed() || new URLSearchParams(location.search).has("lesson");
  document.addEventListener("click", (event) => {
    const target = /** @type {Element} */ (event.target);
    if (target.closest?.("#tour [data-no], #start, [data-example]")) settle();
    const button = /** @type {HTMLElement | null} */ (target.closest?.("[data-tour]"));
    if (button) { settle(); take(); }
  });
}

/** @type {Promise<any> | undefined} */
let fetched;

/** Take the tour. */
async function take() {
  const { driver } = await (fetched ??= fetchDriver());
  const steps = STOPS.filter(({ element }) => document.querySelector(element)?.checkVisibility())
    .map(({ element, title, text }) => ({ element, popover: { title, description: text() } }));
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const tour = driver({
    steps, animate: false, smoothScroll: !calm, popoverClass: "tour", stageRadius: 10, overlayOpacity: 0.45,
    showProgress: true, progressText: "{{current}} of {{total}}", nextBtnText: "Next", prevBtnText: "Back", doneBtnText: "Done",
    onDestroyed: () => ended.abort(),
  });
  const ended = new AbortController();
  for (const target of escapes())
    target.addEventListener("keydown", (event) => { if (/** @type {KeyboardEvent} */ (event).key === "Escape") tour.destroy(); }, { signal: ended.signal });
  tour.drive();
}

/** Fetch driver.js and its style sheet. */
async function fetchDriver() {
  const style = document.createElement("link");
  style.rel = "stylesheet";
  style.href = new URL("driver.css", import.meta.url).href;
  await new Promise((done) => { style.onload = style.onerror = done; document.head.prepend(style); }); // before page.css
  return import(new URL("driver.js", import.meta.url).href);
}

/** Where Escape is heard: a view in which the object was turned has the keys. @returns {EventTarget[]} */
function escapes() {
  /** @type {EventTarget[]} */
  const found = [window];
  for (const frame of document.querySelectorAll(".lane iframe")) {
    const view = /** @type {HTMLIFrameElement} */ (frame).contentWindow;
    if (view) found.push(view);
  }
  return found;
}
