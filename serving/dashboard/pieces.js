// What several views draw alike: an item's cover and codes, numbers, what went wrong.

import { el, hue } from "./dom.js";

export const name = (item) => item.title ?? item.item_id;

export function cover(item, small) {
  const words = name(item).replace(/[^\p{L}\p{N} ]/gu, "").split(" ").filter((word) => word && !/^(the|a|an)$/i.test(word));
  const letters = (words[0]?.[0] ?? "?") + (words[1]?.[0] ?? "");
  let seed = 0;
  for (const letter of item.item_id) seed = (seed * 31 + letter.codePointAt(0)) % 9973;
  return el("span", { class: small ? "cover small" : "cover", "aria-hidden": "true", "--hue-a": hue(seed), "--hue-b": hue(seed) + 50 },
    letters.toUpperCase());
}

/** A semantic ID; `shared` codes at its beginning stand out, the others are pale. */
export const sid = (codes, shared = codes.length) =>
  el("span", { class: "sid", title: `Semantic ID ${codes.join(" · ")}: items that share its first codes are alike` },
    ...codes.map((code, level) => el("span", { class: level < shared ? null : "other", "--hue": hue(code + 31 * level) }, String(code))));

export const what = (item, sub) => el("span", { class: "what" }, el("span", { class: "title", title: name(item) }, name(item)), el("span", { class: "sub" }, sub));

export const kinds = (item) => item.categories.join(" · ") || item.item_id;

/** Where the page shows all about an item. */
export const itemLink = (item_id) => `#${new URLSearchParams({ view: "items", item: item_id })}`;

export const percent = (share) => (share >= 0.0995 ? `${(100 * share).toFixed(0)} %` : share >= 0.00095 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %");

export const whole = (number) => number.toLocaleString("en");

/** What a number is in a table while nobody knows it. */
export const NONE = "–";

/** A table; `columns` are [heading, is a number] and `rows` lists of cells, the first of which names its row. */
export function table(caption, columns, rows) {
  return el("div", { class: "scroll" }, el("table", { class: "plain" },
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, ...columns.map(([heading, isNumber]) => el("th", { scope: "col", class: isNumber ? "number" : null }, heading)))),
    el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((cell, place) =>
      place ? el("td", { class: columns[place][1] ? "number" : null, "data-label": columns[place][0] || null }, cell) : el("th", { scope: "row" }, cell)))))));
}
