// Shows openapi.json to people: every route, what it takes, what it answers, and commands to paste.
// Knows the parts of OpenAPI that our document uses, and shows its texts as text: `code` and **bold** are all their markup.

import { byId, element } from "./dom.js";

const main = byId("content");
const description = await (await fetch("openapi.json")).json();

// Returns what a $ref points to, with what stands beside it.
function resolved(part) {
  if (!part?.$ref) return part;
  const target = part.$ref
    .slice(2)
    .split("/")
    .reduce((at, name) => at[name.replaceAll("~1", "/")], description);
  return { ...resolved(target), ...part, $ref: undefined };
}

function marked(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((piece) => {
    if (piece.startsWith("`")) return element("code", {}, piece.slice(1, -1));
    if (piece.startsWith("**")) return element("strong", {}, piece.slice(2, -2));
    return piece;
  });
}

const paragraphs = (text = "") => text.split("\n\n").filter(Boolean).map((one) => element("p", {}, ...marked(one)));

function operations() {
  return Object.entries(description.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({ path, method, ...operation })),
  );
}

function method(name) {
  return element("span", { class: `method ${name}` }, name.toUpperCase());
}

function index() {
  return description.tags.flatMap(({ name, description: meaning }) => [
    element("li", { class: "tag" }, meaning),
    ...operations()
      .filter(({ tags }) => tags.includes(name))
      .map((one) =>
        element("li", {}, element("a", { href: `#${one.operationId}` }, method(one.method), element("code", {}, one.path))),
      ),
  ]);
}

function article(one) {
  const node = element(
    "article",
    { id: one.operationId },
    element("h2", {}, method(one.method), element("code", {}, one.path)),
    element("p", {}, element("strong", {}, one.summary)),
    ...paragraphs(one.description),
  );
  if (one.parameters) node.append(element("h3", {}, "Parameters"), element("ul", { class: "fields" }, ...one.parameters.map(parameter)));
  if (one.requestBody) node.append(...body(one));
  else if (!one.path.includes("{")) node.append(element("pre", {}, `curl ${address(one.path)}`));
  node.append(element("h3", {}, "Answers"), ...Object.entries(one.responses).map(answer));
  return node;
}

function parameter(part) {
  const { name, schema, description: meaning } = resolved(part);
  return element("li", {}, element("code", {}, name), ` ${type(schema)}. `, ...marked(meaning));
}

const address = (path) => new URL(`.${path}`, document.baseURI).href;

// Returns what a form takes, with its examples as commands.
function body(one) {
  return Object.entries(one.requestBody.content).flatMap(([kind, media]) => [
    element("h3", {}, "Form ", element("code", {}, kind)),
    ...media.schema.anyOf.map(resolved).map(folded),
    ...Object.values(media.examples).flatMap(({ summary, value }) => [
      element("h4", {}, summary),
      element("pre", {}, command(one.path, kind, value)),
    ]),
  ]);
}

function command(path, kind, value) {
  const flag = kind === "multipart/form-data" ? "-F" : "--data-urlencode";
  const fields = Object.entries(value).map(([name, field]) => {
    const text = typeof field === "string" ? field : JSON.stringify(field);
    return `${flag} ${quoted(`${name}=${text}`)}`;
  });
  return `curl ${fields.join(" \\\n  ")} \\\n  ${address(path)}`;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function answer([status, part]) {
  const { description: meaning, content = {}, headers = {} } = resolved(part);
  const node = element("div", {}, ...paragraphs(meaning));
  for (const [name, header] of Object.entries(headers)) {
    node.append(element("p", {}, "Header ", element("code", {}, name), ": ", ...marked(header.description)));
  }
  for (const [kind, media] of Object.entries(content)) {
    const schema = resolved(media.schema);
    if (schema.properties || schema.oneOf) node.append(...(schema.oneOf ?? [schema]).map(resolved).map(folded));
    else node.append(element("p", { class: "soft" }, element("code", {}, kind)));
    for (const { summary, value } of Object.values(media.examples ?? {})) {
      node.append(element("h4", {}, summary), element("pre", {}, JSON.stringify(value, null, 2)));
    }
  }
  return element("div", { class: "status" }, element("strong", {}, status), node);
}

function folded(schema) {
  const fields = list(schema);
  if (!fields) return element("p", { class: "soft" }, `${schema.title ?? "Value"}: ${type(schema)}`);
  return element("details", {}, element("summary", {}, schema.title ?? "Fields"), fields);
}

// Returns the fields of an object, or of the objects in an array, as a list; null where there are none.
function list(schema) {
  const { properties, required = [], items } = schema;
  if (!properties) return items ? list(resolved(items)) : null;
  const rows = Object.entries(properties).map(([name, part]) => {
    const field = resolved(part);
    const must = required.includes(name) ? "" : ", may be left out";
    const row = element("li", {}, element("code", {}, name), element("span", { class: "soft" }, ` ${type(field)}${must}. `));
    if (field.description) row.append(...marked(field.description));
    const inner = list(field);
    if (inner) row.append(inner);
    return row;
  });
  return element("ul", { class: "fields" }, ...rows);
}

function type(part) {
  const schema = resolved(part);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.oneOf) return schema.oneOf.map(type).join(" or ");
  if (schema.format === "binary") return "a file";
  if (schema.type === "array" && schema.items) return `array of ${type(schema.items)}`;
  const name = Array.isArray(schema.type) ? schema.type.join(" or ") : (schema.type ?? "anything");
  return schema.default === undefined ? name : `${name}, ${schema.default} if left out`;
}

byId("title").textContent = description.info.title;
byId("version").textContent = description.info.version;
byId("index").append(...index());
main.append(
  element("h1", {}, description.info.summary),
  ...paragraphs(description.info.description),
  ...operations().map(article),
);
if (location.hash) byId(location.hash.slice(1))?.scrollIntoView();
