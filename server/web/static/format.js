// Numbers and times as people read them. Pure functions, no DOM.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** 134217728 -> "128 MiB"; three significant digits, so that a column of them lines up. */
export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 || Number.isInteger(value) ? 0 : 1;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** 0.9312 -> "93.1 %" */
export function percent(value, digits = 1) {
  return Number.isFinite(value) ? `${(100 * value).toFixed(digits)} %` : "–";
}

/** Difference of two accuracies in percentage points: +19.1 */
export function points(value) {
  if (!Number.isFinite(value)) return "";
  const text = (100 * Math.abs(value)).toFixed(1);
  return `${value < 0 ? "−" : "+"}${text} points`;
}

export function count(value) {
  return Number.isFinite(value) ? value.toLocaleString("en") : "–";
}

/** How long ago `seconds` (since 1970) was: "now", "12 s", "4 min", "3 h", "2 d". */
export function ago(seconds, now) {
  if (!Number.isFinite(seconds)) return "never";
  const gone = Math.max(0, now - seconds);
  if (gone < 3) return "now";
  if (gone < 90) return `${Math.round(gone)} s ago`;
  if (gone < 5400) return `${Math.round(gone / 60)} min ago`;
  if (gone < 129600) return `${Math.round(gone / 3600)} h ago`;
  return `${Math.round(gone / 86400)} d ago`;
}

const pad = (number) => String(number).padStart(2, "0");

/** A clock time with as much of it as a span of `span` seconds needs. */
export function clock(seconds, span = 0) {
  const date = new Date(seconds * 1000);
  const minutes = `${pad(date.getHours())}:${pad(date.getMinutes())}`;
  if (span > 2 * 86400) return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
  return span < 1200 ? `${minutes}:${pad(date.getSeconds())}` : minutes;
}

/** Full date and time, for tooltips and details. */
export function moment(seconds) {
  return Number.isFinite(seconds) ? `${clock(seconds, 1e9)} ${clock(seconds)}` : "never";
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
