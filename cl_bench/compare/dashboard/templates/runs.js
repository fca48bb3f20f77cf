/* Single runs: the list, one run in full, and what differs between two. */

const shared = (index) => (index === null || index === undefined ? null : DATA.shared[index]);
const statusBadge = (status) => el("span", { class: "badge " + ({ failed: "bad", running: "live", stopped: "live" }[status] || "") }, status);

const configOf = (run) => Object.fromEntries(Object.entries(run.config).map(([k, v]) => [k, shared(v)]));
const openRun = (run) => el("a", { class: "link", href: stateLink({ view: "runs", run: run.id }), id: "run-" + run.id, "aria-label": "Open run " + run.id }, middle(run.id, 56));
const tickedRuns = () => state.ticked.split(",").filter((id) => DATA.runs.some((run) => run.id === id));

/* What runs are sorted by: head of the column, value, unit. */
const RUN_COLUMNS = [["method", (r) => nameOf(r.method).toLowerCase()], ["seed", (r) => r.seed], ["order", (r) => r.order], ["result", (r) => r.metrics[DATA.groups[r.group].primary]], ["total time", (r) => r.metrics.seconds_total, "s"],
  ["status", (r) => r.status], ["started", (r) => r.started], ["scenario", (r) => DATA.groups[r.group].title], ["run", (r) => r.id]];
const LEFT = ["method", "status", "started", "scenario", "run"];

function sortedRuns(runs) {
  const [key, direction] = state.rsort.split(":"), column = RUN_COLUMNS.find(([name]) => name === key), value = key === "new" ? (r) => (isNewRun(r) ? 1 : 0) : column && column[1];
  if (!value) return runs;
  return [...runs].sort((p, q) => { const [a, b] = [value(p), value(q)];
    if (a === b || (a ?? null) === (b ?? null)) return p.id.localeCompare(q.id);
    if (a === null || a === undefined) return 1;
    if (b === null || b === undefined) return -1;
    return (a < b ? -1 : 1) * (direction === "descending" ? -1 : 1); });
}

VIEWS.runs = { title: "Runs", build() {
  const chosen = DATA.runs.find((run) => run.id === state.run);
  if (chosen) return detail(chosen);
  const asked = DATA.methods.findIndex((m) => m.name === state.of), place = DATA.groups.findIndex((g) => keyOf(g) === state.group || g.title === state.group);
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean), behind = state.of && asked >= 0 && place >= 0;
  const rows = sortedRuns(DATA.runs.filter((run) => { const text = [run.id, nameOf(run.method), DATA.methods[run.method].family, DATA.groups[run.group].title, run.status, "seed " + run.seed, run.error || "", ...run.warnings].join(" ").toLowerCase();
    return words.every((word) => text.includes(word)) && (!behind || (run.method === asked && run.group === place)); }));
  const ticked = new Set(tickedRuns()), limit = state.all ? rows.length : 40;
  const tools = el("div", { class: "bar" }, el("span", { class: "field" }, el("label", { for: "filter" }, "Filter"), el("input", { type: "search", id: "filter",
    value: state.q, placeholder: "id, method, scenario, status", on: { input: (event) => setState({ q: event.target.value }) } })),
  el("span", { class: "sub" }, `${rows.length} of ${plural(DATA.runs.length, "run")}`), el("span", { class: "spring" }),
  ticked.size ? [el("a", { id: "ticked", class: "button", href: stateLink({ view: "differences", run: "", of: "", what: "" }) }, `What differs between ${plural(ticked.size, "ticked run")}?`),
    el("button", { type: "button", class: "small quiet", id: "untick", on: { click: () => setState({ ticked: "" }) } }, "Untick all")] : el("span", { class: "sub" }, "Tick runs to see what differs between them."));
  const [key, direction] = state.rsort.split(":");
  const header = ([name, , unit]) => el("th", { scope: "col", class: LEFT.includes(name) ? "left" : null, "aria-sort": name === key ? direction : null }, el("button", { class: "sort" + (LEFT.includes(name) ? " left" : ""), type: "button", id: `rsort-${name}`,
    on: { click: () => setState({ rsort: `${name}:${name === key && direction === "ascending" ? "descending" : "ascending"}` }) } }, name, unit ? el("span", { class: "unit" }, unit) : null));
  const table = el("table", { class: "data runs" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "sr" }, "ticked")), RUN_COLUMNS.map(header))),
    el("tbody", {}, rows.slice(0, limit).map((run) => { const metric = DATA.metrics[DATA.groups[run.group].primary]; return el("tr", {},
      el("td", {}, el("input", { type: "checkbox", id: "tick-" + run.id, checked: ticked.has(run.id), "aria-label": "Tick run " + run.id, on: { change: (event) => { event.target.checked ? ticked.add(run.id) : ticked.delete(run.id); setState({ ticked: [...ticked].join(",") }); } } })),
      el("th", { scope: "row", class: "left" }, methodLabel(run.method, isNewRun(run) ? el("span", { class: "badge live", title: "since your last visit" }, "new") : [], false)), el("td", {}, run.seed), el("td", {}, run.order ?? "–"),
      el("td", {}, run.primary, run.primary === "–" ? "" : metric.unit === "%" ? " %" : " " + metric.unit, el("span", { class: "sr" }, ` ${metric.label}`)),
      el("td", {}, run.seconds), el("td", { class: "left" }, statusBadge(run.status)), el("td", { class: "left" }, String(run.started || "–").slice(0, 16).replace("T", " ")), el("td", { class: "left" }, DATA.groups[run.group].title),
      el("td", { class: "left" }, openRun(run))); })));
  if (behind) return evidenceBlock({ ...DATA.groups[place], index: place }, asked);
  return [state.run ? emptyNote(`There is no run ${state.run} here.`) : null, visitNote(),
    el("section", {}, heading("All runs"), tools, rows.length ? scroller("Runs", table) : emptyNote("No run matches the filter."),
      rows.length > limit ? el("p", { class: "bar", style: { marginTop: "14px" } }, el("button", { type: "button", id: "all", on: { click: () => setState({ all: "1" }) } },
        `Show all ${rows.length}`)) : null,
      notesList(DATA.problems.map((problem) => "Left out: " + problem)))];
} };

