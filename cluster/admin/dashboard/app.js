// The page: the selected agent, view and time range, the live stream, and what is shown while it is interrupted.

import { clock, el, ms, number, percent, rate, text } from "./format.js";
import { VIEWS } from "./views.js";

const RANGES = { "1m": { seconds: 60, every: 1 }, "5m": { seconds: 300, every: 2 }, "15m": { seconds: 900, every: 5 } };
const SILENT_MS = 5000; // reopen a stream that has sent no frame for this long
const AGAIN_MS = [500, 1000, 2000, 4000];

const at = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
const page = {
  agent: asked.get("agent"),
  view: asked.get("view") in VIEWS ? asked.get("view") : "load",
  range: asked.get("range") in RANGES ? asked.get("range") : "5m",
  paused: false, frame: null, history: null, historyAt: 0, events: [], lastEvent: -1, failures: 0,
};
const by = { value: asked.get("by"), set: (value) => { by.value = value; remember(); draw(); } };
let view, stream, silence;

function remember() {
  const now = new URLSearchParams({ ...(page.agent && { agent: page.agent }), view: page.view, range: page.range, ...(by.value && { by: by.value }) });
  history.replaceState(null, "", `?${now}`);
}

function status(state, words) {
  at("connection").dataset.state = state;
  text(at("connection"), words);
}

function banner(words, bad = false) {
  at("banner").hidden = !words;
  at("banner").classList.toggle("bad", bad);
  text(at("banner"), words ?? "");
}

const api = (path) => `/api/agents/${encodeURIComponent(page.agent)}/${path}`;

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw Object.assign(new Error(`${path} returned status ${answer.status}`), { status: answer.status });
  return answer.json();
}

// --- live -------------------------------------------------------------------------------------------------------------

async function begin() {
  try {
    const agents = (await get("/api/agents")).map((agent) => agent.name);
    offer(agents);
    if (!agents.length) {
      status("live", "Connected");
      empty("No agents are running. Start one with `swiftclaw deploy AGENT`, or add it under `agents` in cluster.yaml.");
      setTimeout(begin, 3000);
      return;
    }
    page.agent ??= agents[0];
    if (!agents.includes(page.agent)) {
      status("live", "Connected");
      banner(`Unknown agent: ${page.agent}. Available agents: ${agents.join(", ")}.`, true);
      empty("Select an agent above.");
      setTimeout(() => { if (!stream) begin(); }, 3000);
      return;
    }
    open();
  } catch {
    lost(begin);
  }
}

function open() {
  stream?.close();
  stream = new EventSource(api("live"));
  stream.onmessage = (message) => {
    page.failures = 0;
    clearTimeout(silence);
    silence = setTimeout(() => lost(open), SILENT_MS);
    if (page.paused) return;
    page.frame = JSON.parse(message.data);
    status("live", "Live");
    banner(page.frame.warnings.join(" ") || null);
    offer(page.frame.agents);
    draw();
    follow();
  };
  stream.onerror = () => lost(begin);
  stream.addEventListener("gone", () => { stream.close(); stream = null; page.frame = null; begin(); });
  silence = setTimeout(() => lost(open), SILENT_MS);
}

function lost(again) {
  clearTimeout(silence);
  stream?.close();
  stream = null;
  const wait = AGAIN_MS[Math.min(page.failures++, AGAIN_MS.length - 1)];
  status("lost", "Reconnecting");
  const since = page.frame ? ` Values shown are from ${clock(page.frame.at)}.` : "";
  banner(`Lost the connection to the Controller; reconnecting.${since} Gateways keep serving requests in the meantime.`, true);
  if (!page.frame) empty("Waiting for the Controller …");
  silence = setTimeout(again, wait);
}

// Fetches the chart's history and the events when they are due.
async function follow(now = false) {
  const range = RANGES[page.range];
  const due = now || Date.now() - page.historyAt >= 1000 * range.every - 200;
  try {
    if (due) {
      page.historyAt = Date.now();
      const [agent, columns] = [page.agent, view.columns];
      const fine = page.frame.instances.length <= 20 && !view.coarse;
      const fetched = await get(`${api("history")}?window=${page.range}&points=${fine ? Math.min(range.seconds, 300) : 120}&columns=${columns.join(",")}`);
      if (agent !== page.agent || columns !== view.columns) return;
      fetched.several = new Set(fetched.instances.map((one) => one.version)).size > 1;
      page.history = fetched;
    }
    if (page.frame.last_event !== page.lastEvent) {
      page.lastEvent = page.frame.last_event;
      page.events = (await get("/api/events?limit=500")).filter((event) => !event.agent || event.agent === page.agent);
    }
    draw();
  } catch (error) {
    page.lastEvent = -1; // the stream shows when the Controller is back
    if (error.status) banner(`Request to the Controller failed: ${error.message}.`, true);
  }
}

// --- rendering ----------------------------------------------------------------------------------------------------

