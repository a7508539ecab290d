// One line chart, drawn as SVG by hand: a line per device, the fleet's mean on top, releases as vertical marks, a limit
// as a dashed line. Drawn afresh on every update (a few thousand points); the pointer's read-out survives that.

import { clock } from "./format.js";
import { element, svg } from "./dom.js";

const MARGIN = { top: 22, right: 14, bottom: 24, left: 52 };

/** About `wanted` round values that span [low, high]. */
export function ticks(low, high, wanted, bases = [1, 2, 2.5, 5, 10]) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * bases.find((base) => base * power >= rough * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return found;
}

const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800, 2592000];

function timeTicks(low, high, wanted) {
  const step = TIME_STEPS.find((candidate) => (high - low) / candidate <= wanted) ?? 31536000;
  // whole local hours and days, not whole UTC ones
  const shift = new Date(low * 1000).getTimezoneOffset() * 60;
  const found = [];
  for (let at = Math.ceil((low - shift) / step) * step + shift; at <= high; at += step) found.push(at);
  return found;
}

/** Index of the last point at or before `time`, or -1. */
function before(points, time) {
  let low = 0;
  let high = points.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= time) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

export class LineChart {
  /** `box`: the element to draw in; `format`: value -> text; `label`: what the chart shows, for screen readers. */
  constructor(box, { format, label, height = 260 }) {
    this.box = box;
    this.format = format;
    this.label = label;
    this.height = height;
    this.data = null;
    this.pointer = null;
    this.tip = element("div", { class: "tip", hidden: true });
    new ResizeObserver(() => this.draw()).observe(box);
    box.addEventListener("pointermove", (event) => this.point(event.clientX - box.getBoundingClientRect().left));
    box.addEventListener("pointerleave", () => this.point(null));
  }

  /**
   * Draw `lines` [{name, tone, points: [[time, value], ...], strong, muted}], `marks` [{time, text}], and `limit`
   * {value, text}; values outside [low, high] widen the range, whose lower end is a multiple of `floor`; `steps` draws
   * each value until the next one.
   */
  show(data) {
    this.data = data;
    this.draw();
  }

  draw() {
    const width = this.box.clientWidth;
    if (!this.data || width < 80) return;
    const { lines, marks = [], limit = null, steps = false, nothing = "No figures yet." } = this.data;
    const drawn = lines.filter((line) => line.points.length > 0);
    if (drawn.length === 0) {
      this.box.replaceChildren(element("p", { class: "empty" }, nothing));
      return;
    }
    this.scale(width, drawn, limit);
    const root = svg("svg", {
      viewBox: `0 0 ${width} ${this.height}`, width, height: this.height, role: "img", "aria-label": this.summary(drawn),
    });
    root.append(this.grid(width), ...this.marks(marks, width), ...this.limit(limit, width));
    const order = [...drawn].sort((a, b) => rank(a) - rank(b));
    for (const line of order) root.append(this.line(line, steps));
    this.cross = svg("line", { class: "cross", y1: MARGIN.top, y2: this.height - MARGIN.bottom, visibility: "hidden" });
    root.append(this.cross);
    this.box.replaceChildren(root, this.tip);
    this.drawn = drawn;
    this.point(this.pointer);
  }

