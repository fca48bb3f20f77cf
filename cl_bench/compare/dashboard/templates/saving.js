/* Files to save: tables and tidy CSV of what is shown. Tables are put together as cl_bench/compare/sheets.py does. */

const bars = (cells) => "| " + cells.join(" | ") + " |";

function assemble(sheets, kind, methods, columns) {
  const parts = [];
  let head = "";
  for (const sheet of sheets) {
    const names = sheet.columns.filter(([name]) => !columns || columns.has(name) || name === "rank");
    const rows = sheet.rows.filter(([method]) => !methods || methods.has(method));
    if (!rows.length) continue;
    const has = new Set(names.map(([name]) => name)), notes = sheet.notes.filter(([, column, method]) => (!column || has.has(column)) && (!method || rows.some((row) => row[0] === method))).map(([text]) => text);
    const heads = [...sheet.lead, ...names.flatMap(([, cells]) => cells)];
    const lines = rows.map(([, first, cells]) => [...first, ...names.flatMap(([name, of]) => cells[name] || of.map(() => ""))]);
    if (kind === "csv") {
      const own = heads.join(",");
      parts.push((own !== head ? own + "\n" : "") + lines.map((line) => line.join(",") + "\n").join(""));
      head = own;
    } else if (kind === "md") {
      const sides = heads.map((text, k) => (text === "n" || k >= sheet.lead.length ? "--:" : "---"));
      parts.push([`### ${sheet.title}`, "", bars(heads), "|" + sides.join("|") + "|", ...lines.map(bars), "", ...notes.map((note) => note + "  "), ""].join("\n"));
    } else {
      const count = heads.length - sheet.lead.length, wide = count > 5;
      parts.push(["\\begin{table}[t]", "\\centering", "\\small", ...(wide ? ["\\resizebox{\\linewidth}{!}{%"] : []), "\\begin{tabular}{" + sheet.lead.map((text) => (text === "$n$" ? "r" : "l")).join("") + "r".repeat(count) + "}",
        "\\toprule", heads.join(" & ") + " \\\\", "\\midrule", ...lines.map((line) => line.join(" & ") + " \\\\"), "\\bottomrule", "\\end{tabular}" + (wide ? "}" : ""),
        `\\caption{${[sheet.title + ".", ...notes].join(" ")}}`, `\\label{tab:${sheet.label}}`, "\\end{table}"].join("\n"));
    }
  }
  return kind === "tex" ? "% \\usepackage{booktabs,graphicx}\n\n" + parts.join("\n\n") + "\n" : kind === "csv" ? parts.join("") : parts.join("\n");
}

/* What is shown: tables, methods and columns; null stands for all. */
function shownNow() {
  const groups = DATA.groups.filter((g) => !state.group || keyOf(g) === state.group || g.title === state.group), of = groups.length ? groups : DATA.groups;
  const methods = new Set(of.flatMap((g) => visibleRows(g).map((row) => nameOf(row.method))));
  return { groups: of, methods, columns: state.cols ? new Set(state.cols.split(",")) : null };
}

function tableText(kind) {
  const { groups, methods, columns } = shownNow(), keys = new Set(groups.map(keyOf));
  return assemble(DATA.exports[kind].tables.filter((sheet) => keys.has(sheet.group)), kind, methods, columns);
}

function overallText(kind) {
  const { groups, methods } = shownNow();
  return assemble(DATA.exports[kind].overall, kind, methods, new Set(groups.map(keyOf)));
}

function csvText(head, lines) {
  const cell = (v) => { if (v === null || v === undefined) return "";
    let text = String(v);
    if (typeof v === "string" && /^[=+\-@\t\r]/.test(text) && !/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text.trim())) text = "'" + text;
    return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text; };
  return [head, ...lines].map((line) => line.map(cell).join(",") + "\n").join("");
}

