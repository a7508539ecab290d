// Building the page. Text reaches it only as text nodes: names, reasons and notes come from devices and may be hostile,
// so nothing here or elsewhere parses a string as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** An HTML element; attributes starting with "on" are listeners, strings among the children become text. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Make `parent`'s children match `items`, in order, keeping the element of a key that stays: focus, open details and
 * the reader's place survive an update. `make(item)` creates, `update(node, item)` fills; the latter only on change.
 */
export function reconcile(parent, items, key, make, update) {
  const present = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let node = present.get(name);
    present.delete(name);
    if (!node) {
      node = make(item);
      node.dataset.key = name;
    }
    const state = JSON.stringify(item);
    if (node.sanderlingState !== state) {
      node.sanderlingState = state;
      update(node, item);
    }
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of present.values()) node.remove();
}

/** A horizontal bar for `value` out of `limit`, with its meaning for those who cannot see it. */
export function bar(value, limit, label, tone = "") {
  const share = limit > 0 && Number.isFinite(value) ? value / limit : 0;
  const inner = element("span", { class: "bar-fill" });
  inner.style.width = `${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%`;
  const level = tone || (share > 1 ? "bad" : share > 0.92 ? "near" : "good");
  return element(
    "span",
    {
      class: "bar", role: "meter", "data-tone": level, "aria-label": label, "aria-valuemin": 0,
      "aria-valuemax": Math.round(limit || 0), "aria-valuenow": Math.round(value || 0),
    },
    inner,
  );
}
