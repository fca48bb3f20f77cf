/* Charts on plotly: one look for all of them, lines named at their ends, the numbers below as a table. */

const cssVar = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const escapeText = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const narrow = () => window.innerWidth < 640;
const room = () => { const style = getComputedStyle(MAIN); return MAIN.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight); };
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

function chart(label, traces, layout, note, numbers, open = null) {
  const div = el("div", { class: "plot", role: "img", "aria-label": label });
  div.style.minHeight = (layout.height || 380) + "px";
  waiting.push({ div, job: () => {
    div.drawn = Plotly.newPlot(div, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
    div.drawn.then(() => {
      div.on("plotly_hover", (event) => emphasise(event.points[0].data.meta));
      div.on("plotly_unhover", () => emphasise(null));
      if (open) div.on("plotly_click", (event) => { const { data, pointIndex } = event.points[0]; if (data.meta !== undefined) { history.pushState(null, "", open(data.meta, pointIndex)); readState(); draw(); scrollTo(0, 0); } });
    });
  } });
  return el("figure", {}, div, note ? el("figcaption", {}, note) : null, numbers || null);
}

/* One method before the others: the rest fades, and a band that was left out for clarity shows. */
function emphasise(method) {
  const chosen = method !== null && method !== undefined;
  for (const trace of MAIN.querySelectorAll(".plot .scatterlayer > .trace")) {
    const { meta, opacity } = trace.__data__[0].trace;
    trace.style.opacity = !chosen || meta === undefined ? opacity : meta === method ? 1 : opacity * 0.15;
  }
}

/* A chart may still be drawing when the reader goes on: it is cleared once it is done. */
function clearCharts(root) {
  waiting.length = 0;
  seen.disconnect();
  for (const div of root.querySelectorAll(".plot")) if (div.drawn) div.drawn.then(() => Plotly.purge(div));
}

/* A chart is drawn when it is seen, or will be soon; on paper all of them are. */
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting && target.draw) { seen.unobserve(target); target.draw(); delete target.draw; }
}, { rootMargin: "400px" });

function flushCharts(all = printing) {
  for (const { div, job } of waiting.splice(0)) {
    if (all || div.getBoundingClientRect().top < innerHeight + 400) job();
    else { div.draw = job; seen.observe(div); }
  }
  if (all) for (const div of MAIN.querySelectorAll(".plot")) if (div.draw) { seen.unobserve(div); div.draw(); delete div.draw; }
}

/* Range of the values with some air; never outside [low, high]. ``around`` (ends of intervals) widens it too, but by no
   more than three quarters of the values' own range: two runs can have an interval that would flatten everything. */
function rangeOf(values, around = [], low = -Infinity, high = Infinity) {
  const known = values.filter(isNumber), wide = around.filter(isNumber);
  if (!known.length) return [0, 1];
  const bottom = Math.min(...known), top = Math.max(...known), more = Math.max((top - bottom) * 0.75, 2);
  const min = Math.max(bottom - more, Math.min(bottom, ...wide)), max = Math.min(top + more, Math.max(top, ...wide));
  const air = Math.max((max - min) * 0.07, 0.5);
  return [Math.max(low - air / 4, min - air), Math.min(high + air / 4, max + air)];  // a point on the edge stays whole
}

const BANDS = 8;  // more bands than these hide each other: then only the emphasised method's is drawn

/* Names at the right end of lines. Where they would overlap they are spread around their common middle (pooled blocks,
   as in isotonic regression), so that a cluster of lines keeps its names beside it. */
