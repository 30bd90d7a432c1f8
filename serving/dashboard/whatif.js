// What if the history were another one? Two models, or one with two settings, answer to the same history side by side.

import { call } from "./api.js";
import { common, moved, places } from "./compare.js";
import { $, el } from "./dom.js";
import { connectItemSearch } from "./items.js";
import { guarded, sayIn } from "./notice.js";
import { cover, kinds, name, percent, sid, what } from "./pieces.js";
import { connectUserSearch, shownUser } from "./users.js";
import { addView } from "./views.js";

const SIDES = ["a", "b"];
const LENGTH = 10;
const MOST = 100;

let items = [];
let asked = 0;
let timer;

// ---- the history ----

function edit(next, focus) {
  items = next;
  renderHistory();
  const row = $("whatif-history").children[Math.min(focus?.place ?? -1, items.length - 1)];
  if (row) (row.querySelector(`[data-move="${focus.move}"]:not(:disabled)`) ?? row.querySelector("button:not(:disabled)")).focus();
  else if (focus) $("whatif-item").focus();
  ask();
}

function renderHistory() {
  $("whatif-count").textContent = items.length || "";
  const button = (label, text, move, isOff, work) =>
    el("button", { type: "button", class: "small", "aria-label": label, title: label, "data-move": move, disabled: isOff, click: work }, text);
  const rows = items.map((item, place) =>
    el("li", { "data-item": item.item_id, keydown: (event) => keys(event, place) },
      cover(item, true), what(item, kinds(item)),
      el("span", { class: "movers" },
        button(`Move ${name(item)} up: earlier`, "↑", "up", place === 0, () => edit(moved(items, place, place - 1), { place: place - 1, move: "up" })),
        button(`Move ${name(item)} down: later`, "↓", "down", place === items.length - 1, () => edit(moved(items, place, place + 1), { place: place + 1, move: "down" })),
        button(`Remove ${name(item)}`, "✕", "remove", false, () => edit(items.toSpliced(place, 1), { place, move: "remove" })))));
  $("whatif-history").replaceChildren(...(rows.length ? rows : [el("li", { class: "empty" }, "Empty: the lists are of the most popular items.")]));
}

function keys(event, place) {
  const to = { ArrowUp: place - 1, ArrowDown: place + 1 }[event.key];
  if (event.key === "Delete") edit(items.toSpliced(place, 1), { place, move: "remove" });
  else if (event.altKey && to >= 0 && to < items.length) edit(moved(items, place, to), { place: to, move: event.target.dataset.move });
  else return;
  event.preventDefault();
}

async function startFrom(user) {
  const stored = await call(`/v1/users/${encodeURIComponent(user)}?limit=${MOST}`);
  $("whatif-from").textContent = `Begun with the history of ${user}.`;
  edit(stored.history.map(({ item_id, title, categories }) => ({ item_id, title, categories })));
}

// ---- the two lists ----

/** Ask soon: who edits quickly is not answered in between. */
function ask() {
  clearTimeout(timer);
  timer = setTimeout(compare, 120);
}

const settings = (side) => ({
  ...($(`whatif-model-${side}`).value ? { model_version: $(`whatif-model-${side}`).value } : {}),
  ...($(`whatif-cap-${side}`).value ? { max_per_category: Number($(`whatif-cap-${side}`).value) } : {}),
});

async function compare() {
  const request = ++asked;
  $("whatif-lists").classList.add("busy");
  const history = items.map((item) => item.item_id);
  const answers = await Promise.all(SIDES.map((side) =>
    call("/v1/recommend", { history, k: LENGTH, ...settings(side) }).catch((error) => error)));
  if (request !== asked) return;
  $("whatif-lists").classList.remove("busy");
  const lists = answers.map((answer) => answer.items?.map((item) => item.item_id) ?? []);
  SIDES.forEach((side, place) => {
    const answer = answers[place];
    const failed = answer instanceof Error;
    sayIn($(`whatif-error-${side}`), failed ? answer : null, ask);
    $(`whatif-about-${side}`).textContent = failed ? "" : about(answer);
    const where = places(lists[place], lists[1 - place]);
    $(`whatif-list-${side}`).replaceChildren(...(failed ? [] : answer.items.map((item, each) => entry(item, where[each], answer.source))));
  });
  $("whatif-common").textContent = answers.some((answer) => answer instanceof Error) ? "" :
    `${common(...lists)} of ${Math.max(...lists.map((list) => list.length))} items are in both lists.`;
}

const about = (answer) => `${answer.source}, ${answer.timings_ms.total.toFixed(0)} ms`;

function entry(item, { rank, there, moved: steps }, source) {
  const isNew = there === null;
  const mark = isNew ? el("span", { class: "badge fresh" }, "only here")
    : steps === 0 ? el("span", { class: "same" }, "=")
      : el("span", { class: steps > 0 ? "up" : "down" }, `${steps > 0 ? "▲" : "▼"}${Math.abs(steps)}`,
        el("span", { class: "unseen" }, ` places ${steps > 0 ? "higher" : "lower"} than in the other list`));
  const score = ["dense", "counter"].includes(source) ? item.score.toFixed(2) : percent(Math.exp(item.score));
  return el("li", { class: isNew ? "moved new" : steps ? "moved" : null, "data-item": item.item_id, "data-there": there },
    el("span", { class: "rank" }, String(rank)), cover(item, true),
    el("span", { class: "what" }, el("span", { class: "title", title: name(item) }, name(item)),
      el("span", { class: "sub" }, score, " ", sid(item.sid))),
    mark);
}

/** Offer the models in memory; what was chosen stays. */
async function offerModels() {
  const { model_version, loaded } = await call("/v1/model");
  SIDES.forEach((side) => {
    const chosen = $(`whatif-model-${side}`).value;
    $(`whatif-model-${side}`).replaceChildren(el("option", { value: "" }, `active (${model_version})`),
      ...loaded.filter((version) => version !== model_version).map((version) => el("option", { value: version, selected: version === chosen }, version)));
  });
  const other = loaded.find((version) => version !== model_version);
  if (other && !$("whatif-model-b").dataset.isChosen) $("whatif-model-b").value = other;
  $("whatif-hint").hidden = loaded.length > 1;
}

/** Connect the view. */
export function startWhatIf() {
  connectUserSearch($("whatif-user"), $("whatif-users"), guarded(startFrom));
  connectItemSearch($("whatif-item"), $("whatif-items"), ({ item_id, title, categories }) =>
    edit([...items.filter((item) => item.item_id !== item_id), { item_id, title, categories }].slice(-MOST)));
  $("whatif-clear").addEventListener("click", () => { $("whatif-from").textContent = ""; edit([]); });
  for (const side of SIDES) {
    $(`whatif-model-${side}`).addEventListener("change", () => { $(`whatif-model-${side}`).dataset.isChosen = "yes"; ask(); });
    $(`whatif-cap-${side}`).addEventListener("input", ask);
  }
  let isBegun = false;
  addView("what-if", {
    enter: guarded(async () => {
      await offerModels();
      if (!isBegun && shownUser() !== null) await startFrom(shownUser()).catch((error) => {
        if (error.status !== 404) throw error;
        edit([]);  // a visitor without events
      });
      else if (!isBegun) edit([]);
      else ask();
      isBegun = true;
    }),
  });
}
