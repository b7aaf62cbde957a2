// A form that sends an operation's request, and the same as a curl line. What is typed stays in the page.

import { el } from "./markup.js";
import { example, pretty, resolve } from "./schemas.js";

const ANSWER_MS_MAX = 30_000;

const gateway = new URL(".", document.baseURI); // behind whatever path a proxy has put it

const shell = (text) => (/^[\w.,:/@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function curl({ url, method, headers, body }) {
  const lines = [`curl -i ${method === "GET" ? "" : `-X ${method} `}${shell(url)}`];
  for (const [name, value] of Object.entries(headers)) lines.push(`-H ${shell(`${name}: ${value}`)}`);
  if (body !== undefined) lines.push(`--data-binary ${shell(body)}`);
  return lines.join(" \\\n  ");
}

/** The body as it came; indented only where that changes no value: JavaScript rounds long numbers. */
async function bodyText(response) {
  if (response.headers.get("content-type")?.startsWith("image/")) {
    return `(an image of ${(await response.arrayBuffer()).byteLength} bytes)`;
  }
  const text = await response.text();
  try {
    const value = JSON.parse(text);
    return JSON.stringify(value) === text ? pretty(value) : text;
  } catch {
    return text;
  }
}

async function exchange({ url, ...options }) {
  const start = performance.now();
  try {
    const signal = AbortSignal.timeout(ANSWER_MS_MAX);
    const response = await fetch(url, { ...options, credentials: "omit", cache: "no-store", signal });
    const text = await bodyText(response);
    const kind = response.ok ? "status good" : "status";
    const status = `${response.status} ${response.statusText}`;
    return [
      el("p", null, el("span", { class: kind }, status), ` in ${Math.round(performance.now() - start)} ms`),
      el("pre", { class: "wrap headers" }, [...response.headers].map(([name, value]) => `${name}: ${value}\n`)),
      el("pre", { class: "wrap" }, text),
    ];
  } catch (error) {
    return [el("p", { class: "status" }, `No answer: ${error.message}`)];
  }
}

/** Names in paths and credentials are typed once: all forms have the same. */
function share(input) {
  input.dataset.shared = input.name;
  input.addEventListener("input", () => {
    for (const other of document.querySelectorAll(`[data-shared="${CSS.escape(input.name)}"]`)) {
      if (other !== input) other.value = input.value;
      other.form.dispatchEvent(new Event("change"));
    }
  });
}

function inputFor(parameter) {
  const schema = resolve(parameter.schema);
  const input = el("input", {
    name: `${parameter.in}:${parameter.name}`,
    required: parameter.required,
    autocomplete: "off",
    spellcheck: "false",
    value: parameter.example === undefined ? undefined : [parameter.example].flat().join(", "),
    placeholder: schema.type === "array" ? "a, b" : parameter.content ? "{}" : parameter.prefix && "token",
  });
  if (parameter.isCredential || parameter.in === "path") share(input);
  return input;
}

/** What the inputs say. A name that is not there yet stays in its braces. */
function requestOf(path, method, inputs) {
  const headers = {};
  const query = new URLSearchParams();
  let filled = path.slice(1);
  for (const [parameter, input] of inputs) {
    const { name } = parameter;
    const value = input.value.trim();
    if (!value) continue;
    if (parameter.in === "path") filled = filled.replace(`{${name}}`, encodeURIComponent(value));
    if (parameter.in === "header") headers[name] = (parameter.prefix ?? "") + value;
    if (parameter.in !== "query") continue;
    const values = parameter.schema?.type === "array" ? value.split(",") : [value];
    values.forEach((each) => query.append(name, each.trim()));
  }
  return { url: `${gateway}${filled}${query.size ? `?${query}` : ""}`, method: method.toUpperCase(), headers };
}

/** `content` are the media types that the body may have, [type, media]; none if there is no body. */
export function tryView(path, method, operation, parameters, content) {
  const inputs = parameters.map((parameter) => [parameter, inputFor(parameter)]);
  const mediaType = el("select", { name: "content-type" }, content.map(([type]) => el("option", null, type)));
  const body = el("textarea", { name: "body", rows: 10, spellcheck: "false" });
  const line = el("pre", { class: "wrap curl", tabindex: "0", "aria-label": "The same with curl" });
  const send = el("button", { type: "submit" }, "Send");
  const copy = el("button", { type: "button" }, "Copy curl");
  const answer = el("div", { class: "answer", role: "status" });

  const request = () => {
    const { headers, ...rest } = requestOf(path, method, inputs);
    if (!content.length) return { ...rest, headers };
    return { ...rest, headers: { "Content-Type": mediaType.value, ...headers }, body: body.value };
  };
  const refresh = () => { line.textContent = curl(request()); };
  const prefill = () => {
    const media = content.find(([type]) => type === mediaType.value)?.[1];
    if (media) body.value = example(media, operation.description);
    refresh();
  };

  const form = el("form", null,
    el("div", { class: "inputs" },
      inputs.map(([parameter, input]) => el("label", null,
        parameter.name, parameter.required && el("span", { class: "required" }, "required"), input)),
      content.length > 1 && el("label", null, "Content-Type", mediaType)),
    content.length > 0 && el("label", { class: "body" }, "Body", body),
    el("div", { class: "actions" }, send, copy), answer, line);
  form.addEventListener("input", refresh);
  form.addEventListener("change", refresh);
  mediaType.addEventListener("change", prefill);
  copy.addEventListener("click", async () => {
    getSelection().selectAllChildren(line); // without HTTPS there is no clipboard: Ctrl-C is left
    await navigator.clipboard?.writeText(line.textContent);
    copy.textContent = navigator.clipboard ? "Copied" : "Selected";
    setTimeout(() => { copy.textContent = "Copy curl"; }, 1500);
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    answer.replaceChildren(...await exchange(request()));
    send.disabled = false;
  });
  prefill();
  return el("details", { class: "try" }, el("summary", null, "Try it"), form);
}
