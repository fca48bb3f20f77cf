/* Statistics: critical-difference diagram over scenarios, paired tests of all methods on one scenario. */

VIEWS.statistics = { title: "Statistics", build() {
  const { group, field } = pickGroup((g) => Object.keys(g.pairs).length);
  return [group ? el("section", {}, heading("Paired tests over runs", group.title), pairBlock(group, field))
    : el("section", {}, heading("Paired tests over runs"), emptyNote("Paired tests need two methods with finished runs of one scenario.")),
  group ? el("section", {}, heading("Paired tests over images", group.title), imageBlock(group)) : null,
  el("section", {}, heading("Critical difference over scenarios", "Friedman's test with Nemenyi's critical difference"),
    DATA.ranks.length ? DATA.ranks.map(rankBlock) : emptyNote("No finished run to rank.")),
  DATA.ranks.some((r) => r.aggregate) ? el("section", {}, heading("Aggregates over scenarios", "rliable: interquartile mean, probability of improvement, performance profile"), DATA.ranks.map(aggregateBlock)) : null,
  DATA.groups.some((g) => g.choices.length) ? el("section", {}, heading("Label-free selection", "what scorers that see no label would choose, and its gap to the oracle"),
    DATA.groups.filter((g) => g.choices.length).map(choiceBlock)) : null];
} };

/* Pairs of methods told apart by their answers image by image: what holds for these runs, and what for new ones. */
function imageBlock(group) {
  const metric = group.images[state.pair] ? state.pair : Object.keys(group.images)[0], m = DATA.metrics[metric];
  if (!metric) return emptyNote("Tests over images need runs whose records keep the true classes beside the predictions, on common seeds.");
  const rows = group.images[metric].filter(([a, b]) => shown(a) && shown(b));
  const ends = (low, high) => (isNumber(low) ? `${signed(low)} to ${signed(high)}` : "–");
  return [el("p", { class: "lede" }, `First minus second method in points of ${m.label}. Given these runs: would other images show the same difference between these trained models? ` +
    "Over new runs: would other seeds show it too? Few runs give wide answers to the second question, not to the first."),
  scroller("Paired tests over images", el("table", { class: "data images" }, el("thead", {}, el("tr", {}, [["pair", "", "left"], ["difference", "points"], ["given these runs", "95 %"], ["p", "Holm"],
    ["over new runs", "95 %"], ["p", "Holm"], ["P(first better)", "over new runs"], ["from the runs", "% of variance"], ["runs × images", ""]].map(([head, unit, side]) =>
    el("th", { scope: "col", class: side }, head, unit ? el("span", { class: "unit" }, unit) : null)))),
  el("tbody", {}, rows.map(([a, b, mean, low, high, pGiven, from, to, pNew, above, share, runs, images]) => {
    const sure = (p, text) => (isNumber(p) && p <= 0.05 ? el("strong", {}, text) : text);
    return el("tr", {}, el("th", { scope: "row", class: "left" }, methodLabel(a, [], false), " − ", methodLabel(b, [], false)), el("td", {}, signed(mean, 1)),
      el("td", {}, sure(pGiven, ends(low, high))), el("td", {}, pText(pGiven)), el("td", {}, sure(pNew, ends(from, to))), el("td", {}, pText(pNew)),
      el("td", {}, fixed(m.higher ? above : 1 - above, 2)), el("td", {}, isNumber(share) ? fixed(100 * share, 0) : "–"), el("td", {}, `${runs} × ${images}`));
  })))), notesList([metric === state.pair || !state.pair ? "" : `Shown for ${m.label}: ${DATA.metrics[state.pair].label} is no sum over images.`].filter(Boolean))];
}

