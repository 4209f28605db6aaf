// Formatting of numbers, and the elements that show them.

export const NONE = "–";

export function number(value, digits = 0) {
  return value == null ? NONE : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: 0 });
}

export const rate = (value) => number(value, value < 10 ? 1 : 0);
export const percent = (value) => (value == null ? NONE : `${number(value, value < 10 ? 1 : 0)} %`);

export function ms(value) {
  if (value == null) return NONE;
  if (value >= 10000) return `${number(value / 1000, 1)} s`;
  return `${number(value, value < 10 ? 1 : 0)} ms`;
}

export function ago(seconds) {
  if (seconds == null) return NONE;
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");

// An element; children are elements or text, never markup.
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value != null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child != null));
  return made;
}

export function text(node, value) {
  if (node.textContent !== String(value)) node.textContent = value;
}

const TONES = {
  healthy: "good", closed: "good", draining: "warn", "half-open": "warn", starting: "warn", unhealthy: "bad", ejected: "bad",
  "crash-loop": "bad", open: "bad",
};

// Table cells that are updated in place: (cell, value) writes only what differs.
export const cells = {
  text: (cell, value) => text(cell, value ?? NONE),
  state(cell, value) {
    const badge = cell.firstElementChild ?? cell.appendChild(el("span", { class: "state" }));
    text(badge, value ?? NONE);
    if (badge.dataset.tone !== (TONES[value] ?? "")) badge.dataset.tone = TONES[value] ?? "";
  },
  share(cell, [value, largest]) { // the bar's length is relative to the largest share
    if (!cell.firstElementChild) {
      const meter = el("meter", { min: 0, max: 100, "aria-label": "Share of requests" });
      cell.append(el("span", { class: "share" }, meter, el("span")));
    }
    const [meter, label] = cell.firstElementChild.children;
    if (meter.max !== largest) meter.max = largest;
    if (meter.value !== value) meter.value = value;
    text(label, `${value.toFixed(1)} %`);
  },
};

// A table whose rows are kept and rewritten in place. `columns`: {title, value(row), cell?, number?, wide?}.
export class Table {
  constructor(caption, columns, key) {
    this.columns = columns;
    this.key = key;
    this.rows = new Map();
    const heads = columns.map((column) => el("th", { scope: "col", class: column.number ? "number" : null }, column.title));
    this.body = el("tbody");
    const table = el("table", {}, el("caption", { class: "hidden" }, caption), el("thead", {}, el("tr", {}, heads)), this.body);
    this.element = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, table);
  }

  show(rows) {
    const kept = new Set();
    rows.forEach((row, index) => {
      const key = this.key(row);
      kept.add(key);
      let line = this.rows.get(key);
      if (!line) {
        line = el("tr", {}, this.columns.map((column, at) => {
          const kind = [column.number && "number", column.wide && "wide"].filter(Boolean).join(" ") || null;
          return at ? el("td", { class: kind }) : el("th", { scope: "row", class: kind });
        }));
        line.dataset.key = key;
        this.rows.set(key, line);
      }
      this.columns.forEach((column, at) => (column.cell ?? cells.text)(line.children[at], column.value(row)));
      if (this.body.children[index] !== line) this.body.insertBefore(line, this.body.children[index] ?? null);
    });
    for (const [key, line] of this.rows) {
      if (!kept.has(key)) {
        line.remove();
        this.rows.delete(key);
      }
    }
  }
}
