// @ts-check
// Requests to the server, which knows this page by its cookie.

/** Thrown when the PIN is needed. */
export class Closed extends Error {}

/** Thrown when the server does not do what it was asked. */
export class Refused extends Error {}

/** @param {string} address @param {RequestInit} [options] @returns {Promise<Response>} */
async function asked(address, options) {
  const answer = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(30000), ...options });
  if (answer.status === 401) throw new Closed();
  return answer;
}

/** Returns what the server tells. @param {string} address @returns {Promise<any>} */
export async function told(address) {
  const answer = await asked(address);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

/** Post JSON; returns the answer. @param {string} address @param {any} body */
export const post = (address, body) =>
  asked(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** Do something to the class; returns what the teacher should know about it. Throws Refused with the reason.
 * @param {Record<string, any>} act @returns {Promise<string>} */
export async function act(act) {
  const answer = await post("do", act);
  if (!answer.ok) throw new Refused(await answer.text());
  return (await answer.json()).said;
}
