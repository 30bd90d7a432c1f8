// The models in memory: which answers, and an administrator's levers to load, shadow, activate and roll back.

import { call } from "./api.js";
import { $, el } from "./dom.js";
import { sayIn } from "./notice.js";
import { table, whole } from "./pieces.js";
import { addView } from "./views.js";

let announce = () => {};

/** Look once: each look is a line in the audit log. */
async function look() {
  try {
    render((await call("/v1/admin/models")).models);
    sayIn($("models-error"), null);
  } catch (error) {
    $("models-body").hidden = true;
    sayIn($("models-error"), error, look);
  }
}

/** Do what an administrator asks for; what went wrong stays on the page until the next try. */
async function change(action, body) {
  $("models-body").classList.add("busy");
  sayIn($("models-failure"), null);
  try {
    render((await call(`/v1/admin/models:${action}`, body, "POST")).models);
    announce();
  } catch (error) {
    sayIn($("models-failure"), error, look);
  } finally {
    $("models-body").classList.remove("busy");
  }
}

/** Ask first, in a dialog; `work` is done when the answer is yes. */
function confirm(heading, text, yes, work) {
  $("confirm-heading").textContent = heading;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  $("confirm-dialog").returnValue = "";
  $("confirm-dialog").addEventListener("close", () => { if ($("confirm-dialog").returnValue === "yes") work(); }, { once: true });
  $("confirm-dialog").showModal();
}

function levers(model) {
  const version = model.model_version;
  const button = (label, heading, text, action, body) =>
    el("button", { type: "button", "aria-label": `${label} ${version}`, "data-action": label, "data-version": version,
      click: () => confirm(heading, text, label, () => change(action, body)) }, label);
  if (model.state === "active") return [el("span", { class: "hint" }, "answers")];
  const shadow = model.state === "shadow"
    ? button("End shadow", `End the shadow ${version}?`, "It stays in memory.", "shadow", { model_version: null })
    : button("Shadow", `Let ${version} shadow?`, "It sees a tenth of the requests too. Its lists are compared with those that are given, and given to nobody.", "shadow", { model_version: version });
  return [
    button("Activate", `Activate ${version}?`, "It answers all requests from the next one on. Requests in progress end on the model that they began with. You can roll back.", "activate", { model_version: version }),
    shadow,
    button("Unload", `Unload ${version}?`, "Its memory is freed; to use it again it has to be loaded.", "unload", { model_version: version })];
}

function render(models) {
  $("models-body").hidden = false;
  $("models-rollback").disabled = !models.some((model) => model.state === "previous");
  $("models-table").replaceChildren(table("Models in memory", [["Version"], ["State"], ["Made"], ["Items", true], ["In progress", true], [""]],
    models.map((model) => [el("code", {}, model.model_version), el("span", { class: `badge state ${model.state}` }, model.state),
      new Date(model.created_at).toLocaleString(), whole(model.num_items), whole(model.in_flight),
      el("div", { class: "row levers" }, ...levers(model))])));
}

/** Connect the view; `announced` is told that another model may answer. */
export function startModels(announced) {
  announce = announced;
  $("models-rollback").addEventListener("click", () => confirm("Roll back?",
    "The model that answered before this one answers again, from the next request on.", "Roll back", () => change("rollback")));
  $("models-load").addEventListener("submit", async (event) => {
    event.preventDefault();
    const bundle = $("models-bundle").value.trim();
    if (!bundle) return;
    $("models-load").classList.add("busy");
    await change("load", { bundle });
    $("models-load").classList.remove("busy");
  });
  $("models-again").addEventListener("click", look);
  addView("models", { enter: look });
}
