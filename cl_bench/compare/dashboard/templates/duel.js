/* Two methods on one page: matrices and their difference, paired intervals per test set and domain, settings, costs, seeds. */

const quantile = (n) => DATA.quantiles[Math.min(n - 1, DATA.quantiles.length) - 1];

/* Mean of paired differences with its 95 % t-interval; no ends for one pair. */
function pairedInterval(differences) {
  const d = differences.filter(isNumber), n = d.length;
  if (!n) return { n, mean: null, low: null, high: null };
  const mean = d.reduce((a, b) => a + b, 0) / n;
  if (n < 2) return { n, mean, low: null, high: null };
  const half = quantile(n) * Math.sqrt(d.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (n - 1) / n);
  return { n, mean, low: mean - half, high: mean + half };
}

/* The newest finished run of each seed and order that both methods have, as tables count them. */
function pairsOf(group, a, b) {
  const newest = (method) => { const out = new Map();
    for (const run of DATA.runs.filter((r) => r.group === group.index && r.method === method && r.status === "finished").sort((p, q) => String(p.started).localeCompare(String(q.started)) || p.id.localeCompare(q.id))) out.set(seedKey(run), run);
    return out; };
  const left = newest(a), right = newest(b);
  return [...left.keys()].filter((key) => right.has(key)).sort((p, q) => p.localeCompare(q, "en", { numeric: true })).map((key) => ({ key, a: left.get(key), b: right.get(key) }));
}

VIEWS.duel = { title: "Duel", build() {
  const { group, field } = pickGroup((g) => g.rows.filter((r) => r.n).length > 1);
  if (!group) return emptyNote("A duel needs two methods with finished runs of one scenario.");
  const rows = group.rows.filter((r) => r.n), order = rows.map((r) => r.method);
  const rivals = order.filter((m) => !isBound(m)), first = rivals.length > 1 ? rivals : order;
  const a = order.find((m) => nameOf(m) === state.m1) ?? first[0], b = order.find((m) => nameOf(m) === state.m2 && m !== a) ?? first.find((m) => m !== a) ?? order.find((m) => m !== a);
  const options = order.map((m) => [nameOf(m), shortOf(m)]);
  const tools = el("div", { class: "bar" }, field, selectField("m1", "Method A", options, nameOf(a), (value) => setState({ m1: value, m2: value === nameOf(b) ? nameOf(a) : nameOf(b) })),
    selectField("m2", "Method B", options.filter(([name]) => name !== nameOf(a)), nameOf(b), (value) => setState({ m1: nameOf(a), m2: value })));
  const pairs = pairsOf(group, a, b);
  return [tools, el("section", {}, heading(`${shortOf(a)} against ${shortOf(b)}`, `${group.title} · ${plural(pairs.length, "common pair")} of seed and order`), duelMetrics(group, a, b, pairs)),
    duelMatrices(group, a, b), duelSets(group, a, b, pairs), duelSeeds(group, a, b, pairs), duelCosts(group, a, b), duelConfig(group, a, b), ailing(group)];
} };

const intervalText = ({ low, high }, digits = 2) => (isNumber(low) ? `${signed(low, digits)} to ${signed(high, digits)}` : "–");
const clear = ({ low, high }) => isNumber(low) && (low > 0 || high < 0);

function duelMetrics(group, a, b, pairs) {
  const rowOf = (method) => group.rows.find((r) => r.method === method);
  const names = [...group.metrics, ...Object.keys(rowOf(a).cells).filter((n) => !group.metrics.includes(n))].filter((n) => DATA.metrics[n].higher !== null && !DATA.metrics[n].cost);
  const byImage = (name) => { const found = (group.images[name] || []).find(([p, q]) => (p === a && q === b) || (p === b && q === a)); return found && { flip: found[0] === a ? 1 : -1, found }; };
  const ends = (flip, low, high) => (isNumber(low) ? `${signed(flip > 0 ? low : -high)} to ${signed(flip > 0 ? high : -low)}` : "–");
  return scroller("The two methods by each metric", el("table", { class: "data duel" }, el("thead", {}, el("tr", {}, [["metric", "", "left"], ["A", shortOf(a)], ["B", shortOf(b)], ["A − B", ""], ["over runs", "95 % paired t"],
    ["over images", "95 %, given these runs"], ["over new runs", "95 %, runs and images"], ["better", "", "left"]].map(([head, unit, side]) => el("th", { scope: "col", class: side }, head, unit ? el("span", { class: "unit" }, unit) : null)))),
  el("tbody", {}, names.map((name) => { const m = DATA.metrics[name], of = pairedInterval(pairs.map((p) => (isNumber(p.a.metrics[name]) && isNumber(p.b.metrics[name]) ? p.a.metrics[name] - p.b.metrics[name] : null)));
    if (!of.n) return null;
    // Of new runs the interval over them decides; where only these runs are told apart, that is said.
    const images = byImage(name), over = images && { low: images.found[6], high: images.found[7] };
    const doubt = clear(over || of) ? "" : images && clear({ low: images.found[3], high: images.found[4] }) ? ", for these runs" : ", not beyond doubt";
    const winner = of.mean === 0 ? "" : (of.mean > 0) === m.higher ? a : b;
    return el("tr", {}, el("th", { scope: "row", class: "left" }, m.label, el("span", { class: "unit" }, `${m.unit} ${m.arrow}`.trim())), [a, b].map((method) => el("td", {}, evidence(group, method, name, (rowOf(method).cells[name] || ["–"])[0]))),
      el("td", {}, el("strong", {}, signed(of.mean, m.decimals))), el("td", {}, intervalText(of)), el("td", {}, images ? ends(images.flip, images.found[3], images.found[4]) : "–"),
      el("td", {}, images ? ends(images.flip, images.found[6], images.found[7]) : "–"), el("td", { class: "left" }, winner === "" ? "equal" : `${shortOf(winner)}${doubt}`)); }))));
}

