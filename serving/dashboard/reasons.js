// Why an item is in a list, as the service says it: in words, by the history, by the model's codes, by rules.

import { el } from "./dom.js";
import { name, percent } from "./pieces.js";

/** In one line: the tag of an interest that the item fits, or what of the history is most like it. */
export const reason = (why) =>
  why.because && !why.tags.length
    ? el("span", { class: "reason" }, "Similar to ", el("b", {}, name(why.because)), ` (${why.similarity.toFixed(2)})`)
    : el("span", { class: "reason" }, ...why.tags.map((tag) => el("span", { class: "tag" }, tag)), ` ${why.text}`);

/** How probable the generator finds each code of an item after those before it; null where it did not say. */
export const codesText = (item) =>
  item.code_log_probs?.map((each, level) => `${item.sid[level]}: ${percent(Math.exp(each))}`).join(" · ") ?? null;

/** What the rules that fired did to an item. */
export const rulesText = (details, item) =>
  (details?.rules ?? []).flatMap((rule) => rule.items.filter((each) => each.item_id === item.item_id).map(({ place, without }) =>
    `${rule.field} ${without === null ? rule.effect : `moves it from place ${without} to ${place}`}`)).join(" · ");

/** How a list came about: its stage, and what rules kept out of it or did to it. */
export const listText = (details) =>
  [`Stage: ${details.stage}`, ...details.rules.map((rule) => `${rule.field} ${rule.effect}`)].join(" · ");

/** All that is known of why an item is in a list, folded; null where that is nothing. */
export function why(item, details) {
  const said = [
    ["Each code", codesText(item)],
    ["In the history", item.reason?.evidence.map(name).join(" · ")],
    ["Rules", rulesText(details, item)],
  ].filter(([, text]) => text);
  if (!said.length) return null;
  return el("details", { class: "why" }, el("summary", {}, "Why", el("span", { class: "unseen" }, ` ${name(item)}`)),
    el("dl", {}, ...said.flatMap(([term, text]) => [el("dt", {}, term), el("dd", {}, text)])));
}
