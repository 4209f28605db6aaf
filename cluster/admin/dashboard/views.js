// The views. Each builds its elements once; `show` then updates them with one frame per second.

import { ago, cells, clock, el, ms, number, percent, rate, Table, text } from "./format.js";
import { Chart } from "./charts.js";

const MOST_LINES = 10;
const NO_TRAFFIC = "No requests in this time range.";
const NO_DATA = "No data for this time range yet.";

function card(title, size, ...children) {
  return el("section", { class: `card ${size}`, "aria-label": title }, el("div", { class: "head" }, el("h2", {}, title)), children);
}

function choice(label, options, chosen, changed) {
  const select = el("select", {}, options.map((option) => el("option", { value: option, selected: option === chosen }, option)));
  select.addEventListener("change", () => changed(select.value));
  return el("label", { class: "field" }, label, " ", select);
}

// Lines of one column, grouped by instance, region or version; `join` combines the instances of a group.
function lines(history, column, by, join) {
  const groups = new Map();
  for (const instance of history.instances) {
    if (!instance[column]) continue;
    const name = by === "instance" ? instance.id + (history.several ? ` ${instance.version}` : "") : instance[by];
    groups.set(name, [...(groups.get(name) ?? []), instance[column]]);
  }
  let made = [...groups].map(([name, columns]) => ({ name, values: history.times.map((_, at) => join(columns.map((c) => c[at]).filter((v) => v != null))) }));
  if (made.length > MOST_LINES) {
    const weight = (line) => line.values.reduce((sum, value) => sum + (value ?? 0), 0);
    made = made.sort((one, other) => weight(other) - weight(one)).slice(0, MOST_LINES);
  }
  return made;
}

const distance = ({ ms: value, source }) => [ms(value), source ? el("small", {}, ` ${source}`) : null];
const sum = (values) => (values.length ? values.reduce((a, b) => a + b, 0) : null);
const most = (values) => (values.length ? Math.max(...values) : null);

// Observations arrive about once a second, slightly early or late: smooth them with a five-second mean.
function smooth(values, step) {
  const wide = step > 1 ? 1 : 5;
  return values.map((value, at) => {
    if (value == null) return null;
    const seen = values.slice(Math.max(0, at - wide + 1), at + 1).filter((one) => one != null);
    return seen.reduce((a, b) => a + b, 0) / seen.length;
  });
}

const perSecond = (values, step) => smooth(values, step).map((value) => (value == null ? null : value / step));

const rates = (history, by) => lines(history, "requests", by, sum).map((line) => ({ ...line, values: perSecond(line.values, history.step_s) }));

const NAME = { title: "Instance", value: (row) => row.id };
const REGION = { title: "Region", value: (row) => row.region };
const VERSION = { title: "Version", value: (row) => row.version };
const STATE = { title: "State", value: (row) => row.state, cell: cells.state };
const key = (row) => `${row.id} ${row.version} ${row.region}`;

class Events {
  constructor(title, kinds, size = "") {
    this.kinds = kinds;
    this.list = el("ol", { class: "events", tabindex: 0, "aria-label": title });
    this.nothing = el("p", { class: "empty" }, "No events since the Controller started.");
    this.element = card(title, size, this.list, this.nothing);
  }

  show(events) {
    const mine = events.filter((event) => !this.kinds || this.kinds.includes(event.kind)).slice(-60).reverse();
    const shown = mine.length ? `${mine[0].id} ${mine.length}` : "";
    this.nothing.hidden = mine.length > 0;
    this.list.hidden = !mine.length;
    if (shown === this.shown) return;
    this.shown = shown;
    this.list.replaceChildren(...mine.map((event) => el("li", {},
      el("time", { datetime: new Date(event.at * 1000).toISOString() }, clock(event.at)),
      el("span", { class: "kind" }, event.kind), el("span", { class: "message" }, event.message))));
  }
}

class Grouped {
  constructor(by) {
    this.by = by;
  }

  grouping(frame) {
    return this.by.value ?? (frame.instances.length > MOST_LINES ? "region" : "instance");
  }
}

