"""What the page concludes, in a real browser: marks, bounds, ailing runs, verdicts, paper."""

from __future__ import annotations

import json
import threading

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


@pytest.fixture(scope="module")
def honest(browser, tmp_path_factory):
    """Six seeds of a stable, a plastic and a diverged learner beside an upper bound, under two protocols."""
    runs = tmp_path_factory.mktemp("honest") / "runs"
    rates = {"stable": [[80, np.nan], [79, 60]], "plastic": [[95, np.nan], [70, 99]], "ewc": [[0, np.nan], [0, 0]],
             "joint": [[99, np.nan], [98, 97]]}
    for method, rows in rates.items():
        for seed in range(7):
            matrix = AccuracyMatrix.from_rates(np.array(rows) + (0 if method == "ewc" else seed / 50))
            records.write(runs, f"{method}-{seed}", records.record(method=method, seed=seed, matrix=matrix))
    records.write_learner(runs, "osft", 0, fields={"test_batch_size": 7})
    made = Tab(browser)
    made.page.goto(render(load_all(runs), runs.parent / "page.html", by="fingerprint").as_uri())
    yield made
    made.page.context.close()
    assert made.said == []


def test_marks_bold_and_interval_follow_the_sorted_column(honest):
    page = honest.page
    tables = page.eval_on_selector_all("table.leader", "nodes => nodes.map(t => t.dataset.group)")
    (table,) = [t for t in tables if t.endswith("size 64")]
    best = f'table[data-group="{table}"] tr.best'
    for column, wanted in (("average accuracy", "plastic"), ("forgetting", "stable")):
        page.locator(f'table[data-group="{table}"] th button', has_text=column).first.click()
        assert page.locator(best).get_attribute("data-method") == wanted
        lead = page.locator(f"{best} td.lead").get_attribute("data-metric")
        assert lead == column.replace(" ", "_") and page.locator(f"{best} td.lead + td svg.forest").count() == 1
    said = page.locator(f'table[data-group="{table}"] tr[data-method="plastic"] .mark').first.get_attribute("title")
    assert "behind the best; p = 0.016 against the best" in said


def test_a_bound_is_marked_and_never_best(honest):
    page = honest.page
    show(page, "leaderboard")
    row = page.locator('tr[data-method="joint"]')
    assert "†" in row.inner_text() and "upper bound" in row.inner_text() and "best" not in row.get_attribute("class")


@pytest.mark.parametrize("view", ["leaderboard", "matrices", "forgetting", "anytime", "balance", "cost", "statistics"])
def test_an_ailing_method_is_said_in_every_view(honest, view):
    page = honest.page
    show(page, view, group="split_digits · tiny_vit · test_batch_size 64")
    assert "ewc: 7 of 7 runs answered by chance right after learning" in page.inner_text("main")


def test_what_learned_nothing_has_no_forgetting(honest):
    show(honest.page, "leaderboard")
    row = honest.page.locator('tr[data-method="ewc"]')
    assert row.locator('td[data-metric="forgetting"]').inner_text().strip() == "–" and "nothing learned" in row.inner_text()


def test_the_forgetting_view_says_what_is_significant(honest):
    show(honest.page, "forgetting", group="split_digits · tiny_vit · test_batch_size 64")
    text = honest.page.inner_text("main")
    assert "Lowest forgetting: stable, 1.00 points. Significantly behind it: plastic (p = 0.016)." in text
    assert "Bounds, no competitors: joint 1.00" in text


def test_the_diagonal_has_one_scale_and_its_distance_is_the_backward_transfer(page):
    show(page, "balance")
    plot = "document.querySelector('.plot')"
    axes = page.evaluate(f"[{plot}._fullLayout.xaxis.range, {plot}._fullLayout.yaxis.range]")
    size = page.evaluate(f"[{plot}._fullLayout._size.w, {plot}._fullLayout._size.h]")
    assert axes[0] == axes[1] and size[0] == pytest.approx(size[1])
    group = page.evaluate("DATA.groups.findIndex(g => g.learn)")
    for row in page.evaluate(f"""DATA.groups[{group}].rows.map(r => {{ const e = DATA.groups[{group}].learn.methods[r.method];
            return e && [e.stability[0][0] - e.plasticity[0][0], r.cells.backward_transfer[2]]; }}).filter(Boolean)"""):
        assert row[0] == pytest.approx(row[1], abs=0.01) or row[1] is None


