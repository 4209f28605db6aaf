// Line charts, drawn by uPlot: rebuilt when the series or the theme change, otherwise only updated with new values.

import { el } from "./format.js";

const COLOURS = {
  light: ["#1d4ed8", "#c2410c", "#047857", "#8b2fc9", "#be123c", "#0e7490", "#946200", "#475569", "#a21caf", "#4d7c0f"],
  dark: ["#8db0ff", "#fb923c", "#34d399", "#c99bff", "#fb7185", "#22d3ee", "#facc15", "#cbd5e1", "#f0abfc", "#bef264"],
};

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Chart {
  // `label` describes the chart to screen readers; `format` renders a value as text.
  constructor(label, format, { height = 220, whole = false, top = 0 } = {}) {
    this.top = top;
    this.whole = whole;
    this.label = label;
    this.format = format;
    this.height = height;
    this.holder = el("div", { class: "chart", role: "img", "aria-label": label });
    this.message = el("p", { class: "empty", hidden: true });
    this.element = el("div", {}, this.holder, this.message);
    this.watcher = new ResizeObserver(() => this.plot?.setSize({ width: this.holder.clientWidth, height: this.height }));
    this.watcher.observe(this.holder);
  }

  // `lines`: [{name, values}], each as long as `times` (seconds); `nothing` is shown when there are no values.
  show(times, lines, nothing) {
    const empty = !lines.some((line) => line.values.some((value) => value != null));
    this.holder.hidden = empty;
    this.message.hidden = !empty;
    if (empty) {
      this.message.textContent = nothing;
      return;
    }
    const theme = document.documentElement.dataset.theme;
    const made = JSON.stringify([theme, lines.map((line) => line.name)]);
    const data = [times, ...lines.map((line) => line.values)];
    if (made !== this.made || !this.plot) {
      this.plot?.destroy();
      this.plot = new uPlot(this.options(lines, theme), data, this.holder);
      this.made = made;
    } else {
      this.plot.setData(data);
    }
    const last = lines.map((line) => `${line.name} ${this.format(line.values.findLast((value) => value != null))}`);
    this.holder.setAttribute("aria-label", `${this.label}. Now: ${last.slice(0, 10).join(", ")}`);
  }

  options(lines, theme) {
    const axis = { stroke: css("--soft"), grid: { stroke: css("--grid"), width: 1 }, ticks: { stroke: css("--grid"), width: 1 }, font: "12px system-ui, sans-serif" };
    return {
      width: this.holder.clientWidth || 300,
      height: this.height,
      cursor: { points: { size: 6 }, drag: { x: false, y: false } },
      scales: { x: { time: true }, y: { range: (_, low, high) => [0, this.top || (high > 0 ? high * 1.1 : 1)] } },
      axes: [
        { ...axis, space: 80, values: (_, ticks) => ticks.map((tick) => new Date(tick * 1000).toLocaleTimeString("en-GB")) },
        { ...axis, size: 62, ...(this.whole && { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 1e4] }), values: (_, ticks) => ticks.map((tick) => this.format(tick)) },
      ],
      series: [
        { label: "Time", value: (_, at) => (at == null ? "now" : new Date(at * 1000).toLocaleTimeString("en-GB")) },
        ...lines.map((line, index) => ({
          label: line.name,
          stroke: COLOURS[theme][index % 10],
          width: 1.8,
          points: { show: false },
          spanGaps: true,
          value: (plot, value, series, index) => this.format(index == null ? plot.data[series].findLast((one) => one != null) : value),
        })),
      ],
    };
  }

  destroy() {
    this.watcher.disconnect();
    this.plot?.destroy();
  }
}
