// The offline evaluation: models by metrics, each with its confidence interval.

import { $, el } from "./dom.js";

const PREFERRED = ["recall@10", "ndcg@10", "mrr@10", "recall@50", "coverage@10"];
const NAMES = { generator: "Generator", popularity: "Popularity", item_knn: "Item-kNN", skip_gram: "Skip-gram counter", sasrec: "SASRec", retrieval: "Retrieval", fused: "Fused" };

export function renderEvaluation(report) {
  const models = Object.entries(report.models ?? {});
  $("protocol").textContent = describe(report.protocol ?? {});
  const metrics = PREFERRED.filter((metric) => models.some(([, values]) => values[metric]));
  if (!metrics.length) {
    $("evaluation").replaceChildren(el("caption", { class: "empty" }, "This bundle has no evaluation."));
    return;
  }
  const served = report.models.fused ? "fused" : "generator";
  const best = Object.fromEntries(metrics.map((metric) => [metric, Math.max(...models.map(([, values]) => values[metric]?.value ?? 0))]));
  const widest = Object.fromEntries(metrics.map((metric) => [metric, Math.max(...models.map(([, values]) => values[metric]?.high ?? values[metric]?.value ?? 0))]));
  $("evaluation").replaceChildren(
    el("thead", {}, el("tr", {}, el("th", {}, "Model"), ...metrics.map((metric) => el("th", {}, label(metric))))),
    el("tbody", {}, ...models.map(([model, values]) =>
      el("tr", { class: model === served ? "served" : null },
        el("th", { scope: "row" }, NAMES[model] ?? model),
        ...metrics.map((metric) => cell(values[metric], best[metric], widest[metric]))))));
}

function cell(metric, best, widest) {
  if (!metric) return el("td", {}, "–");
  const share = (value) => `${(100 * value) / (widest || 1)}%`;
  const hasInterval = Number.isFinite(metric.low) && Number.isFinite(metric.high);
  return el("td", {},
    el("b", { class: metric.value === best ? "best" : null }, metric.value.toFixed(4)),
    hasInterval ? el("span", { class: "interval" }, `${metric.low.toFixed(4)} – ${metric.high.toFixed(4)}`) : null,
    el("div", { class: "whisker", "aria-hidden": "true" },
      hasInterval ? el("i", { left: share(metric.low), width: share(metric.high - metric.low) }) : null,
      el("u", { left: share(metric.value) })));
}

const label = (metric) => metric.replace("recall", "Recall").replace("ndcg", "NDCG").replace("mrr", "MRR").replace("coverage", "Coverage").replace("@", " @ ");

function describe(protocol) {
  const split = { leave_last_out: "leave-last-out", global_time: "global-time split" }[protocol.split] ?? protocol.split;
  const masked = { true: "seen items masked", false: "seen items not masked" }[protocol.mask_seen];
  const cases = protocol.num_cases && `${protocol.num_cases.toLocaleString("en")} cases`;
  const intervals = protocol.confidence && `${100 * protocol.confidence} % intervals over users`;
  const ranking = protocol.ranking && `ranked against the ${protocol.ranking}`;
  return [split, protocol.subset && `${protocol.subset} part`, cases, ranking, masked, intervals].filter(Boolean).join(" · ");
}
