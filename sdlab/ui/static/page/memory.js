// @ts-check
// What the browser remembers: per tab the desk, so that a reloaded page finds its runs; in general the look of the page,
// and the last desks, so that a page finds its runs after the tab or the browser was closed.

const DESKS = "sdlab-desks", MOST_DESKS = 4;
const DESK = "sdlab-desk", LINK = "sdlab-link", THEME = "sdlab-theme", LARGE = "sdlab-large";
const WELCOMED = "sdlab-welcomed", EXAMPLES = "sdlab-examples";
const EDITOR = "sdlab-editor";

/** @param {() => Storage} storage whose mere mention fails where a frame may not store anything
 * @param {string} key @param {string} value */
function keep(storage, key, value) {
  try { storage().setItem(key, value); } catch { /* then the page forgets it */ }
}

/** @param {() => Storage} storage @param {string} key @returns {string | null} */
function recall(storage, key) {
  try { return storage().getItem(key); } catch { return null; }
}

/** @param {string} token */
export const keepDesk = (token) => keep(() => sessionStorage, DESK, token);
/** @param {string} token */
export function keepLast(token) {
  const others = lastDesks().filter((desk) => desk.token !== token);
  keep(() => localStorage, DESKS, JSON.stringify([{ token, query: location.search }, ...others].slice(0, MOST_DESKS)));
}

/** @returns {{ token: string, query: string }[]} the desks of this browser, the last one first */
function lastDesks() {
  try {
    const kept = JSON.parse(recall(() => localStorage, DESKS) ?? "[]");
    return Array.isArray(kept) ? kept.filter((desk) => typeof desk?.token === "string") : [];
  } catch { return []; }
}

/** The desks that were opened at this address; the server knows which of them no page shows. */
export const desksLeft = () => lastDesks().filter(({ query }) => query === location.search).map(({ token }) => token);

/** @param {boolean} dark */
export const keepTheme = (dark) => keep(() => localStorage, THEME, dark ? "dark" : "light");
/** @param {boolean} large */
export const keepLarge = (large) => keep(() => localStorage, LARGE, large ? "yes" : "no");
export const wasLarge = () => recall(() => localStorage, LARGE) === "yes";

/** Remember that this visitor has taken or refused the tour, or has started a run. */
export const keepWelcomed = () => keep(() => localStorage, WELCOMED, "yes");
export const wasWelcomed = () => recall(() => localStorage, WELCOMED) === "yes";
/** @param {boolean} open */
export const keepExamples = (open) => keep(() => localStorage, EXAMPLES, open ? "open" : "closed");
/** Whether the examples were left open; null before the visitor opened or closed them. */
export const wereExamplesOpen = () => { const kept = recall(() => localStorage, EXAMPLES); return kept && kept === "open"; };

export const isLarge = () => document.documentElement.classList.contains("large");
/** @param {boolean} large */
export const setLarge = (large) => document.documentElement.classList.toggle("large", large);

export const isDark = () => document.body.classList.contains("dark");

/** Apply the chosen theme; without a choice, keep the system's. */
export function restoreTheme() {
  const kept = recall(() => localStorage, THEME);
  if (kept !== null) document.body.classList.toggle("dark", kept === "dark");
  return isDark();
}

/** Remember the query of the address for which this tab has its desk. @param {string} query */
export const keepLink = (query) => keep(() => sessionStorage, LINK, query);
/** Whether the address has a query that this tab's desk is not for: a link was followed, or the address was edited. */
export const isFreshLink = () => location.search !== "" && location.search !== (recall(() => sessionStorage, LINK) ?? "");

/** Whether this page was opened by a link, before its desk has been asked for. */
export const cameByLink = isFreshLink();
/** The key with which this tab may write the user's own loss, "" without one. It comes with the address, from which it
 * is removed: an address is copied, and shown on a wall. */
export function editorKey() {
  const found = new URLSearchParams(location.hash.slice(1)).get("editor");
  if (found) {
    keep(() => sessionStorage, EDITOR, found);
    history.replaceState(history.state, "", location.pathname + location.search);
  }
  return found ?? recall(() => sessionStorage, EDITOR) ?? "";
}

/** The desk that this tab had before it was loaded, "" if none. */
export const keptDesk = () => recall(() => sessionStorage, DESK) ?? "";

/** The token in the address of a link back to a desk, which is taken out of it; "" if there is none. */
export function takeBack() {
  const token = /^#back=([\w-]{1,64})$/.exec(location.hash)?.[1] ?? "";
  if (token) history.replaceState(history.state, "", location.pathname + location.search);
  return token;
}
