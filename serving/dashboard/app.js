// The page: what is served, whether it is ready, and the views.

import { call, openText } from "./api.js";
import { $ } from "./dom.js";
import { renderEvaluation } from "./evaluation.js";
import { startExperiments } from "./experiments.js";
import { startItems } from "./items.js";
import { forgetKey, hasKey } from "./key.js";
import { startModels } from "./models.js";
import { guarded, onFailure } from "./notice.js";
import { startTraffic } from "./traffic.js";
import { explainFor, startUsers } from "./users.js";
import { startViews } from "./views.js";
import { startWhatIf } from "./whatif.js";

async function checkReady() {
  const response = await fetch("/readyz").catch(() => null);
  const state = (await response?.json().catch(() => null))?.status;
  $("status").className = state === "ok" ? "fact ok" : "fact down";
  $("status").lastChild.textContent = { ok: "ready", degraded: "store is down", unavailable: "not ready" }[state] ?? "not reachable";
}

/** Say which model answers now. */
async function showModel() {
  const model = await call("/v1/model");
  explainFor(model);
  document.title = `${model.name} · recsys`;
  $("bundle-name").textContent = model.name;
  $("model-version").textContent = model.model_version;
  $("num-items").textContent = model.num_items.toLocaleString("en");
  $("change-key").hidden = !hasKey();
}

async function start() {
  checkReady();
  setInterval(checkReady, 15000);
  onFailure(checkReady);
  const [, categories, report] = await Promise.all([showModel(), call("/v1/categories"), call("/v1/report")]);
  renderEvaluation(report);
  startUsers(categories);
  startTraffic();
  startExperiments();
  startModels(guarded(showModel));
  startItems();
  startWhatIf();
  startViews();
}

$("metrics-link").addEventListener("click", guarded(async (event) => {
  event.preventDefault();
  await openText("/metrics");
}));
$("change-key").addEventListener("click", guarded(async () => {
  forgetKey();
  await showModel();
}));
guarded(start)();
