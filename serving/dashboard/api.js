// The calls of the API. An error carries the problem's detail and status.

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** Get `path`, or send `body` to it, by POST unless another method is given. */
export async function call(path, body, method) {
  let response;
  try {
    response = await fetch(path, body === undefined ? { method: method ?? "GET" } : {
      method: method ?? "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
  } catch {
    throw new ApiError(0, "The service does not answer. Is it still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw new ApiError(response.status, answer.detail ?? response.statusText);
  return answer;
}

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Post an event; a repetition with the same id counts once, so that a lost answer can simply be retried. */
export async function postEvent(user, item) {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const event_id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  for (let attempt = 0; ; attempt++) {
    try {
      return await call("/v1/events", { event_id, user_id: user, item_id: item, event_type: "view" });
    } catch (error) {
      if (attempt === 3 || ![0, 503].includes(error.status)) throw error;
      await wait(400 * 2 ** attempt);
    }
  }
}
