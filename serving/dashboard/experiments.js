// The experiments that run: who is in them, what their lists led to, and how sure the differences are.

import { call } from "./api.js";
import { $, el } from "./dom.js";
import { sayIn } from "./notice.js";
import { NONE, table, whole } from "./pieces.js";
import { repeatedly } from "./repeat.js";
import { addView } from "./views.js";

const EVERY_MS = 15000;

const percentage = (value) => (value === null ? NONE : `${(100 * value).toFixed(2)} %`);
const points = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(100 * value).toFixed(2)}`;

/** What an interval says: whether it leaves 0 out. */
export function verdict({ difference, low, high }) {
  if (difference === null) return null;
  if (low === null) return { kind: "open", text: "too few users to tell" };
  if (low > 0) return { kind: "up", text: "better" };
  if (high < 0) return { kind: "down", text: "worse" };
  return { kind: "open", text: "no difference shown" };
}

/** How large a difference an interval's bar can show: all of an experiment have one scale. */
export const widest = (outcomes) =>
  Math.max(1e-9, ...outcomes.flatMap((outcome) => outcome.rates.flatMap((rate) => [rate.low, rate.high, rate.difference].map((end) => Math.abs(end ?? 0)))));

async function look() {
  try {
    const answer = await call("/v1/experiments");
    sayIn($("experiments-error"), null);
    render(answer);
  } catch (error) {
    sayIn($("experiments-error"), error);
  }
}

function render({ experiments, holdout, note }) {
  $("experiments-about").textContent = experiments.length
    ? `A list leads to something when an event names it (recommendation_id) and an item of it. Intervals are 95 %, over users.${
      holdout ? ` ${percentage(holdout)} of all users are held out of every experiment.` : ""}`
    : "";
  $("experiments-list").replaceChildren(
    ...(note ? [el("p", { class: "card note" }, note)] : []),
    ...(experiments.length ? experiments.map(card) : [el("section", { class: "card" },
      el("p", { class: "empty" }, "No experiment runs. Name variants, their settings and shares under ", el("code", {}, "experiments.layers"), " in the settings of the service."))]));
}

function card(experiment) {
  const { variants, outcomes } = experiment;
  const settings = (values) => Object.entries(values).map(([key, value]) => `${key}: ${value}`).join(", ") || "as the service";
  const shown = outcomes.length === 2 ? outcomes.slice(1) : outcomes;  // with one type of event, "any" is that type
  const scale = widest(shown);
  return el("section", { class: "card", "aria-label": `Experiment ${experiment.experiment}` },
    el("div", { class: "list-head" },
      el("div", {}, el("h2", {}, experiment.experiment), el("p", { class: "hint" }, `In layer “${experiment.layer}”. The first variant, “${variants[0].variant}”, is the control.`)),
      ratio(experiment)),
    experiment.note ? el("p", { class: "note" }, experiment.note) : null,
    table(`Variants of ${experiment.experiment}`, [["Variant"], ["Settings"], ["Share", true], ["Users", true], ["Lists", true]],
      variants.map((each) => [each.variant, settings(each.settings), percentage(each.share), whole(each.users), whole(each.lists)])),
    ...shown.map((outcome) => el("div", { class: "outcome" },
      el("h3", {}, outcome.event_type === null ? "Lists that led to any event" : `Lists that led to “${outcome.event_type}”`),
      table(`Outcome ${outcome.event_type ?? "any event"} of ${experiment.experiment}`, [["Variant"], ["Lists", true], ["Rate", true], ["Difference, points", true], ["95 % interval"], [""]],
        outcome.rates.map((rate) => row(rate, scale))))));
}

function row(rate, scale) {
  const said = verdict(rate);
  const at = (value) => `${50 + (48 * value) / scale}%`;
  const hasInterval = rate.low !== null;
  return [rate.variant, whole(rate.lists), percentage(rate.rate), rate.difference === null ? NONE : points(rate.difference),
    rate.difference === null ? NONE : el("div", { class: "effect" },
      el("span", { class: "interval" }, hasInterval ? `${points(rate.low)} to ${points(rate.high)}` : NONE),
      el("div", { class: "whisker zero", "aria-hidden": "true" },
        hasInterval ? el("i", { left: at(rate.low), width: `${(48 * (rate.high - rate.low)) / scale}%` }) : null,
        el("u", { left: at(rate.difference) }))),
    said ? el("span", { class: `badge ${said.kind}` }, said.text) : ""];
}

function ratio({ sample_ratio_p_value: p, sample_ratio_mismatch: isMismatch }) {
  if (p === null) return null;
  const said = p < 0.001 ? "p < .001" : `p = ${p.toFixed(3).replace("0.", ".")}`;
  return el("span", { class: isMismatch ? "badge down" : "badge up", title: "Sample ratio mismatch: chi-square test of the variants' users against their shares" },
    isMismatch ? `Users do not fit the shares (${said}): trust no difference` : `Users fit the shares (${said})`);
}

/** Connect the view. It looks at the service while it is on the page. */
export function startExperiments() {
  const looks = repeatedly(look, EVERY_MS);
  addView("experiments", { enter: looks.start, leave: looks.stop });
}