function endLabels(series, range, plotHeight) {
  const gap = 16;
  const ends = series.map((s) => {
    const last = s.mean.reduce((found, v, i) => (isNumber(v) ? i : found), -1);
    return last < 0 ? null : { s, y: s.mean[last], px: (s.mean[last] - range[0]) / (range[1] - range[0]) * plotHeight };
  }).filter(Boolean).sort((p, q) => p.px - q.px);
  const inside = (members, middle) => { const half = (members.length - 1) / 2 * gap; return Math.max(half - 4, Math.min(middle, plotHeight - half + 4)); };
  const blocks = [];
  for (const end of ends) {
    blocks.push({ members: [end], middle: inside([end], end.px) });
    while (blocks.length > 1) {
      const [low, high] = blocks.slice(-2);
      if (high.middle - low.middle >= (low.members.length + high.members.length) / 2 * gap) break;
      const members = [...low.members, ...high.members];
      blocks.splice(-2, 2, { members, middle: inside(members, members.reduce((sum, e) => sum + e.px, 0) / members.length) });
    }
  }
  for (const { members, middle } of blocks) members.forEach((end, i) => { end.at = middle + (i - (members.length - 1) / 2) * gap; });
  return ends.map((end) => ({ xref: "paper", x: 1, xanchor: "left", xshift: 10, yref: "y", y: end.y, yshift: end.at - end.px,
    text: escapeText(cutMark(end.s, 22)), showarrow: false, font: { size: 12.5, color: labelColor(end.s.style) } }));
}

/* Long names lose their middle: beginnings and ends tell settings of one method apart. */
const middle = (text, n) => (text.length > n ? `${text.slice(0, Math.ceil((n - 1) / 2))}…${text.slice(text.length - Math.floor((n - 1) / 2))}` : text);
const shorten = (text, n) => (text.length > n ? text.slice(0, n - 1) + "…" : text);

/* series: [{name, method, style, mean, low, high, partial, marks}] over common x. */
function lineChart(label, x, series, options) {
  const o = { height: 400, unit: "%", markers: true, ...options };
  const bottom = o.bottom || 52, top = 14, banded = series.length <= BANDS;
  const ends = !narrow() && series.length <= 26 && o.labels !== false;
  const height = ends ? Math.max(o.height, 16 * series.length + top + bottom) : o.height;
  const range = o.range || rangeOf(series.flatMap((s) => s.mean), banded ? series.flatMap((s) => [...(s.low || []), ...(s.high || [])]) : [],
    o.floor ?? -Infinity, o.ceiling ?? Infinity);
  const traces = [];
  const at = x.map((_, i) => i);
  let cut = false;
  for (const s of series) {
    const known = at.filter((i) => isNumber((s.low || [])[i]) && isNumber((s.high || [])[i]));
    cut ||= banded && known.some((i) => s.low[i] < Math.min(range[0], o.floor ?? Infinity) - 0.01 || s.high[i] > Math.max(range[1], o.ceiling ?? -Infinity) + 0.01);
    if (known.length > 1) traces.push({ x: [...known, ...[...known].reverse()], y: [...known.map((i) => s.high[i]),
      ...[...known].reverse().map((i) => s.low[i])], fill: "toself", fillcolor: alpha(s.style.color, dark() ? 0.2 : 0.13), meta: s.method,
    line: { width: 0 }, mode: "lines", hoverinfo: "skip", type: "scatter", opacity: banded ? 1 : 0 });
  }
  for (const s of series) {
    traces.push({ x: at, y: s.mean, type: "scatter", mode: o.markers ? "lines+markers" : "lines", connectgaps: false, meta: s.method,
      line: { color: s.style.color, width: 2, dash: s.partial ? "dot" : s.style.dash },
      marker: { color: s.style.color, symbol: s.style.symbol, size: o.markerSize || 7 },
      customdata: at.map((i) => [isNumber((s.low || [])[i]) ? `${fixed(s.low[i])} to ${fixed(s.high[i])}` : "one run",
        escapeText(x[i])]),
      hovertemplate: `<b>${escapeText(s.name)}</b>${s.partial ? " (unfinished)" : ""}<br>%{customdata[1]}: %{y:.2f} ${o.unit}` +
        "<br>95 %: %{customdata[0]}<extra></extra>" });
    if (s.marks && s.marks.length) traces.push({ x: s.marks, y: s.marks.map((i) => s.mean[i]), type: "scatter", mode: "markers", meta: s.method,
      marker: { symbol: "x-thin", size: 12, line: { width: 2.5, color: cssVar("--warn") } }, hoverinfo: "skip" });
  }
  const fitting = Math.floor((MAIN.clientWidth - 72) / (o.angle ? 16 : 62));  // names of ticks that fit beside each other
  const step = Math.max(1, Math.ceil(x.length / Math.max(2, Math.min(o.ticks || 16, fitting))));
  const shownTicks = at.filter((i) => i % step === 0);
  const layout = layoutOf({ height, margin: { l: o.angle ? 78 : 58, r: ends ? 150 : 14, t: top, b: bottom },
    xaxis: axis(o.xTitle || "", { tickmode: "array", tickvals: shownTicks, ticktext: shownTicks.map((i) =>
      escapeText(shorten(x[i], 18))), tickangle: o.angle ?? 0, showgrid: false, range: [-0.35, x.length - 0.65],
    automargin: false }),
    yaxis: axis(o.yTitle, { range, automargin: false }), shapes: o.shapes || [],
    annotations: [...(ends ? endLabels(series, range, height - top - bottom) : []), ...(o.annotations || [])] });
  const numbers = numbersTable(label, ["", ...x], series.map((s) => [s.name, ...s.mean.map((v, i) =>
    fixed(v, 2) + (isNumber((s.low || [])[i]) ? ` ± ${fixed((s.high[i] - s.low[i]) / 2, 2)}` : ""))]), o.open && ((row, i) => series[row].method !== undefined && o.open(series[row].method, i - 1)));
  const note = [o.note, cut ? "Wide bands are cut at the chart's edge." : "", o.open ? "A point leads to its runs." : ""].filter(Boolean).join(" ");
  return chart(label, traces, layout, note, o.numbers === false ? null : numbers, o.open);
}

