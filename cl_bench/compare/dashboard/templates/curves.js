/* Forgetting, anytime accuracy and test-time streams: lines with bands over experiences or domains. */

const SINCE = { best: "best earlier accuracy (Chaudhry)", learned: "accuracy right after learning (Avalanche)",
  best_any: "best accuracy, last included (Mammoth, PILOT)" };

function seriesOf(entries, pick) {
  return Object.entries(entries).map(([m, e]) => [Number(m), e]).filter(([m]) => shown(m)).map(([m, e]) => {
    const [mean, low, high] = pick(e);
    return { method: m, name: shortOf(m), style: methodStyle(m), mean, low, high, partial: e.partial };
  }).filter((s) => s.mean.some(isNumber));
}

/* What the tests over runs say of a column, in words: who is best and who cannot be told from it. */
function significance(group, metric) {
  const rows = group.rows.filter((r) => shown(r.method) && isNumber((r.cells[metric] || [])[2]) && r.standings[metric]);
  const some = (names) => (names.length > 8 ? [...names.slice(0, 8), `${names.length - 8} more`] : names);
  const named = (word) => rows.filter((r) => r.standings[metric][0] === word).map((r) => cutName(r.method, 30) + (word === "behind" ? ` (${pEquals(r.standings[metric][1])})` : ""));
  const best = rows.find((r) => r.standings[metric][0] === "best"), m = DATA.metrics[metric];
  if (!best) return [];
  const bounds = rows.filter((r) => DATA.methods[r.method].reference).map((r) => `${shortOf(r.method)} ${r.cells[metric][0]}`);
  const part = (names, text) => (names.length ? ` ${text}: ${some(names).join(", ")}.` : "");
  return [`${m.higher ? "Highest" : "Lowest"} ${m.label}: ${shortOf(best.method)}, ${best.cells[metric][0]} ${m.unit}.` + part(named("behind"), "Significantly behind it")
    + part(named("tied"), "Not distinguishable from it") + part(named("undecided"), "Too few pairs of runs to tell from it") + part(bounds, "Bounds, no competitors")];
}

const phaseTitle = "after learning";

VIEWS.forgetting = { title: "Forgetting", build() {
  const { group, field } = pickGroup((g) => g.learn);
  if (!group) return emptyNote("No run shown here has an accuracy matrix, from which forgetting is computed.");
  const since = SINCE[state.since] ? state.since : "best";
  const tools = el("div", { class: "bar" }, field, selectField("since", "Measured from", Object.entries(SINCE), since,
    (value) => setState({ since: value })));
  const series = seriesOf(group.learn.methods, (e) => e.forgetting[since]);
  const indices = Object.keys(group.learn.methods).map(Number);
  return [tools, methodChips(indices), el("section", {}, heading("Average forgetting", group.title),
    series.length ? lineChart(`Average forgetting of ${group.title}, in points, after each experience`, group.learn.phases.slice(1),
      series.map((s) => ({ ...s, mean: s.mean.slice(1), low: s.low.slice(1), high: s.high.slice(1) })),
      { open: (m, i) => evidenceLink(group, m, i === group.learn.phases.length - 2 ? { best: "forgetting", learned: "forgetting_learned", best_any: "forgetting_best_any" }[since] : `row:${i + 1}`), yTitle: "forgetting (points)", xTitle: phaseTitle, unit: "points", note: `Mean over the test sets learned earlier: ${SINCE[since]} minus accuracy now. ` + bandNote(series) })
      : emptyNote("Forgetting needs at least two experiences, and test sets that say which experience teaches them."),
    notesList(significance(group, { best: "forgetting", learned: "forgetting_learned", best_any: "forgetting_best_any" }[since])), ailing(group)),
  group.anatomy ? el("section", {}, heading("Where lost images went", "% of each test set, mean over runs"), el("p", { class: "lede" },
    "Rows: test sets. Columns: the experience whose class an image is taken for at the end, among images that were right just after learning and are wrong now. Outlined: confused with " +
    "a class of its own experience. Point at a cell for when they were lost."), el("div", { class: "grid", style: { "--card": `${gridWidth(group.anatomy.experiences.length)}px` } },
    group.rows.map((r) => r.method).filter((m) => group.anatomy.methods[m] && shown(m)).map((m) => anatomyCard(group, m)))) : null,
  group.lost.length ? el("section", {}, heading("Images that were lost", "right just after learning, wrong at the end"), group.lost.filter((entry) => shown(entry.method)).map((entry) => lostImages(group, entry))) : null,
  el("section", {}, heading("Each test set on its own", "accuracy (%) after each experience, mean over runs"),
    taskKey(group), el("div", { class: "grid" }, group.rows.map((r) => r.method).filter((m) => group.learn.methods[m] && shown(m))
      .map((m) => taskChart(group, m))))];
} };

