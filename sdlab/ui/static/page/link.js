// @ts-check
// Links: the page's address follows its settings, and a link that was opened hides and locks parts of the page. The
// grammar is the server's (sdlab/links.py).

import { keepLink, setLarge } from "./memory.js";
import { part } from "./news.js";
import { mountShare } from "./share.js";

/** @typedef {{ query: string, plain: boolean, hide: string[], lock: string[], text: string, problems: string[], remarks: string[] }} Link */

const WRITE_EVERY = 1000; // ms; browsers refuse more than about a hundred changes of an address in 30 s

/** The query of a link. @param {string} query of the settings @param {string[]} hide @param {string[]} lock @param {string} text */
export function written(query, hide, lock, text) {
  const parts = [query];
  if (hide.length) parts.push(`hide=${hide.join(",")}`);
  if (lock.length) parts.push(`lock=${lock.join(",")}`);
  if (text) parts.push(`text=${text}`);
  return parts.filter(Boolean).join("&");
}

/** @param {HTMLElement} element @param {{ value: { urls: string[] } }} props */
export function mount(element, props) {
  const share = mountShare(element, props.value.urls);
  let opened = "";
  part("link", (/** @type {Link} */ link) => {
    const key = JSON.stringify([link.text, link.problems, link.hide]); // another one if a teacher has sent a link
    if (key !== opened) { // once: what the reader changes afterwards counts
      opened = key;
      if (link.text) setLarge(link.text === "large");
      say(element, link.problems);
    }
    hide(link.hide);
    lock(link.lock);
    share(link);
    remember(link);
  });
}

// ---- the address -------------------------------------------------------------------------------------------------

/** @type {ReturnType<typeof setTimeout> | undefined} */
let waiting;
/** @type {Link | undefined} */
let last;

/** Let the address follow. In a frame of another site, such as the Hub's, it would be seen by nobody. @param {Link} link */
function remember(link) {
  last = link;
  if (window.top !== window) return;
  waiting ??= setTimeout(() => {
    waiting = undefined;
    if (last) write(last);
  }, WRITE_EVERY);
}

/** @param {Link} link */
function write({ query, plain, hide, lock, text }) {
  const bare = plain && !hide.length && !lock.length && !text;
  const foreign = location.search.slice(1).split("&").filter((given) => given.startsWith("__")); // Gradio's own
  const search = [bare ? "" : written(query, hide, lock, text), ...foreign].filter(Boolean).join("&");
  if (search === location.search.slice(1)) return;
  try {
    history.replaceState(history.state, "", search ? `?${search}` : location.pathname);
  } catch { return; } // refused: the old address stays
  keepLink(location.search);
}

// ---- what the link was opened for --------------------------------------------------------------------------------

/** Say which parts of the link were skipped, as text. @param {HTMLElement} element @param {string[]} problems */
function say(element, problems) {
  const box = /** @type {HTMLElement} */ (element.querySelector(".link-notes"));
  const [title, list] = [box.querySelector("p"), box.querySelector("ul")];
  box.querySelector("button")?.addEventListener("click", () => { box.hidden = true; });
  box.hidden = !problems.length;
  if (title) title.textContent = "Parts of the link were skipped:";
  list?.replaceChildren(...problems.map((text) => {
    const line = document.createElement("li");
    line.textContent = text;
    return line;
  }));
}

/** Hide parts of the page (page.css has their rules), groups and knobs. @param {string[]} names */
function hide(names) {
  document.body.dataset.hide = names.join(" ");
  for (const node of document.querySelectorAll("[data-path], [data-group], [data-owner]")) {
    const { path, group, owner } = /** @type {HTMLElement} */ (node).dataset;
    node.classList.toggle("left-out", [path, group, owner].some((name) => name !== undefined && names.includes(name)));
  }
  const tabs = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("#tabs [data-tab]")]);
  const shown = tabs.filter((tab) => tab.checkVisibility());
  document.body.classList.toggle("no-readings", tabs.length > 0 && !shown.length);
  const chosen = tabs.find((tab) => tab.getAttribute("aria-selected") === "true");
  if (chosen && shown.length && !shown.includes(chosen)) shown[0].click();
}

/** Disable what is locked, and nothing else; the server refuses it, too. @param {string[]} names */
function lock(names) {
  document.body.dataset.lock = names.join(" ");
  /** @param {string} path */
  const held = (path) => path.split(".").some((_, n, parts) => names.includes(parts.slice(0, n + 1).join("."))) || names.includes("all");
  /** @param {Element} node @param {string} path */
  const set = (node, path) => {
    const now = held(path), before = node.classList.contains("locked");
    if (now === before) return;
    for (const field of /** @type {NodeListOf<HTMLInputElement>} */ (node.querySelectorAll("input, select, textarea, button"))) {
      if (now ? field.disabled : !("held" in field.dataset)) continue; // the server's own locks stay
      field.disabled = now;
      if (now) field.dataset.held = "";
      else delete field.dataset.held;
    }
    node.classList.toggle("locked", now);
  };
  for (const node of document.querySelectorAll("#form [data-path]"))
    set(node, /** @type {HTMLElement} */ (node).dataset.path ?? "");
  for (const node of document.querySelectorAll("#form .preset")) set(node, "preset");
  for (const node of document.querySelectorAll("#prompt")) set(node, "prompt.text");
}
