// The API's documentation, drawn from its own OpenAPI document: nothing is loaded from elsewhere.

import { $, el } from "./dom.js";

const document_ = await (await fetch("/openapi.json")).json();
const schemas = document_.components.schemas;

/** Text with `code` in backticks, as nodes. */
const prose = (text) => (text ?? "").split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));

const resolve = (schema) => (schema?.$ref ? schemas[schema.$ref.split("/").at(-1)] : schema);

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  const union = schema.anyOf ?? schema.oneOf;
  if (union) return [...new Set(union.map(typeOf))].join(" | ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `list of ${typeOf(schema.items) || "anything"}`;
  return schema.format ? `${schema.type} (${schema.format})` : schema.type ?? "anything";
}

function limits(schema) {
  const branch = schema.anyOf?.find((part) => part.type !== "null") ?? schema;
  const said = [["minimum", "≥"], ["maximum", "≤"], ["minLength", "length ≥"], ["maxLength", "length ≤"], ["minItems", "entries ≥"], ["maxItems", "entries ≤"]]
    .filter(([key]) => branch[key] !== undefined).map(([key, sign]) => `${sign} ${branch[key]}`);
  if (schema.default !== undefined && schema.default !== null) said.push(`default ${JSON.stringify(schema.default)}`);
  return said.join(", ");
}

const field = (name, schema, isRequired, description) =>
  el("tr", {}, el("td", {}, el("code", {}, name), isRequired ? "\u00a0*" : ""), el("td", {}, typeOf(schema)),
    el("td", {}, ...prose([description, limits(schema)].filter(Boolean).join(" — "))));

function fieldsOf(schema) {
  const model = resolve(schema);
  if (model?.type === "array") return fieldsOf(model.items);
  const union = model?.oneOf ?? model?.anyOf;
  if (union) return fieldsOf(union[0]);
  return Object.entries(model?.properties ?? {}).map(([name, property]) =>
    field(name, property, model.required?.includes(name), property.description));
}

function examplesOf(schema) {
  const model = resolve(schema);
  return model?.examples ?? (model?.oneOf ?? model?.anyOf ?? []).flatMap((part) => examplesOf(part));
}

function curl(method, path, parameters, type, example) {
  let url = path;
  const query = [];
  for (const parameter of parameters) {
    const value = parameter.schema.examples?.[0] ?? parameter.examples?.[0];
    if (value === undefined) continue;
    if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, encodeURIComponent(value));
    else query.push(`${parameter.name}=${encodeURIComponent(value)}`);
  }
  const target = `'${location.origin}${url}${query.length ? `?${query.join("&")}` : ""}'`;
  if (example === undefined) return `curl ${target}`;
  // Lines stay lines.
  const data = typeof example === "string" ? `--data-binary '${example}'` : `-d '${JSON.stringify(example)}'`;
  return `curl ${target} \\\n  -H 'Content-Type: ${type}' \\\n  ${data}`;
}

function operation(method, path, facts) {
  const parameters = facts.parameters ?? [];
  // One of the operations takes lines instead of a document.
  const [type, content] = Object.entries(facts.requestBody?.content ?? {})[0] ?? [];
  const body = content?.schema;
  const answer = facts.responses["200"]?.content?.["application/json"]?.schema;
  const examples = content?.example ? [content.example] : body ? examplesOf(body) : [undefined];
  const asked = [...parameters.map((each) => field(each.name, each.schema, each.required, each.description ?? each.schema.description)), ...(body ? fieldsOf(body) : [])];
  const table = (title, rows) => (rows.length ? [el("h3", {}, title), el("table", {}, el("tbody", {}, ...rows))] : []);
  return el("details", { id: facts.operationId },
    el("summary", {}, el("b", { class: `method ${method}` }, method.toUpperCase()), el("code", {}, path), el("span", {}, facts.description?.split("\n")[0] ?? "")),
    el("section", {}, el("p", {}, ...prose(facts.description)),
      el("h3", {}, "Try it"), ...examples.map((example) => el("pre", {}, curl(method, path, parameters, type, example))),
      ...table("Request (* required)", asked),
      ...table(`Answer${answer ? `: ${typeOf(answer)}` : ""}`, answer ? fieldsOf(answer) : []),
      ...table("Errors (application/problem+json)", Object.entries(facts.responses).filter(([status]) => status !== "200").map(([status, each]) => el("tr", {}, el("td", {}, status), el("td", {}, each.description))))));
}

$("version").textContent = `version ${document_.info.version}`;
$("description").replaceChildren(...prose(document_.info.description));
const byTag = {};
for (const [path, methods] of Object.entries(document_.paths))
  for (const [method, facts] of Object.entries(methods)) (byTag[facts.tags?.[0] ?? "other"] ??= []).push(operation(method, path, facts));
$("operations").replaceChildren(...Object.entries(byTag).flatMap(([tag, operations]) => [el("h2", {}, tag), ...operations]));
