// Errors, where the visitor sees them: the API's own words, which name the fix.

import { ApiError } from "./api.js";
import { $, el } from "./dom.js";
import { forgetKey } from "./key.js";

const listeners = [];
let timer;

/** Be told of every failed call. */
export const onFailure = (listener) => listeners.push(listener);

/** Say shortly what went wrong. */
export function fail(error) {
  if (!(error instanceof ApiError)) console.error(error);
  $("toast").textContent = error.message;
  $("toast").hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => { $("toast").hidden = true; }, 7000);
  listeners.forEach((listener) => listener());
}

/** The same work, whose errors are said and not thrown. */
export const guarded = (work) => (...values) => work(...values).catch(fail);

/** Say in a place of its own what went wrong there, until it is said that nothing is. `retry` is for another key. */
export function sayIn(place, error, retry) {
  place.hidden = !error;
  if (!error) return place.replaceChildren();
  if (!(error instanceof ApiError)) console.error(error);
  if (place.dataset.said === error.message && place.childElementCount) return;  // read out once, not at every try
  place.dataset.said = error.message;
  const other = error.status === 403 && retry
    ? el("button", { type: "button", click: () => { forgetKey(); retry(); } }, "Use another key") : null;
  place.replaceChildren(el("span", {}, error.message), ...(other ? [other] : []));
}
