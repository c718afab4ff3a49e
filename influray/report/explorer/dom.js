// Elements, texts and numbers. Text of the pool gets into the page here only, and only as text nodes.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUN = DATA.overview;
const UNSAFE = new RegExp(DATA.unsafe, "gu");
const SVG = "http://www.w3.org/2000/svg";
const ABSENT = "\u2013";

const byId = (id) => document.getElementById(id);

// Controls, direction marks and lone surrogates become their code points, as in the report.
function visible(value) {
  const written = (found) => `[U+${found.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`;
  return String(value).replaceAll("\r\n", "\n").replace(UNSAFE, written);
}

// Attributes that are functions listen to the event of that name; "value" is set as it is, since nobody reads it.
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : visible(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined) continue;
    element.append(child instanceof Node ? child : document.createTextNode(visible(child)));
  }
  return element;
}

const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const g = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function show(place, ...children) {
  (typeof place === "string" ? byId(place) : place).replaceChildren(...children.flat().filter((child) => child));
}

// columns: {label, numeric, wide}; lines: arrays of cells, the first of which names the line.
function table(label, columns, lines) {
  const kind = (column) => [column.numeric ? "n" : "", column.kind ?? ""].join(" ").trim() || null;
  const head = columns.map((column) => h("th", { scope: "col", class: kind(column), "aria-sort": column.sort }, column.label));
  const body = lines.map((line) =>
    h("tr", {}, line.map((cell, c) => {
      const first = c === 0;
      return h(first ? "th" : "td", { scope: first ? "row" : null, class: kind(columns[c]), dir: first ? "auto" : null }, cell);
    })),
  );
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {}, h("caption", { class: "hidden" }, label), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

const key = (style) => h("span", { class: `key ${style}`, "aria-hidden": "true" });

function number(value, digits = 2) {
  if (value === null || value === undefined) return ABSENT;
  const text = Math.abs(value).toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return value < 0 && /[1-9]/.test(text) ? `\u2212${text}` : text;
}

function signed(value, digits = 2) {
  const text = number(value, digits);
  return text.startsWith("\u2212") || !/[1-9]/.test(text) ? text : `+${text}`;
}

const count = (value) => number(value, 0);
const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

function percent(value, digits = 1) {
  if (value === null || value === undefined || Number.isNaN(value)) return ABSENT;
  return value > 0 && 100 * value < 0.5 * 10 ** -digits ? `<${10 ** -digits}%` : `${number(100 * value, digits)}%`;
}

function duration(value) {
  if (value === null || value === undefined) return ABSENT;
  if (value < 59.95) return `${number(value, value < 9.995 ? 2 : 1)} s`;
  const whole = Math.round(value);
  const two = (part) => String(part).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  const minutes = Math.round(value / 60);
  return `${count(Math.floor(minutes / 60))} h ${two(minutes % 60)} min`;
}

function large(value) {
  if (value === null || value === undefined) return ABSENT;
  for (const [size, unit, digits] of [[1e9, "B", 2], [1e6, "M", 2], [1e4, "K", 1]]) {
    if (value >= size) return `${number(value / (unit === "K" ? 1e3 : size), digits)}${unit}`;
  }
  return count(Math.round(value));
}

const shorten = (text, most) => (text.length <= most ? text : `${text.slice(0, Math.max(1, most - 1)).trimEnd()}\u2026`);
const sum = (values) => values.reduce((total, value) => total + value, 0);
