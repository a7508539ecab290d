// Head figures, the table of devices, one device in detail, and what happened: each takes figures and fills its place.

import { LineChart } from "./chart.js";
import { bar, byId, element, reconcile } from "./dom.js";
import { ago, bytes, count, moment, percent, plural, points } from "./format.js";

// ---- the fleet at a glance

function tile(title, figure, ...below) {
  return { title, figure, below };
}

function tiles(status, devices) {
  const { total, online, silent } = status.devices;
  const model = status.models[0];
  const { before, now, devices: measured } = status.accuracy;
  const peak = status.memory;
  const traffic = status.traffic;
  const gain = before !== null && now !== null ? now - before : null;
  return [
    tile("Devices online", [String(online), small(` of ${total}`)],
      silent.length ? `silent: ${silent.slice(0, 3).join(", ")}${silent.length > 3 ? ` and ${total - online - 3} more` : ""}`
        : total ? "all of them report" : "none has reported yet"),
    tile(model ? `Version of ${model.name}` : "Version", model ? [`v${model.current_version}`] : ["–"],
      model && total ? bar(model.devices_on_current, total, "devices that have it", "good") : null,
      model ? `${model.devices_on_current} of ${plural(total, "device")} ${model.devices_on_current === 1 ? "has" : "have"} it` : "nothing released yet"),
    tile("Mean accuracy", [percent(now)],
      gain === null ? (now === null ? "not measured yet" : `on ${plural(measured, "device")}`)
        : [`${percent(before)} before  `, element("span", { class: gain < 0 ? "down" : "up" }, points(gain))]),
    tile("Largest training peak", peak.training_peak ? [bytes(peak.training_peak), peak.memory_limit ? small(` of ${bytes(peak.memory_limit)}`) : null] : ["–"],
      peak.training_peak && peak.memory_limit ? bar(peak.training_peak, peak.memory_limit, "training peak against its limit") : null,
      peak.device ? `on ${peak.device}` : "no device has trained yet"),
    tile("Sent by devices", [bytes(traffic.delta_bytes)],
      traffic.delta_bytes ? `1/${(traffic.float32_bytes / traffic.delta_bytes).toFixed(1)} of ${bytes(traffic.float32_bytes)} as plain float32, in ${plural(traffic.deltas, "delta")}`
        : "no delta yet"),
  ];
}

function small(text) {
  return element("small", {}, text);
}

export function headline(place, status, devices) {
  place.replaceChildren(...tiles(status, devices).map(({ title, figure, below }) =>
    element("article", { class: "tile" }, element("h2", {}, title), element("p", { class: "figure" }, figure),
      below.map((part) => (part instanceof Node && part.classList.contains("bar") ? part : part && element("p", { class: "below" }, part))))));
}

// ---- devices

const accuracy = (measured) => (measured ? [percent(measured.value), " ", small(`of ${count(measured.count)}`)] : ["–"]);
const PARTS = ["supervisor", "worker", "trainer"];

/** The table's columns: header, css class, and what a cell holds for a device. */
const COLUMNS = [
  ["Device", "", null],
  ["State", "", (d) => element("span", { class: "presence", "data-online": String(d.online) }, d.online ? "online" : "silent")],
  ["Version", "", (d) => (d.version ? [`v${d.version} `, d.is_current ? null : element("span", { class: "tag", "data-tone": "near" }, "behind")] : "–")],
  ["Serving", "", (d) => (d.serving && d.serving !== "none" ? element("span", { class: "tag", "data-tone": d.serving === "personal" ? "accent" : "" }, d.serving) : "–")],
  ["Held-out accuracy", "number", (d) => accuracy(d.accuracy.serving)],
  ["Live accuracy", "number", (d) => accuracy(d.accuracy.prequential)],
  ["Resident memory", "number", (d) => (d.memory.total ? element("span", { title: processes(d.memory.resident) }, bytes(d.memory.total)) : "–")],
  ["Training peak", "", (d) => (d.memory.training_peak ? [bar(d.memory.training_peak, d.memory.memory_limit, "training peak against limit"), " ", bytes(d.memory.training_peak), d.memory.memory_limit ? small(` of ${bytes(d.memory.memory_limit)}`) : null] : "–")],
  ["Deltas", "number", (d) => [count(d.deltas.accepted), d.deltas.waiting ? small(` +${count(d.deltas.waiting)} waiting`) : null, d.deltas.rejected ? element("span", { class: "tag", "data-tone": "bad" }, `${count(d.deltas.rejected)} rejected`) : null]],
  ["Sent", "number", (d) => (d.deltas.bytes ? bytes(d.deltas.bytes) : "–")],
  ["Last seen", "number", (d, now) => element("time", { title: moment(d.last_seen) }, ago(d.last_seen, now))],
];

