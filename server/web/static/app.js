// The page: asks the API for figures, shows them, and asks again for what the server says has changed. The panels live in
// panels.js and releases.js, drawing in chart.js; here are state, asking, and what the reader has chosen to look at.

import { LineChart } from "./chart.js";
import { byId, element, reconcile, setText } from "./dom.js";
import { bytes, percent, plural } from "./format.js";
import { deviceDetail, deviceRows, happenings, headline } from "./panels.js";
import { releaseList } from "./releases.js";

const ASK = {
  status: () => "api/status",
  devices: () => "api/devices",
  history: () => "api/history?points=240",
  events: () => "api/events?limit=40",
  audit: () => "api/audit?limit=40",
  releases: (state) => (state.model ? `api/models/${encodeURIComponent(state.model)}/releases?limit=30` : null),
};

// what has to be asked for again when the server says that something of this kind has changed
const CHANGED = {
  device: ["status", "devices"], telemetry: ["status", "devices", "history"], delta: ["status", "devices"],
  event: ["events", "devices"], release: ["status", "devices", "history", "releases", "audit"],
  job: ["status", "audit"], broker: ["status"], missed: Object.keys(ASK),
};

const TONES = 8;
const state = {
  status: null, devices: [], history: null, events: [], audit: [], releases: [], model: null,
  accuracy: "held_out", memory: "training_peak", single: null, offset: 0, opened: null,
};

const charts = {
  accuracy: new LineChart(byId("accuracy-chart"), { format: (v) => percent(v, 0), label: "Accuracy over time" }),
  memory: new LineChart(byId("memory-chart"), { format: bytes, label: "Memory over time" }),
};

// ---- asking

const wanted = new Set();
let busy = false;

function want(names) {
  for (const name of names) wanted.add(name);
  ask();
}

async function ask() {
  if (busy || wanted.size === 0 || document.hidden) return;
  busy = true;
  // the releases' address depends on the status: so the status comes first
  const names = [...wanted].sort((a, b) => (b === "status") - (a === "status"));
  wanted.clear();
  let trouble = null;
  try {
    if (names[0] === "status") await load(names.shift());
    await Promise.all(names.map(load));
  } catch (error) {
    trouble = error;
    for (const name of names) wanted.add(name);
  }
  complain(trouble);
  if (!trouble) show();
  setTimeout(() => {
    busy = false;
    ask();
  }, trouble ? 3000 : 700);
}

async function load(name) {
  const address = ASK[name](state);
  if (address === null) return;
  const answer = await fetch(address, { headers: { Accept: "application/json" } });
  const body = await answer.json();
  if (!answer.ok) throw new Error(`${body.error.what}. ${body.error.remedy}`);
  state[name] = body;
  if (name !== "status") return;
  state.offset = body.time - Date.now() / 1000;
  const names = body.models.map((model) => model.name);
  if (!names.includes(state.model)) {
    state.model = names[0] ?? null;
    if (state.model) await load("releases");
  }
}

function complain(error) {
  const broker = state.status && !state.status.broker.connected;
  let text = "";
  if (error) text = `The server did not answer (${error.message}). Figures may be old; trying again.`;
  else if (broker) text = `The server has no connection to the broker ${state.status.broker.address}: ${state.status.broker.reason}. Devices keep their deltas until it is back.`;
  setText(byId("notice"), text);
  byId("notice").hidden = text === "";
}

function listen() {
  const source = new EventSource("api/live");
  const pill = byId("live");
  const say = (mode, text) => {
    pill.dataset.state = mode;
    setText(pill, text);
  };
  source.addEventListener("open", () => {
    say("live", "live");
    want(Object.keys(ASK)); // what was missed while the line was down
  });
  source.addEventListener("error", () => {
    say("lost", "reconnecting");
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  });
  source.addEventListener("change", (event) => {
    const names = new Set(Object.keys(JSON.parse(event.data).changed).flatMap((kind) => CHANGED[kind] ?? []));
    want(names);
  });
}

// ---- showing

function now() {
  return Date.now() / 1000 + state.offset;
}

/** Colours by name, the same everywhere on the page; a large fleet has no colours but that of the line singled out. */
function tones() {
  const names = state.devices.map((device) => device.name);
  return new Map(names.map((name, place) => [name, names.length <= TONES ? String(place) : "other"]));
}

function show() {
  if (!state.status) return;
  const tone = tones();
  setText(byId("fleet"), state.status.fleet);
  document.title = `${state.status.fleet} – Sanderling`;
  const job = state.status.merging;
  setText(byId("activity"), job ? `merging what the fleet learned into ${job.model} v${job.from_version + 1}` : "");
  headline(byId("headline"), state.status, state.devices);
  showAccuracy(tone);
  showMemory(tone);
  deviceRows(state.devices, tone, now(), open);
  releaseList(state.releases, now());
  happenings(state.events, state.audit, now());
  const silent = state.devices.filter((device) => !device.online).length;
  setText(byId("devices-hint"), silent ? `${plural(silent, "device is", "devices are")} silent` : "");
  setText(byId("releases-hint"), state.model ? `of model ${state.model}` : "");
  setText(byId("footer"), `Sanderling ${state.status.program} · broker ${state.status.broker.address}`);
}

