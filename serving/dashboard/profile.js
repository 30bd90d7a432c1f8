// The user's profile in words: shown with its evidence, edited as lines of text.

import { call } from "./api.js";
import { $, el } from "./dom.js";

const path = (user) => `/v1/profiles/${encodeURIComponent(user)}`;
const who = { template: "from the history", generated: "written by a model", edited: "yours" };

let shown = { user: null, profile: null };
let asked = 0;

/** Show the profile of a user; the panel is hidden for one without history. What is being edited stays. */
export async function showProfile(user) {
  const request = ++asked;
  const profile = await call(path(user)).catch((error) => {
    if (error.status === 404) return null;
    throw error;
  });
  if (request !== asked) return;
  const sameUser = shown.user === user;
  shown = { user, profile };
  if (!sameUser) edit(false);
  render();
}

function render() {
  const { profile } = shown;
  $("profile-card").hidden = profile === null;
  if (profile === null) return;
  $("profile-version").textContent = `after ${profile.upto} events`;
  $("profile-use").textContent = profile.used_by_model
    ? "The model reads it before the history."
    : "For display: recommendations are made without it.";
  $("profile-reset").hidden = !profile.edited;
  const rows = profile.statements.map((statement) => {
    const because = statement.evidence.map((event) => event.title ?? event.item_id).join(" · ");
    return el("li", { title: because ? `Because of ${because}` : null },
      el("span", {}, statement.text), el("small", { class: "sub" }, who[statement.source]));
  });
  $("profile").replaceChildren(...(rows.length ? rows : [el("li", { class: "empty" }, "Nothing is said yet.")]));
}

function edit(open) {
  $("profile-form").hidden = !open;
  $("profile-actions").hidden = $("profile").hidden = open;
  if (!open) return;
  $("profile-text").value = shown.profile.statements.map((statement) => statement.text).join("\n");
  $("profile-text").focus();
}

async function change(method, body, whenDone) {
  const { user } = shown;
  const profile = await call(path(user), body, method);
  if (user !== shown.user) return;
  shown.profile = profile;
  edit(false);
  render();
  await whenDone();
}

/** Connect the buttons; `guarded` reports errors, `whenDone` refreshes what depends on the profile. */
export function connectProfile(guarded, whenDone) {
  $("profile-edit").addEventListener("click", () => edit(true));
  $("profile-cancel").addEventListener("click", () => edit(false));
  $("profile-reset").addEventListener("click", guarded(() => change("DELETE", undefined, whenDone)));
  $("profile-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const statements = $("profile-text").value.split("\n").map((line) => line.trim()).filter(Boolean);
    guarded(() => change("PUT", { statements }, whenDone))();
  });
}
