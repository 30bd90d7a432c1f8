// The service at work: what it counts, as rates and times of the last minutes.

import { call } from "./api.js";
import { lines } from "./chart.js";
import { $, el } from "./dom.js";
import { sayIn } from "./notice.js";
import { NONE, percent, table, whole } from "./pieces.js";
import { between, goesOn, quantile } from "./rates.js";
import { repeatedly } from "./repeat.js";
import { addView } from "./views.js";

const EVERY_MS = 3000;
const SPAN_S = 300;
/** Each point of a line is of so many seconds: single looks would be too few requests to tell. */
const SMOOTH_S = 15;

let taken = [];  // answers of one run of the service, the oldest first
let isPaused = false;
let looks = null;

const known = (value, format) => (value === null || value === undefined ? NONE : format(value));
const perSecond = (rate) => `${rate === 0 ? "0" : rate < 0.05 ? "< 0.1" : rate < 10 ? rate.toFixed(1) : whole(Math.round(rate))}/s`;
const share = (value) => (value === 0 ? "0 %" : value === 1 ? "100 %" : percent(value));

/** Seconds in the unit that suits them. */
const time = (seconds) =>
  seconds < 0.00005 ? "0 ms" : seconds < 0.9995 ? `${(1000 * seconds).toFixed(seconds < 0.00995 ? 1 : 0)} ms` : seconds < 120 ? `${seconds.toFixed(1)} s` : `${(seconds / 60).toFixed(0)} min`;

async function look() {
  try {
    const now = await call("/v1/traffic");
    if (taken.length && !goesOn(taken.at(-1), now)) taken = [];
    taken.push(now);
    while (taken.length > 2 && taken[1].at < now.at - SPAN_S - SMOOTH_S) taken.shift();
    sayIn($("traffic-error"), null);
    render();
  } catch (error) {
    sayIn($("traffic-error"), error);
  }
}

/** The newest answer that is at least `seconds` older than the one at `place`; else the oldest. */
function earlier(place, seconds) {
  for (let each = place - 1; each > 0; each--) if (taken[place].at - taken[each].at >= seconds) return taken[each];
  return taken[0];
}

function render() {
  const now = taken.at(-1);
  const wanted = $("traffic-window").value;
  const isWhole = wanted === "start" || taken.length === 1;
  const found = between(isWhole ? null : earlier(taken.length - 1, Number(wanted)), now);
  $("traffic-about").textContent = `${isWhole ? "All since the start" : `The last ${time(found.seconds)}`}: ${whole(found.requests)} requests.${
    now.started === null ? "" : ` The service runs since ${new Date(1000 * now.started).toLocaleString()}.`}`;
  tiles(found, now);
  charts();
  tables(found, now);
}

function tiles(found, now) {
  const [half, most, nearly] = found.latency;
  const tile = (label, value, hint, isBad) =>
    el("div", { class: isBad ? "tile bad" : "tile", title: hint }, el("dt", {}, label), el("dd", {}, value));
  const open = Object.entries(now.breakers).filter(([, state]) => state !== "closed").map(([part]) => part);
  $("traffic-tiles").replaceChildren(
    tile("Requests", known(found.rate, perSecond), "Of the API's operations; the page's own looks are left out"),
    tile("Failed", known(found.failed, share), "Share of requests answered with 5xx", found.failed > 0.01),
    tile("p50", known(half, time), "Half of the requests for lists were answered within"),
    tile("p95", known(most, time), "95 % of the requests for lists were answered within"),
    tile("p99", known(nearly, time), "99 % of the requests for lists were answered within"),
    tile("Fallbacks", known(found.fallback, share), "Share of lists that are not of the best source", found.fallback > 0.5),
    tile("Certified", known(found.certified, share), "Share of the generator's lists that are proven to be what scoring every item gives; a fusion does not tell"),
    tile("Batch", known(found.batchSize, (size) => size.toFixed(1)), "Requests that shared a call of the model, on average"),
    tile("Queue p95", known(found.wait, time), "95 % of the requests waited for their call no longer than"),
    tile("In progress", whole(Math.max(0, now.in_flight - 1)), "Requests that are being answered now"),
    tile("Store lag", known(now.store.lag_seconds, (seconds) => (now.store.lag_entries ? time(seconds) : "none")), "Age of the oldest event that is not in the offline store; – where another process writes it", now.store.lag_seconds > 60),
    tile("Drift", known(now.drift.popularity, (distance) => distance.toFixed(3)), "Jensen-Shannon distance, 0 to 1, of the items recommended lately from those of the first hour, over popularity; – until both have 1000 items", now.drift.popularity > 0.2),
    tile("Topic drift", known(now.drift.first_code, (distance) => distance.toFixed(3)), "The same over first codes of semantic IDs", now.drift.first_code > 0.2),
    tile("Breakers", open.length ? `open: ${open.join(", ")}` : "closed", "Parts that failed so often that they are left alone for a while", open.length > 0));
}