function duelMatrices(group, a, b) {
  const mine = group.learn && group.learn.methods[a], other = group.learn && group.learn.methods[b];
  if (!mine || !other) return null;
  const { phases, sets, learned } = group.learn, theme = dark() ? "dark" : "light";
  const difference = mine.matrix.map((row, i) => row.map((v, j) => (isNumber(v) && isNumber(other.matrix[i][j]) ? v - other.matrix[i][j] : null)));
  const limit = Math.max(5, Math.ceil(Math.max(0, ...difference.flat().filter(isNumber).map(Math.abs)) / 5) * 5);
  const plain = (method, values) => scroller(`Accuracy matrix of ${nameOf(method)}`, heatTable([methodLabel(method, el("span", { class: "family" }, "accuracy, %"))], phases, sets, values,
    { color: rampColor, text: (v) => fixed(v), diagonal: learned, say: (v) => fixed(v, 2) + " %", link: (i, j) => evidenceLink(group, method, `cell:${i},${j}`) }));
  return el("section", {}, heading("Matrices and their difference", "means over finished runs, accuracies on one scale"), el("p", { class: "bar" }, ramp(RAMP[theme], "0 %", "100 %"), ramp(DIVERGE[theme], `−${limit} points (B better)`, `+${limit} points (A better)`)),
    el("div", { class: "grid", style: { "--card": `${gridWidth(sets.length)}px` } }, plain(a, mine.matrix), plain(b, other.matrix), scroller("Difference of the matrices", heatTable(["A − B, points"], phases, sets, difference,
      { color: (v) => divergeColor(v, limit), text: (v) => signed(v), say: (v) => signed(v, 2) + " points" }))));
}

/* Paired differences per test set at the end, or per domain of the stream. */
function duelSets(group, a, b, pairs) {
  const blocks = [];
  const block = (title, sub, entries, good) => blocks.push(el("section", {}, heading(title, sub), intervalRows(title, entries, a, b, good)));
  const matrices = pairs.filter((p) => p.a.matrix && p.b.matrix && p.a.matrix.columns.length === p.b.matrix.columns.length && p.a.matrix.columns.length);
  if (group.learn && matrices.length) {
    const last = (run, j) => { const rates = ratesOf(run); return rates[rates.length - 1]?.[j]; };
    block("Per test set, after the last experience", "accuracy, A − B in points", group.learn.sets.map((name, j) => ({ name, ...pairedInterval(matrices.map((p) => (isNumber(last(p.a, j)) && isNumber(last(p.b, j)) ? last(p.a, j) - last(p.b, j) : null))) })), 1);
  }
  const streams = pairs.filter((p) => p.a.stream && p.b.stream);
  if (group.stream && streams.length) block("Per domain of the stream", "online error, A − B in points", group.stream.entries.map((e, k) => ({ name: e.name.replace(/_/g, " "),
    ...pairedInterval(streams.map((p) => (p.a.stream[k] && p.b.stream[k] ? errorOf(p.a.stream[k]) - errorOf(p.b.stream[k]) : null))) })), -1);
  return blocks;
}