function processes(resident) {
  const names = [...PARTS.filter((name) => name in resident), ...Object.keys(resident).filter((name) => !PARTS.includes(name))];
  return names.map((name) => `${name} ${bytes(resident[name])}`).join(", ");
}

export function deviceRows(devices, tones, now, open) {
  if (!byId("devices-head").hasChildNodes()) {
    byId("devices-head").append(...COLUMNS.map(([title, kind]) => element("th", { scope: "col", class: kind || null }, title)));
  }
  byId("devices-empty").hidden = devices.length > 0;
  // "seen" is part of what a row shows, so that a silent device's row is written anew as its silence grows
  const items = devices.map((device) => ({ device, tone: tones.get(device.name), seen: ago(device.last_seen, now) }));
  reconcile(byId("devices-body"), items, ({ device }) => device.name,
    ({ device }) => {
      const button = element("button", { type: "button", class: "device", title: `${device.name}: details`, onclick: () => open(device.name) }, device.name);
      const name = element("th", { scope: "row" }, element("span", { class: "dot" }), button);
      return element("tr", {}, name, COLUMNS.slice(1).map(([title, kind]) => element("td", { class: kind || null, "data-label": title })));
    },
    (row, { device, tone }) => {
      row.firstElementChild.firstElementChild.className = `dot tone-${tone}`;
      COLUMNS.slice(1).forEach(([, , fill], place) => {
        const content = [fill(device, now)].flat().filter((part) => part !== null);
        row.children[place + 1].replaceChildren(...content);
      });
    });
}

// ---- one device