export class Load extends Grouped {
  columns = ["requests", "connections"];

  constructor(by) {
    super(by);
    this.requests = new Chart("Requests per second", rate);
    this.connections = new Chart("Connections", rate, { whole: true });
    this.table = new Table("Load by instance", [
      NAME, REGION, VERSION, { title: "Share", value: (row) => [row.share, row.largest], cell: cells.share },
      { title: "Requests, last minute", value: (row) => number(row.window_requests), number: true },
      { title: "Requests/s", value: (row) => rate(row.rate), number: true },
      { title: "Connections", value: (row) => number(row.connections), number: true },
      { title: "Mean", value: (row) => ms(row.mean_ms), number: true },
      { title: "Errors", value: (row) => percent(row.error_rate), number: true },
      { title: "CPU", value: (row) => (row.cpu == null ? "–" : percent(row.cpu)), number: true },
    ], key);
    this.matrix = el("div", { class: "scroll matrix", tabindex: 0, role: "region", "aria-label": "Traffic and round-trip times by region" });
    const first = card("Requests per second", "half", this.requests.element);
    first.querySelector(".head").append(choice("by", ["instance", "region", "version"], by.value ?? "instance", (value) => by.set(value)));
    this.grouped = first.querySelector("select");
    this.elements = [
      first, card("Connections", "half", this.connections.element), card("Instances", "", this.table.element),
      card("Regions: traffic and round-trip times", "", this.matrix),
    ];
  }

  show(frame, history) {
    const by = this.grouping(frame);
    if (this.grouped.value !== by) this.grouped.value = by;
    if (history) {
      this.requests.show(history.times, rates(history, by), NO_TRAFFIC);
      const open = lines(history, "connections", by, sum).map((line) => ({ ...line, values: smooth(line.values, history.step_s) }));
      this.connections.show(history.times, open, NO_DATA);
    }
    const largest = Math.max(...frame.instances.map((row) => row.share), 0.1);
    this.table.show(frame.instances.map((row) => ({ ...row, largest })));
    this.regions(frame);
  }

  regions(frame) {
    const to = Object.keys(frame.agent.regions);
    const edges = [...new Set(frame.gateways)];
    const share = Object.fromEntries(to.map((name) => [name, sum(frame.instances.filter((i) => i.region === name).map((i) => i.share)) ?? 0]));
    const drawn = JSON.stringify([to, edges, share, frame.agent.regions, frame.distances]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const first = Math.min(...to.map((name) => frame.agent.regions[name].priority));
    const heads = to.map((name) => el("th", { scope: "col" }, name));
    const traffic = to.map((name) => {
      const { healthy, instances, priority } = frame.agent.regions[name];
      const spill = priority > first && share[name] > 0 ? `, overflow from priority ${first}` : "";
      return el("td", {}, el("b", {}, percent(share[name])), el("small", {}, `${healthy} of ${instances} healthy, priority ${priority}${spill}`));
    });
    const rows = Object.entries(frame.distances).map(([from, far]) => el("tr", {},
      el("th", { scope: "row" }, `from ${from}${edges.includes(from) ? " (gateway)" : ""}`), to.map((name) => el("td", {}, from === name ? "same region" : distance(far[name])))));
    this.matrix.replaceChildren(el("table", {}, el("caption", { class: "hidden" }, "Traffic and round-trip times by region"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "region"), heads)),
      el("tbody", {}, el("tr", {}, el("th", { scope: "row" }, "share of requests, last minute"), traffic), rows)));
  }

  destroy() {
    this.requests.destroy();
    this.connections.destroy();
  }
}

export class Health {
  columns = ["errors"];