/* One table per scenario: for each set of candidates the choice of each scorer, beside the oracle's. */
function choiceBlock(group) {
  const refused = [...new Set(group.choices.flatMap((c) => c.refused))];
  const said = (method) => (method === null ? "none: keep the source" : methodLabel(method, [], false));
  return el("div", { style: { marginBottom: "24px" } }, scroller(`Label-free selection on ${group.title}`, el("table", { class: "data" }, el("caption", { class: "cap" }, group.title),
    el("thead", {}, el("tr", {}, [["among", "", "left"], ["scorer", "", "left"], ["chooses", "", "left"], ["its error", "%"], ["oracle", "", "left"], ["its error", "%"], ["gap", "points"],
      ["rank correlation", "Spearman"]].map(([head, unit, side]) => el("th", { scope: "col", class: side }, head, unit ? el("span", { class: "unit" }, unit) : null)))),
    el("tbody", {}, group.choices.map((c, i) => el("tr", {}, el("th", { scope: "row", class: "left" }, i && group.choices[i - 1].among === c.among ? el("span", { class: "sr" }, c.among)
      : `${c.among} (${c.candidates})`), el("td", { class: "left" }, c.scorer), el("td", { class: "left" }, said(c.chosen)), el("td", {}, fixed(c.chosen_error, 2)),
    el("td", { class: "left" }, said(c.oracle)), el("td", {}, fixed(c.oracle_error, 2)), el("td", {}, fixed(c.gap, 2)), el("td", {}, fixed(c.correlation, 2))))))),
  notesList(["Scores see no label; each domain is a target of its own. Judge a method by a scorer that is not its own objective.",
    ...(refused.length ? [`Refused as collapsed beside the source model: ${refused.map(shortOf).join(", ")}.`] : []),
    ...(group.choices[0].gated ? [] : ["No run of the source model is here: collapsed candidates were not refused."])]));
}

function rankBlock(entry) {
  const metric = DATA.metrics[entry.metric], label = metric.label[0].toUpperCase() + metric.label.slice(1);
  const gone = entry.left_out.length ? ` Left out: ${entry.left_out.join("; ")}.` : "";
  if (!entry.ranks) return el("p", { class: "aside" }, `${label}: no ranks. They need two methods that have finished runs on the same two scenarios at least; ` +
    `here ${plural(entry.scenarios.length, "scenario")} with this metric and two methods or more${entry.scenarios.length ? ` (${entry.scenarios.join(", ")})` : ""}.${gone}`);
  const differ = isNumber(entry.p_f) && entry.p_f <= 0.05;
  const note = `${differ ? "Some methods differ in rank" : "No difference of ranks can be shown"}: ${pEquals(entry.p_f)} (Friedman's test in the form of Iman and Davenport, F = ` +
    `${isNumber(entry.f) ? fixed(entry.f, 2) : "∞"}). ${differ ? "" : "Bars and distances are then not to be read as differences. "}Critical difference ${fixed(entry.difference, 2)} (α = 0.05). Methods joined by a bar are not distinguishable.` +
    (entry.scenarios.length < 5 ? ` ${entry.scenarios.length} scenarios are few: with so few, only very large differences of rank can show.` : "") + gone;
  return el("figure", { style: { marginBottom: "28px" } }, el("h3", {}, `${label}: mean ranks over ${plural(entry.scenarios.length, "scenario")}`),
    el("p", { class: "aside" }, entry.scenarios.join(", ")), scroller("Critical-difference diagram", diagram(entry)), el("figcaption", {}, note),
    numbersTable("Mean ranks", ["method", "mean rank"], entry.methods.map((m, i) => [nameOf(m), fixed(entry.ranks[i], 2)])));
}