function lines(field, tone, extra = []) {
  const at = state.history.fields.indexOf(field);
  const all = Object.entries(state.history.devices).map(([name, points]) => ({
    name,
    tone: tone.get(name) ?? "other",
    points: points.filter((point) => Number.isFinite(point[at]) && (point[at] > 0 || field !== "training_peak")).map((point) => [point[0], point[at]]),
  }));
  const chosen = [...extra, ...all].some((line) => line.name === state.single) ? state.single : null;
  const crowd = all.length > TONES;
  return [...extra, ...all].map((line) => ({
    ...line,
    muted: chosen ? line.name !== chosen : crowd && !line.strong,
    strong: line.strong || line.name === chosen,
  }));
}

function showAccuracy(tone) {
  if (!state.history) return;
  const column = state.accuracy === "held_out" ? 1 : 2;
  const mean = state.history.fleet.filter((point) => point[column] !== null).map((point) => [point[0], point[column]]);
  const several = Object.keys(state.history.devices).length > 1;
  const fleet = several ? [{ name: "fleet mean", tone: "fleet", points: mean, strong: true }] : [];
  const drawn = lines(state.accuracy, tone, fleet);
  const releases = state.history.releases.filter((release) => release.model === state.model);
  charts.accuracy.show({
    lines: drawn,
    marks: releases.map((release) => ({ time: release.time, text: `v${release.version}` })),
    high: 1, low: 0.9, floor: 0.1,
    nothing: "No device has measured its accuracy yet: that needs labelled samples.",
  });
  legend(drawn);
  const out = state.history.left_out ? ` ${state.history.left_out} more devices count in the mean but have no line.` : "";
  const text = state.accuracy === "held_out"
    ? "On each device's own held-out samples, which are never trained on, with the model it serves. Dotted: releases."
    : "Each prediction is scored before its sample is learned from; over the most recent ones. Dotted: releases.";
  setText(byId("accuracy-note"), text + out);
}

function showMemory(tone) {
  if (!state.history) return;
  const limits = new Set(state.devices.map((device) => device.memory.memory_limit).filter((value) => value > 0));
  const peak = state.memory === "training_peak";
  const limit = peak && limits.size === 1 ? { value: [...limits][0], text: `limit ${bytes([...limits][0])}` } : null;
  charts.memory.show({
    lines: lines(state.memory, tone), limit, low: 0, unit: 2 ** 20, bases: [1, 2, 4, 5, 10], steps: true,
    nothing: peak ? "No device has trained yet." : "No device has reported its memory yet.",
  });
  setText(byId("memory-note"), peak
    ? "Most resident memory of the whole training process, as each device's operating system measured it."
    : "Resident memory of all the agent's processes on each device, when it reported.");
}

function legend(drawn) {
  const many = drawn.length > TONES + 1;
  const items = (many ? drawn.filter((line) => line.strong) : drawn).map(({ name, tone }) => ({
    name, tone, pressed: name === state.single,
  }));
  reconcile(byId("accuracy-legend"), items, (item) => item.name,
    (item) => element("button", { type: "button", onclick: () => single(item.name) }, element("span", { class: "dot" }), element("span", {}, item.name)),
    (node, item) => {
      node.className = `tone-${item.tone}`;
      node.setAttribute("aria-pressed", String(item.pressed));
    });
}

function single(name) {
  state.single = state.single === name ? null : name;
  show();
}

// ---- choices of the reader

function choice(id, key, options) {
  const box = byId(id);
  for (const [value, text] of options) {
    box.append(element("button", { type: "button", "data-value": value, "aria-pressed": String(state[key] === value), onclick: () => {
      state[key] = value;
      for (const button of box.children) button.setAttribute("aria-pressed", String(button.dataset.value === value));
      show();
    } }, text));
  }
}

async function open(name) {
  state.opened = name;
  const dialog = byId("detail");
  setText(byId("detail-title"), name);
  byId("detail-body").replaceChildren(element("p", { class: "empty" }, "asking…"));
  dialog.showModal();
  try {
    const answer = await fetch(`api/devices/${encodeURIComponent(name)}?points=300`);
    const body = await answer.json();
    if (state.opened !== name) return;
    if (!answer.ok) throw new Error(body.error.what);
    deviceDetail(byId("detail-body"), body, now());
  } catch (error) {
    byId("detail-body").replaceChildren(element("p", { class: "empty" }, String(error.message)));
  }
}

choice("accuracy-switch", "accuracy", [["held_out", "Held-out"], ["prequential", "Live"]]);
choice("memory-switch", "memory", [["training_peak", "Training peak"], ["resident", "All processes"]]);
byId("detail-close").addEventListener("click", () => byId("detail").close());
byId("detail").addEventListener("click", (event) => {
  if (event.target === byId("detail")) byId("detail").close();
});
document.addEventListener("visibilitychange", ask);
setInterval(show, 5000); // "12 s ago" grows by itself
setInterval(() => want(["status"]), 30000);
want(Object.keys(ASK));
listen();