  constructor() {
    this.table = new Table("Health by instance", [
      NAME, REGION, VERSION, STATE, { title: "Breaker", value: (row) => row.circuit, cell: cells.state },
      { title: "Last check", value: (row) => (row.health.checked_at ? `${ago(row.now - row.health.checked_at)} ago` : "never") },
      { title: "Reason", value: (row) => row.health.reason || "–", wide: true },
      { title: "Uptime", value: (row) => ago(row.uptime_s), number: true }, { title: "PID", value: (row) => row.pid, number: true },
    ], key);
    this.errors = new Chart("Errors per second", rate, { height: 180 });
    this.events = new Events("Events", ["instance", "health", "breaker", "gateway", "region", "scale", "session"]);
    this.elements = [card("Instances", "", this.table.element), card("Errors per second", "half", this.errors.element), this.events.element];
    this.events.element.classList.add("half");
  }

  show(frame, history, events) {
    this.table.show(frame.instances.map((row) => ({ ...row, now: frame.at })));
    if (history) {
      const made = lines(history, "errors", frame.instances.length > MOST_LINES ? "region" : "instance", sum);
      this.errors.show(history.times, made.map((line) => ({ ...line, values: perSecond(line.values, history.step_s) })), NO_DATA);
    }
    this.events.show(events);
  }

  destroy() {
    this.errors.destroy();
  }
}

export class Latency extends Grouped {
  columns = ["p50_ms", "p95_ms", "p99_ms"];
  coarse = true; // percentiles of single seconds are too noisy

  constructor(by) {
    super(by);
    this.which = "p95";
    this.chart = new Chart("Response times", ms, { height: 260 });
    const figures = ["mean", "p50", "p95", "p99"].map((name) => ({ title: name, value: (row) => ms(row[`${name}_ms`]), number: true }));
    const counted = { title: "Requests, last minute", number: true };
    this.instances = new Table("Response times by instance", [NAME, REGION, VERSION, ...figures, { ...counted, value: (row) => number(row.window_requests) }], key);
    this.versions = new Table("Response times by version", [VERSION, { title: "Role", value: (row) => row.role }, ...figures, { ...counted, value: (row) => number(row.requests) }], (row) => row.version);
    this.note = el("p", { class: "note" });
    const first = card("Response times", "", this.note, this.chart.element);
    first.querySelector(".head").append(choice("percentile", ["p50", "p95", "p99"], "p95", (value) => {
      this.which = value;
      if (this.last) this.show(...this.last);
    }));
    this.elements = [first, card("Versions, last minute", "", this.versions.element), card("Instances", "", this.instances.element)];
  }

  show(frame, history, events) {
    this.last = [frame, history, events];
    const by = this.grouping(frame);
    text(this.note, by === "instance" ? `${this.which} of each instance` : `highest ${this.which} of any instance in each ${by}`);
    if (history) this.chart.show(history.times, lines(history, `${this.which}_ms`, by, most), NO_TRAFFIC);
    this.versions.show(frame.agent.versions);
    this.instances.show(frame.instances);
  }

  destroy() {
    this.chart.destroy();
  }
}

export class Rollout {
  columns = ["requests"];

  constructor() {
    this.chart = new Chart("Requests per second by version", rate);
    this.weights = new Chart("Traffic share by version", percent, { height: 180, top: 101 });
    this.events = new Events("Rollout events", ["rollout", "config", "scale"]);
    this.cards = new Map();
    this.state = el("p", { class: "card note" });
    this.elements = [this.state, card("Requests per second by version", "half", this.chart.element), card("Traffic share by version", "half", this.weights.element), this.events.element];
  }

  show(frame, history, events) {
    const ordered = [...frame.agent.versions].sort((one, other) => (one.role === "stable" ? -1 : other.role === "stable" ? 1 : 0));
    const { canary, target, percent: now, note, last, analysis, paused } = frame.agent.rollout;
    const moving = canary && now !== target ? `${canary} receives ${target} % once enough of its instances are healthy.` : "";
    const sentences = [canary ? moving : "No canary is running.", paused && "Canary analysis is paused.", note && `${canary} ${note}.`, analysis && `Analysis: ${analysis}.`, last && `Last: ${last}.`];
    text(this.state, sentences.filter(Boolean).join(" ") || `${canary} receives its target share of ${target} %.`);
    for (const version of ordered) this.side(version, ordered.length > 1);
    for (const [name, made] of this.cards) {
      if (!ordered.some((one) => one.version === name)) {
        made.element.remove();
        this.cards.delete(name);
      }
    }
    if (history) {
      this.chart.show(history.times, rates(history, "version"), NO_TRAFFIC);
      this.weights.show(history.times, Object.entries(history.weights).map(([name, values]) => ({ name, values })), NO_DATA);
    }
    this.events.show(events);
  }

