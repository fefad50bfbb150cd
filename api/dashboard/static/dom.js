// Elements, texts and figures. Everything from the daemon becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";

// An element with attributes and children; `on...` attributes are listeners. null and false are left out.
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

// The same for SVG.
export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : name === "aria-label" ? visible(value) : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false).map(visible));
  return element;
}

// Text without what nobody sees: control characters, and those that turn the rest of it round (Unicode
// Standard Annex 9). Names that tenants choose may hold them.
export function visible(text) {
  if (typeof text !== "string") return text;
  return text.replace(/[\p{Cc}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu,
    (one) => `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`);
}

// Put `children` into an element, but keep each that looks the same already: what has the focus stays.
export function show(element, ...children) {
  const fresh = [...h("div", {}, ...children).childNodes];
  fresh.forEach((child, at) => {
    const old = element.childNodes[at];
    if (old === undefined) element.append(child);
    else if (!old.isEqualNode(child)) old.replaceWith(child);
  });
  while (element.childNodes.length > fresh.length) element.lastChild.remove();
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

// A size in the largest unit that leaves at least 1.
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "unknown";
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${UNITS[unit]}`;
}

// The same in the largest unit that it is a whole number of: what `parseSize` makes of it is the size again.
export function exactSize(bytes) {
  const units = UNITS.slice(0, 5);
  const unit = units.findLastIndex((_, power) => bytes % 1024 ** power === 0);
  return `${bytes / 1024 ** unit} ${units[unit]}`;
}

export const rate = (bytes) => `${size(Math.round(bytes))}/s`;

// A number per second, short.
export function count(value) {
  return value >= 10000 ? `${(value / 1000).toFixed(1)} k` : `${Math.round(value)}`;
}

// A latency.
export function latency(microseconds) {
  if (!microseconds) return "-";
  if (microseconds < 1000) return `${microseconds.toPrecision(3)} µs`;
  if (microseconds < 1e6) return `${(microseconds / 1000).toPrecision(3)} ms`;
  return `${(microseconds / 1e6).toPrecision(3)} s`;
}

export const time = (seconds) =>
  new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC";

const FACTORS = { "": 2 ** 30, b: 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 };

// "10", "10 GiB", "512M" in bytes; a bare number is GiB. NaN for what is no size.
export function parseSize(text) {
  const found = /^\s*(\d+(?:\.\d+)?)\s*([kmgtb]?)(?:i?b)?\s*$/i.exec(text);
  return found ? Math.round(Number(found[1]) * FACTORS[found[2].toLowerCase()]) : NaN;
}

// A table whose rows become cards on a narrow screen; the roles last when the display changes. Rows and
// cells stay as long as they can, so the focus does, too.
export class Table {
  constructor(caption, titles) {
    this.titles = titles;
    this.rows = new Map();
    this.body = h("tbody", { role: "rowgroup" });
    const head = titles.map((title) => h("th", { scope: "col", role: "columnheader" }, title));
    this.element = h("table", { role: "table" },
      h("caption", {}, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
      this.body);
  }

  // Rows: [{key, cells}]; the first cell names its row.
  draw(rows) {
    const keys = new Set(rows.map((row) => row.key));
    for (const [key, row] of this.rows) if (!keys.has(key)) this.#drop(key, row);
    rows.forEach(({ key, cells }, at) => {
      if (!this.rows.has(key)) this.rows.set(key, this.#empty());
      const row = this.rows.get(key);
      cells.forEach((cell, column) => show(row.children[column], cell));
      if (this.body.children[at] !== row) this.body.insertBefore(row, this.body.children[at] ?? null);
    });
  }

  #drop(key, row) {
    row.remove();
    this.rows.delete(key);
  }

  #empty() {
    return h("tr", { role: "row" }, this.titles.map((title, at) =>
      h(at ? "td" : "th", { role: at ? "cell" : "rowheader", "data-title": title })));
  }
}

// Names and values.
export function facts(pairs) {
  return pairs
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));
}