function charts() {
  const from = taken.at(-1).at - SPAN_S;
  const points = taken.map((each, place) => [each, place]).slice(1).filter(([each]) => each.at >= from)
    .map(([each, place]) => ({ at: each.at, ...between(earlier(place, SMOOTH_S), each) }));
  const times = points.map((point) => point.at);
  const series = (name, value) => ({ name, values: points.map((point) => value(point) ?? null) });
  const classes = ["2xx", "4xx", "5xx"];
  $("traffic-charts").replaceChildren(
    lines({ title: "Requests by status", times, span: SPAN_S, format: perSecond,
      series: classes.map((kind) => series(kind, (point) => point.classRates[kind] ?? 0)) }),
    lines({ title: "Time to a list", times, span: SPAN_S, format: time,
      series: ["p50", "p95", "p99"].map((name, place) => series(name, (point) => point.latency[place])) }),
    lines({ title: "Calls of the model", times, span: SPAN_S, format: (size) => size.toFixed(1),
      series: [series("requests a call", (point) => point.batchSize)] }),
    lines({ title: "Fallbacks", times, span: SPAN_S, format: share,
      series: [series("share of lists", (point) => point.fallback)] }));
}

const meter = (value) => el("span", { class: "share" }, el("span", { class: "meter" }, el("i", { width: `${100 * value}%` })), share(value));

function tables(found, now) {
  const why = (source) => source.fallback_reason?.replaceAll("_", " ") ?? "the best source";
  $("traffic-tables").replaceChildren(
    block("Operations", found.routes.length && table("Operations", [["Operation"], ["Requests", true], ["A second", true], ["p50", true], ["p95", true], ["p99", true], ["Statuses"]],
      found.routes.sort((one, other) => other.requests - one.requests).map((route) => [
        el("code", {}, `${route.method} ${route.route}`), whole(route.requests), known(route.rate, perSecond),
        ...[0.5, 0.95, 0.99].map((part) => known(quantile(route.seconds, part), time)),
        route.statuses.map(([status, count]) => `${status}: ${whole(count)}`).join(", ")]))),
    block("Who made the lists", found.sources.length && table("Sources", [["Source"], ["Why"], ["Lists", true], ["Share"]],
      found.sources.map((source) => [source.source, why(source), whole(source.lists), meter(source.share)]))),
    block("Events and store", table("Events and store", [["What"], ["Count", true]], [
      ...["accepted", "duplicate", "rejected"].map((outcome) => [`Events ${outcome}`, whole(Object.fromEntries(found.events)[outcome] ?? 0)]),
      ["Store did not answer", whole(found.storeErrors)],
      ["Events not in the offline store", known(now.store.lag_entries, whole)],
      ...found.refused.map(([reason, count]) => [`Refused: ${reason.replaceAll("_", " ")}`, whole(count)])])),
    block("Stages of the model", found.stages.some((stage) => stage.calls) && table("Stages", [["Stage"], ["Calls", true], ["Requests a call", true], ["Wait p50", true], ["Wait p95", true], ["Waiting now", true]],
      found.stages.filter((stage) => stage.calls || stage.waiting).map((stage) => [stage.stage, whole(stage.calls), known(stage.meanSize, (size) => size.toFixed(1)),
        ...stage.waits.map((wait) => known(wait, time)), whole(stage.waiting)]))));
}

const block = (heading, content) =>
  el("section", { class: "card" }, el("h2", {}, heading), content || el("p", { class: "empty" }, "None in this time."));

function pause(isOn) {
  isPaused = isOn;
  $("traffic-pause").setAttribute("aria-pressed", String(isOn));
  $("traffic-pause").textContent = isOn ? "Go on" : "Pause";
  if (isOn) looks.stop();
  else looks.start();
}

/** Connect the view. It looks at the service while it is on the page. */
export function startTraffic() {
  looks = repeatedly(look, EVERY_MS);
  $("traffic-window").addEventListener("change", () => { if (taken.length) render(); });
  $("traffic-pause").addEventListener("click", () => pause(!isPaused));
  addView("traffic", { enter: () => { if (!isPaused) looks.start(); }, leave: () => looks.stop() });
}
