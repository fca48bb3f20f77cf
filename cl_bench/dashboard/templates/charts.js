/* Charts on plotly: one look for all of them, lines named at their ends, the numbers below as a table. */

const cssVar = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const escapeText = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const narrow = () => window.innerWidth < 640;
const waiting = [];  // charts are drawn once their container stands in the page and has a width

function alpha(hex, a) {
  const n = parseInt(hex.slice(1), 16);
  return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${a})`;
}

function axis(title, extra = {}) {
  return { title: { text: title, font: { size: 13, color: cssVar("--muted") }, standoff: 12 }, gridcolor: cssVar("--line"),
    linecolor: cssVar("--strong-line"), zeroline: false, tickfont: { size: 12, color: cssVar("--muted") }, ticks: "",
    automargin: true, fixedrange: true, ...extra };
}

function layoutOf(extra = {}) {
  return { height: 380, margin: { l: 56, r: 24, t: 12, b: 48 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: cssVar("--sans") || "sans-serif", size: 12.5, color: cssVar("--text") }, showlegend: false,
    hovermode: "closest", hoverlabel: { font: { size: 12.5 }, bgcolor: cssVar("--raised"), bordercolor: cssVar("--strong-line") },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: cssVar("--faint"), activecolor: cssVar("--text") }, ...extra };
}

function chart(label, traces, layout, note, numbers) {
  const div = el("div", { class: "plot", role: "img", "aria-label": label });
  div.style.minHeight = (layout.height || 380) + "px";
  waiting.push(() => { div.drawn = Plotly.newPlot(div, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false }); });
  return el("figure", {}, div, note ? el("figcaption", {}, note) : null, numbers || null);
}

/* A chart may still be drawing when the reader goes on: it is cleared once it is done. */
function clearCharts(root) {
  waiting.length = 0;
  for (const div of root.querySelectorAll(".plot")) if (div.drawn) div.drawn.then(() => Plotly.purge(div));
}

function flushCharts() {
  for (const job of waiting.splice(0)) job();
}

/* Range of the values with some air; never outside [low, high]. */
function rangeOf(values, low = -Infinity, high = Infinity) {
  const known = values.filter(isNumber);
  if (!known.length) return [0, 1];
  const min = Math.min(...known), max = Math.max(...known), air = Math.max((max - min) * 0.07, 0.5);
  return [Math.max(low - air / 4, min - air), Math.min(high + air / 4, max + air)];  // a point on the edge stays whole
}

/* Names at the right end of lines. Where they would overlap they are spread around their common middle (pooled blocks,
   as in isotonic regression), so that a cluster of lines keeps its names beside it. */
function endLabels(series, range, plotHeight) {
  const gap = 16;
  const ends = series.map((s) => {
    const last = s.mean.reduce((found, v, i) => (isNumber(v) ? i : found), -1);
    return last < 0 ? null : { s, y: s.mean[last], px: (s.mean[last] - range[0]) / (range[1] - range[0]) * plotHeight };
  }).filter(Boolean).sort((p, q) => p.px - q.px);
  const blocks = [];
  for (const end of ends) {
    blocks.push({ members: [end], middle: end.px });
    while (blocks.length > 1) {
      const [low, high] = blocks.slice(-2);
      if (high.middle - low.middle >= (low.members.length + high.members.length) / 2 * gap) break;
      const members = [...low.members, ...high.members];
      blocks.splice(-2, 2, { members, middle: members.reduce((sum, e) => sum + e.px, 0) / members.length });
    }
  }
  for (const { members, middle } of blocks) {
    const half = (members.length - 1) / 2 * gap;
    const centre = Math.max(half - 4, Math.min(middle, plotHeight - half + 4));
    members.forEach((end, i) => { end.at = centre - half + i * gap; });
  }
  return ends.map((end) => ({ xref: "paper", x: 1, xanchor: "left", xshift: 10, yref: "y", y: end.y, yshift: end.at - end.px,
    text: escapeText(shorten(end.s.name, 20)), showarrow: false, font: { size: 12.5, color: labelColor(end.s.style) } }));
}

const shorten = (text, n) => (text.length > n ? text.slice(0, n - 1) + "…" : text);

/* series: [{name, style, mean, low, high, partial, marks}] over common x. */
function lineChart(label, x, series, options) {
  const o = { height: 400, unit: "%", markers: true, ...options };
  const values = series.flatMap((s) => [...s.mean, ...(s.low || []), ...(s.high || [])]);
  const range = o.range || rangeOf(values, o.floor ?? -Infinity, o.ceiling ?? Infinity);
  const ends = !narrow() && series.length <= 14 && o.labels !== false;
  const bottom = o.bottom || 52, top = 14;
  const traces = [];
  const at = x.map((_, i) => i);
  for (const s of series) {
    const known = at.filter((i) => isNumber((s.low || [])[i]) && isNumber((s.high || [])[i]));
    if (known.length > 1) traces.push({ x: [...known, ...[...known].reverse()], y: [...known.map((i) => s.high[i]),
      ...[...known].reverse().map((i) => s.low[i])], fill: "toself", fillcolor: alpha(s.style.color, dark() ? 0.2 : 0.13),
    line: { width: 0 }, mode: "lines", hoverinfo: "skip", type: "scatter" });
  }
  for (const s of series) {
    traces.push({ x: at, y: s.mean, type: "scatter", mode: o.markers ? "lines+markers" : "lines", connectgaps: false,
      line: { color: s.style.color, width: 2, dash: s.partial ? "dot" : s.style.dash },
      marker: { color: s.style.color, symbol: s.style.symbol, size: o.markerSize || 7 },
      customdata: at.map((i) => [isNumber((s.low || [])[i]) ? `${fixed(s.low[i])} to ${fixed(s.high[i])}` : "one run",
        escapeText(x[i])]),
      hovertemplate: `<b>${escapeText(s.name)}</b>${s.partial ? " (unfinished)" : ""}<br>%{customdata[1]}: %{y:.2f} ${o.unit}` +
        "<br>95 %: %{customdata[0]}<extra></extra>" });
    if (s.marks && s.marks.length) traces.push({ x: s.marks, y: s.marks.map((i) => s.mean[i]), type: "scatter", mode: "markers",
      marker: { symbol: "x-thin", size: 12, line: { width: 2.5, color: cssVar("--warn") } }, hoverinfo: "skip" });
  }
  const step = Math.max(1, Math.ceil(x.length / (o.ticks || 16)));
  const shownTicks = at.filter((i) => i % step === 0);
  const layout = layoutOf({ height: o.height, margin: { l: 58, r: ends ? 150 : 14, t: top, b: bottom },
    xaxis: axis(o.xTitle || "", { tickmode: "array", tickvals: shownTicks, ticktext: shownTicks.map((i) =>
      escapeText(shorten(x[i], 18))), tickangle: o.angle ?? 0, showgrid: false, range: [-0.35, x.length - 0.65],
    automargin: false }),
    yaxis: axis(o.yTitle, { range, automargin: false }), shapes: o.shapes || [],
    annotations: [...(ends ? endLabels(series, range, o.height - top - bottom) : []), ...(o.annotations || [])] });
  const numbers = numbersTable(label, ["", ...x], series.map((s) => [s.name, ...s.mean.map((v, i) =>
    fixed(v, 2) + (isNumber((s.low || [])[i]) ? ` ± ${fixed((s.high[i] - s.low[i]) / 2, 2)}` : ""))]));
  return chart(label, traces, layout, o.note, o.numbers === false ? null : numbers);
}

/* Points with error bars: [{name, style, x, xl, xh, y, yl, yh, label}]. */
function scatterChart(label, points, options) {
  const o = { height: 440, ...options };
  const place = labelSides(points, o.log, o.labelsBelow);
  const traces = points.map((p, i) => ({ x: [p.x], y: [p.y], type: "scatter", mode: narrow() ? "markers" : "markers+text",
    text: [escapeText(shorten(p.name, 22))], textposition: place[i], textfont: { color: labelColor(p.style), size: 12.5 },
    cliponaxis: false, marker: { color: p.style.color, symbol: p.style.symbol, size: 11,
      line: { width: p.style.symbol.endsWith("-open") ? 2 : 0, color: p.style.color } },
    error_x: bar(p.x, p.xl, p.xh, p.style.color), error_y: bar(p.y, p.yl, p.yh, p.style.color),
    hovertemplate: `<b>${escapeText(p.name)}</b><br>${escapeText(o.xTitle)}: %{x:.4g}<br>${escapeText(o.yTitle)}: %{y:.2f}<extra></extra>` }));
  const layout = layoutOf({ height: o.height, margin: { l: 62, r: 40, t: 20, b: 56 },
    xaxis: axis(o.xTitle, { type: o.log ? "log" : "linear", ...(o.log ? { dtick: 1, minor: { ticks: "outside",
      ticklen: 3, tickcolor: cssVar("--strong-line") } } : {}), ...(o.xRange ? { range: o.xRange } : {}) }),
    yaxis: axis(o.yTitle, o.yRange ? { range: o.yRange } : {}), shapes: o.shapes || [], annotations: o.annotations || [] });
  const numbers = numbersTable(label, ["", o.xTitle, o.yTitle], points.map((p) => [p.name, fixed(p.x, 2), fixed(p.y, 2)]));
  return chart(label, [...(o.behind || []), ...traces], layout, o.note, numbers);
}

function bar(v, low, high, color) {
  if (!isNumber(low) || !isNumber(high) || high - low < 1e-9) return { visible: false };
  return { type: "data", symmetric: false, array: [high - v], arrayminus: [v - low], color: alpha(color, 0.55), thickness: 1.3,
    width: 0 };
}

/* A label goes above its point (or below it, where a line comes from above), or where no other point or label is. */
function labelSides(points, log, below) {
  const xs = points.map((p) => (log ? Math.log10(Math.max(p.x, 1e-9)) : p.x)), ys = points.map((p) => p.y);
  const w = Math.max(...xs) - Math.min(...xs) || 1, h = Math.max(...ys) - Math.min(...ys) || 1;
  const taken = points.map((_, i) => [xs[i] / w, ys[i] / h, 0.02]);
  return points.map((p, i) => {
    const half = 0.006 * p.name.length + 0.01;
    const first = below ? { "bottom center": [0, -0.055], "top center": [0, 0.055] } : { "top center": [0, 0.055], "bottom center": [0, -0.055] };
    const spots = { ...first, "middle right": [half + 0.025, 0],
      "middle left": [-half - 0.025, 0] };
    const free = Object.entries(spots).map(([side, [dx, dy]]) => {
      const cx = xs[i] / w + dx, cy = ys[i] / h + dy;
      const hits = taken.filter(([tx, ty, r], k) => k !== i && Math.abs(tx - cx) < half + r && Math.abs(ty - cy) < 0.05).length;
      return { side, hits, cx, cy };
    });
    const best = free.reduce((a, b) => (b.hits < a.hits ? b : a));
    taken.push([best.cx, best.cy, half]);
    return best.side;
  });
}