/* One method's heat map of losses; a cell's tooltip says after which experiences its test set lost images. */
function anatomyCard(group, method) {
  const { to, after, back, n } = group.anatomy.methods[method], sets = group.learn.sets, old = sets.map((_, j) => j).filter((j) => to[j].some(isNumber));
  const when = (j) => after[j].map((v, t) => (isNumber(v) && (v || back[j][t]) ? `${group.learn.phases[t]}: ${fixed(v)} % lost, ${fixed(back[j][t])} % regained` : "")).filter(Boolean).join("; ");
  const table = heatTable([methodLabel(method, el("span", { class: "family" }, plural(n, "run")))], old.map((j) => sets[j]), group.anatomy.experiences, old.map((j) => to[j]),
    { color: rampColor, text: (v) => (v ? fixed(v) : ""), link: (i) => evidenceLink(group, method, `cell:${group.learn.phases.length - 1},${old[i]}`), diagonal: group.anatomy.experiences.map((_, k) => old.indexOf(k)), say: (v) => fixed(v, 1) + " % of its images" });
  table.querySelectorAll("tbody tr").forEach((row, i) => row.querySelectorAll("td").forEach((cell) => { cell.title = cell.title.replace(/^after /, "lost of ").replace(", on ", ", to ") + (when(old[i]) ? `. ${when(old[i])}` : ""); }));
  table.querySelectorAll("tbody th").forEach((head, i) => { head.textContent = shorten(sets[old[i]], 14); });
  return scroller(`Where lost images of ${nameOf(method)} went`, table);
}

/* Pictures of the images that a method's first run lost, test set by test set. */
function lostImages(group, { method, run, seed, images }) {
  const sets = [...new Set(images.map((image) => image.set))];
  return el("details", { class: "lost" }, el("summary", {}, `${shortOf(method)}, seed ${seed}`), sets.map((name) => el("div", {}, el("h3", {}, name), el("div", { class: "pictures" }, images.filter((image) => image.set === name).map((image) =>
    el("figure", { title: `lost after ${image.after}` }, el("img", { src: image.src, alt: `an image of class ${image.truth} that is taken for class ${image.said}`, width: 48 }), el("figcaption", {}, `${image.truth} → ${image.said}`)))))));
}

/* Test sets in their order of learning: one hue from light to dark, so that old and new are seen at once. */
function taskColor(j, count) {
  const stops = dark() ? [[84, 99, 117], [79, 168, 224], [226, 242, 255]] : [[176, 200, 220], [52, 130, 190], [12, 42, 82]];
  return "#" + along(stops, count > 1 ? j / (count - 1) : 1).map((v) => v.toString(16).padStart(2, "0")).join("");
}

function taskKey(group) {
  const sets = group.learn.sets;
  return el("p", { class: "key", style: { margin: "0 0 18px" } }, sets.length <= 10 ? sets.map((name, j) => el("span", { class: "method" },
    svg("svg", { width: 18, height: 10, "aria-hidden": "true" }, svg("line", { x1: 0, x2: 18, y1: 5, y2: 5, "stroke-width": 3,
      stroke: taskColor(j, sets.length) })), name)) : [ramp([0, 0.5, 1].map((t) => { const n = parseInt(taskColor(t * (sets.length - 1),
    sets.length).slice(1), 16); return [n >> 16, (n >> 8) & 255, n & 255]; }), "first learned", "last learned")]);
}

