// One user at a time: the history and the profile, the list for that user, and what changes when the user clicks something.

import { call, postEvent } from "./api.js";
import { connectCombobox } from "./combobox.js";
import { $, el } from "./dom.js";
import { guarded } from "./notice.js";
import { cover, itemLink, kinds, name, percent, sid, what } from "./pieces.js";
import { clearProfile, connectProfile, showProfile } from "./profile.js";
import { listText, reason, why as reasons } from "./reasons.js";
import { addView } from "./views.js";

const SHOWN_HISTORY = 100;
const state = { user: null, shown: [], request: 0, search: 0, found: 0, explain: "evidence" };

/** The user who is on the page, for other views; null before there is one. */
export const shownUser = () => state.user;

/** Ask for reasons by intent where the model has a table of them. */
export const explainFor = (model) => { state.explain = model.has_intents ? "intent" : "evidence"; };

// ---- pieces ----

function ago(timestamp) {
  const seconds = (Date.now() - new Date(timestamp)) / 1000;
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (seconds >= length) return new Intl.RelativeTimeFormat("en").format(-Math.floor(seconds / length), unit);
  }
  return "just now";
}

// ---- the user and the list ----

async function selectUser(user) {
  state.user = user;
  state.shown = null;
  $("user-name").textContent = user;
  clearProfile(user);
  if (!$("view-users").hidden) history.replaceState(null, "", `#user=${encodeURIComponent(user)}`);
  await refresh();
}

async function refresh() {
  if (state.user === null) return;  // the page did not come up: there is nobody to ask for
  const request = ++state.request;
  $("recommendations").classList.add("busy");
  try {
    const stored = await call(`/v1/users/${encodeURIComponent(state.user)}?limit=${SHOWN_HISTORY}`).catch((error) => {
      if (error.status === 404) return null;
      throw error;
    });
    const category = $("category").value;
    const answer = await call("/v1/recommend", {
      ...(stored ? { user_id: state.user } : { history: [] }),
      k: Number($("length").value),
      categories: category ? [category] : [],
      explain: state.explain,
      details: true,
    });
    if (request !== state.request) return;
    guarded(showProfile)(state.user);
    renderHistory(stored?.history ?? []);
    renderList(answer);
    renderTimings(answer.timings_ms);
  } finally {
    if (request === state.request) $("recommendations").classList.remove("busy");
  }
}

function renderHistory(entries) {
  $("history-count").textContent = entries.length === SHOWN_HISTORY ? `newest ${SHOWN_HISTORY}` : entries.length || "";
  const rows = entries.toReversed().map((entry) =>
    el("li", {}, cover(entry, true), el("a", { class: "what", href: itemLink(entry.item_id) }, ...what(entry, kinds(entry)).childNodes),
      entry.timestamp ? el("span", { class: "badge", title: `${entry.event_type}, ${new Date(entry.timestamp).toLocaleString()}` }, ago(entry.timestamp)) : null));
  $("history").replaceChildren(...(rows.length ? rows : [el("li", { class: "empty" }, "Nothing yet. Click an item.")]));
}

function renderList(answer) {
  const before = state.shown;
  const best = answer.items[0]?.score ?? 0;
  const isProbability = !["dense", "counter"].includes(answer.source);
  const rows = answer.items.map((item, index) => {
    const previous = before?.indexOf(item.item_id);
    const entered = before !== null && previous < 0;
    return el("li", { class: entered ? "entered" : null },
      el("button", { type: "button", title: "Click: the user views this item", "data-item": item.item_id, click: guarded(() => view(item, answer.recommendation_id)) },
        el("span", { class: "rank" }, String(index + 1), change(before, previous, index)),
        cover(item),
        el("span", { class: "what" },
          el("span", { class: "title" }, name(item), entered ? el("span", { class: "badge fresh" }, "new") : null),
          el("span", { class: "tags" }, sid(item.sid), ...item.categories.slice(0, 5).map((category) => el("span", { class: "tag" }, category))),
          reason(item.reason)),
        el("span", { class: "score", title: `${isProbability ? "log-probability" : "score"} ${item.score.toFixed(3)}` },
          el("b", {}, isProbability ? percent(Math.exp(item.score)) : item.score.toFixed(2)),
          el("span", { class: "meter" }, el("i", { width: `${Math.max(2, 100 * Math.exp(item.score - best))}%` })))),
      reasons(item, answer.details));
  });
  $("recommendations").replaceChildren(...(rows.length ? rows : [el("li", { class: "empty" }, "No item is left for these restrictions.")]));
  $("fired").textContent = listText(answer.details);
  state.shown = answer.items.map((item) => item.item_id);
  const why = { empty_history: "no history yet", unknown_items: "no item of the history is in the catalogue", no_time: "the deadline was too near",
    circuit_open: "a source failed too often", store_unavailable: "the store does not answer" };
  const made = { fusion: "Ranked from what the generator, SASRec, a counter and the items' content propose.", generator: "Generated code by code from the history.",
    dense: "Found by one vector of the history.", counter: "Items that others chose after these." };
  $("source").textContent = made[answer.source]
    ? `${made[answer.source]} Click an item, and watch the list change.`
    : `Most popular items: ${why[answer.fallback_reason] ?? "the better sources failed"}. Click an item to begin.`;
}

