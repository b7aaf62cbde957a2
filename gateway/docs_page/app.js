// Shows the document at openapi.json as a page.

import { anchor, code, el, prose } from "./markup.js";
import { field, pretty, resolve, shape, use } from "./schemas.js";
import { tryView } from "./trying.js";

const METHODS = ["get", "put", "post", "delete", "patch"];
const WIDE = matchMedia("(min-width: 56rem)"); // as in the style sheet: the contents are beside the text

/** What a request must carry to be let in, in the form of parameters: the first of the ways that there are. */
function credentials(api, operation) {
  const [way = {}] = operation.security ?? api.security ?? [];
  return Object.keys(way).map((name) => {
    const scheme = resolve(api.components.securitySchemes[name]);
    const common = { required: true, isCredential: true, schema: { type: "string" } };
    const own = scheme.scheme === "bearer"
      ? { name: "Authorization", in: "header", prefix: "Bearer ", description: "`Bearer <token>`" }
      : { name: scheme.name, in: scheme.in, description: "An API key" };
    return { ...common, ...own, ...(scheme.description && { description: scheme.description }) };
  });
}

/** The other ways, in words. */
function otherWays(api, operation) {
  return (operation.security ?? []).slice(1).map((way) => {
    const names = Object.keys(way).map((name) => {
      const scheme = resolve(api.components.securitySchemes[name]);
      return scheme.scheme === "bearer" ? ["a Bearer token"] : [code(scheme.name), ` in ${scheme.in}`];
    });
    return el("p", { class: "limits" }, "Or: ", names.map((each, index) => [index > 0 && " and ", each]));
  });
}

function parameterView(parameter) {
  const [media] = Object.values(parameter.content ?? {});
  const place = media ? `${parameter.in}, as JSON text` : parameter.in;
  return field(parameter.name, parameter.schema ?? media?.schema, { ...parameter, place });
}

function responseView([status, given]) {
  const response = resolve(given);
  const headers = Object.entries(response.headers ?? {}).map(([name, header]) => [name, resolve(header)]);
  const state = el("span", { class: status < 300 ? "status good" : "status" }, status);
  return el("details", { class: "response" },
    el("summary", null, state, " ", response.description),
    headers.length > 0 && [el("h4", null, "Headers"),
      el("ul", { class: "fields" }, headers.map(([name, header]) => field(name, header.schema, header)))],
    Object.entries(response.content ?? {}).map(([type, media]) => [
      el("h4", null, code(type)), shape(media.schema), "example" in media && el("pre", null, pretty(media.example))]));
}

function operationView(api, { path, method, operation }) {
  const id = operation.operationId;
  const parameters = [...credentials(api, operation), ...(operation.parameters ?? []).map(resolve)];
  const content = Object.entries(resolve(operation.requestBody).content ?? {});
  const pathParts = path.split(/(\{[^}]+\})/).map((part) => (part.startsWith("{") ? el("b", null, part) : part));
  return el("section", { id, class: "operation", "aria-labelledby": `${id}-title` },
    el("h3", { id: `${id}-title` }, el("span", { class: `method ${method}` }, method.toUpperCase()), operation.summary),
    el("p", { class: "path" }, el("code", null, pathParts)),
    el("div", { class: "description" }, prose(operation.description)),
    parameters.length > 0 && [el("h4", null, "Parameters"),
      el("ul", { class: "fields" }, parameters.map(parameterView)), otherWays(api, operation)],
    content.map(([type, media]) => [el("h4", null, "Body: ", code(type)), shape(media.schema)]),
    el("h4", null, "Answers"), Object.entries(operation.responses).map(responseView),
    tryView(path, method, operation, parameters, content));
}

/** Operations by their first tag, in the order of the tags. */
function groups(api) {
  const operations = Object.entries(api.paths).flatMap(([path, item]) => METHODS.filter((method) => item[method])
    .map((method) => ({ path, method, operation: item[method], tag: item[method].tags?.[0] ?? "Other" })));
  const described = new Map((api.tags ?? []).map((tag) => [tag.name, tag.description]));
  return [...new Set([...described.keys(), ...operations.map((each) => each.tag)])].map((tag) => (
    { tag, description: described.get(tag), operations: operations.filter((each) => each.tag === tag) }));
}

/** Marks in the contents what is being read. */
function follow(nav, places) {
  const observer = new IntersectionObserver((entries) => {
    const entry = entries.find((each) => each.isIntersecting);
    if (!entry) return;
    nav.querySelector("[aria-current]")?.removeAttribute("aria-current");
    nav.querySelector(`a[href="#${CSS.escape(entry.target.id)}"]`)?.setAttribute("aria-current", "true");
  }, { rootMargin: "0px 0px -80% 0px" });
  places.forEach((place) => observer.observe(place));
}

function render(api, nav, main) {
  use(api);
  document.title = `${api.info.title} API`;
  const about = el("div", { class: "about" }, prose(api.info.description));
  const all = groups(api);
  main.replaceChildren(
    el("h1", null, api.info.title, " ",
      el("small", null, `${api.info.version} · `, el("a", { href: "openapi.json" }, "openapi.json"))),
    about,
    ...all.flatMap(({ tag, description, operations }) => [
      el("h2", { class: "group", id: anchor(tag) }, tag), ...prose(description),
      ...operations.map((each) => operationView(api, each))]));
  const link = (id, ...children) => el("li", null, el("a", { href: `#${id}` }, ...children));
  const headings = [...about.querySelectorAll("h2")];
  const contents = el("details", { open: WIDE.matches }, el("summary", null, "Contents"),
    el("h2", null, api.info.title), el("ul", null, headings.map((each) => link(each.id, each.textContent))),
    all.map(({ tag, operations }) => [el("h2", null, tag),
      el("ul", null, operations.map(({ method, operation }) => link(operation.operationId,
        el("span", { class: `method ${method}` }, method.toUpperCase()), operation.summary)))]));
  nav.replaceChildren(contents);
  WIDE.addEventListener("change", () => { contents.open = WIDE.matches; });
  follow(nav, [...headings, ...main.querySelectorAll("section")]);
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

const main = document.getElementById("main");
try {
  const response = await fetch("openapi.json");
  if (!response.ok) throw new Error(`status ${response.status}`);
  render(await response.json(), document.getElementById("contents"), main);
} catch (error) {
  main.replaceChildren(el("p", { role: "alert" }, `openapi.json cannot be shown: ${error.message}`));
}
main.removeAttribute("aria-busy");
