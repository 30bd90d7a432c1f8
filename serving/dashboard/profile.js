// The user's profile in words: shown with its evidence, edited as lines of text.

import { call } from "./api.js";
import { $, el } from "./dom.js";

const path = (user) => `/v1/profiles/${encodeURIComponent(user)}`;
const who = { template: "from the history", generated: "written by a model", edited: "yours" };

let shown = { user: null, profile: null };
let edited = null;  // the profile that the form was opened on; a later one has other texts
let asked = 0;

/** Hide what is said about the user before; nothing is known of this one yet. */
export function clearProfile(user) {
  asked++;
  shown = { user, profile: null };
  edit(false);
  render();
}

/** Show the profile of a user; the panel is hidden for one without history. What is being edited stays. */
export async function showProfile(user) {
  if (user !== shown.user) clearProfile(user);
  const request = ++asked;
  const profile = await call(path(user)).catch((error) => {
    if (error.status === 404) return null;
    if (error.status === 409) return { damage: error.message, statements: [], edited: true };
    throw error;
  });
  if (request !== asked) return;
  shown.profile = profile;
  if (profile?.damage) edit(false);
  render();
}

function render() {
  const { profile } = shown;
  $("profile-card").hidden = profile === null;
  if (profile === null) return;
  $("profile-edit").hidden = Boolean(profile.damage);
  $("profile").hidden = Boolean(profile.damage) || !$("profile-form").hidden;
  $("profile-version").textContent = profile.damage ? "" : `after ${profile.upto} events`;
  $("profile-use").textContent = profile.damage ?? (profile.used_by_model
    ? "The model reads it before the history."
    : "For display: recommendations are made without it.");
  $("profile-reset").hidden = !profile.edited;
  const rows = profile.statements.map((statement) => {
    const because = statement.evidence.map((event) => event.title ?? event.item_id).join(" · ");
    return el("li", { title: because ? `Because of ${because}` : null },
      el("span", {}, statement.text), el("small", { class: "sub" }, who[statement.source]));
  });
  $("profile").replaceChildren(...(rows.length ? rows : [el("li", { class: "empty" }, "Nothing is said yet.")]));
}

function edit(open, added = []) {
  $("profile-form").hidden = !open;
  $("profile-actions").hidden = $("profile").hidden = open;
  if (!open) return;
  edited = shown.profile;
  $("profile-text").value = [...texts(edited), ...added].join("\n");
  $("profile-text").focus();
}

const texts = (profile) => profile.statements.map((statement) => statement.text);

async function save(whenDone) {
  const { user } = shown;
  const statements = $("profile-text").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const added = statements.filter((line) => !texts(edited).includes(line));
  try {
    await change("PUT", { statements, revision: edited.revision }, whenDone);
  } catch (error) {
    // The profile is another one by now: go on from that, with the lines that the user wrote.
    if (error.status === 409 && user === shown.user) {
      await showProfile(user);
      if (user === shown.user && shown.profile && !shown.profile.damage) edit(true, added);
    }
    throw error;
  }
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
    guarded(() => save(whenDone))();
  });
}
