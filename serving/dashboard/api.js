// The calls of the API. An error carries the problem's detail and status.
// Where the service runs with keys, the visitor is asked for one, which stays in this tab until it is closed.

import { askForKey, authorization } from "./key.js";

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** Get `path`, or send `body` to it, by POST unless another method is given. */
export async function call(path, body, method) {
  const response = await send(path, body === undefined ? { method: method ?? "GET" } : {
    method: method ?? "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = await response.json();
  if (!response.ok) throw new ApiError(response.status, answer.detail ?? response.statusText);
  return answer;
}

async function send(path, request) {
  for (;;) {
    let response;
    const used = authorization();
    try {
      response = await fetch(path, { ...request, headers: { ...request.headers, ...used } });
    } catch {
      throw new ApiError(0, "The service does not answer. Is it still running?");
    }
    if (response.status !== 401) return response;
    await askForKey((await response.json()).detail, used);
  }
}

/** Show what needs a key, which a plain link cannot send. */
export async function openText(path) {
  const response = await send(path, { method: "GET" });
  if (!response.ok) throw new ApiError(response.status, (await response.json()).detail);
  location.assign(URL.createObjectURL(new Blob([await response.text()], { type: "text/plain" })));
}

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Post an event, with the list that it follows from, if any; a repetition with the same id counts once, so that a lost answer can simply be retried. */
export async function postEvent(user, item, recommendation_id) {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const event_id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  for (let attempt = 0; ; attempt++) {
    try {
      return await call("/v1/events", { event_id, user_id: user, item_id: item, event_type: "view", recommendation_id });
    } catch (error) {
      if (attempt === 3 || ![0, 503].includes(error.status)) throw error;
      await wait(400 * 2 ** attempt);
    }
  }
}