function empty(words) {
  view?.destroy();
  view = null;
  at("figures").replaceChildren();
  at("panel").replaceChildren(el("p", { class: "empty" }, words));
}

function draw() {
  if (!page.frame) return;
  if (!view) {
    view = new VIEWS[page.view](by);
    at("panel").replaceChildren(...view.elements);
  }
  figures(page.frame);
  view.show(page.frame, page.history, page.events);
}

function figures(frame) {
  const seconds = frame.instances.reduce((total, one) => total + one.rate, 0);
  const errors = frame.instances.reduce((total, one) => total + (one.error_rate * one.window_requests) / 100, 0);
  const slow = frame.agent.versions.map((version) => version.p95_ms).filter((value) => value != null);
  const healthy = frame.instances.filter((one) => one.state === "healthy").length;
  const facts = {
    "Requests/s": [rate(seconds), ""], "Requests, last minute": [number(frame.total), ""], "p95": [slow.length ? ms(Math.max(...slow)) : "–", ""],
    "Errors": [frame.total ? percent((100 * errors) / frame.total) : "–", ""], "In flight": [number(frame.limits.in_flight), ""],
    "Healthy": [String(healthy), ` of ${frame.instances.length}`], "Gateways": [String(frame.gateways.length), ` of ${frame.desired_gateways}`],
  };
  const list = at("figures");
  if (!list.children.length) {
    for (const name of Object.keys(facts)) list.append(el("div", {}, el("dt", {}, name), el("dd", { "data-figure": name }, el("span"), el("small"))));
  }
  Object.values(facts).forEach(([value, unit], index) => {
    const [first, second] = list.children[index].lastElementChild.children;
    text(first, value);
    text(second, unit);
  });
}

function offer(agents) {
  const select = at("agent");
  const names = [...new Set([...agents, ...(page.agent ? [page.agent] : [])])];
  if (JSON.stringify(names) === select.dataset.names) return;
  select.dataset.names = JSON.stringify(names);
  select.replaceChildren(...names.map((name) => el("option", { value: name, selected: name === page.agent }, name)));
}

// --- controls -------------------------------------------------------------------------------------------------

function show(name, focus) {
  page.view = name;
  page.history = null;
  view?.destroy();
  view = null;
  for (const tab of at("tabs").children) {
    const chosen = tab.dataset.view === name;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen && focus) tab.focus();
  }
  at("panel").setAttribute("aria-labelledby", `tab-${name}`);
  document.title = `${page.agent ? `${page.agent}: ` : ""}${name}, SwiftClaw`;
  remember();
  draw();
  if (page.frame) follow(true);
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  text(at("theme"), name === "dark" ? "Light" : "Dark");
  at("theme").setAttribute("aria-label", `Use the ${name === "dark" ? "light" : "dark"} theme`);
  draw();
}

for (const name of Object.keys(VIEWS)) {
  const tab = el("button", { type: "button", role: "tab", id: `tab-${name}`, "data-view": name, "aria-controls": "panel" }, name);
  tab.addEventListener("click", () => show(name));
  at("tabs").append(tab);
}
at("tabs").addEventListener("keydown", (pressed) => {
  const names = Object.keys(VIEWS);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[pressed.key];
  if (step) show(names[(names.indexOf(page.view) + step + names.length) % names.length], true);
});
for (const name of Object.keys(RANGES)) {
  const input = el("input", { type: "radio", name: "range", value: name, checked: name === page.range, "aria-label": `Last ${name}` });
  input.addEventListener("change", () => { page.range = name; page.history = null; remember(); if (page.frame) follow(true); });
  at("range").append(el("label", {}, input, name));
}
at("agent").addEventListener("change", (changed) => {
  Object.assign(page, { agent: changed.target.value, frame: null, history: null, events: [], lastEvent: -1 });
  banner(null);
  empty("Loading …");
  show(page.view);
  clearTimeout(silence);
  open();
});
at("pause").addEventListener("click", () => {
  page.paused = !page.paused;
  at("pause").setAttribute("aria-pressed", page.paused);
  text(at("pause"), page.paused ? "Resume" : "Pause");
  if (page.paused) status("paused", page.frame ? `Paused at ${clock(page.frame.at)}` : "Paused");
  else status("connecting", "Connecting");
});
at("theme").addEventListener("click", () => {
  const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", other);
  theme(other);
});
addEventListener("pagehide", () => { clearTimeout(silence); stream?.close(); stream = null; }); // a page in the back/forward cache would keep its connections
addEventListener("pageshow", (shown) => { if (shown.persisted) begin(); });
const system = matchMedia("(prefers-color-scheme: dark)");
system.addEventListener("change", () => { if (!localStorage.getItem("theme")) theme(system.matches ? "dark" : "light"); });
theme(localStorage.getItem("theme") ?? (system.matches ? "dark" : "light"));
show(page.view);
begin();