/* Tidy CSV with the heads of `cl-bench compare --tidy`: one line per run, per test, per cell or domain. */
const TIDY = {
  runs() {
    const { groups, methods } = shownNow(), names = Object.keys(DATA.metrics);
    const head = ["scenario", "backbone", "protocol", "method", "family", "reference", "seed", "order", "status", "id", ...names.map((n) => `${n}_${DATA.metrics[n].unit.replace("%", "percent").replace(/ /g, "_")}`)];
    return csvText(head, groups.flatMap((g) => DATA.runs.filter((r) => DATA.groups[r.group] === g && methods.has(nameOf(r.method))).map((r) => { const m = DATA.methods[r.method];
      return [g.scenario, g.backbone, r.protocol, m.name, m.family, m.reference, r.seed, r.order, r.status, r.id, ...names.map((n) => r.metrics[n])]; })));
  },
  tests() {
    const { groups, methods } = shownNow(), lines = [];
    for (const g of groups) for (const [metric, { methods: order, tests }] of Object.entries(g.pairs)) {
      let at = 0;
      order.forEach((a, i) => order.slice(i + 1).forEach((b) => { const [n, mean, low, high, sign, wilcoxon, delta, smallest] = tests[at++];
        if (!methods.has(nameOf(a)) || !methods.has(nameOf(b))) return;
        const found = (g.images[metric] || []).find(([p, q]) => p === a && q === b), e = found || [];
        lines.push([g.scenario, g.fingerprint, metric, nameOf(a), nameOf(b), n, mean, low, high, sign, wilcoxon, smallest, delta, e[12], e[3], e[4], e[5], e[6], e[7], e[8], e[9]]); }));
    }
    return csvText(["scenario", "protocol", "metric", "a", "b", "pairs", "difference", "low", "high", "p_sign_flip_holm", "p_wilcoxon_holm", "smallest_p", "cliffs_delta", "images", "given_low", "given_high", "p_given_holm", "new_low", "new_high",
      "p_new_holm", "p_above"], lines);
  },
  curves() {
    const { groups, methods } = shownNow(), lines = [];
    for (const g of groups) for (const row of g.rows.filter((r) => methods.has(nameOf(r.method)))) for (const { a: r } of pairsOf({ ...g, index: DATA.groups.indexOf(g) }, row.method, row.method)) {
      const who = [g.scenario, g.fingerprint, nameOf(row.method), r.seed, r.order], m = r.matrix;
      if (m) m.rows.forEach((after, i) => m.columns.forEach((on, j) => { if (m.total[i][j]) lines.push([...who, "matrix", i, after, on, "", m.correct[i][j], m.total[i][j]]); }));
      (r.stream || []).forEach((e, k) => lines.push([...who, "stream", k, "", e[4], e[5], e[1], e[2]]));
    }
    return csvText(["scenario", "protocol", "method", "seed", "order", "kind", "row", "after", "on", "visit", "correct", "total"], lines);
  },
};

function saveButton(id, text, name, type, make) {
  return el("button", { class: "small", type: "button", id: "save-" + id, on: { click: () => {
    const url = URL.createObjectURL(new Blob([make()], { type }));
    el("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 5000);
  } } }, text);
}

const TYPES = { csv: ["CSV", "text/csv"], md: ["Markdown", "text/markdown"], tex: ["LaTeX", "application/x-tex"] };

/* Buttons for what the leaderboard shows, with its choice of columns. */
function saving() {
  const open = state.panel === "save", names = [...new Set(DATA.groups.flatMap((g) => g.metrics))], chosen = new Set(state.cols ? state.cols.split(",") : names);
  const toggle = el("button", { class: "small", type: "button", id: "save-panel", "aria-expanded": String(open), on: { click: () => setState({ panel: open ? "" : "save" }) } }, "Columns & files");
  const panel = open ? el("div", { class: "panel" }, el("fieldset", { class: "columns" }, el("legend", {}, "Columns"), names.map((name) => checkField(`col-${name}`, DATA.metrics[name].label, chosen.has(name), (on) => {
    on ? chosen.add(name) : chosen.delete(name);
    const left = names.filter((n) => chosen.has(n));
    setState({ cols: left.length === names.length || !left.length ? "" : left.join(",") });
  }))), el("p", {}, "Over scenarios, one table: ", DATA.exports.tex.overall.length ? Object.entries(TYPES).map(([kind, [text, type]]) => saveButton(`over-${kind}`, text, `scenarios.${kind}`, type, () => overallText(kind))) : "needs two scenarios that share a method."),
  el("p", {}, "Tidy CSV: ", Object.entries(TIDY).map(([kind, make]) => saveButton(kind, kind, `${kind}.csv`, "text/csv", make))), el("p", { class: "sub" }, "Files hold the methods, scenarios and columns that are shown.")) : null;
  return [el("span", { class: "exports" }, "Download", Object.entries(TYPES).map(([kind, [text, type]]) => saveButton(kind, text, `comparison.${kind}`, type, () => tableText(kind))), toggle), panel];
}
