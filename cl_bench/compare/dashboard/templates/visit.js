/* Since the last visit: which runs are new and whose rank changed, remembered by this browser alone. */

const VISIT = `cl-bench ${location.pathname} ${DATA.title}`;

/* Ranks of a table's competitors by its leading metric. */
function ranksOf(group) {
  const rows = group.rows.filter((r) => !DATA.methods[r.method].reference && isNumber((r.cells[group.primary] || [])[2]));
  return Object.fromEntries(rows.map((r, i) => [nameOf(r.method), i + 1]));
}

const snapshot = () => ({ at: DATA.made, runs: DATA.runs.filter((r) => r.status === "finished").map((r) => r.id), ranks: Object.fromEntries(DATA.groups.map((g) => [keyOf(g), ranksOf(g)])) });

function remembered() {
  try { return JSON.parse(localStorage.getItem(VISIT)); } catch { return null; }  // a browser that keeps nothing for files
}
let before = remembered();
function remember() {
  try { localStorage.setItem(VISIT, JSON.stringify(snapshot())); } catch { /* nothing is kept, nothing is marked */ }
}
addEventListener("pagehide", remember);

const isNewRun = (run) => before && run.status === "finished" && !before.runs.includes(run.id);
const newRuns = () => (before ? DATA.runs.filter(isNewRun) : []);

/* A method's rank at the last visit where it was another: [then, now]. */
function movedRank(group, method) {
  const then = before && (before.ranks[keyOf(group)] || {})[nameOf(method)], now = ranksOf(group)[nameOf(method)];
  return then && now && then !== now ? [then, now] : null;
}

function visitNote() {
  if (!before) return null;
  const fresh = newRuns(), moved = DATA.groups.flatMap((g) => g.rows.filter((r) => movedRank(g, r.method)));
  if (!fresh.length && !moved.length) return null;
  return el("p", { class: "since", id: "since" }, `Since your last visit (${String(before.at).slice(0, 16).replace("T", " ")} UTC): ${plural(fresh.length, "new run")}, ${plural(moved.length, "changed rank")}. `,
    fresh.length ? el("a", { href: stateLink({ view: "runs", q: "", of: "", run: "", rsort: "new:descending" }), id: "see-new" }, "See the runs") : null, " ",
    el("button", { type: "button", class: "small quiet", id: "seen", on: { click: () => { before = snapshot(); remember(); draw(); } } }, "Mark as seen"));
}

function rankBadge(group, method) {
  const moved = movedRank(group, method);
  return moved && el("span", { class: "badge live", title: "rank at your last visit, and now" }, `${moved[0]} → ${moved[1]}`);
}

function newBadge(group, method) {
  const n = newRuns().filter((r) => DATA.groups[r.group] === group && r.method === method).length;
  return n ? el("span", { class: "badge live", title: "since your last visit" }, plural(n, "new run")) : null;
}
