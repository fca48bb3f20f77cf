"use strict";
/* Data, the state kept in the URL's fragment, and the building of elements. Text only ever enters the page through
   textContent or as an attribute's value, so that no name in the data can become markup. */

let DATA = JSON.parse(document.getElementById("data").textContent);

/* What runs share (names of rows and domains, sizes of test sets) is stored once; here each run gets its own view of it. */
function expand(data) {
  for (const run of data.runs) {
    if (run.matrix && run.matrix.frame in data.shared) run.matrix = { ...data.shared[run.matrix.frame], correct: run.matrix.correct };
    if (run.stream && run.stream.frame in data.shared) {
      const { frame, correct, collapsed } = run.stream, bad = new Set(collapsed);
      run.stream = data.shared[frame].map(([name, total, domain, visit], k) => [name, correct[k], total, bad.has(k) ? 1 : 0, domain, visit]);
    }
  }
  return data;
}
expand(DATA);

const DEFAULTS = {
  view: "leaderboard", group: "", off: "", sort: "", q: "", since: "best", ref: "", seed: "", cost: "passes",
  log: "", task: "", pair: "", run: "", a: "", b: "", all: "", theme: "", of: "", what: "", ticked: "", rsort: "", cols: "",
  panel: "", m1: "", m2: "", base: "", param: "",
};
const state = { ...DEFAULTS };

function readState() {
  Object.assign(state, DEFAULTS);
  for (const [key, value] of new URLSearchParams(location.hash.slice(1)))
    if (key in DEFAULTS) state[key] = value;
}

function stateLink(patch) {
  const merged = { ...state, ...patch };
  const out = new URLSearchParams();
  for (const key of Object.keys(DEFAULTS)) if (merged[key] !== DEFAULTS[key]) out.set(key, merged[key]);
  return "#" + out.toString();
}

/* Small changes replace the entry of the history; a change of view adds one, so that "back" goes to the last view. */
function setState(patch, push = false) {
  const link = stateLink(patch);
  history[push ? "pushState" : "replaceState"](null, "", link === "#" ? location.pathname + location.search : link);
  readState();
  draw();
}

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (key === "style") for (const [name, v] of Object.entries(value)) name.startsWith("--") ? node.style.setProperty(name, v) : node.style[name] = v;
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity))
    if (child !== null && child !== undefined && child !== false && child !== "")
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  for (const child of children.flat(Infinity))
    if (child !== null && child !== undefined && child !== false)
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  return node;
}

/* -- Numbers ------------------------------------------------------------------------------------------------------ */

const isNumber = (v) => typeof v === "number" && Number.isFinite(v);
const fixed = (v, digits = 1) => (isNumber(v) ? v.toFixed(digits).replace("-", "−") : "–");
const signed = (v, digits = 1) => (!isNumber(v) ? "–" : Number(v.toFixed(digits)) === 0 ? fixed(0, digits) : (v > 0 ? "+" : "") + fixed(v, digits));
const pText = (p) => (!isNumber(p) ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3));
const pEquals = (p) => (isNumber(p) && p < 0.001 ? "p < 0.001" : "p = " + pText(p));
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

/* -- Methods and their marks: colour, dash and symbol each tell them apart ------------------------------------------ */

const LIGHT = DATA.palette.light, DARK = DATA.palette.dark;
const GREYS = { light: ["#4F575F", "#757D86", "#23282E"], dark: ["#A7AFB8", "#8A939C", "#D9DDE1"] };
const DASHES = ["solid", "dash", "dashdot", "longdash"];  // dots are kept for what is unfinished
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "hexagon", "star"];

const dark = () => document.documentElement.dataset.theme === "dark";

/* A method's place in the palette comes from its name (compare/style.py), so that it stays from page to page. */
const isBound = (index) => Boolean(DATA.methods[index].reference);
const slotOf = (index) => DATA.methods[index].slot;

/* A colour comes back in another scenario with another symbol: no two methods of the page look the same, as long as
   there are symbols left. */
let marks = { of: null };
function symbolOf(index) {
  if (marks.of !== DATA) {
    const used = new Set(), taken = DATA.methods.map((method, i) => {
      if (isBound(i)) return null;
      const slot = slotOf(i), key = (k) => `${slot % LIGHT.length} ${(slot + k) % SYMBOLS.length}`;
      const free = SYMBOLS.findIndex((_, k) => !used.has(key(k))), k = Math.max(0, free);
      used.add(key(k));
      return SYMBOLS[(slot + k) % SYMBOLS.length];
    });
    marks = { of: DATA, taken };
  }
  return marks.taken[index];
}

