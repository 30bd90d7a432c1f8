// The visitor's key: asked for when the service wants one, and kept in this tab alone.

import { $ } from "./dom.js";

const STORED = "recsys-key";
let asking = null;

/** The header that carries the key; none before there is one. */
export const authorization = () => {
  const key = sessionStorage.getItem(STORED);
  return key ? { Authorization: `Bearer ${key}` } : {};
};

/** Whether there is a key in this tab. */
export const hasKey = () => sessionStorage.getItem(STORED) !== null;

/** Go on without the key: the next call that needs one asks for another. */
export const forgetKey = () => sessionStorage.removeItem(STORED);

/** Ask for another key than the one in the header `used`. Calls that were refused meanwhile wait for the same answer. */
export function askForKey(why, used) {
  if (authorization().Authorization !== used.Authorization) return Promise.resolve();
  $("key-why").textContent = why;
  asking ??= new Promise((resolve) => {
    $("key-dialog").showModal();
    $("key-dialog").addEventListener("cancel", (event) => event.preventDefault());  // without a key there is nothing to see
    $("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(STORED, $("key-input").value.trim());
      $("key-input").value = "";
      $("key-dialog").close();
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}
