"""The page in a real browser: draws without an error, answers to mouse and keyboard, stays inert, is accessible."""

from __future__ import annotations

import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import records

from cl_bench.dashboard import render
from cl_bench.dashboard.serve import make_server
from cl_bench.matrix import AccuracyMatrix
from cl_bench.results import load_all

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CL_BENCH_CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
VIEWS = ("leaderboard", "matrices", "forgetting", "anytime", "stream", "balance", "cost", "statistics", "runs", "differences")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The page of a finished suite, as a file's address."""
    folder = tmp_path_factory.mktemp("suite")
    records.write_suite(folder / "runs", seeds=3)
    return render(load_all(folder / "runs"), folder / "page.html", title="Suite").as_uri()


@pytest.fixture
def page(browser):
    """A page that fails the test where the console said anything, or a script threw."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    made = context.new_page()
    said: list[str] = []
    made.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    made.on("pageerror", lambda error: said.append(str(error)))
    made.on("request", lambda request: said.append(request.url) if re.match(r"https?://(?!127\.)", request.url) else None)
    made.on("dialog", lambda dialog: (said.append("dialog: " + dialog.message), dialog.dismiss()))
    yield made
    context.close()
    assert said == []


def open_view(page, address: str, view: str = "leaderboard", **state: str) -> None:
    page.goto("about:blank")
    page.goto(f"{address}#view={view}" + "".join(f"&{k}={v}" for k, v in state.items()))
    page.wait_for_selector("main > *")


def column(page, metric: str, table: str) -> list[str]:
    return page.locator(f'table[data-group="{table}"] td[data-metric="{metric}"]').all_inner_texts()


def methods(page, table: str) -> list[str]:
    return page.eval_on_selector_all(f'table[data-group="{table}"] tbody tr', "rows => rows.map(r => r.dataset.method)")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_view_draws(page, suite, view, theme):
    open_view(page, suite, view, theme=theme)
    assert page.locator("main h2").count() >= 1
    assert page.locator('nav a[aria-current="page"]').get_attribute("id") == f"view-{view}"
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    charts = page.locator(".plot .main-svg").count()
    assert charts > 0 or view in ("leaderboard", "matrices", "statistics", "runs", "differences")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_needs_no_sideways_scrolling(browser, suite, view):
    context = browser.new_context(viewport={"width": 375, "height": 740})
    phone = context.new_page()
    open_view(phone, suite, view)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 375
    context.close()


def test_known_numbers(page, tmp_path):
    for seed, last in enumerate((70, 72, 74)):
        matrix = AccuracyMatrix.from_rates([[90, np.nan], [80, last]], size=1000)
        records.write(tmp_path / "runs", f"r{seed}", records.record(seed=seed, matrix=matrix))
    open_view(page, render(load_all(tmp_path / "runs"), tmp_path / "p.html").as_uri())
    table = "split_digits · tiny_vit"
    assert column(page, "average_accuracy", table) == ["76.00± 2.48"]
    assert column(page, "backward_transfer", table) == ["−10.00± 0.00"]
    assert [t for t in page.locator("thead .unit").all_inner_texts() if "%" in t]
    page.click("#view-matrices")
    assert page.locator(".heat tbody td").all_inner_texts() == ["90.0", "not measured", "80.0", "72.0"]


def test_sorting_by_any_column_and_back(page, suite):
    open_view(page, suite)
    table = "split_digits · tiny_vit"
    assert methods(page, table)[0] == "joint" and methods(page, table)[-1] == "sema"
    page.locator(f'table[data-group="{table}"] th button', has_text="forgetting").click()
    order = methods(page, table)
    values = [float(t.split("±")[0].replace("−", "-")) for t in column(page, "forgetting", table) if "–" not in t]
    assert values == sorted(values) and order[-1] == "sema"
    header = page.locator(f'table[data-group="{table}"] th[aria-sort]')
    assert header.get_attribute("aria-sort") == "ascending"
    header.locator("button").click()
    values = [float(t.split("±")[0].replace("−", "-")) for t in column(page, "forgetting", table) if "–" not in t]
    assert values == sorted(values, reverse=True) and methods(page, table)[-1] == "sema"


def test_filter_keeps_focus_and_state_is_in_the_address(page, suite):
    open_view(page, suite)
    page.click("#filter")
    page.keyboard.type("low-rank")
    assert methods(page, "split_digits · tiny_vit") == ["codyra", "lora"]
    assert "q=low-rank" in page.url and page.evaluate("document.activeElement.id") == "filter"
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    assert methods(page, "split_digits · tiny_vit") == ["codyra", "lora"]
    page.fill("#filter", "nothing like this")
    assert "No method matches" in page.inner_text("main")


def test_switching_methods_off_and_the_back_button(page, suite):
    open_view(page, suite, "matrices")
    assert page.locator(".heat").count() == 6
    page.locator(".chip", has_text="finetune").click()
    assert page.locator(".heat").count() == 5
    page.click("#view-cost")
    assert page.locator(".chip[aria-pressed=false]").count() == 0  # the stream's scenario comes first and has no finetune
    page.go_back()
    page.wait_for_selector("#view-matrices[aria-current=page]")
    assert page.locator(".chip[aria-pressed=false]").inner_text() == "finetune"


def test_differences_between_matrices(page, suite):
    open_view(page, suite, "matrices")
    page.select_option("#ref", "joint")
    first = page.locator(".heat tbody").nth(1).locator("td").first.inner_text()
    assert re.fullmatch(r"[+−]?\d+\.\d", first) and "points" in page.inner_text("main .ramp")


def test_definition_of_forgetting_can_be_chosen(page, suite):
    open_view(page, suite, "forgetting")
    page.select_option("#since", "learned")
    assert "since=learned" in page.url and "right after learning" in page.locator("figcaption").first.inner_text()


def test_runs_detail_and_differences(page, suite):
    open_view(page, suite, "runs")
    page.fill("#filter", "sema")
    page.click("#run-split_digits-sema-s0")
    text = page.inner_text("main")
    assert "matched no layer" in text and "Protocol fingerprint" in text and "failed" in text
    open_view(page, suite, "runs", run="split_digits-codyra-s0")
    assert page.locator("section", has_text="Training loss").locator(".main-svg").count() > 0
    open_view(page, suite, "differences", a="digits_c-tent-s0", b="digits_c-tent-s9")
    assert "0.1" in page.locator("tr", has_text="method.lr").inner_text()


def test_paired_tests_mirror(page, suite):
    open_view(page, suite, "statistics")
    cells = page.locator(".pairs tbody tr")
    above, below = cells.nth(0).locator("td").nth(1).inner_text(), cells.nth(1).locator("td").nth(0).inner_text()
    assert above.replace("−", "+").split() == below.split() and above != below


def test_downloads_are_the_exports(page, suite, tmp_path):
    open_view(page, suite)
    with page.expect_download() as caught:
        page.click("#save-tex")
    assert r"\toprule" in Path(caught.value.path()).read_text()


def test_hostile_names_are_text(page, tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>${alert(3)}<b>'
    for kind, scenario in (("learn", evil), ("stream", evil + "2")):
        for seed in range(2):
            run = records.record(scenario, evil, seed, kind=kind, label=evil, family=evil, error=evil, config={evil: evil},
                                 matrix=AccuracyMatrix.from_rates([[90, np.nan], [80, 70]], rows=[evil, "b"], columns=[evil, "b"])
                                 if kind == "learn" else None,
                                 stream=records.adapter_stream("tent", seed) if kind == "stream" else None, warnings=[evil])
            records.write(tmp_path / "runs", f"{kind}-{seed}", run, [{"kind": "loss", "experience": evil, "step": 1, "value": 2},
                                                                  {"kind": "warning", "text": evil}])
    address = render(load_all(tmp_path / "runs"), tmp_path / "p.html", title=evil).as_uri()
    for view in VIEWS:
        open_view(page, address, view)
        assert page.locator("main img, main script, main b").count() == 0
        page.evaluate("document.querySelectorAll('.plot .drag').forEach(d => d.dispatchEvent(new MouseEvent('mousemove')))")
    open_view(page, address, "runs", run="learn-0")
    assert evil in page.inner_text("main")
    page.goto(address + "#view=<img src=x onerror=alert(4)>&q=<script>alert(5)</script>&run=<b>")


@pytest.mark.parametrize("view", VIEWS)
def test_accessibility(page, suite, view):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for theme in ("light", "dark"):
        open_view(page, suite, view, theme=theme)
        found = [v for v in axe.Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
        assert not found, [(v["id"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"][:300]) for v in found]


def test_everything_is_reached_by_keyboard(page, suite):
    open_view(page, suite)
    wanted = set(page.eval_on_selector_all("a[href], button, select, input", "nodes => nodes.map(n => n.id)"))
    assert "" not in wanted
    reached = set()
    for _ in range(3 * len(wanted)):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert wanted <= reached
    page.locator("#view-cost").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#view-cost[aria-current=page]")
    page.locator("#chip-0").focus()
    page.keyboard.press("Space")
    assert page.locator("#chip-0").get_attribute("aria-pressed") == "false"
    assert page.evaluate("document.activeElement.id") == "chip-0"


@pytest.mark.parametrize("make,words", [
    (lambda: {}, "–"), (lambda: {"status": "failed", "error": "out of memory"}, "failed"),
    (lambda: {"metrics": {"forgetting": None, "average_accuracy": None}}, "–")])
def test_poor_records_draw_in_every_view(page, tmp_path, make, words):
    records.write(tmp_path / "runs", "one", records.record(**make()))
    address = render(load_all(tmp_path / "runs"), tmp_path / "p.html").as_uri()
    for view in VIEWS:
        open_view(page, address, view)
        assert page.inner_text("main").strip()
    open_view(page, address)
    assert words in page.inner_text("main")


def test_a_single_run_has_no_interval(page, tmp_path):
    records.write_learner(tmp_path / "runs", "codyra", 0)
    records.write_adapter(tmp_path / "runs", "tent", 0)
    address = render(load_all(tmp_path / "runs"), tmp_path / "p.html").as_uri()
    for view in VIEWS:
        open_view(page, address, view)
    open_view(page, address)
    assert "±" not in page.inner_text("table[data-group='split_digits · tiny_vit']")


def test_print_shows_the_view_without_controls(page, suite):
    open_view(page, suite, "forgetting")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator("#theme").is_visible()
    assert page.locator(".main-svg").first.is_visible()


def test_a_served_page_follows_the_runs(page, tmp_path):
    records.write_learner(tmp_path, "codyra", 0)
    server = make_server(tmp_path, interval=0.05)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        page.goto(server.url + "#view=leaderboard&q=lora")
        page.wait_for_selector("text=No method matches")
        page.wait_for_function("document.getElementById('live').textContent === 'live'")
        records.write_learner(tmp_path, "lora", 0)
        page.wait_for_selector('tr[data-method="lora"]', timeout=20_000)
        assert "q=lora" in page.url
        page.goto("about:blank")
    finally:
        server.close()
        thread.join(5)
