// @ts-check
// The page's line to the server: it polls GET news/TOKEN for the panels that changed, and posts what the user does to
// do/TOKEN. Requests of a kind follow one another, so that none overtakes another. A stream from here/TOKEN stays open;
// its end tells the server that the page was closed. A poll says whether the page is hidden. While no seat is free, a
// ticket takes the token's place.

import { desksLeft, isFreshLink, keepDesk, keepLast, keepLink, keptDesk, restoreTheme, takeBack } from "./memory.js";

import { answered, asking, isLost } from "./connection.js";
import { quotaHeaders } from "./quota.js";

/** @typedef {{ do: string, [key: string]: any }} Act */
/** @typedef {{ token?: string, ticket?: string, page?: string, panels?: Record<string, any> }} Answer */

const POLL_EVERY = 500, TIMEOUT = 30000, POLL_TIMEOUT = 10000, AGAIN = 2000; // ms
const REPLACED = ["knob", "probe", "prompt", "look"]; // acts of which only the last counts while they wait

/** @type {Map<string, (value: any) => void>} */
const parts = new Map();
/** @type {Map<string, any>} */
const early = new Map(); // told before the part was there
// the token of the desk that is shown, or a ticket for one, and the server's name for this page
const shown = { token: "", page: "" };

/** Show a panel's value whenever it is told. @param {string} name @param {(value: any) => void} show */
export function part(name, show) {
  parts.set(name, show);
  if (early.has(name)) show(early.get(name));
  early.delete(name);
}

/** The address of an upload to this desk. @param {string} path */
export const uploadAddress = (path) => `uploads/${shown.token}/${path}`;

/** The part of an address that leads back to this desk, "" without one. The server does not see it in a request. */
export const wayBack = () => (shown.token ? `#back=${shown.token}` : "");

/** @param {Answer} answer */
function hear({ token, ticket, page, panels }) {
  if (page !== undefined) shown.page = page;
  const key = token || ticket || token;
  if (key !== undefined && key !== shown.token) {
    shown.token = key;
    if (key) keepDesk(key);
    if (token) keepLast(token);
    stay();
  }
  for (const [name, value] of Object.entries(panels ?? {})) {
    const show = parts.get(name);
    if (show) show(value);
    else early.set(name, value);
  }
}

/** @type {EventSource | undefined} */
let stream;

/** Tell the server that this page shows its desk, for as long as it does. */
function stay() {
  stream?.close();
  stream = shown.token ? new EventSource(`here/${shown.token}?page=${encodeURIComponent(shown.page)}`) : undefined;
  stream?.addEventListener("message", () => poll()); // a page in the line is told to ask again: its timers may rest
}

// ---- polling -----------------------------------------------------------------------------------------------------

let polling = false, again = false;
let missed = false; // whether the last poll failed: its news may have been lost on the way, and is sent again
let under = new AbortController(); // ends the poll under way
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

async function poll() {
  if (polling) { again = true; return; } // the answer under way may not know yet what the user just did
  clearTimeout(timer);
  [polling, again] = [true, false];
  const { token, page } = shown, next = performance.now() + POLL_EVERY;
  if (token) {
    asking();
    const said = `${missed ? "&missed=1" : ""}${document.hidden ? "&hidden=1" : ""}`;
    const news = await fetched(`news/${token}?page=${encodeURIComponent(page)}${said}`);
    missed = !news;
    if (news) answered();
    if (news && token === shown.token) hear(news);
  } else answered(); // a page without a desk asks for nothing
  polling = false;
  if (again) poll();
  else timer = setTimeout(poll, Math.max(next - performance.now(), POLL_EVERY / 5));
}

/** Returns the answer to a poll, undefined if none came. @param {string} address @returns {Promise<Answer | undefined>} */
async function fetched(address) {
  under = new AbortController();
  const patience = setTimeout(() => under.abort(), POLL_TIMEOUT);
  try {
    const answer = await fetch(address, { cache: "no-store", signal: under.signal });
    return answer.ok ? await answer.json() : undefined;
  } catch { // the network fails now and then: the next poll may come through
    return undefined;
  } finally {
    clearTimeout(patience);
  }
}

// After a break, an answer under way may never come: ask again at once.
const retry = () => { if (isLost()) { under.abort(); poll(); } };
addEventListener("online", retry);
// The server slows a run that nobody sees, and must know at once when somebody does again.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) retry();
  poll();
});

// ---- acting ------------------------------------------------------------------------------------------------------

/** @type {Act[]} */
const outbox = [];
let posting = false;

/** Tell the server what the user did. @param {Act} act */
export function act(act) {
  const last = outbox.at(-1);
  if (last && last.do === act.do && last.knob === act.knob && REPLACED.includes(act.do)) outbox.pop();
  outbox.push(act);
  if (!posting) flush();
}

async function flush() {
  posting = true;
  while (outbox.length) {
    const acts = outbox.splice(0);
    if (!shown.token) continue;
    const answer = await post(`do/${shown.token}`, acts, await quotaHeaders(acts));
    if (answer && !answer.ok && answer.status !== 404) fail(await answer.text()); // 404: the next poll says why
  }
  posting = false;
  poll();
}

/** Ask for a desk: the one of `token`, which may come from a link back to it, or a new one. @param {boolean} dark */
export async function newDesk(dark, token = "", back = false) {
  const query = location.search, fresh = !back && isFreshLink(), left = desksLeft();
  const answer = await post(`desk?page=${encodeURIComponent(shown.page)}`, { dark, token, query, fresh, back, left });
  if (answer?.ok) {
    const told = await answer.json();
    if (told.token) keepLink(query);
    hear(told);
  } else if (answer) fail(await answer.text());
  poll();
  return answer !== undefined;
}

/** @param {string} address @param {any} body @param {Record<string, string>} more headers
 * @returns {Promise<Response | undefined>} */
async function post(address, body, more = {}) {
  const headers = { "Content-Type": "application/json", ...more };
  try {
    return await fetch(address, { method: "POST", headers, body: JSON.stringify(body), signal: AbortSignal.timeout(TIMEOUT) });
  } catch {
    fail("The connection failed: try again");
    return undefined;
  }
}

/** Say on the status line why something was not done. @param {string} text */
function fail(text) {
  let line = document.querySelector("#status .say");
  if (!line) { // the page has no desk yet
    line = document.createElement("p");
    document.querySelector("#status [data-panel]")?.replaceChildren(line);
  }
  line.className = "say error";
  line.textContent = text;
}

/** Ask for a desk until the server answers. @param {string} back the token of a link back to one, "" without */
async function arrive(back) {
  if (!await newDesk(restoreTheme(), back || keptDesk(), Boolean(back))) setTimeout(arrive, AGAIN, back);
}

export function mount() {
  arrive(takeBack());
  addEventListener("hashchange", () => { // such a link was opened in this tab
    const back = takeBack();
    if (back) arrive(back);
  });
}