function facts(pairs) {
  return el("dl", { class: "facts-list" }, pairs.filter(([, v]) => v !== null && v !== undefined && v !== "").map(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]));
}

const plain = (value) => (value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));

const COUNTS = ["collapsed_domains", "nonfinite", "missed"];  // all other metrics are percent or points

/* A line of the log as a person reads it: when, what, and the facts in the order in which they were written. */
function logLine(line) {
  let event;
  try { event = JSON.parse(line); } catch { return line; }
  if (event === null || typeof event !== "object") return line;
  const { t, kind, ...rest } = event;
  return [isNumber(t) ? `${t.toFixed(2)} s`.padStart(10) : "", String(kind).padEnd(10), ...Object.entries(rest).filter(([, v]) => v !== null).map(([k, v]) =>
    `${k} ${isNumber(v) && !Number.isInteger(v) ? v.toFixed(2) : plain(v)}`)].join("  ");
}

function detail(run) {
  const part = (name) => shared(run.parts[name]) || {};
  const group = DATA.groups[run.group], environment = part("environment"), fingerprint = part("fingerprint");
  const git = environment.git || {}, cost = run.cost || {}, seconds = cost.seconds || {};
  const config = configOf(run);
  const losses = Object.entries(run.losses || {});
  return el("section", { "aria-label": "Run " + run.id }, heading(shortOf(run.method) + " on " + group.title, `seed ${run.seed}` + (run.order === null ? "" : `, class order ${run.order}`)),
    run.error ? el("p", { class: "error" }, run.error) : null,
    el("div", { class: "bar no-print" }, el("button", { type: "button", class: "small", id: "close-run", on: { click: () => setState({ run: "" }, true) } }, "← All runs"),
      el("a", { id: "compare-run", href: stateLink({ view: "differences", a: run.id, run: "" }) }, "What differs from another run?")),
    el("div", { class: "two" },
      el("div", {}, el("h3", {}, "Run"), facts([["id", el("span", { class: "mono" }, run.id)], ["method", nameOf(run.method)], ["status", statusBadge(run.status)], ["started", run.started], ["finished", run.finished],
        ["files", run.has ? filesOf(run) : null], ["paper", part("method").paper], ["device", environment.device], ["code", git.commit ? git.commit.slice(0, 12) + (git.dirty ? " with uncommitted changes" : "") : null],
        ["time", ["source", "learn", "adapt", "evaluate", "total"].filter((k) => isNumber(seconds[k])).map((k) => `${k} ${fixed(seconds[k])} s`).join(", ")],
        ["peak memory", isNumber(cost.peak_memory_bytes) ? `${fixed(cost.peak_memory_bytes / 2 ** 20, 0)} MiB` : null],
        ["images", isNumber(cost.forward_images) ? `${cost.forward_images} forward, ${plain(cost.backward_images)} backward, ${plain(cost.optimizer_steps)} optimizer steps` : null],
        ["parameters", cost.parameters ? `${plain(cost.parameters.total)}, of which trainable ${plain(cost.parameters.trainable)}` : null]]),
      run.warnings.length ? el("ul", { class: "notes" }, run.warnings.map((w) => el("li", { class: "warn" }, w))) : null),
      el("div", {}, el("h3", {}, "Metrics, in percent or points"), facts(Object.entries(run.metrics).filter(([k, v]) => v !== null && !(DATA.metrics[k] && DATA.metrics[k].cost)).map(([k, v]) => [DATA.metrics[k] ? DATA.metrics[k].label
        : k.replace(/_/g, " "), COUNTS.includes(k) ? String(v) : fixed(v, 2)])))),
    el("section", {}, el("h3", {}, "The command that repeats it"), el("pre", { tabindex: 0, id: "repeat" }, commandsOf([run]))),
    run.matrix ? el("section", {}, el("h3", {}, "Accuracy matrix"), scroller("Accuracy matrix", heatTable("percent", run.matrix.rows, run.matrix.columns, ratesOf(run),
      { color: rampColor, text: (v) => fixed(v), say: (v) => fixed(v, 2) + " %" }))) : null,
    run.stream ? el("section", {}, el("h3", {}, "Stream"), lineChart("Online error per domain, in percent", run.stream.map((e) => e[0].replace(/_/g, " ")), [{ name: shortOf(run.method),
      style: methodStyle(run.method), mean: run.stream.map(errorOf), marks: run.stream.map((e, i) => (e[3] ? i : -1)).filter((i) => i >= 0) }],
    { yTitle: "online error (%)", height: 320, bottom: 118, angle: -50, ticks: 30, labels: false, markerSize: 5 })) : null,
    losses.length ? el("section", {}, el("h3", {}, "Training loss"), lossChart(losses)) : null,
    el("section", {}, el("h3", {}, "Protocol fingerprint"), facts([["id", el("span", { class: "mono" }, fingerprint.id)], ...Object.entries(fingerprint.fields || {}).map(([k, v]) => [k, plain(v)])])),
    el("section", {}, el("h3", {}, "Config"), el("pre", { tabindex: 0 }, JSON.stringify(config, null, 2))),
    el("section", {}, el("h3", {}, "Environment"), facts([["python", environment.python], ["platform", environment.platform], ["threads", plain(environment.threads)], ["ops", environment.ops_backend],
      ...Object.entries(environment.packages || {}).filter(([, v]) => v)])),
    run.tail.length ? el("section", {}, el("h3", {}, "End of the log"), el("pre", { tabindex: 0 }, run.tail.map(logLine).join("\n"))) : null);
}