function methodStyle(index) {
  const same = slotOf(index);
  if (isBound(index)) {
    const greys = GREYS[dark() ? "dark" : "light"];
    return { color: greys[same % 3], dash: ["dash", "dashdot", "longdash", "longdashdot"][same % 4], symbol:
      ["circle-open", "square-open", "diamond-open", "triangle-up-open"][same % 4] };
  }
  const colors = dark() ? DARK : LIGHT;
  return { color: colors[same % colors.length], dash: DASHES[Math.floor(same / colors.length) % 4], symbol: symbolOf(index) };
}

const SHAPES = {
  circle: "M-3.6,0a3.6,3.6 0 1,0 7.2,0a3.6,3.6 0 1,0 -7.2,0Z", square: "M-3.2,-3.2H3.2V3.2H-3.2Z",
  diamond: "M0,-4.4L4.4,0L0,4.4L-4.4,0Z", "triangle-up": "M0,-4.2L4.2,3.2H-4.2Z", "triangle-down": "M0,4.2L4.2,-3.2H-4.2Z",
  pentagon: "M0,-4.1L3.9,-1.3L2.4,3.3H-2.4L-3.9,-1.3Z", hexagon: "M-2.1,-3.7H2.1L4.2,0L2.1,3.7H-2.1L-4.2,0Z",
  star: "M0,-4.8L1.3,-1.5L4.6,-1.5L2,0.8L3,4.2L0,2.2L-3,4.2L-2,0.8L-4.6,-1.5L-1.3,-1.5Z",
};
const DASH_SVG = { solid: "", dash: "4 2", dot: "1.5 2", dashdot: "4 2 1.5 2", longdash: "7 2", longdashdot: "7 2 1.5 2" };

/* Text in a method's colour, dark (or light) enough to be read. */
function labelColor(style) {
  const n = parseInt(style.color.slice(1), 16), to = dark() ? 255 : 0;
  return "#" + [n >> 16, (n >> 8) & 255, n & 255].map((v) => Math.round(v + (to - v) * 0.25).toString(16).padStart(2, "0")).join("");
}

function swatch(index) {
  const s = methodStyle(index), open = s.symbol.endsWith("-open");
  return svg("svg", { width: 24, height: 12, viewBox: "-12 -6 24 12", "aria-hidden": "true" },
    svg("line", { x1: -12, x2: 12, y1: 0, y2: 0, stroke: s.color, "stroke-width": 1.8,
      "stroke-dasharray": DASH_SVG[s.dash] || "" }),
    svg("path", { d: SHAPES[s.symbol.replace("-open", "")], fill: open ? "var(--bg)" : s.color, stroke: s.color,
      "stroke-width": open ? 1.4 : 0 }));
}

const nameOf = (index) => DATA.methods[index].name;    // with all changed arguments: what tells methods apart
const shortOf = (index) => DATA.methods[index].short;  // for charts and chips, where the full name is a tooltip

/* Long names lose their middle; those that would then look the same keep what tells them apart. */
let cut = { of: null };
function cutName(index, n) {
  if (cut.of !== DATA) cut = { of: DATA, by: new Map() };
  if (!cut.by.has(n)) {
    const texts = DATA.methods.map((m) => middle(m.short, n)), alike = new Map();
    texts.forEach((text, i) => alike.set(text, [...(alike.get(text) || []), i]));
    for (const members of alike.values()) {
      const names = [...new Set(members.map(shortOf))], least = Math.min(...names.map((x) => x.length)), head = Math.floor((n - 2) / 3);
      if (names.length < 2) continue;
      let p = 0, s = 0;
      while (p < least && names.every((x) => x[p] === names[0][p])) p++;
      while (s < least - p && names.every((x) => x[x.length - 1 - s] === names[0][names[0].length - 1 - s])) s++;
      for (const i of members) {
        const x = shortOf(i);
        texts[i] = `${x.slice(0, head)}…${middle(x.slice(p, x.length - s), n - head - (s ? 2 : 1))}${s ? "…" : ""}`;
      }
    }
    cut.by.set(n, texts);
  }
  return cut.by.get(n)[index];
}
/* The same for a mark in a chart, which may be called otherwise than its method. */
const cutMark = (mark, n) => (mark.method in DATA.methods && shortOf(mark.method) === mark.name ? cutName(mark.method, n) : middle(mark.name, n));

