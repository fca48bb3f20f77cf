/* The leaderboard: one table per scenario, sorted by any column; marks, bold, interval and p are those of that column. */

const MARKS = { best: ["●", "best"], tied: ["○", "not distinguishable from the best"], undecided: ["◌",
  "too few pairs to tell from the best"], behind: ["", ""], "": ["", ""], reference: ["†", "a bound, no competitor"] };

/* A method's mark by a metric, with its p where it was tested. */
function markOf(row, metric) {
  const [word, p] = (row.standings || {})[metric] || ["", null];
  const kind = DATA.methods[row.method].reference ? "reference" : word, [sign, meaning] = MARKS[kind];
  const said = kind === "reference" ? `${DATA.methods[row.method].reference}, no competitor` : meaning;
  return { kind, sign, said: said || (word === "behind" ? "behind the best" : ""), p,
    title: [said || (word === "behind" ? "behind the best" : ""), isNumber(p) ? `${pEquals(p)} against the best (paired sign-flip, Holm)` : ""].filter(Boolean).join("; ") || null };
}

VIEWS.leaderboard = { title: "Leaderboard", build() {
  const indices = [...new Set(DATA.groups.flatMap((g) => g.rows.map((r) => r.method)))].sort((a, b) => a - b);
  const picked = DATA.groups.filter((g) => !state.group || keyOf(g) === state.group || g.title === state.group);
  const [files, panel] = saving();
  const tools = el("div", { class: "bar" },
    DATA.groups.length > 1 ? selectField("group", "Scenario", [["", "all"], ...DATA.groups.map((g) => [keyOf(g), g.title])],
      picked.length === 1 ? keyOf(picked[0]) : "", (value) => setState({ group: value })) : null,
    el("span", { class: "field" }, el("label", { for: "filter" }, "Filter"), el("input", { type: "search", id: "filter",
      value: state.q, placeholder: "method or family", on: { input: (event) => setState({ q: event.target.value }) } })),
    el("span", { class: "spring" }), files);
  const groups = picked.length ? picked : DATA.groups;
  return [visitNote(), tools, panel, methodChips(indices), picked.length > 1 ? overviews() : null, groups.map((group) => boardSection(group)), legend()];
} };

/* Methods x scenarios, the table of most papers: for each leading metric that two scenarios or more share a method in. */
function overviews() {
  return [...new Set(DATA.groups.map((g) => g.primary))].map((metric) => {
    const measured = (group) => visibleRows(group).filter((row) => isNumber((row.cells[metric] || [])[2]));
    const groups = DATA.groups.filter((g) => g.primary === metric && measured(g).length > 1);
    const cells = new Map();
    for (const group of groups) for (const row of measured(group)) cells.set(row.method, { ...cells.get(row.method), [keyOf(group)]: row });
    if (![...cells.values()].some((of) => Object.keys(of).length > 1)) return null;
    const m = DATA.metrics[metric], ranks = DATA.ranks.find((r) => r.metric === metric && r.ranks);
    const rankOf = (method) => (ranks && ranks.methods.includes(method) ? ranks.ranks[ranks.methods.indexOf(method)] : null);
    const order = [...cells.keys()].sort((a, b) => (rankOf(a) ?? Infinity) - (rankOf(b) ?? Infinity) || a - b);
    const cell = (group, row) => {
      if (!row) return el("td", { class: "hole" }, "–");
      const mark = markOf(row, metric);
      return el("td", { class: mark.kind === "best" ? "num lead best" : "num", title: mark.title }, el("span", { class: "mark faint" }, mark.sign,
        mark.said ? el("span", { class: "sr" }, ` ${mark.said} `) : null), evidence(group, row.method, metric, row.cells[metric][0]), row.cells[metric][1] ? el("span", { class: "pm" }, "± " + row.cells[metric][1]) : null,
      row.flags.length ? el("span", { class: "badge bad", title: row.flags.map((f) => f[1]).join("; ") }, "!") : null);
    };
    return el("section", {}, heading(`${m.label[0].toUpperCase()}${m.label.slice(1)} on all scenarios`, `${m.unit} ${m.arrow}`.trim()), scroller(`${m.label} on all scenarios`,
      el("table", { class: "data overview" }, el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "left" }, "method"), groups.map((g) => el("th", { scope: "col" }, g.scenario,
        el("span", { class: "unit" }, [g.backbone, g.apart].filter(Boolean).join(" · ")))), ranks ? el("th", { scope: "col" }, "mean rank", el("span", { class: "unit" }, plural(ranks.scenarios.length, "scenario"))) : null)),
      el("tbody", {}, order.map((method) => el("tr", {}, el("th", { scope: "row", class: "left" }, methodLabel(method)),
        groups.map((g) => cell(g, cells.get(method)[keyOf(g)])), ranks ? el("td", {}, fixed(rankOf(method), 2)) : null))))));
  });
}

