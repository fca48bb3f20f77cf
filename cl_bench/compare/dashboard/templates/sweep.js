/* Settings of one method: what each value of a parameter gives, which parameters matter, and where they lead. */

const valueText = (v) => (typeof v === "number" ? String(v) : plain(v));

VIEWS.sweep = { title: "Settings", build() {
  const { group, field } = pickGroup((g) => g.sweeps.length);
  if (!group) return emptyNote("No method stands here in several settings. Run one with other values of a parameter, for example --method.lr, and they are shown beside each other.");
  const sweep = group.sweeps.find((s) => s.base === state.base) || group.sweeps[0];
  const parameter = sweep.parameters.includes(state.param) ? state.param : sweep.parameters[0], k = sweep.parameters.indexOf(parameter);
  const metrics = Object.keys(sweep.importance), metric = metrics.includes(state.pair) ? state.pair : metrics.includes(group.primary) ? group.primary : metrics[0];
  const tools = el("div", { class: "bar" }, field, group.sweeps.length > 1 ? selectField("base", "Method", group.sweeps.map((s) => [s.base, s.base]), sweep.base, (value) => setState({ base: value, param: "" })) : null,
    selectField("param", "Parameter", sweep.parameters.map((p) => [p, p]), parameter, (value) => setState({ param: value })),
    selectField("pair", "Metric", metrics.map((n) => [n, `${DATA.metrics[n].label} (${DATA.metrics[n].unit})`]), metric, (value) => setState({ pair: value })));
  const settings = sweep.methods.map((method, i) => ({ method, values: sweep.values[i], row: group.rows.find((r) => r.method === method) })).filter((s) => s.row);
  return [tools, slice(group, sweep, settings, parameter, k, metric), importance(sweep, metric), trajectory(group, settings, parameter, k), settingTable(group, sweep, settings, metric), ailing(group)];
} };

const ordered = (values) => { const each = [...new Map(values.map((v) => [valueText(v), v])).values()];
  return each.every((v) => typeof v === "number") ? each.sort((a, b) => a - b) : each.sort((a, b) => valueText(a).localeCompare(valueText(b), "en", { numeric: true })); };

/* Lines over the values of one parameter, one for each setting of the others. */
function lines(sweep, settings, k) {
  const by = new Map();
  for (const setting of settings) {
    const others = sweep.parameters.map((name, i) => (i === k ? "" : `${name}=${valueText(setting.values[i])}`)).filter(Boolean).join(", ");
    by.set(others, [...(by.get(others) || []), setting]);
  }
  return by;
}

function slice(group, sweep, settings, parameter, k, metric) {
  const levels = ordered(settings.map((s) => s.values[k])), m = DATA.metrics[metric], names = levels.map(valueText);
  const series = [...lines(sweep, settings, k)].map(([name, of], n) => {
    const at = names.map((level) => (of.find((s) => valueText(s.values[k]) === level) || { row: { cells: {} } }).row.cells[metric] || []);
    const style = { color: (dark() ? DARK : LIGHT)[n % LIGHT.length], dash: DASHES[Math.floor(n / LIGHT.length) % 4], symbol: SYMBOLS[n % SYMBOLS.length] };
    return { name: name || sweep.base, style, mean: at.map((c) => c[2]), low: at.map((c) => c[3]), high: at.map((c) => c[4]) };
  });
  return el("section", {}, heading(`${m.label} over ${parameter}`, group.title), lineChart(`${m.label} over ${parameter}`, names, series, { yTitle: `${m.label} (${m.unit})`, xTitle: parameter, unit: m.unit, height: 380,
    note: `Values in order, not to scale.${sweep.parameters.length > 1 ? " One line for each setting of the other parameters." : ""} ` + bandNote(series) }));
}

