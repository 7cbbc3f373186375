// @ts-check
// On a Space with a shared GPU, the page around this one knows whose quota a burst may use. It is asked as Gradio's own
// client asks it, and answers with headers for the request.

const ASK = "zerogpu-headers"; // a message of Gradio's
const PATIENCE = 2000; // ms
const STARTS = ["burst"]; // acts that start a burst

/** The address of the page around, "" unless it is the Hub's and answers. */
function around() {
  const answers = /** @type {any} */ (window).supports_zerogpu_headers; // set by Gradio's client
  return answers && window.parent !== window && location.hostname.endsWith(".hf.space") ? "https://huggingface.co" : "";
}

/** Headers for a request with these acts, {} where no quota is needed or known. @param {{ do: string }[]} acts
 * @returns {Promise<Record<string, string>>} */
export async function quotaHeaders(acts) {
  const host = around();
  if (!host || !acts.some((act) => STARTS.includes(act.do))) return {};
  const { port1, port2 } = new MessageChannel();
  const answer = new Promise((resolve) => {
    port1.onmessage = ({ data }) => resolve(data);
    setTimeout(resolve, PATIENCE, {});
  });
  window.parent.postMessage(ASK, host, [port2]);
  const told = await answer;
  port1.close();
  return Object.fromEntries(Object.entries(told ?? {}).filter(([name]) => name.toLowerCase() === "x-ip-token"));
}