function intervalRows(title, entries, a, b, good) {
  const known = entries.filter((e) => e.n), ends = known.flatMap((e) => [e.mean, e.low, e.high]).filter(isNumber);
  if (!known.length) return emptyNote("Nothing that both have measured.");
  const middle = Math.max(...known.map((e) => Math.abs(e.mean)), 1), limit = Math.min(Math.max(...ends.map(Math.abs), 1), 3 * middle), width = 320;
  const x = (v) => width / 2 + Math.max(-1, Math.min(1, v / limit)) * (width / 2 - 6);
  return [scroller(title, el("table", { class: "data intervals" }, el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "left" }, "on"), el("th", { scope: "col" }, "A − B", el("span", { class: "unit" }, "points")),
    el("th", { scope: "col" }, "95 % paired t"), el("th", { scope: "col" }, "n"), el("th", { scope: "col", class: "left" }, `−${fixed(limit, 0)} to +${fixed(limit, 0)}`))), el("tbody", {}, known.map((e) => {
    const color = methodStyle((e.mean > 0) === (good > 0) ? a : b).color;
    return el("tr", {}, el("th", { scope: "row", class: "left" }, e.name), el("td", {}, clear(e) ? el("strong", {}, signed(e.mean, 2)) : signed(e.mean, 2)), el("td", {}, intervalText(e)), el("td", {}, e.n), el("td", { class: "left" },
      svg("svg", { class: "forest", width, height: 16, "aria-hidden": "true" }, svg("line", { x1: width / 2, x2: width / 2, y1: 0, y2: 16, stroke: "var(--strong-line)" }),
        isNumber(e.low) ? svg("line", { x1: x(e.low), x2: x(e.high), y1: 8, y2: 8, stroke: color, "stroke-width": 3, opacity: 0.5 }) : null, svg("circle", { cx: x(e.mean), cy: 8, r: 4, fill: color }))));
  })))), notesList([`Bold: the interval leaves out 0. A mark has the colour of the method that is better there: ${shortOf(a)} (A) or ${shortOf(b)} (B).`])];
}

function duelSeeds(group, a, b, pairs) {
  const metric = group.primary, m = DATA.metrics[metric], second = group.metrics.includes("forgetting") && metric !== "forgetting" ? "forgetting" : null;
  const names = [metric, second].filter(Boolean);
  if (!pairs.length) return el("section", {}, heading("Seed by seed"), emptyNote("The two have no seed and order in common."));
  return el("section", {}, heading("Seed by seed", names.map((n) => DATA.metrics[n].label).join(", ")), scroller("Seed by seed", el("table", { class: "data seeds" }, el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "left" }, "pair"),
    names.flatMap((n) => [["A", n], ["B", n], ["A − B", n]].map(([head]) => el("th", { scope: "col" }, head, el("span", { class: "unit" }, DATA.metrics[n].label))))), ), el("tbody", {}, pairs.map((p) => el("tr", {}, el("th", { scope: "row", class: "left" }, p.key),
    names.flatMap((n) => { const [x, y] = [p.a.metrics[n], p.b.metrics[n]];
      return [el("td", {}, el("a", { href: stateLink({ view: "runs", run: p.a.id }), class: "ev", tabindex: -1 }, fixed(x, m.decimals))), el("td", {}, el("a", { href: stateLink({ view: "runs", run: p.b.id }), class: "ev", tabindex: -1 }, fixed(y, m.decimals))),
        el("td", {}, isNumber(x) && isNumber(y) ? signed(x - y, m.decimals) : "–")]; })))))));
}

function duelCosts(group, a, b) {
  const cell = (method, name) => group.rows.find((r) => r.method === method).cells[name] || ["–", "", null];
  const known = group.costs.filter((name) => isNumber(cell(a, name)[2]) && isNumber(cell(b, name)[2]));
  if (!known.length) return null;
  return el("section", {}, heading("Cost", "means over finished runs"), scroller("Costs of the two", el("table", { class: "data costs" }, el("thead", {}, el("tr", {}, ["cost", "A", "B", "A : B"].map((head, i) => el("th", { scope: "col", class: i ? null : "left" }, head)))),
    el("tbody", {}, known.map((name) => { const [x, y] = [cell(a, name), cell(b, name)];
      return el("tr", {}, el("th", { scope: "row", class: "left" }, DATA.metrics[name].label, el("span", { class: "unit" }, DATA.metrics[name].unit)), el("td", {}, x[0]), el("td", {}, y[0]), el("td", {}, y[2] ? `${fixed(x[2] / y[2], 2)} ×` : "–")); })))),
  notesList([...new Set(known.map((name) => group.times[DATA.metrics[name].timed]).filter(Boolean))]));
}

function duelConfig(group, a, b) {
  const of = (method) => DATA.runs.find((r) => r.group === group.index && r.method === method && r.status === "finished");
  const [left, right] = [a, b].map((method) => { const flat = flatten(configOf(of(method))); delete flat.seed; return flat; });
  const keys = [...new Set([...Object.keys(left), ...Object.keys(right)])].filter((k) => k && left[k] !== right[k]).sort();
  return el("section", {}, heading("Settings that differ"), keys.length ? scroller("Settings that differ", el("table", { class: "data" }, el("thead", {}, el("tr", {}, [["key", "left"], [`A: ${shortOf(a)}`, "left"], [`B: ${shortOf(b)}`, "left"]].map(([head, side]) => el("th", { scope: "col", class: side }, head)))),
    el("tbody", {}, keys.map((k) => el("tr", {}, el("th", { scope: "row", class: "left mono" }, k), el("td", { class: "text mono" }, left[k] ?? "not set"), el("td", { class: "text mono" }, right[k] ?? "not set")))))) : el("p", { class: "lede" }, "No difference."));
}
