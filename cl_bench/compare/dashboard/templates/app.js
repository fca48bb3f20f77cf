/* The page itself: navigation, theme, drawing, and following runs that go on. */

const MAIN = document.getElementById("main");

const ORDER = ["leaderboard", "matrices", "forgetting", "anytime", "stream", "balance", "cost", "statistics", "duel", "sweep", "runs", "differences"];

let printing = false;  // paper is white, whatever the screen is
function setTheme() {
  const wanted = printing ? "light" : state.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = wanted;
  document.documentElement.toggleAttribute("data-print", printing);
}

function drawFrame() {
  const finished = DATA.runs.filter((r) => r.status === "finished").length;
  const running = DATA.runs.filter((r) => r.status === "running").length, failed = DATA.runs.filter((r) => r.status === "failed").length;
  const parts = [plural(finished, "finished run"), running ? `${running} unfinished` : "", failed ? `${failed} failed` : "", plural(DATA.methods.length, "method"),
    plural(new Set(DATA.groups.map((g) => g.scenario)).size, "scenario"), DATA.problems.length ? `${DATA.problems.length} unreadable` : ""].filter(Boolean);
  document.getElementById("facts").replaceChildren(parts.join(" · "), DATA.live ? el("span", { class: "badge live", id: "live", style: { marginLeft: "10px" } }, "live") : "");
  document.getElementById("views").replaceChildren(...ORDER.map((key) => [key, VIEWS[key]]).map(([key, view]) => el("a", { href: stateLink({ view: key, run: "", q: "", all: "", of: "", what: "" }), id: "view-" + key,
    "aria-current": key === state.view ? "page" : null }, view.nav || view.title)));
  const current = document.getElementById("view-" + state.view), nav = document.getElementById("views");
  if (current && nav.scrollWidth > nav.clientWidth) nav.scrollLeft = current.offsetLeft - (nav.clientWidth - current.offsetWidth) / 2;
  const next = dark() ? "light" : "dark";
  document.getElementById("top-tools").replaceChildren(
    el("button", { type: "button", class: "small quiet", id: "print", on: { click: () => window.print() } }, "Print"),
    el("button", { type: "button", class: "small", id: "theme", on: { click: () => setState({ theme: next }) } }, next === "dark" ? "Dark" : "Light",
      el("span", { class: "sr" }, " colours")));
  document.getElementById("foot").replaceChildren(el("p", {}, `Made ${DATA.made.replace("T", " ").replace("+00:00", " UTC")} by cl-bench ${DATA.version} from records alone; every number of this page is in it as JSON. ` +
    "Accuracies and errors in percent, differences in percentage points."));
}

function draw() {
  if (!VIEWS[state.view]) state.view = "leaderboard";
  const active = document.activeElement, focus = active && active.id, selection = active && active.selectionStart;
  setTheme();
  drawFrame();
  const [details, scrolled] = opened().map((found) => new Map([...found].map(([key, node]) => [key, node.tagName === "DETAILS" ? node.open : node.scrollLeft])));
  clearCharts(MAIN);
  const content = DATA.groups.length || state.view === "runs" ? VIEWS[state.view].build() : emptyNote("There is no run yet.");
  MAIN.replaceChildren(...[content].flat(Infinity).filter(Boolean));
  roving();
  const [again, sideways] = opened();
  for (const [key, node] of again) if (details.get(key)) node.open = true;
  for (const [key, node] of sideways) if (scrolled.get(key)) node.scrollLeft = scrolled.get(key);
  document.title = `${VIEWS[state.view].title} · ${DATA.title}`;
  flushCharts();
  const held = focus && document.getElementById(focus);
  if (held && held !== document.activeElement) {
    held.focus({ preventScroll: true });
    if (held.type === "search") held.setSelectionRange(selection, selection);
  }
}

/* Put what is new into the data; what did not change is kept, in the order that the server gives. */
function merge({ at, order, parts }) {
  const known = {};
  DATA.groups.forEach((g) => { known["group " + keyOf(g)] = g; });
  DATA.runs.forEach((r) => { known["run " + r.id] = r; });
  const get = (key) => (key in parts ? parts[key] : known[key]);
  const shared = Object.fromEntries(order.shared.map((key) => [key.slice(7), key in parts ? parts[key] : DATA.shared[key.slice(7)]]));
  const rest = Object.fromEntries(Object.entries(parts).filter(([key]) => !/^(group|run|shared) /.test(key)));
  DATA = { ...DATA, ...rest, at, groups: order.groups.map(get), runs: order.runs.map(get), shared };
  expand(DATA);
}

/* What the reader has opened and scrolled stays so when the page is drawn anew. */
function opened() {
  const nth = {}, place = (node, text) => { const key = `${state.view} ${text}`; nth[key] = (nth[key] || 0) + 1; return [key + " " + nth[key], node]; };
  return [new Map([...MAIN.querySelectorAll("details")].map((d) => place(d, d.querySelector("summary").textContent))),
    new Map([...MAIN.querySelectorAll(".scroll")].map((d) => place(d, d.getAttribute("aria-label"))))];
}

/* A served page follows the folder: the server sends a word when a record has changed, the page asks for the data. */
function follow() {
  if (!DATA.live) return;
  const source = new EventSource("events");
  let behind = false;  // a tab that nobody sees asks for nothing until it is looked at
  const catchUp = async () => {
    if (document.hidden) { behind = true; return; }
    behind = false;
    const answer = await fetch(`data.json?since=${DATA.at}`, { cache: "no-store" });
    if (!answer.ok) return;
    merge(await answer.json());
    const scroll = window.scrollY;
    draw();
    window.scrollTo(0, scroll);
  };
  source.addEventListener("update", catchUp);
  document.addEventListener("visibilitychange", () => { if (behind) catchUp(); });
  const say = (text) => { const badge = document.getElementById("live"); if (badge) badge.textContent = text; };
  source.addEventListener("open", () => say("live"));
  source.addEventListener("error", () => say("waiting for the server"));
}

addEventListener("hashchange", () => { readState(); draw(); });
addEventListener("popstate", () => { readState(); draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
let wasNarrow = narrow();
addEventListener("resize", () => { if (narrow() !== wasNarrow) { wasNarrow = narrow(); draw(); } });
for (const [event, starts] of [["beforeprint", true], ["afterprint", false]]) addEventListener(event, () => { printing = starts; draw(); });

MAIN.addEventListener("keydown", followArrows);
readState();
draw();
follow();
