"""The page in a real browser: draws without an error, answers to mouse and keyboard, stays inert, is accessible."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import records
from browser_pages import (  # noqa: F401 - fixtures
    CHROMIUM,
    IN_A_BROWSER,
    VIEWS,
    Tab,
    browser,
    column,
    methods,
    open_page,
    other,
    page,
    show,
    suite,
    tab,
)

from cl_bench.compare.dashboard import render
from cl_bench.compare.dashboard.serve import make_server
from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.records.results import load_all

pytestmark = IN_A_BROWSER


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_draws_in_both_themes_and_on_a_phone(page, view):
    for theme, width in (("light", 1280), ("dark", 1280), ("light", 375)):
        page.set_viewport_size({"width": width, "height": 740})
        show(page, view, theme=theme)
        assert page.locator("main h2").count() >= 1 or view == "sweep"  # no method of the suite has two settings
        assert page.locator('nav a[aria-current="page"]').get_attribute("id") == f"view-{view}"
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        charts = page.locator(".plot .main-svg").count()
        assert charts > 0 or view in ("leaderboard", "matrices", "statistics", "duel", "sweep", "runs", "differences")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"


def test_known_numbers(other, tmp_path):
    for seed, last in enumerate((70, 72, 74)):
        matrix = AccuracyMatrix.from_rates([[90, np.nan], [80, last]], size=1000)
        records.write(tmp_path / "runs", f"r{seed}", records.record(seed=seed, matrix=matrix))
    open_page(other, tmp_path / "runs")
    table = "split_digits · tiny_vit"
    assert column(other, "average_accuracy", table) == ["76.00± 2.48"]
    assert column(other, "backward_transfer", table) == ["−10.00± 0.00"]
    assert [t for t in other.locator("thead .unit").all_inner_texts() if "%" in t]
    other.click("#view-matrices")
    assert other.locator(".heat tbody td").all_text_contents() == ["90.0", "not measured", "80.0", "72.0"]


def test_sorting_by_any_column_and_back(page):
    table = "split_digits · tiny_vit"
    assert methods(page, table)[0] == "joint" and methods(page, table)[-1] == "sema"

    def values() -> list[float]:
        shown = column(page, "forgetting", table)
        return [float(t.split("±")[0].replace("−", "-")) for t in shown if "–" not in t]

    page.locator(f'table[data-group="{table}"] th button', has_text="forgetting").click()
    header = page.locator(f'table[data-group="{table}"] th[aria-sort]')
    assert values() == sorted(values()) and methods(page, table)[-1] == "sema"
    assert header.get_attribute("aria-sort") == "ascending"
    header.locator("button").click()
    assert values() == sorted(values(), reverse=True) and methods(page, table)[-1] == "sema"


def test_scenarios_side_by_side(page):
    table = page.locator("table.overview")
    assert table.count() == 1, "two scenarios share a metric, the stream stands alone"
    heads = [h.split("\n")[0] for h in table.locator("thead th").all_inner_texts()]
    assert heads == ["method", "split_digits", "split_glyphs", "mean rank"]
    cells = table.locator("tbody tr", has_text="codyra").locator("td.num").all_inner_texts()
    for scenario, text in zip(heads[1:3], cells, strict=True):
        row = page.locator(f'table[data-group="{scenario} · tiny_vit"] tr[data-method="codyra"]')
        assert row.locator('td[data-metric="average_accuracy"]').inner_text().split("±")[0].strip() in text
    page.select_option("#group", index=1)
    assert table.count() == 0


def test_filter_keeps_focus_and_state_is_in_the_address(page):
    page.click("#filter")
    page.keyboard.type("low-rank")
    assert methods(page, "split_digits · tiny_vit") == ["codyra", "lora"]
    assert "q=low-rank" in page.url and page.evaluate("document.activeElement.id") == "filter"
    page.reload()
    assert methods(page, "split_digits · tiny_vit") == ["codyra", "lora"]
    page.fill("#filter", "nothing like this")
    assert "No method matches" in page.inner_text("main")


def test_switching_methods_off_and_the_back_button(page):
    page.click("#view-matrices")
    assert page.locator(".heat").count() == 6
    page.locator(".chip", has_text="finetune").click()
    assert page.locator(".heat").count() == 5
    page.click("#view-runs")
    page.go_back()
    page.wait_for_selector("#view-matrices[aria-current=page]")
    assert page.locator(".chip[aria-pressed=false]").inner_text() == "finetune"


def test_differences_between_matrices(page):
    show(page, "matrices")
    page.select_option("#ref", "joint")
    first = page.locator(".heat tbody").nth(1).locator("td").first.inner_text()
    assert re.fullmatch(r"[+−]?\d+\.\d", first) and "points" in page.inner_text("main .ramp")


def test_definition_of_forgetting_can_be_chosen(page):
    show(page, "forgetting")
    page.select_option("#since", "learned")
    assert "since=learned" in page.url and "right after learning" in page.locator("figcaption").first.inner_text()


def test_runs_detail_and_differences(page):
    show(page, "runs")
    page.fill("#filter", "sema")
    page.click("#run-split_digits-sema-s0")
    text = page.inner_text("main")
    assert "matched no layer" in text and "Protocol fingerprint" in text and "failed" in text
    show(page, "runs", run="split_digits-codyra-s0")
    assert page.locator("section", has_text="Training loss").locator(".main-svg").count() > 0
    show(page, "differences", a="digits_c-tent-s0", b="digits_c-tent-s9")
    assert "0.1" in page.locator("tr", has_text="method.lr").inner_text()


def test_paired_tests_mirror(page):
    show(page, "statistics")
    cells = page.locator(".pairs tbody tr")
    above, below = cells.nth(0).locator("td").nth(1).inner_text(), cells.nth(1).locator("td").nth(0).inner_text()
    assert above.replace("−", "+").split() == below.split() and above != below


def test_downloads_are_the_exports(page):
    with page.expect_download() as caught:
        page.click("#save-tex")
    assert r"\toprule" in Path(caught.value.path()).read_text()


def test_hostile_names_are_text(other, tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>${alert(3)}<b>'
    matrix = AccuracyMatrix.from_rates([[90, np.nan], [80, 70]], rows=[evil, "b"], columns=[evil, "b"])
    given = {"label": evil, "family": evil, "error": evil, "config": {evil: evil}, "warnings": [evil]}
    events = [{"kind": "loss", "experience": evil, "step": 1, "value": 2}, {"kind": "warning", "text": evil}]
    for seed in range(2):
        learn = records.record(evil, evil, seed, matrix=matrix, **given)
        stream = records.record(evil + "2", evil, seed, kind="stream", stream=records.adapter_stream("tent", seed), **given)
        records.write(tmp_path / "runs", f"learn-{seed}", learn, events)
        records.write(tmp_path / "runs", f"stream-{seed}", stream, events)
    other.goto(render(load_all(tmp_path / "runs"), tmp_path / "p.html", title=evil).as_uri())
    for view in VIEWS:
        show(other, view)
        assert other.locator("main img, main script, main b").count() == 0
    show(other, "runs", run="learn-0")
    assert evil in other.inner_text("main") and other.inner_text("h1") == evil
    show(other, "<img src=x onerror=alert(4)>", q="<script>alert(5)</script>", run="<b>", off=evil)
    assert other.locator("main img, main script, main b").count() == 0


@pytest.mark.parametrize("theme,views", [("light", VIEWS), ("dark", ("leaderboard", "matrices", "statistics", "duel", "runs"))])
def test_accessibility(page, theme, views):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for view in views:
        show(page, view, theme=theme, **({"run": "split_digits-codyra-s0"} if view == "runs" else {}))
        found = [v for v in axe.Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
        assert not found, [(view, v["id"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"][:300]) for v in found]


def test_everything_is_reached_by_keyboard(page):
    stops = "a[href]:not([tabindex='-1']), button, select, input"  # arrows lead to the other numbers of a table
    wanted = set(page.eval_on_selector_all(stops, "nodes => nodes.map(n => n.id)"))
    assert "" not in wanted
    page.focus("#skip")
    reached = {"skip"}
    for _ in range(len(wanted) + 20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert wanted <= reached
    page.focus("#view-cost")
    page.keyboard.press("Enter")
    page.wait_for_selector("#view-cost[aria-current=page]")
    chip = page.locator(".chip").first.get_attribute("id")
    page.focus(f"#{chip}")
    page.keyboard.press("Space")
    assert page.get_attribute(f"#{chip}", "aria-pressed") == "false"
    assert page.evaluate("document.activeElement.id") == chip


def test_poor_records_draw_in_every_view(other, tmp_path):
    """One scenario where nothing was measured, one failed run, one single run, one unfinished: no view may break."""
    runs = tmp_path / "runs"
    records.write(runs, "empty", records.record("empty", metrics={"forgetting": None, "average_accuracy": None}))
    records.write(runs, "failed", records.record("failed", status="failed", error="out of memory"))
    records.write_learner(runs, "codyra", 0, scenario="single")
    records.write_adapter(runs, "tent", 0, scenario="single_stream")
    part = AccuracyMatrix.from_rates([[90, np.nan], [np.nan, np.nan]])
    records.write(runs, "part", records.record("part", matrix=part, status="running"), done=False)
    open_page(other, runs)
    text = other.inner_text("main")
    assert "1 failed" in text and "1 unfinished" in text and "–" in text
    assert "±" not in other.inner_text("table[data-group='single · tiny_vit']")
    groups = other.evaluate("DATA.groups.map(g => g.title + '#' + g.fingerprint)")
    assert len(groups) == 5
    for view in VIEWS:
        for group in groups if view not in ("runs", "differences") else groups[:1]:
            show(other, view, group=group)
            assert other.inner_text("main").strip()


def test_print_shows_the_view_without_controls(page):
    show(page, "forgetting")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator("#theme").is_visible()
    assert page.locator(".main-svg").first.is_visible()
    page.emulate_media(media="screen")


def test_paper_is_light_whatever_the_screen_is(page):
    show(page, "forgetting", theme="dark")
    theme, ink = "document.documentElement.dataset.theme", "document.querySelector('.plot').layout.font.color"
    on_screen = page.evaluate(ink)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(theme) == "light" and page.evaluate(ink) != on_screen
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(theme) == "dark" and page.evaluate(ink) == on_screen


def test_pointing_at_a_method_puts_it_before_the_others(page):
    show(page, "anytime")
    lines = """() => [...document.querySelectorAll('.plot .scatterlayer > .trace')]
        .map(t => [t.__data__[0].trace.meta, Number(t.style.opacity)])"""
    page.locator(".chip", has_text="osft").hover()
    chosen = page.evaluate("DATA.methods.findIndex(m => m.short === 'osft')")
    assert all((opacity == 1) == (method == chosen) for method, opacity in page.evaluate(lines))
    page.hover("h1")
    assert all(opacity == 1 for _, opacity in page.evaluate(lines))


def test_choices_without_labels_are_shown(page):
    show(page, "statistics")
    section = page.locator("section", has_text="Label-free selection").last
    assert "gap" in section.inner_text() and "Refused as collapsed beside the source model: tent" in section.inner_text()


def test_a_served_page_follows_the_runs(other, tmp_path):
    records.write_learner(tmp_path, "codyra", 0)
    server = make_server(tmp_path, interval=0.05)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        other.goto(server.url + "#view=leaderboard&q=lora")
        other.wait_for_selector("text=No method matches")
        other.wait_for_function("document.getElementById('live').textContent === 'live'")
        records.write_learner(tmp_path, "lora", 0)
        other.wait_for_selector('tr[data-method="lora"]', timeout=20_000)
        assert "q=lora" in other.url
        other.goto("about:blank")
    finally:
        server.close()
        thread.join(5)


def test_long_names_stay_apart_and_make_no_page_scroll_sideways(other, tmp_path):
    kinds = ("class_balanced", "reservoir", "herding")
    for k, kind in enumerate(kinds):
        for seed in range(2):
            name = f"low_rank_subspace_projection_with_{kind}_replay_and_distillation"
            matrix = records.learner_matrix("lora", seed + 10 * k)
            records.write(tmp_path / "runs", f"r{k}{seed}", records.record(
                "split_imagenet_r(increment=20)", name, seed, matrix=matrix, metrics=records.metrics_of_matrix(matrix),
                label=f"{name}(lr=0.001, weight_decay=0.0005)"))
    open_page(other, tmp_path / "runs")
    chips = other.locator(".chip span").all_inner_texts()
    assert len(set(chips)) == len(kinds) and all(any(kind in chip for chip in chips) for kind in kinds), chips
    for view in ("leaderboard", "forgetting", "statistics", "duel"):
        for width in (390, 1280):
            other.set_viewport_size({"width": width, "height": 800})
            show(other, view)
            assert other.evaluate("document.documentElement.scrollWidth") <= width, (view, width)
    show(other, "statistics")
    heads = other.evaluate("() => [...document.querySelectorAll('.pairs th')].map(e => e.scrollWidth - e.clientWidth)")
    assert len(heads) == 6 and max(heads) <= 0, "heads of the table of pairs are shortened by words, and not cut again"