/* Losses of all experiences one after another on a common axis of steps. */
function lossChart(losses) {
  let offset = 0;
  const traces = losses.map(([name, [x, y]], i) => {
    const trace = { x: x.map((v) => v + offset), y, type: "scatter", mode: "lines", line: { color: taskColor(i, losses.length), width: 1.6 },
      hovertemplate: `${escapeText(name)}<br>loss %{y:.4g}<extra></extra>` };
    offset += (x[x.length - 1] || 0) + (x.length > 1 ? x[1] - x[0] : 1);
    return trace;
  });
  return chart("Training loss over steps", traces, layoutOf({ height: 260, xaxis: axis("step, experiences one after another", { showgrid: false }), yaxis: axis("loss", { rangemode: "tozero" }) }));
}

/* -- What differs between two runs ---------------------------------------------------------------------------------- */

function flatten(value, prefix = "", out = {}) {
  if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length)
    for (const [key, inner] of Object.entries(value)) flatten(inner, prefix ? `${prefix}.${key}` : key, out);
  else out[prefix] = plain(value);
  return out;
}

const SECTIONS = { config: configOf, "protocol fingerprint": (run) => (shared(run.parts.fingerprint) || {}).fields || {},
  environment: (run) => shared(run.parts.environment) || {}, backbone: (run) => shared(run.parts.backbone) || {} };
