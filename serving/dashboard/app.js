// The dashboard: one user at a time, the list for that user, and what changes when the user clicks something.

import { ApiError, call, openText, postEvent } from "./api.js";
import { $, el, hue } from "./dom.js";
import { renderEvaluation } from "./evaluation.js";
import { clearProfile, connectProfile, showProfile } from "./profile.js";

const SHOWN_HISTORY = 100;
const state = { user: null, known: false, shown: [], request: 0, search: 0, found: 0 };

// ---- pieces ----

const name = (item) => item.title ?? item.item_id;

function cover(item, small) {
  const words = name(item).replace(/[^\p{L}\p{N} ]/gu, "").split(" ").filter((word) => word && !/^(the|a|an)$/i.test(word));
  const letters = (words[0]?.[0] ?? "?") + (words[1]?.[0] ?? "");
  let seed = 0;
  for (const letter of item.item_id) seed = (seed * 31 + letter.codePointAt(0)) % 9973;
  return el("span", { class: small ? "cover small" : "cover", "aria-hidden": "true", "--hue-a": hue(seed), "--hue-b": hue(seed) + 50 },
    letters.toUpperCase());
}

const sid = (codes) =>
  el("span", { class: "sid", title: `Semantic ID ${codes.join(" · ")}: items that share its first codes are alike` },
    ...codes.map((code, level) => el("span", { "--hue": hue(code + 31 * level) }, String(code))));

const what = (item, sub) => el("span", { class: "what" }, el("span", { class: "title", title: name(item) }, name(item)), el("span", { class: "sub" }, sub));

function ago(timestamp) {
  const seconds = (Date.now() - new Date(timestamp)) / 1000;
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (seconds >= length) return new Intl.RelativeTimeFormat("en").format(-Math.floor(seconds / length), unit);
  }
  return "just now";
}

let toastTimer;
function fail(error) {
  if (!(error instanceof ApiError)) console.error(error);
  $("toast").textContent = error.message;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, 7000);
  checkReady();
}

const guarded = (work) => (...values) => work(...values).catch(fail);

// ---- the user and the list ----

async function selectUser(user) {
  state.user = user;
  state.shown = null;
  $("user-name").textContent = user;
  clearProfile(user);
  history.replaceState(null, "", `#user=${encodeURIComponent(user)}`);
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
    el("li", {}, cover(entry, true), what(entry, entry.categories.join(" · ") || entry.item_id),
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
      el("button", { type: "button", title: "Click: the user views this item", "data-item": item.item_id, click: guarded(() => view(item)) },
        el("span", { class: "rank" }, String(index + 1), change(before, previous, index)),
        cover(item),
        el("span", { class: "what" },
          el("span", { class: "title" }, name(item), entered ? el("span", { class: "badge fresh" }, "new") : null),
          el("span", { class: "tags" }, sid(item.sid), ...item.categories.slice(0, 5).map((category) => el("span", { class: "tag" }, category))),
          reason(item.reason)),
        el("span", { class: "score", title: `${isProbability ? "log-probability" : "score"} ${item.score.toFixed(3)}` },
          el("b", {}, isProbability ? percent(Math.exp(item.score)) : item.score.toFixed(2)),
          el("span", { class: "meter" }, el("i", { width: `${Math.max(2, 100 * Math.exp(item.score - best))}%` })))));
  });
  $("recommendations").replaceChildren(...(rows.length ? rows : [el("li", { class: "empty" }, "No item is left for these restrictions.")]));
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