const bandNote = (series) => [!series.some((s) => s.low.some(isNumber)) ? "One run each: no band." : series.length <= BANDS ? "Band: 95 % t-interval over runs."
  : "Band: 95 % t-interval over runs, shown for the method that is pointed at.", series.some((s) => s.partial) ? "Dotted: unfinished." : ""].filter(Boolean).join(" ");

/* Points with error bars: [{name, method, style, x, xl, xh, y, yl, yh}]; o.front: a line through some of them. */
function scatterChart(label, points, options) {
  const o = { height: 440, front: [], ...options };
  const margin = { l: 62, r: 24, t: 20, b: 56 };
  if (o.square) {  // one scale on both axes: the plot is as wide as it is high, as far as the page is
    const side = Math.min(room() - margin.l - margin.r, o.height - margin.t - margin.b);
    o.height = side + margin.t + margin.b;
    margin.r = room() - margin.l - side;
  }
  const size = [room() - margin.l - margin.r, o.height - margin.t - margin.b];
  const place = labelSides(points, o, size);
  const traces = points.map((p, i) => ({ x: [p.x], y: [p.y], type: "scatter", mode: place[i] ? "markers+text" : "markers", meta: p.method,
    text: [escapeText(cutMark(p, 24))], textposition: place[i] || "top center", textfont: { color: labelColor(p.style), size: 12.5 }, cliponaxis: false,
    marker: { color: p.style.color, symbol: p.style.symbol, size: 11,
      line: { width: p.style.symbol.endsWith("-open") ? 2 : 0, color: p.style.color } },
    error_x: bar(p.x, p.xl, p.xh, p.style.color), error_y: bar(p.y, p.yl, p.yh, p.style.color),
    hovertemplate: `<b>${escapeText(p.name)}</b><br>${escapeText(o.xTitle)}: %{x:.4g}<br>${escapeText(o.yTitle)}: %{y:.2f}<extra></extra>` }));
  const layout = layoutOf({ height: o.height, margin,
    xaxis: axis(o.xTitle, { type: o.log ? "log" : "linear", automargin: false, ...(o.log ? { dtick: 1, minor: { ticks: "outside",
      ticklen: 3, tickcolor: cssVar("--strong-line") } } : {}), range: o.xRange }),
    yaxis: axis(o.yTitle, { range: o.yRange, automargin: false }), shapes: o.shapes || [], annotations: o.annotations || [] });
  const open = o.group ? (method) => evidenceLink(o.group, method, o.what) : null;
  const numbers = numbersTable(label, ["", o.xTitle, o.yTitle], points.map((p) => [p.name, fixed(p.x, 2), fixed(p.y, 2)]), open && ((row) => open(points[row].method)));
  return chart(label, [...(o.behind || []), ...traces], layout, [o.note, open ? "A point leads to its runs." : ""].filter(Boolean).join(" "), numbers, open);
}