function taskChart(group, method) {
  const { phases, sets, learned } = group.learn, matrix = group.learn.methods[method].matrix;
  const series = sets.map((name, j) => ({ name, method, style: { color: taskColor(j, sets.length), dash: "solid", symbol: "circle" },
    mean: phases.map((_, i) => (learned[j] === null || i >= learned[j] ? matrix[i][j] : null)) }));
  return el("div", {}, el("h3", {}, methodLabel(method)),
    lineChart(`${nameOf(method)}: accuracy on each test set`, phases.map((p) => p.replace(/^(classes|class|task|experience) /, "")), series,
      { open: (_, i) => evidenceLink(group, method, `row:${i}`), height: 220, labels: false, range: [0, 103], yTitle: "", bottom: 30, markerSize: 5, ticks: 6, numbers: false }));
}

VIEWS.anytime = { title: "Anytime accuracy", nav: "Anytime", build() {
  const { group, field } = pickGroup((g) => g.learn);
  if (!group) return emptyNote("No run shown here has an accuracy matrix, from which anytime accuracy is computed.");
  const series = seriesOf(group.learn.methods, (e) => e.anytime);
  return [field ? el("div", { class: "bar" }, field) : null, methodChips(Object.keys(group.learn.methods).map(Number)),
    el("section", {}, heading("Anytime accuracy", group.title),
      series.length ? lineChart(`Average accuracy of ${group.title} after each experience, in percent`, group.learn.phases, series,
        { open: (m, i) => evidenceLink(group, m, `row:${i}`), yTitle: "average accuracy (%)", xTitle: phaseTitle, ceiling: 100, floor: 0, height: 440,
          note: "A_t: mean accuracy over the test sets learned so far. " + bandNote(series) }) : emptyNote("Nothing has been measured yet."),
      notesList(significance(group, "average_incremental_accuracy")), ailing(group))];
} };

VIEWS.stream = { title: "Test-time streams", nav: "Streams", build() {
  const { group, field } = pickGroup((g) => g.stream);
  if (!group) return emptyNote("No run shown here has a test-time stream.");
  const { entries, methods } = group.stream;
  const series = seriesOf(methods, (e) => e.error).map((s) => ({ ...s, marks: methods[s.method].collapsed
    .map((n, i) => (n ? i : -1)).filter((i) => i >= 0) }));
  const visits = [...new Set(entries.map((e) => e.visit))];
  const many = visits.length > 1;
  const starts = entries.map((e, i) => (i && e.visit !== entries[i - 1].visit ? i : -1)).filter((i) => i > 0);
  const shapes = starts.map((i) => ({ type: "line", x0: i - 0.5, x1: i - 0.5, yref: "paper", y0: 0, y1: 1, line: { color:
    cssVar("--strong-line"), width: 1 } }));
  const annotations = many ? [0, ...starts].map((i) => ({ x: i - 0.3, xanchor: "left", yref: "paper", y: 1.0, yanchor: "bottom",
    text: `visit ${entries[i].visit}`, showarrow: false, font: { size: 12, color: cssVar("--muted") } })) : [];
  const names = entries.map((e) => e.domain.replace(/_/g, " "));
  const collapses = series.filter((s) => s.marks.length);
  return [field ? el("div", { class: "bar" }, field) : null, methodChips(Object.keys(methods).map(Number)),
    el("section", {}, heading("Online error per domain", `${group.title} · in stream order`),
      series.length ? lineChart(`Online error of ${group.title} per domain in stream order, in percent`, names, series,
        { open: (m, i) => evidenceLink(group, m, `domain:${i}`), yTitle: "online error (%)", shapes, annotations, height: 480, bottom: 118, angle: -50, ticks: 32, markerSize: 5,
          floor: 0, ceiling: 100, note: bandNote(series) + (collapses.length ? " × marks a domain in which a model collapsed: one class takes 95 % of its predictions." : "") })
        : emptyNote("Nothing has been measured yet."),
      notesList(collapses.map((s) => `${s.name} collapsed in ${plural(s.marks.length, "domain")} (in at least one run), first in ${names[s.marks[0]]}, ` +
        `${many ? "visit " + entries[s.marks[0]].visit : "domain " + (s.marks[0] + 1)}.`)), notesList(significance(group, "mean_error")), ailing(group)),
    el("div", { class: "two" }, sourceChart(group), many ? visitChart(group) : null)];
} };

