// The list of releases: what each came from (devices, deltas, candidates with their figures), opened by a click.

import { byId, element, reconcile } from "./dom.js";
import { ago, bytes, count, moment, percent, plural } from "./format.js";
import { facts } from "./panels.js";

const SOURCES = { push: "pushed", merge: "learned by the fleet", rollback: "rolled back" };
// of the figures that a release may carry, the first that is there stands for it
const SCORES = ["validation_accuracy", "accuracy", "proxy_accuracy", "anchor_accuracy"];

function score(metrics) {
  const name = SCORES.find((candidate) => Number.isFinite(metrics?.[candidate]));
  return name ? `${percent(metrics[name])} ${name.replace("_accuracy", "").replace("accuracy", "")}` : "";
}

const words = (name) => name.replaceAll("_", " ");

function figure(name, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return typeof value === "string" ? value : JSON.stringify(value);
  if (/accuracy|agreement|share|drop/.test(name)) return percent(value);
  if (/bytes|peak/.test(name) && value > 1024) return bytes(value);
  return Number.isInteger(value) ? count(value) : value.toPrecision(4);
}

const amount = (value) => (Array.isArray(value) ? value.length : value);

function lineage(found) {
  const rest = Object.entries(found).filter(([key]) => !["candidates", "chosen", "devices", "deltas"].includes(key));
  const devices = Array.isArray(found.devices) ? found.devices.map((device) => device?.name ?? device?.device ?? device) : null;
  return facts([
    ["From devices", found.devices === undefined ? null : devices && devices.length <= 12 ? devices.join(", ") : count(amount(found.devices) ?? Object.keys(found.devices).length)],
    ["Deltas merged", found.deltas === undefined ? null : count(amount(found.deltas))],
    ...rest.map(([key, value]) => [words(key), figure(key, value)]),
  ]);
}

function candidates(found) {
  const given = found.candidates;
  if (!given) return null;
  const rows = Array.isArray(given) ? given : Object.entries(given).map(([name, figures]) => ({ name, ...figures }));
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((key) => key !== "name" && rows.some((row) => typeof row[key] === "number"));
  const chosen = typeof found.chosen === "object" && found.chosen ? found.chosen.name : found.chosen;
  return element("div", { class: "scroll", role: "region", "aria-label": "Candidates", tabindex: 0 }, element("table", { class: "candidates" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Candidate"), columns.map((key) => element("th", { scope: "col", class: "number" }, words(key))))),
    element("tbody", {}, rows.map((row) => element("tr", { class: row.name === chosen ? "chosen" : null },
      element("th", { scope: "row" }, words(String(row.name)), row.name === chosen ? element("span", { class: "tag", "data-tone": "accent" }, "released") : null),
      columns.map((key) => element("td", { class: "number" }, row[key] === undefined ? "–" : figure(key, row[key]))))))));
}

function inside(release) {
  const files = Object.entries(release.files).map(([name, file]) => [
    element("a", { href: `api/models/${encodeURIComponent(release.model)}/versions/${release.version}/${encodeURIComponent(name)}`, download: name }, name),
    ` ${bytes(file.length)}  `,
  ]);
  const metrics = Object.entries(release.metrics ?? {}).filter(([, value]) => typeof value !== "object");
  const notes = Object.entries(release.notes ?? {});
  return [
    lineage(release.lineage ?? {}),
    candidates(release.lineage ?? {}),
    facts([
      ...metrics.map(([key, value]) => [words(key), figure(key, value)]),
      ...notes.map(([key, value]) => [words(key), figure(key, value)]),
      ["Labels", release.labels.length ? release.labels.slice(0, 40).join(", ") : null],
      ["Files", files],
      ["Signed", [moment(release.created), ", manifest ", element("code", {}, release.digest.slice(0, 16))]],
    ]),
  ];
}

export function releaseList(releases, now) {
  byId("releases-empty").hidden = releases.length > 0;
  const items = releases.map((release, place) => ({ release, current: place === 0, seen: ago(release.created, now) }));
  reconcile(byId("releases"), items, ({ release }) => `${release.model} ${release.version}`,
    () => element("details", { class: "release" }, element("summary", {}), element("div", { class: "inside" })),
    (node, { release, current, seen }) => {
      const [summary, body] = node.children;
      const merged = amount(release.lineage?.deltas);
      summary.replaceChildren(
        element("b", {}, `v${release.version}`),
        element("span", { class: "tag", "data-tone": current ? "accent" : null }, SOURCES[release.source] ?? release.source),
        element("span", { class: "score" }, [score(release.metrics), merged ? plural(merged, "delta") : ""].filter(Boolean).join(" · ")),
        element("span", { class: "when" }, element("time", { title: moment(release.created) }, seen)),
      );
      body.replaceChildren(...inside(release).filter((part) => part !== null));
    });
}
