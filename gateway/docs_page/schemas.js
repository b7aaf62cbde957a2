// What a JSON schema says, as elements; and a value that it allows.

import { code, el, inline } from "./markup.js";

const DEPTH_MAX = 5; // of objects in objects: a schema may refer to itself

let api = {};

/** The document whose references `resolve` follows. */
export function use(document) {
  api = document;
}

/** Follows references; what stands beside one (a description) overrides what it refers to. */
export function resolve(node) {
  let { $ref, ...own } = node ?? {};
  while ($ref) {
    const path = $ref.slice(2).split("/").map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
    const { $ref: next, ...target } = path.reduce((value, part) => value[part], api);
    own = { ...target, ...own };
    $ref = next;
  }
  return own;
}

export const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

const literal = (value) => code(JSON.stringify(value));
const alternatives = (schema) => (schema.anyOf ?? schema.oneOf ?? []).filter((each) => each.type !== "null");
const separated = (items, separator) => items.map((each, index) => [index > 0 && separator, each]);

function typeName(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if ("const" in schema) return JSON.stringify(schema.const);
  const variants = schema.anyOf ?? schema.oneOf;
  if (variants) return [...new Set(variants.map(typeName))].join(" | ");
  if (schema.type === "array") {
    const items = typeName(schema.items ?? {});
    return items.includes(" | ") ? `(${items})[]` : `${items}[]`;
  }
  return [schema.type ?? "any"].flat().join(" | ");
}

function range(least, most, unit) {
  if (least === undefined && most === undefined) return [];
  const bounds = least === undefined ? ["at most ", literal(most)]
    : most === undefined ? ["at least ", literal(least)] : [literal(least), " to ", literal(most)];
  return [[...bounds, unit]];
}

/** What else a value must be, in words. */
function limits(given) {
  const schema = resolve(given);
  return [
    ...range(schema.minimum, schema.maximum, ""),
    ...range(schema.minLength, schema.maxLength, " characters"),
    ...range(schema.minItems, schema.maxItems, " items"),
    ...(schema.pattern ? [["matches ", code(schema.pattern)]] : []),
    ...("default" in schema ? [["default ", literal(schema.default)]] : []),
    ...(schema.enum ? [["one of ", separated(schema.enum.map(literal), ", ")]] : []),
    ...[...alternatives(schema), schema.items].filter((each) => each && !each.$ref).flatMap(limits),
    ...(schema.examples?.length ? [["example ", literal(schema.examples[0])]] : []),
  ];
}

/** The objects in a value of this schema, at the next level: names and schemas. */
function parts(given) {
  const schema = resolve(given);
  if (schema.properties) return [[schema.title ?? "object", schema]];
  if (schema.items) return parts(schema.items);
  return alternatives(schema).flatMap(parts);
}

/** One field, parameter or header, as a list item. */
export function field(name, schema, { required, place, description, depth = 0 } = {}) {
  const about = description ?? resolve(schema).description;
  const words = limits(schema);
  const inner = depth < DEPTH_MAX ? parts(schema) : [];
  return el("li", null,
    el("code", { class: "name" }, name),
    el("span", { class: "type" }, typeName(schema)),
    place && el("span", { class: "place" }, ` in ${place}`),
    required && el("span", { class: "required" }, "required"),
    about && el("p", null, inline(about)),
    words.length > 0 && el("p", { class: "limits" }, separated(words, "; ")),
    inner.map(([title, part]) => el("details", null, el("summary", null, title), fields(part, depth + 1))));
}

function fields(schema, depth = 0) {
  return el("ul", { class: "fields" }, Object.entries(schema.properties).map(
    ([name, each]) => field(name, each, { required: schema.required?.includes(name), depth })));
}

/** A whole body. */
export function shape(given) {
  const schema = resolve(given);
  const variants = alternatives(schema);
  const about = schema.description && el("p", null, inline(schema.description));
  if (schema.properties) return [about, fields(schema)];
  if (!variants.length) return [el("ul", { class: "fields" }, field("body", given))];
  return [about, el("p", { class: "limits" }, "One of:"), variants.map((each) =>
    el("details", { class: "variant" }, el("summary", null, resolve(each).title ?? typeName(each)), shape(each)))];
}

/** A value that the schema allows, the shortest that says something. */
function sample(given, depth = 0) {
  const schema = resolve(given);
  if (schema.examples?.length) return schema.examples[0];
  if ("const" in schema) return schema.const;
  if (schema.enum) return schema.enum[0];
  const [variant] = alternatives(schema);
  if (variant) return sample(variant, depth);
  if (depth > DEPTH_MAX) return null;
  if (schema.type === "array") return [sample(schema.items ?? {}, depth + 1)];
  if (schema.properties) {
    const names = Object.keys(schema.properties).filter((name) => schema.required?.includes(name));
    return Object.fromEntries(names.map((name) => [name, sample(schema.properties[name], depth + 1)]));
  }
  return { string: "string", integer: schema.minimum ?? 0, number: 0, boolean: true }[schema.type] ?? {};
}

/** The media's example, else the one shown in the description of the operation, else one made from the schema. */
export function example(media, description = "") {
  const shown = /^```json\n([^]*?)^```$/m.exec(description)?.[1];
  return media.example === undefined && shown ? shown.trimEnd() : pretty(media.example ?? sample(media.schema));
}