function visitChart(group) {
  const { methods } = group.stream;
  const visits = [...new Set(group.stream.entries.map((e) => e.visit))];
  const series = seriesOf(methods, (e) => e.visit_error).map((s) => ({ ...s }));
  return el("section", { style: { margin: 0 } }, heading("Recurring visits", "mean error (%) per visit"),
    lineChart("Mean error at each visit, in percent", visits.map((v) => `visit ${v}`), series, { yTitle: "mean error (%)", height: 340,
      floor: 0, ceiling: 100, open: (m) => evidenceLink(group, m, "mean_error") }));
}

/* Error on the clean source test set before and after the stream: what adapting cost. */
function sourceChart(group) {
  const rows = group.rows.map((r) => r.method).filter((m) => shown(m) && group.stream.methods[m]
    && isNumber(group.stream.methods[m].after[0][0])).reverse();
  if (!rows.length) return el("section", { style: { margin: 0 } }, heading("Source after the stream"), emptyNote(
    "The clean source was not measured after the stream."));
  const get = (m, key, k) => group.stream.methods[m][key][k][0];
  const traces = rows.flatMap((m, i) => {
    const s = methodStyle(m), before = get(m, "before", 0), after = get(m, "after", 0);
    return [{ x: [before, after], y: [i, i], mode: "lines", type: "scatter", meta: m, line: { color: alpha(s.color, 0.45), width: 3 }, hoverinfo: "skip" },
      { x: [before], y: [i], mode: "markers", type: "scatter", meta: m, marker: { symbol: "line-ns", size: 12, line: { width: 2, color: cssVar("--muted") } },
        hovertemplate: "before: %{x:.2f} %<extra></extra>" },
      { x: [after], y: [i], mode: "markers", type: "scatter", meta: m, marker: { color: s.color, symbol: s.symbol, size: 10 },
        error_x: bar(after, get(m, "after", 1), get(m, "after", 2), s.color),
        hovertemplate: `<b>${escapeText(nameOf(m))}</b><br>after: %{x:.2f} %<extra></extra>` }];
  });
  const values = rows.flatMap((m) => [get(m, "after", 0), get(m, "before", 0)]), around = rows.flatMap((m) => [get(m, "after", 1), get(m, "after", 2)]);
  const layout = layoutOf({ height: 60 + 34 * rows.length + 40, margin: { l: narrow() ? 90 : 120, r: 20, t: 10, b: 48 },
    xaxis: axis("error on the clean source (%)", { range: rangeOf(values, around, 0, 100) }), yaxis: axis("", { tickmode: "array", tickvals:
      rows.map((_, i) => i), ticktext: rows.map((m) => escapeText(cutName(m, 18))), showgrid: false, range: [-0.7, rows.length - 0.3],
    automargin: false }) });
  const numbers = numbersTable("Source error before and after", ["", "before (%)", "after (%)"], [...rows].reverse().map((m) =>
    [nameOf(m), fixed(get(m, "before", 0), 2), fixed(get(m, "after", 0), 2)]));
  return el("section", { style: { margin: 0 } }, heading("Source after the stream", "what adapting cost"),
    chart("Error on the clean source before and after the stream", traces, layout, "Tick: before the stream. Marker: after it, with 95 % interval. A point leads to its runs.", numbers, (m) => evidenceLink(group, m, "source_error_after")));
}