  scale(width, drawn, limit) {
    let [first, last, low, high] = [Infinity, -Infinity, this.data.low ?? Infinity, this.data.high ?? -Infinity];
    for (const line of drawn) {
      for (const [time, value] of line.points) {
        first = Math.min(first, time);
        last = Math.max(last, time);
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    if (this.data.floor) low = Math.floor(low / this.data.floor + 1e-9) * this.data.floor;
    if (limit) high = Math.max(high, limit.value * 1.06);
    if (last - first < 10) last = first + 10;
    if (high - low < 1e-9) high = low + 1;
    this.range = { first, last, low, high };
    const right = width - MARGIN.right;
    const bottom = this.height - MARGIN.bottom;
    this.x = (time) => MARGIN.left + ((time - first) / (last - first)) * (right - MARGIN.left);
    this.y = (value) => bottom - ((value - low) / (high - low)) * (bottom - MARGIN.top);
    this.time = (x) => first + ((x - MARGIN.left) / (right - MARGIN.left)) * (last - first);
  }

  grid(width) {
    const { first, last, low, high } = this.range;
    const group = svg("g", { class: "grid", "aria-hidden": true });
    const values = ticks(low / (this.data.unit ?? 1), high / (this.data.unit ?? 1), 4, this.data.bases);
    for (const value of values.map((tick) => tick * (this.data.unit ?? 1))) {
      const y = this.y(value).toFixed(1);
      group.append(svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
      group.append(svg("text", { x: MARGIN.left - 8, y, dy: "0.35em", "text-anchor": "end" }, this.format(value)));
    }
    for (const time of timeTicks(first, last, Math.max(2, Math.floor(width / 110)))) {
      const x = this.x(time);
      if (x < MARGIN.left + 16 || x > width - 30) continue;
      const label = clock(time, last - first);
      group.append(svg("text", { x: x.toFixed(1), y: this.height - 6, "text-anchor": "middle" }, label));
    }
    return group;
  }

  marks(marks, width) {
    let free = -Infinity;
    return marks
      .filter((mark) => mark.time >= this.range.first && mark.time <= this.range.last)
      .map((mark) => {
        const x = this.x(mark.time);
        const parts = [svg("line", { x1: x.toFixed(1), x2: x.toFixed(1), y1: MARGIN.top - 4, y2: this.height - MARGIN.bottom })];
        if (x >= free) {
          const anchor = x > width - 40 ? "end" : x < MARGIN.left + 14 ? "start" : "middle";
          parts.push(svg("text", { x: x.toFixed(1), y: 12, "text-anchor": anchor }, mark.text));
          free = x + 12 + 7 * mark.text.length;
        }
        return svg("g", { class: "mark" }, parts);
      });
  }

  limit(limit, width) {
    if (!limit) return [];
    const y = this.y(limit.value);
    return [
      svg("g", { class: "limit" },
        svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y.toFixed(1), y2: y.toFixed(1) }),
        svg("text", { x: width - MARGIN.right, y: (y - 6).toFixed(1), "text-anchor": "end" }, limit.text)),
    ];
  }

  line(line, steps) {
    let path = "";
    let lastY = "";
    for (const [time, value] of line.points) {
      const [x, y] = [this.x(time).toFixed(1), this.y(value).toFixed(1)];
      path += path === "" ? `M${x},${y}` : steps ? `H${x}${y === lastY ? "" : `V${y}`}` : `L${x},${y}`;
      lastY = y;
    }
    const kind = `line tone-${line.tone}${line.strong ? " strong" : ""}${line.muted ? " muted" : ""}`;
    const group = svg("g", { class: kind }, svg("path", { d: path }));
    const [time, value] = line.points[line.points.length - 1];
    group.append(svg("circle", { cx: this.x(time).toFixed(1), cy: this.y(value).toFixed(1), r: line.strong ? 4 : 2.5 }));
    return group;
  }

  summary(drawn) {
    const ends = drawn.slice(0, 12).map((line) => `${line.name}: ${this.format(line.points[line.points.length - 1][1])}`);
    const rest = drawn.length > 12 ? ` and ${drawn.length - 12} more` : "";
    return `${this.label}. Latest: ${ends.join(", ")}${rest}.`;
  }

  point(x) {
    this.pointer = x;
    if (!this.cross) return;
    const inside = x !== null && x >= MARGIN.left && x <= this.box.clientWidth - MARGIN.right;
    this.cross.setAttribute("visibility", inside ? "visible" : "hidden");
    this.tip.hidden = !inside;
    if (!inside) return;
    const time = this.time(x);
    const rows = this.drawn
      .map((line) => ({ line, at: before(line.points, time) }))
      .filter(({ at }) => at >= 0)
      .map(({ line, at }) => ({ line, value: line.points[at][1] }))
      .sort((a, b) => rank(b.line) - rank(a.line) || b.value - a.value);
    this.cross.setAttribute("x1", x);
    this.cross.setAttribute("x2", x);
    this.tip.replaceChildren(
      element("p", { class: "tip-time" }, clock(time)),
      ...rows.slice(0, 9).map(({ line, value }) =>
        element("p", { class: line.strong ? "tip-strong" : "" },
          element("span", { class: `dot tone-${line.tone}` }), line.name, element("b", {}, this.format(value)))),
      ...(rows.length > 9 ? [element("p", {}, `and ${rows.length - 9} more`)] : []),
    );
    const left = x > this.box.clientWidth / 2 ? x - this.tip.offsetWidth - 12 : x + 12;
    this.tip.style.left = `${Math.max(0, left)}px`;
  }
}

/** Drawing order: muted lines lowest, the fleet's mean on top. */
function rank(line) {
  return line.muted ? 0 : line.strong ? 2 : 1;
}