const MOST_COLUMNS = 8;

/* Config, protocol, environment and results of any runs side by side: those that are ticked, or two that are chosen. */
VIEWS.differences = { title: "Differences", build() {
  const options = DATA.runs.map((run) => [run.id, run.id]), ticked = tickedRuns().map((id) => DATA.runs.find((r) => r.id === id));
  if (options.length < 2) return emptyNote("Two runs are needed to show what differs.");
  const a = DATA.runs.find((r) => r.id === state.a) || DATA.runs[0];
  const b = DATA.runs.find((r) => r.id === state.b) || DATA.runs.find((r) => r !== a && r.method !== a.method && r.group === a.group) || DATA.runs.find((r) => r !== a);
  const runs = ticked.length > 1 ? ticked.slice(0, MOST_COLUMNS) : [a, b];
  const tools = el("div", { class: "bar" }, ticked.length > 1 ? [el("span", { class: "sub" }, plural(ticked.length, "ticked run") + (ticked.length > MOST_COLUMNS ? `, the first ${MOST_COLUMNS} shown` : "")),
    el("button", { type: "button", class: "small quiet", id: "untick", on: { click: () => setState({ ticked: "" }) } }, "Choose two instead")]
    : [selectField("a", "Run A", options, a.id, (value) => setState({ a: value })), selectField("b", "Run B", options, b.id, (value) => setState({ b: value })), el("a", { id: "tick-runs", href: stateLink({ view: "runs", run: "" }) }, "Tick more runs")],
  checkField("all", "equal values too", state.all === "1", (on) => setState({ all: on ? "1" : "" })));
  const letter = (i) => String.fromCharCode(65 + i);
  const heads = runs.map((run, i) => el("th", { scope: "col", class: "left" }, el("a", { href: stateLink({ view: "runs", run: run.id }), id: `column-${i}` }, `${letter(i)}: ${shortOf(run.method)}, seed ${run.seed}`), el("span", { class: "unit" }, DATA.groups[run.group].title)));
  const section = (title, table) => el("section", {}, heading(title[0].toUpperCase() + title.slice(1)), table || el("p", { class: "lede" }, "No difference."));
  const rowsOf = (title, keys, cell) => scroller(`Differences in ${title}`, el("table", { class: "data" }, el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "left" }, "key"), heads.map((h) => h.cloneNode(true)))),
    el("tbody", {}, keys.map((k) => el("tr", {}, el("th", { scope: "row", class: "left mono" }, k), runs.map((run, i) => cell(k, run, i)))))));
  const names = Object.keys(DATA.metrics).filter((n) => runs.some((r) => isNumber(r.metrics[n]))), results = names.filter((n) => state.all === "1" || new Set(runs.map((r) => r.metrics[n])).size > 1);
  return [tools, section("results", results.length ? rowsOf("results", results.map((n) => n), (n, run, i) => { const v = run.metrics[n], m = DATA.metrics[n], first = runs[0].metrics[n];
    return el("td", { class: "text" }, fixed(v, m.decimals), isNumber(v) ? ` ${m.unit}` : "", i && isNumber(v) && isNumber(first) ? el("span", { class: "pm" }, ` (${signed(v - first, m.decimals)})`) : null); }) : null),
  Object.entries(SECTIONS).map(([title, get]) => {
    const flat = runs.map((run) => flatten(get(run))), keys = [...new Set(flat.flatMap(Object.keys))].filter((k) => k && (state.all === "1" || new Set(flat.map((f) => f[k])).size > 1)).sort();
    return section(title, keys.length ? rowsOf(title, keys, (k, run, i) => el("td", { class: "text mono" }, flat[i][k] ?? "not set")) : null);
  })];
} };