function bar(v, low, high, color) {
  if (!isNumber(low) || !isNumber(high) || high - low < 1e-9) return { visible: false };
  return { type: "data", symmetric: false, array: [high - v], arrayminus: [v - low], color: alpha(color, 0.45), thickness: 1.3,
    width: 0 };
}

/* Where each point's name goes: of eight places around it the one that hits the fewest markers, names and bars. The
   corners come first, because error bars run straight up, down and to the sides. */
const SIDES = { "top right": [1, -1], "bottom right": [1, 1], "top left": [-1, -1], "bottom left": [-1, 1], "top center": [0, -1],
  "bottom center": [0, 1], "middle right": [1, 0], "middle left": [-1, 0] };
function labelSides(points, o, [width, height]) {
  const px = (x) => ((o.log ? Math.log10(x) : x) - o.xRange[0]) / (o.xRange[1] - o.xRange[0]) * width;
  const py = (y) => height - (y - o.yRange[0]) / (o.yRange[1] - o.yRange[0]) * height;
  const spots = points.map((p) => [px(p.x), py(p.y)]);
  const low = (v) => (o.log ? Math.max(v, 10 ** o.xRange[0]) : v);
  const taken = [...spots.map(([x, y]) => [x - 7, y - 7, x + 7, y + 7, 3]),
    ...points.flatMap((p, i) => [isNumber(p.xl) && [px(low(p.xl)), spots[i][1] - 1, px(low(p.xh)), spots[i][1] + 1, 1],
      isNumber(p.yl) && [spots[i][0] - 1, py(p.yh), spots[i][0] + 1, py(p.yl), 1]].filter(Boolean)),
    ...o.front.slice(1).flatMap((p, i) => { const q = o.front[i]; return [[px(q.x), py(q.y) - 1, px(p.x), py(q.y) + 1, 1],
      [px(p.x) - 1, Math.min(py(p.y), py(q.y)), px(p.x) + 1, Math.max(py(p.y), py(q.y)), 1]]; })];
  return points.map((p, i) => {
    const [x, y] = spots[i], w = 7.2 * Math.min(24, p.name.length) + 4, h = 15;
    const choices = Object.entries(SIDES).map(([side, [dx, dy]]) => {
      const cx = x + dx * (w / 2 + 8), cy = y + dy * 15;
      const box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2];
      const out = box[0] < 0 || box[2] > width + (o.square ? 90 : 8) || box[1] < -4 || box[3] > height ? 8 : 0;  // there a name would be cut
      return { side, box, cost: out + taken.reduce((sum, [a, b, c, d, weight]) =>
        sum + (a < box[2] && c > box[0] && b < box[3] && d > box[1] ? weight : 0), 0) };
    });
    const best = choices.reduce((a, b) => (b.cost < a.cost ? b : a));
    if (best.cost >= 3) return null;  // on another point or name: better none, the chips and the tooltip tell
    taken.push([...best.box, 4]);
    return best.side;
  });
}
