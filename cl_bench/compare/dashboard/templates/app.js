/* The page itself: navigation, theme, drawing, and following runs that go on. */

const MAIN = document.getElementById("main");

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
  document.getElementById("views").replaceChildren(...Object.entries(VIEWS).map(([key, view]) => el("a", { href: stateLink({ view: key, run: "", q: "", all: "" }), id: "view-" + key,
    "aria-current": key === state.view ? "page" : null }, view.title)));
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
  clearCharts(MAIN);
  const content = DATA.groups.length || state.view === "runs" ? VIEWS[state.view].build() : emptyNote("There is no run yet.");
  MAIN.replaceChildren(...[content].flat(Infinity).filter(Boolean));
  document.title = `${VIEWS[state.view].title} · ${DATA.title}`;
  flushCharts();
  const again = focus && document.getElementById(focus);
  if (again && again !== document.activeElement) {
    again.focus({ preventScroll: true });
    if (again.type === "search") again.setSelectionRange(selection, selection);
  }
}

/* A served page follows the folder: the server sends a word when a record has changed, the page asks for the data. */
function follow() {
  if (!DATA.live) return;
  const source = new EventSource("events");
  source.addEventListener("update", async () => {
    const answer = await fetch("data.json", { cache: "no-store" });
    if (!answer.ok) return;
    DATA = await answer.json();
    const scroll = window.scrollY;
    draw();
    window.scrollTo(0, scroll);
  });
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

readState();
draw();
follow();
