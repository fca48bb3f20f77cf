/* What a method gains and what it costs: stability against plasticity, accuracy against cost with the Pareto front. */

VIEWS.balance = { title: "Stability & plasticity", nav: "Stability", build() {
  const { group, field } = pickGroup((g) => g.learn);
  if (!group) return emptyNote("No run shown here has an accuracy matrix, from which stability and plasticity are computed.");
  const points = group.rows.map((r) => r.method).filter((m) => shown(m) && group.learn.methods[m]).map((m) => {
    const e = group.learn.methods[m], [px, pl, ph] = e.plasticity.map((v) => v[0]), [sx, sl, sh] = e.stability.map((v) => v[0]);
    return { name: shortOf(m), method: m, style: methodStyle(m), x: px, xl: pl, xh: ph, y: sx, yl: sl, yh: sh };
  }).filter((p) => isNumber(p.x) && isNumber(p.y));
  const tools = field ? el("div", { class: "bar" }, field) : null;
  const chips = methodChips(Object.keys(group.learn.methods).map(Number));
  if (!points.length) return [tools, chips, emptyNote("Stability needs a finished run with at least two experiences.")];
  // Both over the same test sets and on one scale: the way down from the diagonal is then what was forgotten.
  const range = rangeOf(points.flatMap((p) => [p.x, p.y]), points.flatMap((p) => [p.xl, p.xh, p.yl, p.yh]), 0, 100);
  const shapes = [{ type: "line", x0: range[0], y0: range[0], x1: range[1], y1: range[1], line: { color: cssVar("--strong-line"), width: 1,
    dash: "dot" }, layer: "below" }];
  return [tools, chips, el("section", {}, heading("Stability against plasticity", group.title), scatterChart(
    `Stability against plasticity on ${group.title}, in percent`, points, { xTitle: "plasticity: accuracy right after learning (%)",
      yTitle: "stability: last accuracy (%)", xRange: range, yRange: range, shapes, square: true, height: 560, group, what: "backward_transfer",
      note: "Both over the test sets learned before the last experience, on one scale: how far a point lies below the dotted diagonal is exactly what it lost " +
        "since learning (minus its backward transfer). Up and to the right is better. Bars: 95 % t-intervals over runs." }), notesList(significance(group, "forgetting")), ailing(group))];
} };

VIEWS.cost = { title: "Cost", build() {
  const { group, field } = pickGroup(() => true);
  const costs = group.costs;
  const indices = group.rows.map((r) => r.method).sort((a, b) => a - b);
  if (!costs.length) return [field ? el("div", { class: "bar" }, field) : null, emptyNote("No finished run of this scenario has a recorded cost.")];
  const cost = costs.includes(state.cost) ? state.cost : costs[0];
  const metric = DATA.metrics[group.primary], c = DATA.metrics[cost];
  const points = group.rows.filter((r) => shown(r.method)).map((r) => {
    const [, , x, xl, xh] = r.cells[cost] || [], [, , y, yl, yh] = r.cells[group.primary] || [];
    return { name: shortOf(r.method), method: r.method, style: methodStyle(r.method), x, xl, xh, y, yl, yh };
  }).filter((p) => isNumber(p.x) && isNumber(p.y));
  const xValues = points.map((p) => p.x), canLog = points.length > 0 && Math.min(...xValues) > 0;
  const log = canLog && (state.log ? state.log === "1" : Math.max(...xValues) > 20 * Math.min(...xValues));
  const tools = el("div", { class: "bar" }, field, selectField("cost", "Cost", costs.map((k) => [k,
    `${DATA.metrics[k].label} (${DATA.metrics[k].unit})`]), cost, (value) => setState({ cost: value })),
  canLog ? checkField("log", "logarithmic", log, (on) => setState({ log: on ? "1" : "0" })) : null);
  const contended = c.timed ? group.times[c.timed] : "";  // times of different machines, or of one that was shared, have no front
  const front = contended ? [] : paretoFront(points, metric.higher);
  const ends = log ? xValues.map(Math.log10) : xValues, air = log ? 0.12 : Math.max(...ends) * 0.06 || 1;
  const xRange = [log ? Math.min(...ends) - air : -air, Math.max(...ends) + 1.6 * air];
  const yRange = rangeOf(points.map((p) => p.y), points.flatMap((p) => [p.yl, p.yh]), 0, 100);
  const title = `${metric.label} against ${c.label}`;
  return [tools, methodChips(indices), el("section", {}, heading(title[0].toUpperCase() + title.slice(1), group.title),
    points.length ? scatterChart(`${title} on ${group.title}`, points, { xTitle: `${c.label} (${c.unit})`, yTitle:
      `${metric.label} (${metric.unit})`, log, xRange, yRange, front, behind: [frontTrace(front)], height: 500, group, what: cost,
    note: `${contended ? "No Pareto front: these times cannot be compared. " : "Dotted line: Pareto front, methods that no other beats in both. "}${c.note ? c.note[0].toUpperCase() + c.note.slice(1) + ". " : ""}Bars: 95 % t-intervals.` })
      : emptyNote("No finished run to show."), contended ? notesList([contended]) : null, ailing(group)), costTable(group, front)];
} };

/* Methods for which no other is at least as good at no more cost (and better in one). */
function paretoFront(points, higher) {
  const better = (a, b) => (higher ? a >= b : a <= b);
  return points.filter((p) => !points.some((q) => q !== p && q.x <= p.x && better(q.y, p.y) && (q.x < p.x || q.y !== p.y)))
    .sort((a, b) => a.x - b.x);
}

function frontTrace(front) {
  return { x: front.map((p) => p.x), y: front.map((p) => p.y), type: "scatter", mode: "lines", hoverinfo: "skip",
    line: { shape: "hv", color: cssVar("--muted"), width: 1.2, dash: "dot" } };
}

function costTable(group, front) {
  const best = new Set(front.map((p) => p.method));
  const costs = group.costs;
  const rows = group.rows.filter((r) => shown(r.method) && r.n);
  if (!rows.length) return null;
  return el("section", {}, heading("All costs", "means over finished runs"), scroller("Costs", el("table", { class: "data" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "left" }, "method"), [group.primary, ...costs].map((c) =>
      el("th", { scope: "col" }, DATA.metrics[c].label, el("span", { class: "unit" }, DATA.metrics[c].unit))),
    el("th", { scope: "col" }, "on the front"))),
    el("tbody", {}, rows.map((r) => el("tr", {}, el("th", { scope: "row", class: "left" }, methodLabel(r.method)), [group.primary, ...costs].map((c) => el("td", {}, evidence(group, r.method, c, r.cells[c][0]))), el("td", {}, best.has(r.method) ? "yes" : "")))))));
}
