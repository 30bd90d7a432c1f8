// One item: all that the catalogue says of it, the items whose semantic IDs begin like its own, and those like it.

import { call } from "./api.js";
import { connectCombobox } from "./combobox.js";
import { $, el } from "./dom.js";
import { guarded, sayIn } from "./notice.js";
import { cover, itemLink, kinds, name, sid, what, whole } from "./pieces.js";
import { addView } from "./views.js";

let asked = 0;
let hasSimilar = null;  // whether the service has the operation

/** A field that finds items by words. */
export const connectItemSearch = (input, list, choose) => connectCombobox(input, list, {
  find: async (text) => (await call(`/v1/items?limit=20&query=${encodeURIComponent(text)}`)).items,
  draw: (item) => [cover(item, true), what(item, kinds(item))],
  none: "Nothing found",
  choose,
});

async function show(item_id) {
  const request = ++asked;
  const at = encodeURIComponent(item_id);
  hasSimilar ??= "/v1/similar-items" in (await (await fetch("/openapi.json")).json()).paths;
  try {
    const [item, near, similar] = await Promise.all([
      call(`/v1/items/${at}`), call(`/v1/neighbours/${at}?limit=50`), hasSimilar ? call("/v1/similar-items", { item_id, k: 10 }) : null]);
    if (request !== asked) return;
    sayIn($("item-error"), null);
    render(item, near, similar);
  } catch (error) {
    if (request !== asked) return;
    $("item-body").hidden = true;
    sayIn($("item-error"), error);
  }
}

function render(item, near, similar) {
  const cameFromHere = $("item-body").contains(document.activeElement);  // by a link that is gone in a moment
  $("item-body").hidden = false;
  const facts = [["Id", el("code", {}, item.item_id)], ["Interactions", whole(item.interactions)],
    ...Object.entries(item.attributes).map(([key, value]) => [key, value === null ? "–" : [value].flat().join(", ") || "–"])];
  $("item").replaceChildren(
    el("div", { class: "row item-head" }, cover(item), el("div", { class: "what" }, el("h2", { tabindex: -1 }, name(item)),
      el("span", { class: "tags" }, sid(item.sid), ...item.categories.map((category) => el("span", { class: "tag" }, category))))),
    el("dl", { class: "facts-list" }, ...facts.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)])));
  if (cameFromHere) $("item").querySelector("h2").focus();
  const levels = item.sid.length;
  const groups = [];
  for (let depth = levels; depth >= 1; depth--) {
    const members = near.neighbours.filter((each) => each.shared === depth);
    const exactly = near.sharing[depth - 1] - (near.sharing[depth] ?? 0);
    if (members.length) groups.push(el("h3", {}, depth === levels ? "All codes in common" : `${depth} of ${levels} codes in common`,
      el("span", { class: "count" }, members.length < exactly ? `${members.length} of ${whole(exactly)}` : whole(exactly))),
      el("ul", { class: "results" }, ...members.map((each) => entry(each, each.shared))));
  }
  $("item-neighbours").replaceChildren(...(groups.length ? groups : [el("p", { class: "empty" }, "No other item's semantic ID begins with the same code.")]));
  $("item-similar-card").hidden = similar === null;
  if (similar) $("item-similar").replaceChildren(...similar.items.map((each) => entry(each)));
}

const entry = (item, shared) =>
  el("li", {}, el("a", { href: itemLink(item.item_id), "data-item": item.item_id }, cover(item, true), what(item, kinds(item)), sid(item.sid, shared)));

/** The most popular item, to begin with. */
async function first() {
  const { items } = await call("/v1/items?limit=1");
  if (items.length) history.replaceState(null, "", itemLink(items[0].item_id));
  return items.length ? show(items[0].item_id) : sayIn($("item-error"), new Error("The catalogue has no items."));
}

/** Connect the view. */
export function startItems() {
  connectItemSearch($("item-input"), $("item-options"), (item) => { location.hash = itemLink(item.item_id); });
  addView("items", { enter: (said) => guarded(() => (said.get("item") ? show(said.get("item")) : first()))() });
}