  side(version, several) {
    let made = this.cards.get(version.version);
    if (!made) {
      made = { list: el("dl", { class: "side" }), title: el("h2") };
      made.element = el("section", { class: `card ${several ? "half" : ""}` }, el("div", { class: "head" }, made.title), made.list);
      this.cards.set(version.version, made);
      this.elements[1].before(made.element);
    }
    made.element.classList.toggle("half", several);
    made.element.dataset.version = version.version;
    text(made.title, `${version.version}, ${version.role}`);
    const facts = {
      Weight: percent(version.weight), Instances: `${version.healthy} of ${version.instances} healthy`, "Requests/s": rate(version.rate),
      Errors: percent(version.error_rate), "p50 / p95 / p99": `${ms(version.p50_ms)} / ${ms(version.p95_ms)} / ${ms(version.p99_ms)}`,
    };
    if (!made.list.children.length) for (const name of Object.keys(facts)) made.list.append(el("dt", {}, name), el("dd"));
    Object.values(facts).forEach((value, index) => text(made.list.children[2 * index + 1], value));
  }

  destroy() {
    this.chart.destroy();
    this.weights.destroy();
  }
}

export class Limits {
  columns = ["connections"];

  constructor() {
    this.figures = el("dl", { class: "side" });
    this.chart = new Chart("Rejected requests per second", rate);
    this.queue = new Chart("Requests in the wait queue", number, { whole: true });
    this.meter = el("meter", { min: 0, max: 100, low: 70, high: 90, optimum: 0, "aria-label": "Capacity in use" });
    this.events = new Events("Limit events", ["limit", "breaker", "scale"]);
    this.elements = [
      card("Capacity", "half", el("div", { class: "meter" }, this.meter), this.figures), this.events.element,
      card("Rejected requests per second", "half", this.chart.element), card("Requests in the wait queue", "half", this.queue.element),
    ];
    this.events.element.classList.add("half");
  }

  show(frame, history, events) {
    const limits = frame.limits;
    this.meter.value = limits.capacity ? (100 * limits.in_flight) / limits.capacity : 0;
    const facts = {
      "In flight": `${number(limits.in_flight)} of ${number(limits.capacity)} (limit: ${number(limits.max_connections_per_instance)} per instance)`,
      "In the wait queue": `${number(limits.queued)} of at most ${number(limits.max_connections)}`,
      "Rejected, other": `${number(limits.refused)} since the Controller started`,
      "Rate-limited": `${number(limits.rate_limited)} since the Controller started`,
      "Retries": `${number(limits.retries)} since the Controller started`,
      "Rate limit": limits.rate_limit ? `${number(limits.rate_limit.requests)} per ${ago(limits.rate_limit.window_s)}, for the whole agent` : "not configured",
    };
    if (!this.figures.children.length) for (const name of Object.keys(facts)) this.figures.append(el("dt", {}, name), el("dd"));
    Object.values(facts).forEach((value, index) => text(this.figures.children[2 * index + 1], value));
    if (history) {
      const { requests, rate_limited, queued } = history.refused;
      this.chart.show(history.times, [
        { name: "rejected, other", values: perSecond(requests, history.step_s) }, { name: "rate-limited", values: perSecond(rate_limited, history.step_s) },
      ], NO_DATA);
      this.queue.show(history.times, [{ name: "queued", values: queued }], NO_DATA);
    }
    this.events.show(events);
  }

  destroy() {
    this.chart.destroy();
    this.queue.destroy();
  }
}

export const VIEWS = { load: Load, health: Health, latency: Latency, rollout: Rollout, limits: Limits };