const percent = (share) => (share >= 0.0995 ? `${(100 * share).toFixed(0)} %` : share >= 0.00095 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %");

const reason = (why) =>
  why.because
    ? el("span", { class: "reason" }, "Similar to ", el("b", {}, name(why.because)), ` (${why.similarity.toFixed(2)})`)
    : el("span", { class: "reason" }, why.text);

function renderTimings(timings) {
  const { total, ...steps } = timings;
  const hues = { history: 200, constraints: 40, decode: 245, popularity: 245, reasons: 330 };
  const shown = Object.entries(steps);
  const format = (milliseconds) => `${milliseconds < 10 ? milliseconds.toFixed(1) : milliseconds.toFixed(0)} ms`;
  $("timing-bar").replaceChildren(...shown.map(([step, time]) => el("i", { "--hue": hues[step], width: `${(100 * time) / total}%` })));
  $("timing-legend").replaceChildren(
    el("span", {}, "answered in ", el("b", {}, format(total))),
    ...shown.map(([step, time]) => el("span", {}, el("i", { "--hue": hues[step] }), `${step} `, el("b", {}, format(time)))));
}

async function view(item) {
  await postEvent(state.user, item.item_id);
  await refresh();
}

// ---- picking a user ----

let userQuery = 0;
let shownQuery = 0;
async function suggestUsers() {
  const query = ++userQuery;
  const page = await call(`/v1/users?limit=30&query=${encodeURIComponent($("user-input").value.trim())}`);
  if (query !== userQuery) return;
  shownQuery = query;
  const options = page.users.map((user) =>
    el("li", { role: "option", id: `user-${user}`, "aria-selected": "false", mousedown: (event) => { event.preventDefault(); choose(user); } }, user));
  $("user-options").replaceChildren(...(options.length ? options : [el("li", { class: "none" }, "No user id begins like this")]));
  expand(true);
}

function expand(isOpen) {
  $("user-options").hidden = !isOpen;
  $("user-input").setAttribute("aria-expanded", String(isOpen));
}

function choose(user) {
  userQuery++;
  expand(false);
  $("user-input").value = "";
  $("user-input").blur();
  guarded(selectUser)(user);
}

function moveInOptions(event) {
  const options = [...$("user-options").querySelectorAll("[role=option]")];
  const current = options.findIndex((option) => option.getAttribute("aria-selected") === "true");
  if (event.key === "Enter" && shownQuery !== userQuery) {
    event.preventDefault();  // the options on the page are those of an earlier text
  } else if (event.key === "Enter") {
    const chosen = options[Math.max(current, 0)];
    if (chosen) choose(chosen.textContent);
  } else if (event.key === "Escape") {
    expand(false);
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    const next = options[(current + (event.key === "ArrowDown" ? 1 : -1) + options.length) % options.length];
    options.forEach((option) => option.setAttribute("aria-selected", String(option === next)));
    next?.scrollIntoView({ block: "nearest" });
    if (next) $("user-input").setAttribute("aria-activedescendant", next.id);
  }
}

async function randomUser() {
  const { total } = await call("/v1/users?limit=1");
  if (!total) return newVisitor();
  const page = await call(`/v1/users?limit=1&offset=${Math.floor(Math.random() * total)}`);
  return selectUser(page.users[0]);
}

const newVisitor = () => selectUser(`visitor-${Math.random().toString(36).slice(2, 8)}`);

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
      cover(item, true), what(item, item.categories.join(" · ") || item.item_id))));
  if (append) $("search-results").append(...rows);
  else $("search-results").replaceChildren(...(rows.length ? rows : [el("li", { class: "empty" }, "Nothing found")]));
}

// ---- the service ----

async function checkReady() {
  const response = await fetch("/readyz").catch(() => null);
  const state = (await response?.json().catch(() => null))?.status;
  $("status").className = state === "ok" ? "fact ok" : "fact down";
  $("status").lastChild.textContent = { ok: "ready", degraded: "store is down", unavailable: "not ready" }[state] ?? "not reachable";
}

async function start() {
  checkReady();
  setInterval(checkReady, 15000);
  const [model, categories, report] = await Promise.all([call("/v1/model"), call("/v1/categories"), call("/v1/report")]);
  document.title = `${model.name} · recsys`;
  $("bundle-name").textContent = model.name;
  $("model-version").textContent = model.model_version;
  $("num-items").textContent = model.num_items.toLocaleString("en");
  $("category").append(...categories.map(({ category, items }) => el("option", { value: category }, `${category} (${items})`)));
  renderEvaluation(report);
  guarded(searchCatalogue)();
  const wanted = new URLSearchParams(location.hash.slice(1)).get("user");
  await (wanted ? selectUser(wanted) : randomUser());
}

let searchTimer;
$("search").addEventListener("input", () => {
  clearTimeout(searchTimer);
  searchTimer = setTimeout(guarded(searchCatalogue), 150);
});
$("search-more").addEventListener("click", () => guarded(searchCatalogue)(true));
$("category").addEventListener("change", guarded(() => { state.shown = null; return refresh(); }));
$("length").addEventListener("change", guarded(() => { state.shown = null; return refresh(); }));
$("random-user").addEventListener("click", guarded(randomUser));
$("new-visitor").addEventListener("click", guarded(newVisitor));
$("user-input").addEventListener("input", guarded(suggestUsers));
$("user-input").addEventListener("focus", guarded(suggestUsers));
$("user-input").addEventListener("blur", () => { userQuery++; expand(false); });
$("user-input").addEventListener("keydown", moveInOptions);
connectProfile(guarded, refresh);
$("metrics-link").addEventListener("click", guarded(async (event) => {
  event.preventDefault();
  await openText("/metrics");
}));
guarded(start)();