export function facts(pairs) {
  return element("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

/** The lines of a device's own chart: name, field of its history, colour. */
const KINDS = [
  ["fleet's model, held-out", "held_out_fleet", "0"], ["its own model, held-out", "held_out_personal", "1"],
  ["live", "prequential", "other"],
];

export function deviceDetail(place, device, now) {
  const { accuracy: measured, memory } = device;
  const parts = Object.entries(memory.resident);
  const largest = Math.max(1, ...parts.map(([, value]) => value));
  const box = element("div", { class: "chart small" });
  place.replaceChildren(
    facts([
      ["State", `${device.online ? "online" : "silent"}, last seen ${moment(device.last_seen)} (${ago(device.last_seen, now)})`],
      ["First seen", moment(device.first_seen)],
      ["Agent", `${device.agent_version}, boot ${count(device.boot)}`],
      ["Model", device.model ? `${device.model} v${device.version}, serving ${device.serving}` : "none yet"],
      ["Fleet's model", measured.held_out_fleet && `${percent(measured.held_out_fleet.value)} of ${plural(measured.held_out_fleet.count, "held-out sample")}`],
      ["Its own model", measured.held_out_personal && `${percent(measured.held_out_personal.value)} of ${plural(measured.held_out_personal.count, "held-out sample")}`],
      ["Samples", `${count(device.samples.seen)} seen, ${count(device.samples.stored)} kept (they never leave the device)`],
      ["Training", `${plural(device.training_runs, "run")}, peak ${bytes(memory.training_peak)} of ${bytes(memory.memory_limit)}`],
      ["Deltas", `${count(device.deltas.accepted)} accepted, ${count(device.deltas.merged)} merged, ${count(device.deltas.rejected)} rejected, ${count(device.deltas.waiting)} waiting on the device`],
      ["Traffic", `${bytes(device.deltas.bytes)} sent, ${bytes(device.deltas.float32_bytes)} as plain float32`],
    ]),
    element("h3", {}, "Accuracy"), box,
    element("p", { class: "legend hint" }, KINDS.map(([name, , tone]) => element("span", {}, element("span", { class: `dot tone-${tone}` }), name))),
    element("h3", {}, "Resident memory by process"),
    parts.length ? facts(parts.map(([name, value]) => [name, [bar(value, largest, name, "plain"), ` ${bytes(value)}`]])) : element("p", { class: "hint" }, "not reported"),
    element("h3", {}, "Events"),
    device.events.length ? element("ol", { class: "events" }, device.events.slice(0, 12).map((event) => eventLine(event, now))) : element("p", { class: "hint" }, "none"),
  );
  const fields = device.history.fields;
  const line = (name, field, tone) => {
    const at = fields.indexOf(field);
    const own = device.history.devices[device.name] ?? [];
    return { name, tone, points: own.filter((point) => point[at] !== null).map((point) => [point[0], point[at]]) };
  };
  new LineChart(box, { format: (value) => percent(value, 0), label: "Accuracy of this device", height: 200 }).show({
    lines: KINDS.map(([name, field, tone]) => line(name, field, tone)),
    marks: device.history.releases.filter((release) => release.model === device.model).map((release) => ({ time: release.time, text: `v${release.version}` })),
    low: 0.9, high: 1, floor: 0.1,
  });
}

// ---- what happened

const EVENTS = {
  installed: ["installed", ""], rejected: ["refused", "bad"], rolled_back: ["went back from", "bad"],
  training_failed: ["could not train on", "bad"], worker_crashed: ["had its worker crash with", "bad"],
  personal_adopted: ["now serves its own model, learned from", ""],
};

function eventLine(event, now) {
  const [verb, tone] = EVENTS[event.kind] ?? [event.kind, ""];
  return line(event.received, now, [element("b", {}, event.device), ` ${verb} `, `${event.model} v${event.version}`], event.reason, tone);
}

const DONE = { release: "released", stage: "received", "merge refused": "refused a merge,", "merge failed": "failed at a merge," };

function auditLine(entry, now) {
  const detail = Object.entries(entry.detail ?? {}).filter(([key]) => !["digest", "sha256"].includes(key))
    .map(([key, value]) => `${key.replaceAll("_", " ")}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");
  const bad = /refused|failed/.test(entry.action) ? "bad" : "";
  return line(entry.time, now, [element("b", {}, entry.actor), ` ${DONE[entry.action] ?? entry.action} `, entry.subject], detail, bad);
}

function line(time, now, text, reason, tone) {
  return element("li", {}, element("p", { "data-tone": tone || null }, text), element("time", { title: moment(time) }, ago(time, now)),
    reason ? element("p", { class: "reason" }, reason) : null);
}

export function happenings(events, audit, now) {
  const all = [
    ...events.map((event) => ({ key: `event ${event.id}`, time: event.received, event, seen: ago(event.received, now) })),
    ...audit.map((entry) => ({ key: `audit ${entry.id}`, time: entry.time, entry, seen: ago(entry.time, now) })),
  ].sort((a, b) => b.time - a.time).slice(0, 30);
  byId("events-empty").hidden = all.length > 0;
  reconcile(byId("events"), all, (item) => item.key, () => element("li", {}), (node, item) => {
    node.replaceChildren(...(item.event ? eventLine(item.event, now) : auditLine(item.entry, now)).childNodes);
  });
}
