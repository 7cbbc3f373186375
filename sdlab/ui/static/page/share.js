// @ts-check
// The dialog that makes a link: what it hides, what it locks, how large its text is; and copies it.

import { written } from "./link.js";
import { isLarge } from "./memory.js";
import { wayBack } from "./news.js";

/** @typedef {import("./link.js").Link} Link */

const LOCAL = /^(localhost|127\..*|\[::1\])$/;
const HERE = "Its address is that of this computer only: for others, start the server with --host or --public-url.";
const SERVER = "It works on this server only, whose settings are from no preset.";

/** The page's address for others. @param {string[]} urls where the server is published */
function address(urls) {
  const here = `${location.origin}${location.pathname}`;
  return urls.find((url) => here.startsWith(url)) ?? urls[0] ?? here;
}

/** Returns what shows the link of the present settings. @param {HTMLElement} element @param {string[]} urls */
export function mountShare(element, urls) {
  const dialog = /** @type {HTMLDialogElement} */ (element.querySelector("dialog"));
  const field = /** @type {HTMLTextAreaElement} */ (dialog.querySelector("textarea"));
  const open = /** @type {HTMLAnchorElement} */ (dialog.querySelector("a"));
  const output = /** @type {HTMLOutputElement} */ (dialog.querySelector("output"));
  const large = /** @type {HTMLInputElement} */ (dialog.querySelector("[data-text]"));
  /** @type {Link | undefined} */
  let link;

  /** The names in a list that are ticked, and those of the opened link that have no box. @param {"hide" | "lock"} word */
  const chosen = (word) => {
    const boxes = /** @type {HTMLInputElement[]} */ ([...dialog.querySelectorAll(`[data-${word}]`)]);
    const others = (link?.[word] ?? []).filter((name) => !boxes.some((box) => box.dataset[word] === name));
    return [...boxes.filter((box) => box.checked).map((box) => box.dataset[word] ?? ""), ...others];
  };
  const show = () => {
    if (!link) return;
    const query = written(link.query, chosen("hide"), chosen("lock"), large.checked ? "large" : "");
    field.value = `${address(urls)}${query ? `?${query}` : ""}`;
    open.href = `${location.pathname}${query ? `?${query}` : ""}`;
    output.textContent = "";
    const remarks = [...link.remarks];
    if (!/^(preset|lesson)=/.test(link.query)) remarks.push(SERVER);
    if (LOCAL.test(new URL(field.value).hostname)) remarks.push(HERE);
    dialog.querySelector(".remarks")?.replaceChildren(...remarks.map((text) => {
      const line = document.createElement("li");
      line.textContent = text;
      return line;
    }));
  };
  dialog.addEventListener("change", show);
  dialog.querySelector("[data-copy]")?.addEventListener("click", async () => {
    output.textContent = (await copy(field)) ? "Copied" : "Press Ctrl+C to copy it";
  });
  dialog.querySelector("[data-back]")?.addEventListener("click", async () => {
    const way = wayBack(), said = /** @type {HTMLOutputElement} */ (dialog.querySelector(".back output"));
    const scratch = document.createElement("textarea"); // not in the field: others may see this screen
    scratch.className = "unseen";
    scratch.value = `${address(urls)}${way}`;
    dialog.append(scratch);
    said.textContent = !way ? "There is no run." : (await copy(scratch)) ? "Copied." : "This browser does not copy.";
    scratch.remove();
  });
  document.addEventListener("click", (event) => {
    if (!(/** @type {Element} */ (event.target).closest?.("[data-share]")) || dialog.open) return;
    for (const word of /** @type {("hide" | "lock")[]} */ (["hide", "lock"]))
      for (const box of /** @type {NodeListOf<HTMLInputElement>} */ (dialog.querySelectorAll(`[data-${word}]`)))
        box.checked = Boolean(link?.[word].includes(box.dataset[word] ?? ""));
    large.checked = isLarge();
    show();
    dialog.showModal();
    dialog.scrollTop = 0; // whatever has the focus
  });
  return (/** @type {Link} */ now) => {
    link = now;
    if (dialog.open) show();
  };
}

/** Copy the text of a field; returns whether that was possible. @param {HTMLTextAreaElement} field */
export async function copy(field) {
  try {
    await navigator.clipboard.writeText(field.value);
    return true;
  } catch { // not over plain HTTP, and not in every frame
    field.focus();
    field.select();
    return document.execCommand("copy");
  }
}