function legend() {
  return el("p", { class: "key" }, el("span", {}, "Mean ± half of the 95 % t-interval over n runs (seed × class order)"),
    el("span", {}, "● best mean of the sorted column"), el("span", {}, "○ not distinguishable from it (paired sign-flip, Holm, p > 0.05)"),
    el("span", {}, "◌ too few pairs to tell"), el("span", {}, "† upper or lower bound, no competitor"));
}

function visibleRows(group) {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  return group.rows.filter((row) => shown(row.method)).filter((row) => {
    const text = (nameOf(row.method) + " " + DATA.methods[row.method].family).toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

function sortRows(rows, key, direction) {
  const value = (row) => (key === "method" ? nameOf(row.method).toLowerCase() : key === "n" ? row.n
    : (row.cells[key] || [])[2]);
  return [...rows].sort((p, q) => {
    const a = value(p), b = value(q);
    if (a === b) return 0;
    if (a === null || a === undefined) return 1;   // what was not measured is last in both directions
    if (b === null || b === undefined) return -1;
    return (a < b ? -1 : 1) * (direction === "ascending" ? 1 : -1);
  });
}

function boardSection(group) {
  const [sortKey, sortDirection] = state.sort ? state.sort.split(":") : ["", ""];
  const rows = visibleRows(group);
  const active = sortKey && (["method", "n"].includes(sortKey) || group.metrics.includes(sortKey)) ? sortKey : group.primary;
  const direction = active === sortKey ? sortDirection : DATA.metrics[group.primary].higher ? "descending" : "ascending";
  const sorted = sortRows(rows, active, direction);
  const header = (key, label, unit, side, title) => el("th", { scope: "col", class: side, title, "aria-sort":
    key === active ? direction : null }, el("button", { class: "sort " + (side || ""), type: "button",
    id: `sort-${keyOf(group)}-${key}`, on: { click: () => {
      const first = key === "method" || (DATA.metrics[key] && DATA.metrics[key].higher === false) ? "ascending" : "descending";
      const flip = { ascending: "descending", descending: "ascending" };
      setState({ sort: `${key}:${key === active ? flip[direction] : first}` });
    } } }, label, unit ? el("span", { class: "unit" }, unit) : null));
  const wanted = state.cols ? state.cols.split(",") : group.metrics, fitting = group.metrics.filter((n) => wanted.includes(n));
  const columns = fitting.length ? fitting : [group.primary];
  const lead = columns.includes(active) ? active : columns.includes(group.primary) ? group.primary : columns[0], leading = DATA.metrics[lead];
  const spread = new Map(columns.map((name) => [name, Math.max(0, ...rows.map((row) => row.cells[name][1].length))]));
  const hasForest = rows.some((row) => isNumber((row.cells[lead] || [])[2]));
  const span = forestRange(rows, lead);
  const table = el("table", { class: "data leader" + (columns.length < 5 ? " few" : columns.length > 7 ? " many" : ""), "data-group": group.title },
    el("thead", {}, el("tr", {}, header("method", "method", "", "left"), header("n", "n", "runs"),
      columns.flatMap((name) => {
        const m = DATA.metrics[name];
        const head = header(name, m.label, `${m.unit} ${m.arrow}`.trim(), null, m.note);
        return name === lead && hasForest ? [head, el("th", { scope: "col", class: "left" }, "interval",
          el("span", { class: "unit" }, `${fixed(span[0], 0)} to ${fixed(span[1], 0)} ${leading.unit}`))] : [head];
      }))),
    el("tbody", {}, sorted.map((row) => boardRow(group, row, columns, spread, lead, hasForest && span))));
  const sub = [`protocol ${group.fingerprint}`, plural(group.rows.reduce((n, r) => n + r.n, 0), "finished run")].join(" · ");
  const hidden = group.rows.length - rows.length;
  return el("section", { "aria-label": group.title }, heading(group.title, sub), verdictBlock(group),
    rows.length ? scroller(`Leaderboard of ${group.title}`, table) : emptyNote("No method matches the filter."),
    ailing(group), notesList([...definitions(group), ...group.notes, ...(hidden && rows.length ? [`${plural(hidden, "method")} hidden.`] : [])]));
}

/* What the table shows, in sentences, and what to run next. */
function verdictBlock(group) {
  if (!group.verdict.length) return null;
  return el("div", { class: "verdict" }, group.verdict.map(([text, command], i) => el("div", {}, el("p", {}, text),
    command ? el("details", { id: `next-${keyOf(group)}-${i}` }, el("summary", {}, "The commands"), el("pre", { tabindex: 0, id: `commands-${keyOf(group)}-${i}` }, command)) : null)));
}

const definitions = (group) => group.metrics.filter((n) => n.startsWith("forgetting") || n === "source_forgetting").map((n) =>
  `${DATA.metrics[n].label}: ${DATA.metrics[n].note}.`);

function boardRow(group, row, columns, spreads, lead, span) {
  const mark = markOf(row, lead);
  const states = [[row.failed, "failed", "bad"], [row.unfinished, "unfinished", "live"]].filter(([n]) => n);
  const cell = (name) => {
    const [mean, spread] = row.cells[name];
    const out = [el("td", { class: name === lead ? "num lead" : "num", "data-metric": name }, mean === "–" ? mean : evidence(group, row.method, name, mean),
      spreads.get(name) ? el("span", { class: "pm", style: { minWidth: spreads.get(name) + 3.2 + "ch" } }, spread ? "± " + spread : "") : null)];
    if (name === lead && span) out.push(el("td", { class: "left" }, forest(row, name, span)));
    return out;
  };
  return el("tr", { class: mark.kind === "best" ? "best" : !row.n ? "none" : mark.kind === "reference" ? "bound" : null, "data-method": nameOf(row.method) },
    el("th", { scope: "row", class: "left" }, el("span", { class: "method" }, el("span", { class: mark.kind === "undecided" ? "mark faint" : "mark", title: mark.title },
      mark.sign, mark.said ? el("span", { class: "sr" }, ` ${mark.said}`) : null), methodLabel(row.method, [
      el("span", { class: "family" }, DATA.methods[row.method].reference || DATA.methods[row.method].family), states.map(([n, word, kind]) =>
        el("span", { class: "badge " + kind }, `${n} ${word}`)), row.flags.map(([badge, sentence]) => el("span", { class: "badge bad", title: sentence }, badge)), rankBadge(group, row.method), newBadge(group, row.method)]))),
    el("td", {}, row.n ? evidence(group, row.method, "", row.n) : row.n), columns.flatMap(cell));
}

function forestRange(rows, name) {
  const values = rows.flatMap((row) => (row.cells[name] || []).slice(2)).filter(isNumber);
  if (!values.length) return [0, 1];
  const percent = DATA.metrics[name].unit === "%";  // an interval may leave 0 to 100 %, the axis does not
  const low = Math.max(percent ? 0 : -Infinity, Math.floor(Math.min(...values))), high = Math.min(percent ? 100 : Infinity, Math.ceil(Math.max(...values)));
  return low >= high ? [low - 1, high + 1] : [low, high];
}

function forest(row, name, [low, high]) {
  const [, , mean, from, to] = row.cells[name], width = 120, pad = 5;
  const x = (v) => pad + (Math.min(Math.max(v, low), high) - low) / (high - low) * (width - 2 * pad);
  const color = methodStyle(row.method).color;
  return svg("svg", { class: "forest", width, height: 16, viewBox: `0 0 ${width} 16`, "aria-hidden": "true" },
    svg("line", { x1: 0, x2: width, y1: 8, y2: 8, stroke: "var(--line)" }),
    isNumber(from) ? svg("line", { x1: x(from), x2: Math.max(x(to), x(from) + 0.5), y1: 8, y2: 8, stroke: color,
      "stroke-width": 3, opacity: 0.5 }) : null,
    isNumber(mean) ? svg("circle", { cx: x(mean), cy: 8, r: 4, fill: color }) : null);
}
