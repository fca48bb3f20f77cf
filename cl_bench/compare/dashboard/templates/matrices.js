/* Accuracy matrices side by side, as tables; with a reference method, differences from it. */

const mix = (a, b, t) => a.map((v, i) => Math.round(v + (b[i] - v) * t));
const css = (rgb) => `rgb(${rgb.join(" ")})`;
const luminance = (rgb) => { const [r, g, b] = rgb.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
/* Black or white, whichever reads better on the colour. */
const inkOn = (rgb) => (luminance(rgb) > 0.179 ? "#000" : "#fff");

const RAMP = { light: [[246, 248, 250], [158, 197, 228], [10, 78, 140]], dark: [[30, 37, 44], [38, 94, 146], [151, 208, 255]] };
const DIVERGE = { light: [[190, 80, 10], [250, 250, 250], [8, 94, 158]], dark: [[236, 140, 74], [32, 38, 45], [96, 176, 236]] };

function along(stops, t) {
  const s = Math.min(1, Math.max(0, t)) * 2;
  return s <= 1 ? mix(stops[0], stops[1], s) : mix(stops[1], stops[2], s - 1);
}
const rampColor = (percent) => along(RAMP[dark() ? "dark" : "light"], percent / 100);
const divergeColor = (points, limit) => along(DIVERGE[dark() ? "dark" : "light"], 0.5 + points / (2 * limit));

function ramp(stops, low, high) {
  return el("span", { class: "ramp" }, low, el("i", { style: { background: `linear-gradient(90deg, ${stops.map(css).join(", ")})` } }), high);
}

/* rows x columns of numbers as a heat map; color(v) -> rgb, text(v) -> what the cell says. */
function heatTable(caption, rows, columns, values, { color, text, diagonal, say, link }) {
  const dense = columns.length > 12;
  const after = (name) => (name.startsWith("after ") ? "" : "after ");
  return el("table", { class: "heat" + (dense ? " dense" : columns.length > 6 ? " close" : "") }, el("caption", {}, caption),
    el("thead", {}, el("tr", {}, el("td", { class: "corner" }), columns.map((c) => el("th", { scope: "col", title: c },
      dense ? "" : shorten(c.replace(/^(classes|class|task|experience|test set) /, ""), 9))))),
    el("tbody", {}, rows.map((name, i) => el("tr", {}, el("th", { scope: "row", title: name }, dense && i % 5 ? ""
      : after(name) + shorten(name.replace(/^(classes|class|task|experience) /, ""), 14)), columns.map((column, j) => {
      const v = values[i][j];
      const title = `${after(name)}${name}, on ${column}: ${isNumber(v) ? say(v) : "not measured"}`;
      if (!isNumber(v)) return el("td", { class: "hole", title }, el("span", { class: "sr" }, "not measured"));
      const rgb = color(v);
      return el("td", { class: diagonal && diagonal[j] === i ? "diagonal" : null, title, style: { background: css(rgb),
        color: inkOn(rgb) } }, link ? el("a", { class: "ev", href: link(i, j), tabindex: -1, "aria-label": title }, text(v) || "·") : text(v));
    })))));
}

/* The matrix of a method: mean over its finished runs, or of one seed. */
function matrixOf(group, method) {
  const entry = group.learn.methods[method];
  if (!state.seed) return entry && { values: entry.matrix, entry };
  const run = DATA.runs.find((r) => r.group === group.index && r.method === method && r.matrix && seedKey(r) === state.seed);
  return run && { values: ratesOf(run), entry: { n: 1, partial: run.status !== "finished" } };
}

const seedKey = (run) => `seed ${run.seed}` + (run.order === null ? "" : `, order ${run.order}`);

VIEWS.matrices = { title: "Accuracy matrices", nav: "Matrices", build() {
  const { group, field } = pickGroup((g) => g.learn);
  if (!group) return emptyNote("No run shown here has an accuracy matrix: test-time streams have errors per domain instead.");
  const indices = Object.keys(group.learn.methods).map(Number);
  const order = group.rows.map((r) => r.method).filter((m) => indices.includes(m));
  const seeds = [...new Set(DATA.runs.filter((r) => r.group === group.index && r.matrix).map(seedKey))].sort((a, b) =>
    a.localeCompare(b, "en", { numeric: true }));
  const reference = order.find((m) => nameOf(m) === state.ref);
  const base = reference !== undefined ? matrixOf(group, reference) : null;
  const tools = el("div", { class: "bar" }, field,
    selectField("ref", "Difference from", [["", "none (accuracy)"], ...order.map((m) => [nameOf(m), shortOf(m)])],
      state.ref, (value) => setState({ ref: value })),
    selectField("seed", "Runs", [["", "mean of finished runs"], ...seeds.map((s) => [s, s])], state.seed,
      (value) => setState({ seed: value })));
  const visible = order.filter(shown);
  const limit = base ? differenceLimit(group, visible, base) : 100;
  const theme = dark() ? "dark" : "light";
  const cards = visible.map((method) => matrixCard(group, method, base && method !== reference ? base : null, reference, limit));
  return [tools, methodChips(indices.sort((a, b) => a - b)), el("section", {},
    heading("Accuracy matrices", group.title), el("p", { class: "lede" },
      base ? `Points of accuracy above (blue) or below (orange) ${shortOf(reference)}, on each test set after each experience.`
        : "Accuracy in percent on each test set (columns) after each experience (rows). Outlined: right after learning it. Hatched: not measured."),
    el("p", { class: "bar" }, base ? ramp(DIVERGE[theme], `−${limit} points`, `+${limit} points`) : ramp(RAMP[theme], "0 %", "100 %")),
    el("div", { class: "grid", style: { "--card": `${gridWidth(group.learn.sets.length)}px` } }, cards.length ? cards : emptyNote("Every method is switched off.")),
    ailing(group), notesList(group.learn.left_out ? [`${plural(group.learn.left_out, "run")} with another number of experiences left out.`] : []))];
} };

/* Width of a card that holds a heat map of so many columns without scrolling. */
const gridWidth = (columns) => (columns > 12 ? 88 + columns * 14 : 106 + columns * (columns > 6 ? 39 : 47));

function differenceLimit(group, methods, base) {
  const sizes = methods.flatMap((m) => { const own = matrixOf(group, m); return own ? own.values.flatMap((row, i) =>
    row.map((v, j) => (isNumber(v) && isNumber((base.values[i] || [])[j]) ? Math.abs(v - base.values[i][j]) : 0))) : []; });
  return Math.max(5, Math.ceil(Math.max(0, ...sizes) / 5) * 5);
}

function matrixCard(group, method, base, reference, limit) {
  const own = matrixOf(group, method);
  const caption = [methodLabel(method, el("span", { class: "family" },
    !own ? "no such run" : state.seed ? state.seed : own.entry.partial ? "unfinished" : plural(own.entry.n, "run"))), " ",
  base || reference === undefined || method !== reference ? null : el("span", { class: "badge" }, "reference: accuracy")];
  if (!own) return el("div", {}, el("p", { class: "cap" }, caption), el("p", { class: "empty" }, "Not measured."));
  const link = (i, j) => evidenceLink(group, method, `cell:${i},${j}`);
  const values = base ? own.values.map((row, i) => row.map((v, j) => {
    const other = (base.values[i] || [])[j];
    return isNumber(v) && isNumber(other) ? v - other : null;
  })) : own.values;
  return scroller(`Accuracy matrix of ${nameOf(method)}`, heatTable(caption, group.learn.phases, group.learn.sets, values, base
    ? { color: (v) => divergeColor(v, limit), text: (v) => signed(v), say: (v) => signed(v, 2) + " points", link }
    : { link, color: rampColor, text: (v) => fixed(v), diagonal: group.learn.learned, say: (v) => fixed(v, 2) + " %" }));
}