function diagram(entry) {
  const k = entry.methods.length, width = 860, left = 210, right = width - 210, top = 66;
  const x = (rank) => left + (rank - 1) / (k - 1) * (right - left);
  const order = entry.ranks.map((rank, i) => ({ rank, method: entry.methods[i], i })).sort((a, b) => a.rank - b.rank);
  const half = Math.ceil(k / 2), bars = entry.cliques.length;
  const firstLabel = top + 26 + bars * 11;
  const height = firstLabel + half * 24 + 6;
  const parts = [svg("line", { class: "axis", x1: left, x2: right, y1: top, y2: top, "stroke-width": 1.5 })];
  for (let r = 1; r <= k; r++) parts.push(svg("line", { class: "axis", x1: x(r), x2: x(r), y1: top - 6, y2: top }),
    svg("text", { class: "tick", x: x(r), y: top - 12, "text-anchor": "middle" }, r));
  const span = Math.min(entry.difference / (k - 1) * (right - left), right - left);
  parts.push(svg("line", { class: "clique", x1: left, x2: left + span, y1: 24, y2: 24, style: "stroke-width: 1.5" }),
    svg("line", { class: "axis", x1: left, x2: left, y1: 19, y2: 29 }), entry.difference > k - 1 ? null
    : svg("line", { class: "axis", x1: left + span, x2: left + span, y1: 19, y2: 29 }),
  svg("text", { class: "tick", x: left, y: 12 }, `critical difference ${fixed(entry.difference, 2)}` + (entry.difference > k - 1 ? ": longer than the axis, nothing can differ" : "")));
  entry.cliques.forEach((clique, n) => {
    const ranks = clique.map((i) => entry.ranks[i]), y = top + 12 + n * 11;
    parts.push(svg("line", { class: "clique", x1: x(Math.min(...ranks)) - 4, x2: x(Math.max(...ranks)) + 4, y1: y, y2: y }));
  });
  order.forEach((entryOf, place) => {
    const onLeft = place < half, row = onLeft ? place : k - 1 - place, y = firstLabel + row * 24 + 10;
    const edge = onLeft ? left - 14 : right + 14, style = methodStyle(entryOf.method);
    parts.push(svg("polyline", { class: "leg", points: `${x(entryOf.rank)},${top} ${x(entryOf.rank)},${y} ${edge},${y}` }),
      svg("circle", { cx: x(entryOf.rank), cy: top, r: 4, fill: style.color }),
      svg("text", { x: onLeft ? edge - 8 : edge + 8, y: y + 4, "text-anchor": onLeft ? "end" : "start" },
        `${cutName(entryOf.method, 22)}  ${fixed(entryOf.rank, 2)}`));
  });
  return svg("svg", { class: "cd", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Critical-difference diagram; the mean ranks are in the table below" }, parts);
}

function pairBlock(group, field) {
  const metrics = Object.keys(group.pairs);
  const metric = metrics.includes(state.pair) ? state.pair : metrics[0], m = DATA.metrics[metric];
  const pairs = group.pairs[metric], k = pairs.methods.length;
  const test = (i, j) => {  // stored for i < j; the other half mirrors it
    const [a, b] = i < j ? [i, j] : [j, i];
    const [n, mean, low, high, sign, wilcoxon, delta, smallest, from, to] = pairs.tests[a * k - a * (a + 1) / 2 + (b - a - 1)];
    const flip = i < j ? 1 : -1;
    return { n, mean: isNumber(mean) ? flip * mean : null, low: flip > 0 ? low : isNumber(high) ? -high : null,
      high: flip > 0 ? high : isNumber(low) ? -low : null, sign, wilcoxon, delta: isNumber(delta) ? flip * delta : null, smallest,
      from: flip > 0 ? from : isNumber(to) ? -to : null, to: flip > 0 ? to : isNumber(from) ? -from : null };
  };
  const order = pairs.methods.map((method, i) => ({ method, i })).filter(({ method }) => shown(method));
  const limit = Math.max(1, ...pairs.tests.map((t) => Math.abs(t[1] || 0)));
  const good = m.higher ? 1 : -1;
  const cell = (row, column) => {
    if (row.i === column.i) return el("td", { class: "hole" }, el("span", { class: "sr" }, "the same method"));
    const t = test(row.i, column.i);
    if (!t.n) return el("td", { class: "hole", title: "no common seed and order" }, "–", el("span", { class: "sr" }, "no common pair"));
    const sure = isNumber(t.sign) && t.sign <= 0.05;
    const rgb = divergeColor(good * t.mean * 0.85, limit);
    return el("td", { title: `${nameOf(row.method)} minus ${nameOf(column.method)}: ${signed(t.mean, 2)} ${m.unit === "%" ? "points" : m.unit}` +
      (isNumber(t.low) ? `, 95 % ${signed(t.low, 2)} to ${signed(t.high, 2)}` : "") + `; sign-flip ${pEquals(t.sign)}, Wilcoxon ${pEquals(t.wilcoxon)} (Holm); ` +
      `Cliff's delta ${fixed(t.delta, 2)}; n = ${t.n}, smallest possible p ${pText(t.smallest)}`, style: { background: css(rgb), color: inkOn(rgb) } },
    sure ? el("strong", {}, signed(t.mean, 2)) : signed(t.mean, 2), el("small", {}, t.smallest * pairs.tests.length > 0.05 ? `n = ${t.n}` : pEquals(t.sign)));
  };
  const ns = pairs.tests.map((t) => t[0]), fewest = Math.min(...ns), most = Math.max(...ns);
  const best = Math.min(...pairs.tests.map((t) => t[7]));
  const few = best * pairs.tests.length > 0.05;
  const cut = pairs.of > k ? [`The ${k} best of ${pairs.of} methods by this metric are tested pair by pair, and Holm's correction is for these pairs alone. Marks in the tables test every method against the best.`] : [];
  const notes = [...(few ? [`Too few pairs to tell any two methods apart by runs alone: the smallest p that ${plural(most, "pair")} can give is ${pText(best)}, times ${pairs.tests.length} ` +
    `for Holm's correction. A p-value is shown only where it could have been significant; point at a cell for its interval.`] : []), `n = ${fewest === most ? fewest : `${fewest} to ${most}`} common pairs of (seed, class order).`, ...cut];
  return [el("div", { class: "bar" }, field, selectField("pair", "Metric", metrics.map((name) => [name, `${DATA.metrics[name].label} (${DATA.metrics[name].unit})`]),
    metric, (value) => setState({ pair: value }))), methodChips([...pairs.methods].sort((a, b) => a - b)),
  el("p", { class: "lede" }, `Row minus column in ${m.unit === "%" ? "points" : m.unit} of ${m.label}, over paired runs. Blue: the row is better; orange: the column is better. Bold: p ≤ 0.05 (sign-flip permutation, Holm).`),
  few ? notesList(notes.slice(0, 1)) : null, scroller("Paired tests", el("table", { class: "heat pairs" }, el("thead", {}, el("tr", {}, el("td"), order.map((c) => el("th", { scope: "col", title: nameOf(c.method) },
    cutName(c.method, 12))))), el("tbody", {}, order.map((row) => el("tr", {}, el("th", { scope: "row", title: nameOf(row.method) }, cutName(row.method, 20)),
    order.map((column) => cell(row, column))))))), notesList(few ? notes.slice(1) : notes), ailing(group),
  numbersTable("Paired tests", ["pair", "n", "difference", "95 % t-interval", "95 % BCa bootstrap", "sign-flip p (Holm)", "Wilcoxon p (Holm)", "Cliff's delta", "smallest p"],
    order.flatMap((row, a) => order.slice(a + 1).map((column) => { const t = test(row.i, column.i); return [`${nameOf(row.method)} − ${nameOf(column.method)}`, t.n,
      signed(t.mean, 2), isNumber(t.low) ? `${signed(t.low, 2)} to ${signed(t.high, 2)}` : "–",
      isNumber(t.from) ? `${signed(t.from, 2)} to ${signed(t.to, 2)}` : "–", pText(t.sign), pText(t.wilcoxon), fixed(t.delta, 2), pText(t.smallest)]; })))];
}
