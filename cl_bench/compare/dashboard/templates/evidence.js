/* From a number to its runs: what each of them gives, the command that repeats them, their predictions and logs. */

let prefixes = new Map();  // addresses of one drawing: everything but the method and what is asked of it

function evidenceLink(group, method, what = "") {
  const key = keyOf(group);
  if (!prefixes.has(key)) prefixes.set(key, stateLink({ view: "runs", group: key, of: "", what: "", run: "", q: "", all: "", rsort: "" }));
  return `${prefixes.get(key)}&of=${encodeURIComponent(nameOf(method))}${what ? `&what=${encodeURIComponent(what)}` : ""}`;
}

/* A number that leads to its runs. In a table only the first is a stop of the Tab key: arrows lead to the others. */
const evidence = (group, method, what, ...content) => el("a", { class: "ev", href: evidenceLink(group, method, what), tabindex: -1 }, ...content);

function roving() {
  prefixes = new Map();
  MAIN.querySelectorAll("table").forEach((table, n) => {
    const first = table.querySelector("a.ev");
    if (first) { first.tabIndex = 0; first.id = `evidence-${n}`; first.setAttribute("aria-describedby", "arrows"); }
  });
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
function followArrows(event) {
  const link = event.target.closest && event.target.closest("a.ev"), step = STEPS[event.key];
  if (!link || !step) return;
  const cell = link.closest("td, th"), rows = [...cell.closest("table").rows];
  let i = rows.indexOf(cell.parentElement) + step[0], j = cell.cellIndex + step[1];
  for (; rows[i] && rows[i].cells[j]; i += step[0], j += step[1]) {
    const next = rows[i].cells[j].querySelector("a.ev");
    if (next) { event.preventDefault(); next.focus(); return; }
  }
}

/* Percent correct of every cell of a run's matrix; null where it was not measured. */
const ratesOf = (run) => run.matrix && run.matrix.correct.map((row, i) => row.map((c, j) => (run.matrix.total[i][j] ? 100 * c / run.matrix.total[i][j] : null)));
const errorOf = (entry) => (entry[2] ? 100 * (1 - entry[1] / entry[2]) : null);

/* What is asked of a method's runs: a metric, a cell of the matrix, a row of it, a domain of the stream. */
function askedOf(what) {
  const [kind, ...rest] = what.split(":"), at = rest.join(":").split(",").map(Number);
  if (DATA.metrics[what]) {
    const m = DATA.metrics[what];
    return { label: m.label, unit: m.unit, digits: m.decimals, value: (run) => run.metrics[what], counts: () => null, keys: () => [] };
  }
  if (kind === "cell") return { label: "accuracy", unit: "%", digits: 2, value: (run) => (ratesOf(run) || [])[at[0]]?.[at[1]],
    counts: (run) => run.matrix && run.matrix.correct[at[0]] && `${run.matrix.correct[at[0]][at[1]]} of ${run.matrix.total[at[0]][at[1]]}`,
    keys: (run) => (run.matrix && run.matrix.rows[at[0]] !== undefined && run.matrix.columns[at[1]] !== undefined ? [`${run.matrix.rows[at[0]]}/${run.matrix.columns[at[1]]}`, `truth/${run.matrix.columns[at[1]]}`] : []),
    more: (run) => (run.matrix && run.matrix.rows[at[0]] !== undefined ? `after ${run.matrix.rows[at[0]]}, on ${run.matrix.columns[at[1]]}` : "") };
  if (kind === "row") return { label: "average accuracy", unit: "%", digits: 2, value: (run) => { const row = (ratesOf(run) || [])[at[0]] || [];
    const seen = row.filter((v, j) => isNumber(v) && run.matrix.learned && run.matrix.learned[j] !== null && run.matrix.learned[j] <= at[0]);
    return seen.length ? seen.reduce((a, b) => a + b, 0) / seen.length : null; },
  counts: (run) => { const row = (ratesOf(run) || [])[at[0]]; return row && row.map((v) => fixed(v)).join("  "); }, keys: (run) => (run.matrix && run.matrix.rows[at[0]] !== undefined
    ? run.matrix.columns.map((c) => `${run.matrix.rows[at[0]]}/${c}`) : []), more: (run) => (run.matrix && run.matrix.rows[at[0]] !== undefined ? `after ${run.matrix.rows[at[0]]}` : "") };
  if (kind === "domain") return { label: "online error", unit: "%", digits: 2, value: (run) => run.stream && run.stream[at[0]] && errorOf(run.stream[at[0]]),
    counts: (run) => run.stream && run.stream[at[0]] && `${run.stream[at[0]][1]} of ${run.stream[at[0]][2]} right`, keys: () => [`stream/${at[0]}`, `truth/stream/${at[0]}`],
    more: (run) => (run.stream && run.stream[at[0]] ? `in ${run.stream[at[0]][0].replace(/_/g, " ")}` : "") };
  return null;
}

const seedsLast = (command, seed) => command.replace(/SEED$/, seed);

/* The command that repeats runs: one line, or a loop over their seeds; one for each setting that they have. */
function commandsOf(runs) {
  const by = new Map();
  for (const run of runs) by.set(shared(run.command), [...(by.get(shared(run.command)) || []), run.seed]);
  return [...by].map(([command, seeds]) => { const each = [...new Set(seeds)].sort((a, b) => a - b);
    return each.length === 1 ? seedsLast(command, each[0]) : `for seed in ${each.join(" ")}; do ${seedsLast(command, "$seed")}; done`; }).join("\n");
}

const FILE_WORDS = { "run.json": "record", "events.jsonl": "log", "arrays.npz": "predictions" };
const filesOf = (run) => (run.has || []).map((name) => el("a", { href: run.at + name, id: `file-${run.id}-${name}`, class: "file" }, FILE_WORDS[name]));

function evidenceBlock(group, method) {
  const runs = DATA.runs.filter((run) => run.group === group.index && run.method === method);
  const asked = askedOf(state.what), first = runs.find((run) => run.status === "finished") || runs[0];
  const values = asked ? runs.filter((run) => run.status === "finished").map(asked.value).filter(isNumber) : [];
  const mean = values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  const keys = asked && first ? asked.keys(first) : [];
  const counted = asked && runs.some((run) => asked.counts(run));
  return el("section", { "aria-label": "Evidence" }, heading(`Runs of ${nameOf(method)}`, [group.title, asked && [asked.label, asked.more && first ? asked.more(first) : ""].filter(Boolean).join(" ")].filter(Boolean).join(" · ")),
    el("p", { class: "bar no-print" }, el("button", { type: "button", class: "small", id: "all-runs", on: { click: () => setState({ of: "", what: "" }, true) } }, "← All runs"),
      asked && isNumber(mean) ? el("span", { class: "sub" }, `mean of ${plural(values.length, "finished run")}: ${fixed(mean, asked.digits)} ${asked.unit}`) : null),
    scroller("The runs behind the number", el("table", { class: "data evidence" }, el("thead", {}, el("tr", {}, [["run", "left"], ["seed"], ["order"], ...(asked ? [[`${asked.label} (${asked.unit})`]] : []),
      ...(counted ? [["counted"]] : []), ["status", "left"], ["files", "left"]].map(([head, side]) => el("th", { scope: "col", class: side }, head)))),
    el("tbody", {}, runs.map((run) => el("tr", {}, el("th", { scope: "row", class: "left" }, openRun(run)), el("td", {}, run.seed), el("td", {}, run.order ?? "–"),
      asked ? el("td", { class: "num" }, fixed(asked.value(run), asked.digits)) : null, counted ? el("td", {}, asked.counts(run) || "–") : null,
      el("td", { class: "left" }, statusBadge(run.status)), el("td", { class: "left" }, run.has ? filesOf(run) : "beside the run’s record")))))),
    first ? el("div", {}, el("h3", {}, "The command that repeats them"), el("pre", { tabindex: 0, id: "repeat" }, commandsOf(runs)),
      keys.length ? [el("h3", {}, "Predictions"), el("pre", { tabindex: 0, id: "predictions" }, `arrays = cl_bench.load("runs/${first.id}")[0].arrays()\n` +
        keys.slice(0, 12).map((key) => `arrays[${JSON.stringify(key)}]`).join("\n"))] : null,
      el("details", {}, el("summary", {}, "Config"), el("pre", { tabindex: 0 }, JSON.stringify(configOf(first), null, 2))),
      first.tail.length ? el("details", {}, el("summary", {}, `End of the log, seed ${first.seed}`), el("pre", { tabindex: 0 }, first.tail.map(logLine).join("\n"))) : null) : emptyNote("No run of it is here."));
}