/* A method's mark and name; the arguments that the short name leaves out below it, or in a tooltip. */
function methodLabel(index, more = [], detail = true) {
  const method = DATA.methods[index];
  return el("span", { class: "method", title: method.name }, swatch(index),
    el("span", { class: "who" }, el("span", { class: "name" }, cutName(index, 40)), more,
      detail && method.detail ? el("span", { class: "detail" }, middle(method.detail, 60)) : null));
}

/* Methods switched off by the reader, kept by name: names survive an update of the data. */
const offNames = () => new Set(state.off ? state.off.split("\u001f") : []);
const shown = (index) => !offNames().has(nameOf(index));

function methodChips(indices) {
  if (indices.length < 2) return null;
  const off = offNames();
  return el("fieldset", { class: "chips" }, el("legend", {}, "Methods"), indices.map((index) => {
    const on = !off.has(nameOf(index));
    return el("button", { class: "chip", id: "chip-" + index, type: "button", "aria-pressed": String(on), title: nameOf(index), on: {
      click: () => {
        on ? off.add(nameOf(index)) : off.delete(nameOf(index));
        setState({ off: [...off].join("\u001f") });
      },
      mouseenter: () => emphasise(on ? index : null), mouseleave: () => emphasise(null),
      focus: (event) => emphasise(on && event.target.matches(":focus-visible") ? index : null), blur: () => emphasise(null) } }, swatch(index), el("span", {}, cutName(index, 30)));
  }));
}

/* -- Controls ----------------------------------------------------------------------------------------------------- */

function selectField(id, label, options, value, onchange) {
  return el("span", { class: "field" }, el("label", { for: id }, label),
    el("select", { id, on: { change: (event) => onchange(event.target.value) } }, options.map(([key, text]) =>
      el("option", { value: key, selected: key === value }, text))));
}

function checkField(id, label, checked, onchange) {
  return el("label", {}, el("input", { type: "checkbox", id, checked, on: { change: (e) => onchange(e.target.checked) } }),
    label);
}

const keyOf = (group) => group.title + "#" + group.fingerprint;

/* The groups a view can show, the chosen one, and a select where there is a choice. */
function pickGroup(fits) {
  const groups = DATA.groups.map((group, index) => ({ ...group, index })).filter(fits);
  const group = groups.find((g) => keyOf(g) === state.group || g.title === state.group) || groups[0];
  const field = groups.length > 1 ? selectField("group", "Scenario", groups.map((g) => [keyOf(g), g.title]), keyOf(group),
    (value) => setState({ group: value })) : null;
  return { groups, group, field };
}

/* What ails the runs behind a view: every view that shows their numbers says it. */
const ailing = (group) => notesList(group.warnings.map((sentence) => "Warning: " + sentence));

const emptyNote = (text) => el("p", { class: "empty" }, text);

function heading(text, sub) {
  return el("div", { class: "head" }, el("h2", {}, text), sub ? el("p", { class: "sub" }, sub) : null);
}

function notesList(notes) {
  const warns = /^(Mixed|Some runs|Too few|Warning|\d+ runs went on)/;
  return notes.length ? el("ul", { class: "notes" }, notes.map((n) => el("li", { class: warns.test(n) && "warn" }, n))) : null;
}

/* A region that scrolls sideways must be reachable by keyboard. */
function scroller(label, ...children) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, ...children);
}

function numbersTable(caption, head, rows, link = null) {
  return el("details", {}, el("summary", {}, "The numbers"), scroller(caption, el("table", { class: "data" },
    el("thead", {}, el("tr", {}, head.map((h, i) => el("th", { scope: "col", class: i ? null : "left" }, h)))),
    el("tbody", {}, rows.map((row, r) => el("tr", {}, row.map((cell, i) => i ? el("td", {}, link && link(r, i) ? el("a", { class: "ev", href: link(r, i), tabindex: -1 }, cell) : cell)
      : el("th", { scope: "row", class: "left" }, cell))))))));
}

const VIEWS = {};
