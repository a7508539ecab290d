// The list of releases: what each came from (devices, deltas, candidates with their figures), opened by a click.

import { byId, element, reconcile } from "./dom.js";
import { ago, bytes, count, moment, percent, plural } from "./format.js";
import { facts } from "./panels.js";

const SOURCES = { push: "pushed", merge: "learned by the fleet", rollback: "rolled back" };
// of the figures that a release may carry, the first that is there stands for it
const SCORES = ["validation_accuracy", "proxy_accuracy", "anchor_accuracy"];

function score(metrics) {
  const name = SCORES.find((candidate) => Number.isFinite(metrics?.[candidate]));
  return name ? `${percent(metrics[name])} ${name.replace("_accuracy", "")}` : "";
}

const words = (name) => name.replaceAll("_", " ");

function figure(name, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return typeof value === "string" ? value : JSON.stringify(value);
  if (/accuracy|agreement|share|drop|score/.test(name)) return percent(value);
  if (/bytes|peak/.test(name) && value > 1024) return bytes(value);
  return Number.isInteger(value) ? count(value) : String(Number(value.toPrecision(4)));
}

const amount = (value) => (Array.isArray(value) ? value.length : value);
const SHOWN = ["devices", "deltas", "candidates", "contributions", "from_version", "choice", "job"];

function lineage(found) {
  const rest = Object.entries(found).filter(([key, value]) => !SHOWN.includes(key) && value !== null);
  const devices = Array.isArray(found.devices) ? found.devices : [];
  return facts([
    ["Built on", found.from_version ? `v${found.from_version}` : null],
    ["From devices", devices.length > 12 ? `${devices.slice(0, 12).join(", ")} and ${devices.length - 12} more` : devices.join(", ")],
    ["Deltas merged", found.deltas === undefined ? null : count(amount(found.deltas))],
    ["Choice", found.choice],
    ...rest.map(([key, value]) => [words(key), list(value) ?? figure(key, value)]),
  ]);
}

/** {a: 0.5, b: 1} -> "a 0.5, b 1"; ["a", "b"] -> "a, b"; null for anything else. */
function list(value) {
  if (value === null || typeof value !== "object") return null;
  if (Array.isArray(value)) return value.map((part) => (typeof part === "object" ? JSON.stringify(part) : part)).join(", ");
  return Object.entries(value).map(([name, part]) => `${words(name)} ${figure(name, part)}`).join(", ");
}

function table(label, first, rows, chosen = null) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row.figures)))].filter((key) => rows.some((row) => typeof row.figures[key] === "number"));
  if (rows.length === 0) return null;
  return element("div", { class: "scroll", role: "region", "aria-label": label, tabindex: 0 }, element("table", { class: "candidates" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, first), columns.map((key) => element("th", { scope: "col", class: "number" }, words(key))))),
    element("tbody", {}, rows.map((row) => element("tr", { class: row.name === chosen ? "chosen" : null },
      element("th", { scope: "row" }, words(row.name), " ", row.name === chosen ? element("span", { class: "tag", "data-tone": "accent" }, "released") : null),
      columns.map((key) => element("td", { class: "number" }, Number.isFinite(row.figures[key]) ? figure(key, row.figures[key]) : "–")))))));
}

function candidates(release) {
  const rows = Object.entries(release.lineage?.candidates ?? {}).map(([name, figures]) => ({ name, figures }));
  return table("Candidates", "Candidate", rows, release.metrics?.candidate);
}

function contributions(release) {
  const given = release.lineage?.contributions;
  const rows = (Array.isArray(given) ? given : []).map(({ device, ...figures }) => ({ name: String(device), figures }));
  return table("Contributions", "Contribution of", rows);
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
    candidates(release),
    contributions(release),
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
