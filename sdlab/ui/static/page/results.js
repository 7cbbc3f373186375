// @ts-check
// Results: a button for each format, and the files that were made.

import { act, part } from "./news.js";

/** @typedef {{ kind: string, title: string, about: string }} Offer */
/** @typedef {{ id: string, name: string, state: string, share: number, said: string, address: string }} Item */

/** @param {HTMLElement} element */
export function mount(element) {
  const kinds = /** @type {HTMLElement} */ (element.querySelector(".kinds"));
  const shelf = /** @type {HTMLElement} */ (element.querySelector(".shelf"));
  let drawn = "";
  part("results", ({ lane, offers = [], items = [] }) => {
    const key = JSON.stringify([lane, offers]);
    if (key !== drawn) kinds.replaceChildren(...offers.map((/** @type {Offer} */ offer) => offerNode(offer, lane)));
    drawn = key;
    shelf.replaceChildren(...items.map(itemNode));
  });
}

/** @param {Offer} offer @param {string} lane */
function offerNode({ kind, title, about }, lane) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = about;
  button.dataset.kind = kind;
  button.append(text("b", title), text("span", about));
  button.addEventListener("click", () => act({ do: "make", lane, kind }));
  return button;
}

/** @param {Item} item */
function itemNode({ id, name, state, share, said, address }) {
  const row = document.createElement("li");
  row.className = state;
  const file = text(address ? "a" : "span", name, "file");
  if (file instanceof HTMLAnchorElement) [file.href, file.download] = [address, name];
  const bar = document.createElement("progress");
  bar.max = 1;
  bar.value = share;
  row.append(file, bar, text("span", said, "said"));
  if (state === "waiting" || state === "working") {
    const cancel = document.createElement("button");
    cancel.type = "button";
    cancel.textContent = "cancel";
    cancel.setAttribute("aria-label", `cancel ${name}`);
    cancel.addEventListener("click", () => act({ do: "cancel", id }));
    row.append(cancel);
  }
  return row;
}

/** @param {string} tag @param {string} content @param {string} [name] of its class */
function text(tag, content, name = "") {
  const node = document.createElement(tag);
  node.textContent = content;
  node.className = name;
  return node;
}
