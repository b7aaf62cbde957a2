// Elements, and the little of Markdown that descriptions use. Text becomes text nodes, never markup.

/** An element: attributes (true sets, false and undefined leave out), then children, text among them. */
export function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child || child === 0));
  return element;
}

export const code = (text) => el("code", null, text);

/** `code` and **bold**. */
export function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (/^`[^`]+`$/.test(part)) return code(part.slice(1, -1));
    if (/^\*\*[^*]+\*\*$/.test(part)) return el("strong", null, part.slice(2, -2));
    return part;
  });
}

/** The id of a heading. */
export const anchor = (title) => title.toLowerCase().replace(/[^a-z0-9]+/g, "-");

/** Paragraphs, ## headings, - lists, fenced code. */
export function prose(text = "") {
  return text.split(/^```\w*\n([^]*?)^```$/m).flatMap((part, index) => {
    if (index % 2) return [el("pre", null, part.trimEnd())];
    return part.split(/\n{2,}/).filter((block) => block.trim()).map(block);
  });
}

function block(text) {
  const lines = text.trim().split("\n");
  if (lines[0].startsWith("## ")) return el("h2", { id: anchor(lines[0].slice(3)) }, lines[0].slice(3));
  if (lines.every((line) => line.startsWith("- "))) {
    return el("ul", null, lines.map((line) => el("li", null, inline(line.slice(2)))));
  }
  return el("p", null, inline(lines.join(" ")));
}
