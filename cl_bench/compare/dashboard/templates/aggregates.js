/* Aggregates over scenarios (rliable): interquartile mean, probability of improvement, performance profile. */

function aggregateBlock(entry) {
  const of = entry.aggregate, metric = DATA.metrics[entry.metric];
  if (!of) return null;
  const score = metric.higher ? metric.label : `100 − ${metric.label}`, order = entry.methods.map((method, i) => ({ method, i })).filter(({ method }) => shown(method)).sort((p, q) => of.iqm[q.i] - of.iqm[p.i]);
  if (!order.length) return null;
  const series = order.map(({ method, i }) => ({ method, name: shortOf(method), style: methodStyle(method), mean: of.profile[i].map((v) => 100 * v), low: [], high: [] }));
  const few = of.runs[0] === of.runs[1] ? plural(of.runs[0], "run") : `${of.runs[0]} to ${of.runs[1]} runs`;
  return el("div", { class: "aggregate" }, el("h3", {}, `${score[0].toUpperCase()}${score.slice(1)}: the runs of ${plural(entry.scenarios.length, "scenario")} together`),
    scroller("Interquartile means and probability of improvement", el("table", { class: "data improvement" }, el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "left" }, "method"), el("th", { scope: "col" }, "interquartile mean", el("span", { class: "unit" }, "%")), el("th", { scope: "col" }, "95 % bootstrap"),
      order.map(({ method }) => el("th", { scope: "col", title: `P(better than ${nameOf(method)})` }, `P(> ${shorten(shortOf(method), 12)})`)))),
    el("tbody", {}, order.map(({ method, i }) => el("tr", {}, el("th", { scope: "row", class: "left" }, methodLabel(method, [], false)), el("td", {}, fixed(of.iqm[i], 2)), el("td", {}, isNumber(of.low[i]) ? `${fixed(of.low[i], 2)} to ${fixed(of.high[i], 2)}` : "–"),
      order.map((other) => el("td", {}, other.i === i ? "" : fixed(of.better[i][other.i], 2)))))))),
    lineChart(`Performance profile over ${score}`, of.thresholds.map((t) => fixed(t, 0)), series, { yTitle: "share of runs above (%)", xTitle: `${score} (%)`, markers: false, range: [-2, 102], height: 340, ticks: 12, numbers: false,
      note: "The share of runs that score more than what the axis says; the higher line is better everywhere it is higher." }),
    notesList([`Interquartile mean: of the middle half of all runs. P(row > column): that a run of the row's method scores higher than one of the column's on the same scenario, averaged over scenarios; ties count half (Agarwal et al. 2021). ${few} of each method and scenario; intervals resample the runs of each scenario.`]));
}