def test_times_that_cannot_be_compared_have_no_front(page):
    group = page.evaluate("DATA.groups[0].title")
    page.evaluate("DATA.groups[0].times = { wall: 'contended' }")
    show(page, "cost", group=group, cost="seconds")
    assert "No Pareto front" in page.inner_text("main") and "yes" not in page.locator("table.data td").all_inner_texts()
    show(page, "cost", group=group)
    assert "passes" in page.inner_text("h2") and "yes" in page.locator("table.data td").all_inner_texts()
    page.reload()


def test_too_few_pairs_come_before_any_p(page):
    show(page, "statistics")
    main = page.inner_text("main")
    assert "Too few pairs" in main and main.index("Too few pairs") < main.index("n = 3")
    assert not page.locator(".pairs small", has_text="p ").count()


def test_friedman_says_one_thing(page):
    show(page, "statistics")
    captions = page.locator("figcaption", has_text="Friedman").all_inner_texts()
    assert captions and all(text.count("p =") + text.count("p <") == 1 for text in captions)


def test_paper_holds_the_charts_and_their_legend(page):
    show(page, "forgetting")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.evaluate("() => Promise.all([...document.querySelectorAll('.plot')].map(d => d.drawn))")
    page.emulate_media(media="print")
    widths = page.eval_on_selector_all(".plot .main-svg", "nodes => nodes.map(n => n.getBoundingClientRect().width)")
    assert widths and max(widths) <= 941
    assert page.locator(".chip").first.is_visible(), "the legend"
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")


def test_a_colour_stays_with_its_name(page, other, tmp_path):
    """Another method that comes before it in the alphabet changes nothing."""
    colour = "name => methodStyle(DATA.methods.findIndex(m => m.name === name)).color"
    for k, names in enumerate((["lora"], ["aaa", "lora"])):
        for name in names:
            records.write(tmp_path / str(k), name, records.record(method=name))
        open_page(other, tmp_path / str(k))
        assert other.evaluate(colour, "lora") == page.evaluate(colour, "lora")


def test_what_the_reader_opened_stays_open_through_an_update(other, tmp_path):
    records.write_learner(tmp_path, "codyra", 0)
    records.write_learner(tmp_path, "lora", 0)
    server = make_server(tmp_path, interval=0.05)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        other.goto(server.url + "#view=anytime")
        other.wait_for_function("document.getElementById('live').textContent === 'live'")
        other.locator("details summary").first.click()
        records.write_learner(tmp_path, "osft", 0)
        other.wait_for_selector(".chip:has-text('osft')", timeout=30_000)
        assert other.locator("details").first.get_attribute("open") is not None
        assert other.evaluate("DATA.runs.length") == 3 and other.evaluate("DATA.at") >= 1
        other.goto("about:blank")
    finally:
        server.close()
        thread.join(5)


def test_the_verdict_stands_at_the_head_of_each_table(page):
    for group in page.evaluate("DATA.groups.map(g => [g.title, g.verdict])"):
        section = page.locator(f'section[aria-label="{group[0]}"]')
        assert group[1] and section.locator(".verdict p").first.inner_text() == group[1][0][0]


def test_tests_over_images_and_lost_images_are_shown(other, tmp_path):
    from test_image_inference import CLASSES, answered

    experiences = [{"name": f"step {k + 1}", "classes": list(c), "train_size": 1} for k, c in enumerate(CLASSES)]
    for seed in range(3):
        for method, keep in (("good", 0.97), ("bad", 0.6)):
            folder = answered(tmp_path / "runs", method, seed, keep)
            record = json.loads((folder / "run.json").read_text()) | {"experiences": experiences}
            (folder / "run.json").write_text(json.dumps(record))
    open_page(other, tmp_path / "runs", view="statistics", pair="forgetting")
    row = other.evaluate("DATA.groups[0].images.forgetting[0]")
    text = other.locator("table.images tbody tr").inner_text()
    assert f"{abs(row[2]):.1f}" in text and "3 × 80" in text and other.locator("table.images strong").count() >= 1
    show(other, "forgetting")
    cards = other.locator("section", has_text="Where lost images went").last.locator(".heat")
    assert cards.count() == 2 and "lost of step" in cards.first.locator("tbody td").first.get_attribute("title")