function importance(sweep, metric) {
  const shares = sweep.importance[metric];
  if (!shares.some(isNumber)) return null;
  const order = sweep.parameters.map((name, i) => [name, shares[i] ?? 0]).sort((p, q) => q[1] - p[1]), rest = Math.max(0, 1 - order.reduce((sum, [, v]) => sum + v, 0));
  return el("section", {}, heading("Which parameter matters", DATA.metrics[metric].label), scroller("Importance of parameters", el("table", { class: "data importance" }, el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "left" }, "parameter"), el("th", { scope: "col" }, "explains", el("span", { class: "unit" }, "% of variance between settings")), el("th", { scope: "col", class: "left" }, "share"))),
    el("tbody", {}, [...order, ...(order.length > 1 ? [["together only (interactions)", rest]] : [])].map(([name, v]) => el("tr", {}, el("th", { scope: "row", class: "left" }, name), el("td", {}, fixed(100 * v, 1)), el("td", { class: "left" },
      svg("svg", { width: 200, height: 12, "aria-hidden": "true" }, svg("rect", { x: 0, y: 1, width: Math.max(1, 200 * Math.min(1, v)), height: 10, fill: "var(--accent, currentColor)" })))))))),
  notesList([sweep.full ? "First-order shares of variance of the means over runs (as fANOVA's single effects): exact, because every combination of values was run." : "First-order shares of variance of the means over runs. Estimates: not every combination of values was run, so that effects can hide one another."]));
}

/* Stability against plasticity: settings joined in the order of the parameter. */
function trajectory(group, settings, parameter, k) {
  if (!group.learn) return null;
  const levels = ordered(settings.map((s) => s.values[k])).map(valueText);
  const points = settings.map((s) => { const e = group.learn.methods[s.method]; return e && { s, x: e.plasticity[0][0], y: e.stability[0][0] }; }).filter((p) => p && isNumber(p.x) && isNumber(p.y))
    .sort((p, q) => levels.indexOf(valueText(p.s.values[k])) - levels.indexOf(valueText(q.s.values[k])));
  if (points.length < 2) return null;
  const range = rangeOf(points.flatMap((p) => [p.x, p.y]), [], 0, 100), by = new Map();
  for (const p of points) { const others = JSON.stringify(p.s.values.filter((_, i) => i !== k)); by.set(others, [...(by.get(others) || []), p]); }
  const behind = [...by.values()].map((of) => ({ x: of.map((p) => p.x), y: of.map((p) => p.y), type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: cssVar("--muted"), width: 1.4 } }));
  const color = (p) => taskColor(levels.indexOf(valueText(p.s.values[k])), levels.length);
  return el("section", {}, heading(`Stability against plasticity along ${parameter}`, group.title), scatterChart(`Stability against plasticity along ${parameter}`, points.map((p) => ({ name: `${parameter}=${valueText(p.s.values[k])}`, method: p.s.method,
    style: { color: color(p), symbol: "circle" }, x: p.x, y: p.y })), { xTitle: "plasticity: accuracy right after learning (%)", yTitle: "stability: last accuracy (%)", xRange: range, yRange: range, square: true, height: 480, behind, group, what: "backward_transfer",
    shapes: [{ type: "line", x0: range[0], y0: range[0], x1: range[1], y1: range[1], line: { color: cssVar("--strong-line"), width: 1, dash: "dot" }, layer: "below" }], note: `From light (${levels[0]}) to dark (${levels[levels.length - 1]}). Below the dotted diagonal lies what was lost since learning.` }));
}

function settingTable(group, sweep, settings, metric) {
  const columns = [...new Set([metric, ...group.metrics])].filter((n) => sweep.importance[n]);
  return el("section", {}, heading("All settings"), scroller("All settings", el("table", { class: "data settings" }, el("thead", {}, el("tr", {}, sweep.parameters.map((p) => el("th", { scope: "col", class: "left" }, p)), el("th", { scope: "col" }, "n"),
    columns.map((n) => el("th", { scope: "col" }, DATA.metrics[n].label, el("span", { class: "unit" }, DATA.metrics[n].unit))))), el("tbody", {}, settings.map((s) => el("tr", {}, s.values.map((v, i) => el(i ? "td" : "th", { scope: i ? null : "row", class: "left" }, valueText(v))), el("td", {}, s.row.n),
    columns.map((n) => el("td", {}, evidence(group, s.method, n, s.row.cells[n][0], s.row.cells[n][1] ? ` ± ${s.row.cells[n][1]}` : "")))))))));
}
