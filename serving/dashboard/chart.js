// Lines over time, as SVG. The page has no other charts, and loads none from elsewhere.

import { el } from "./dom.js";

const WIDTH = 600;
const HEIGHT = 140;

const svg = (tag, properties = {}, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

/** The least of 1, 2 and 5 times a power of ten that is no less than `value`: what an axis ends with. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((end) => end >= value * (1 - 1e-9));
}

/** The path of a line through points [x, y], which is interrupted where y is null. */
export function pathOf(points) {
  let isPen = false;
  return points.map(([x, y]) => {
    if (y === null || y === undefined) { isPen = false; return ""; }
    const command = `${isPen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    isPen = true;
    return command;
  }).join("");
}

/**
 * A figure with one line a series.
 *
 * `times` are seconds, ascending; `series` are {name, values} with a value or null for each time; `format` says a value.
 */
export function lines({ title, times, series, format, span }) {
  const top = roundUp(Math.max(0, ...series.flatMap((each) => each.values.filter((value) => value !== null))));
  const end = times.at(-1) ?? 0;
  const x = (time) => WIDTH * (1 - (end - time) / span);
  const y = (value) => HEIGHT * (1 - value / top);
  const say = (place) => series.map((each) => each.values[place] ?? null).map((value) => (value === null ? "–" : format(value)));
  const values = series.map(() => el("b", {}));
  const when = el("span", { class: "when" });
  const cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" });
  const read = (place) => {
    say(place).forEach((text, each) => { values[each].textContent = text; });
    const ago = Math.round(end - (times[place] ?? end));
    when.textContent = ago ? `${ago} s ago` : times.length ? "now" : "begins now";
  };
  const latest = times.length - 1;
  read(latest);
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `${title}: ${series.map((each, place) => `${each.name} ${say(latest)[place]}`).join(", ")}` },
    ...[0, 0.5, 1].map((share) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT * share, y2: HEIGHT * share })),
    ...series.map((each, place) => svg("path", { class: `line series-${place}`, d: pathOf(each.values.map((value, at) => [x(times[at]), value === null ? null : y(value)])) })),
    cursor);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const time = end - span * (1 - (event.clientX - box.left) / box.width);
    const nearest = times.reduce((best, each, place) => (Math.abs(each - time) < Math.abs(times[best] - time) ? place : best), 0);
    if (!times.length) return;
    for (const side of ["x1", "x2"]) cursor.setAttribute(side, x(times[nearest]));
    cursor.setAttribute("visibility", "visible");
    read(nearest);
  });
  plot.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); read(latest); });
  return el("figure", { class: "chart" },
    el("figcaption", {}, el("b", {}, title), when),
    el("div", { class: "plot" }, plot, el("span", { class: "most" }, format(top)), el("span", { class: "least" }, "0")),
    el("div", { class: "legend" }, ...series.map((each, place) => el("span", {}, el("i", { class: `series-${place}` }), `${each.name} `, values[place]))));
}