function change(before, previous, index) {
  if (!before || previous < 0 || previous === index) return null;
  const steps = previous - index;
  return el("small", { class: steps > 0 ? "up" : "down" }, `${steps > 0 ? "▲" : "▼"}${Math.abs(steps)}`);
}

function renderTimings(timings) {
  const { total, ...steps } = timings;
  const hues = { history: 200, constraints: 40, queue: 90, decode: 245, popularity: 245, reasons: 330 };
  const shown = Object.entries(steps);
  const format = (milliseconds) => `${milliseconds < 10 ? milliseconds.toFixed(1) : milliseconds.toFixed(0)} ms`;
  $("timing-bar").replaceChildren(...shown.map(([step, time]) => el("i", { "--hue": hues[step], width: `${(100 * time) / total}%` })));
  $("timing-legend").replaceChildren(
    el("span", {}, "answered in ", el("b", {}, format(total))),
    ...shown.map(([step, time]) => el("span", {}, el("i", { "--hue": hues[step] }), `${step} `, el("b", {}, format(time)))));
}

async function view(item, recommendation) {
  await postEvent(state.user, item.item_id, recommendation);
  await refresh();
}

// ---- picking a user ----

async function randomUser() {
  const { total } = await call("/v1/users?limit=1");
  if (!total) return newVisitor();
  const page = await call(`/v1/users?limit=1&offset=${Math.floor(Math.random() * total)}`);
  return selectUser(page.users[0]);
}

const newVisitor = () => selectUser(`visitor-${Math.random().toString(36).slice(2, 8)}`);

/** A field that finds users by the beginning of their id. */
export const connectUserSearch = (input, list, choose) => connectCombobox(input, list, {
  find: async (text) => (await call(`/v1/users?limit=30&query=${encodeURIComponent(text)}`)).users,
  draw: (user) => [user],
  none: "No user id begins like this",
  choose,
});

// ---- the catalogue ----

const PAGE = 20;

async function searchCatalogue(append = false) {
  const search = ++state.search;
  const offset = append ? state.found : 0;
  const page = await call(`/v1/items?limit=${PAGE}&offset=${offset}&query=${encodeURIComponent($("search").value)}`);
  if (search !== state.search) return;
  state.found = offset + page.items.length;
  $("search-count").textContent = page.total.toLocaleString("en");
  $("search-more").hidden = state.found >= page.total;
  const rows = page.items.map((item) =>
    el("li", {}, el("button", { type: "button", title: "Add to the history", "data-item": item.item_id, click: guarded(() => view(item)) },
      cover(item, true), what(item, kinds(item)))));
  if (append) $("search-results").append(...rows);
  else $("search-results").replaceChildren(...(rows.length ? rows : [el("li", { class: "empty" }, "Nothing found")]));
}

/** Connect the view's fields, and fill in what does not depend on the user. */
export function startUsers(categories) {
  $("category").append(...categories.map(({ category, items }) => el("option", { value: category }, `${category} (${items})`)));
  let searchTimer;
  $("search").addEventListener("input", () => {
    clearTimeout(searchTimer);
    searchTimer = setTimeout(guarded(searchCatalogue), 150);
  });
  $("search-more").addEventListener("click", () => guarded(searchCatalogue)(true));
  for (const id of ["category", "length"]) $(id).addEventListener("change", guarded(() => { state.shown = null; return refresh(); }));
  $("random-user").addEventListener("click", guarded(randomUser));
  $("new-visitor").addEventListener("click", guarded(newVisitor));
  connectUserSearch($("user-input"), $("user-options"), (user) => { $("user-input").blur(); guarded(selectUser)(user); });
  connectProfile(guarded, refresh);
  let isFilled = false;
  addView("users", {
    enter: (said) => {
      if (!isFilled) guarded(searchCatalogue)();
      isFilled = true;
      const wanted = said.get("user") ?? state.user;
      if (wanted === null) guarded(randomUser)();
      else if (wanted !== state.user) guarded(selectUser)(wanted);
    },
  });
}
