// @ts-check
// Small helpers for the document.

/**
 * @param {string} id
 * @returns {any} the element, of whatever kind
 */
export const $ = (id) => document.getElementById(id);

export const dark = () => document.documentElement.classList.contains("dark");

/** @param {string} name of a variable in flat.css */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export const still = matchMedia("(prefers-reduced-motion: reduce)");
export const coarse = () => matchMedia("(pointer: coarse)").matches;

/** @param {string} id of a toggle button */
export const pressed = (id) => $(id).getAttribute("aria-pressed") === "true";

/** Set the text of a node, and leave the document alone if it is the same. @param {Element} node @param {string} text */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Make an element and append it to `parent`.
 * @param {string} tag
 * @param {Element | null} [parent]
 * @returns {any}
 */
export function make(tag, parent, name = "", text = "") {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text) node.textContent = text;
  parent?.append(node);
  return node;
}

/**
 * Make an SVG element and append it to `parent`.
 * @param {string} tag
 * @param {Element} parent
 * @param {Record<string, string | number>} attributes
 */
export function svg(tag, parent, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  parent.append(node);
  return node;
}
