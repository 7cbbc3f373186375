// @ts-check
// Buttons that let the user choose a file.

import { uploadAddress } from "./news.js";

/** @param {HTMLButtonElement} button @param {HTMLInputElement} input its hidden input @param {(file: File) => void} take */
export function chooseFile(button, input, take) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    const file = input.files?.[0];
    input.value = ""; // so that the same file can be chosen again
    if (file) take(file);
  });
}

/** Uploads a file; `say` is told how far it is, `done` what came of it. @param {File} file @param {number} most bytes
 * @param {string} path the knob that takes it @param {(text: string) => void} say @param {(text: string) => void} done */
export function upload(file, most, path, say, done) {
  /** @param {number} n */
  const bytes = (n) => n.toLocaleString("en");
  if (file.size > most) return done(`${file.name} has ${bytes(file.size)} bytes; at most ${bytes(most)} are allowed`);
  const request = new XMLHttpRequest(); // fetch does not report progress
  request.upload.onprogress = ({ loaded, total }) => say(`${file.name}: ${Math.round((100 * loaded) / total)} %`);
  request.upload.onload = () => say(`Reading ${file.name}`);
  request.onload = () => done(request.status === 204 ? "" : request.responseText);
  request.onerror = () => done("The connection failed: try again");
  request.open("POST", `${uploadAddress(path)}?name=${encodeURIComponent(file.name)}`);
  request.send(file);
}

/** Uploads a file for the knob at `path`. @param {HTMLElement} node @param {string} path */
export function mountUpload(node, path) {
  const button = /** @type {HTMLButtonElement} */ (node.querySelector("button"));
  const output = /** @type {HTMLOutputElement} */ (node.querySelector("output"));
  /** @param {string} text */
  const say = (text) => { output.textContent = text; };
  chooseFile(button, /** @type {HTMLInputElement} */ (node.querySelector("input")), (file) => {
    button.disabled = true;
    upload(file, Number(node.dataset.upload), path, say, (problem) => {
      button.disabled = false;
      say(problem || `${file.name} is uploaded`);
    });
  });
}
